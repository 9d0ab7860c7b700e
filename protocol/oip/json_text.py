"""JSON as the services read and write it: bounded depth, numpy arrays, no NaN.

Knows no protocol.  Source of the depth limit: Triton refuses JSON nested deeper than 100.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from oip.errors import Internal, InvalidArgument

MAX_DEPTH = 100

_NOT_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""Brackets as the steps they take in depth: +1 and -1 of an int8."""
_STEPS_AT_ONCE = 1 << 16
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A string, or what follows a quote that nothing closes.  Possessive and with an optional end, so that no text
makes it read anything twice."""


def loads(body: bytes | bytearray | memoryview) -> Any:
    """The value of a JSON text.

    Raises:
        InvalidArgument: it is no JSON, or nested deeper than `MAX_DEPTH`.
    """
    if deeper_than(body, MAX_DEPTH):
        raise InvalidArgument(f"the JSON body is nested deeper than {MAX_DEPTH} levels; flatten it")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"the body is not valid JSON: {error}") from None


def dumps(value: Any) -> bytes:
    """Compact JSON; numpy arrays become (nested) lists.

    Raises:
        Internal: the value holds NaN or infinity, or a thing for which JSON has no word.
    """
    try:
        text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY, default=_plain)
    except orjson.JSONEncodeError:
        try:  # big-endian arrays are refused where orjson is to write arrays itself, but not where `_plain` does
            text = orjson.dumps(value, default=_plain)
        except orjson.JSONEncodeError as error:
            raise Internal(f"the answer cannot be written as JSON: {error}") from None
    # orjson writes them as null, so only a text with a null in it needs a second look.
    if b"null" in text and (path := _path_to_non_finite(value)) is not None:
        raise Internal(f"the answer holds NaN or infinity at {path or 'its top'}, which JSON cannot carry")
    return text


def deeper_than(body: bytes | bytearray | memoryview, limit: int) -> bool:
    """Whether brackets nest deeper than `limit`.

    Counting must cost little for any body, so everything but brackets is dropped at C speed first;
    only a text with more than `limit` of them has its levels added up, and only one whose brackets
    seem too deep has its strings removed (a string may hold brackets of its own).
    """
    text = bytes(body) if isinstance(body, memoryview) else body
    if not _passes(limit, text):
        return False
    return _passes(limit, _STRING.sub(b"", text))


def _passes(limit: int, text: bytes | bytearray) -> bool:
    """Whether the level passes `limit`, counting every bracket in the text."""
    steps = text.translate(_STEPS, _NOT_BRACKETS)
    if len(steps) <= limit:
        return False
    level = 0
    for start in range(0, len(steps), _STEPS_AT_ONCE):
        part = np.frombuffer(steps, np.int8, min(_STEPS_AT_ONCE, len(steps) - start), start)
        levels = part.cumsum(dtype=np.int64)
        if level + int(levels.max()) > limit:
            return True
        level += int(levels[-1])
    return False


def _path_to_non_finite(value: Any) -> str | None:
    """Where the first NaN or infinity is, as in `.predictions[0]`; None if there is none."""
    if isinstance(value, float | np.floating):
        return None if np.isfinite(value) else ""
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return _path_to_non_finite(value.tolist())
        return "" if value.dtype.kind == "f" and not np.isfinite(value).all() else None
    items: Any = ()
    if isinstance(value, Mapping):
        items = ((f".{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        items = ((f"[{index}]", item) for index, item in enumerate(value))
    for step, item in items:
        path = _path_to_non_finite(item)
        if path is not None:
            return f"{step}{path}"
    return None


def _plain(value: Any) -> Any:
    """What orjson does not write itself: big-endian or strided arrays, object arrays, bytes, mappings."""
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return [item.decode() if isinstance(item, bytes) else item for item in value.tolist()]
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return value.decode()
    return dict(value)  # a Mapping that is no dict; anything else raises TypeError here, as it should
