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
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


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
        Internal: the value holds NaN or infinity, for which JSON has no word.
    """
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY, default=_plain)
    # orjson writes them as null, so only a text with a null in it needs a second look.
    if b"null" in text and (path := _path_to_non_finite(value)) is not None:
        raise Internal(f"the answer holds NaN or infinity at {path or 'its top'}, which JSON cannot carry")
    return text


def deeper_than(body: bytes | bytearray | memoryview, limit: int) -> bool:
    """Whether brackets nest deeper than `limit`.

    Counting must cost nothing for a usual body, so everything but brackets is dropped at C speed
    first; only a text with more than `limit` of them is looked at one by one, and only one whose
    brackets seem too deep has its strings removed (a string may hold brackets of its own).
    """
    skeleton = bytes(body).translate(None, _NOT_BRACKETS)
    if len(skeleton) <= limit or _depth(skeleton) <= limit:
        return False
    return _depth(_STRING.sub(b"", bytes(body)).translate(None, _NOT_BRACKETS)) > limit


def _depth(brackets: bytes) -> int:
    deepest = level = 0
    for code in brackets:
        level += 1 if code in b"[{" else -1
        deepest = max(deepest, level)
    return deepest


def _path_to_non_finite(value: Any) -> str | None:
    """Where the first NaN or infinity is, as in `.predictions[0]`; None if there is none."""
    if isinstance(value, float | np.floating):
        return None if np.isfinite(value) else ""
    if isinstance(value, np.ndarray):
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
    """What orjson cannot write itself: big-endian or strided arrays, bytes in object arrays, mappings."""
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return [item.decode() if isinstance(item, bytes) else item for item in value.tolist()]
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return value.decode()
    return dict(value)  # a Mapping that is no dict; anything else raises TypeError here, as it should
