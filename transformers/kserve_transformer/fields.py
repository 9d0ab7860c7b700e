"""Finding and unpacking the picture inside a V1 instance.

Knows JSON values and base64; knows no picture format.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pybase64

from oip.errors import InvalidArgument


def kind(value: Any) -> str:
    """A JSON value's kind in JSON's words, for messages."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def find(instance: Any, fields: Sequence[str]) -> tuple[str, Any]:
    """The first of the dotted `fields` that the instance has, and its value.

    Raises:
        InvalidArgument: it has none of them.
    """
    for field in fields:
        value = instance
        for key in field.split("."):
            if not isinstance(value, Mapping) or key not in value:
                break
            value = value[key]
        else:
            return field, value
    got = (
        f"an object with {', '.join(repr(str(key)[:40]) for key in list(instance)[:8]) or 'no keys'}"
        if isinstance(instance, Mapping)
        else kind(instance)
    )
    raise InvalidArgument(f"no picture; it must be base64 under one of {', '.join(fields)}, got {got}")


def decode_base64(text: Any, field: str, max_bytes: int) -> bytes:
    """The bytes behind standard base64, which may be broken into lines.

    The length is judged before anything is decoded, since it follows from the text's.

    Raises:
        InvalidArgument: no string, too long, or not base64.
    """
    if not isinstance(text, str):
        raise InvalidArgument(f"'{field}' must be a base64 string, got {kind(text)}")
    if not text:
        raise InvalidArgument(f"'{field}' is empty; it must be a picture in base64")
    size = len(text) // 4 * 3 - text[-2:].count("=")
    if size > max_bytes:
        raise InvalidArgument(f"'{field}' holds a picture of about {size} bytes, more than the limit of {max_bytes}")
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error, and characters outside ASCII
        unbroken = "".join(text.split())
        if len(unbroken) < len(text):  # what `base64` prints has a line break every 76 characters
            return decode_base64(unbroken, field, max_bytes)
        raise InvalidArgument(
            f"'{field}' is not valid base64: it must have A-Z a-z 0-9 + / only, padded with = to a multiple of four"
        ) from None
