"""Finding and unpacking the picture inside a V1 instance.

Knows JSON values and base64; knows no picture format.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pybase64

from oip.errors import InvalidArgument


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
        f"an object with {', '.join(map(repr, list(instance)[:8])) or 'no keys'}"
        if isinstance(instance, Mapping)
        else "no object"
    )
    raise InvalidArgument(f"no picture; it must be base64 under one of {', '.join(fields)}, got {got}")


def decode_base64(text: Any, field: str, max_bytes: int) -> bytes:
    """The bytes behind standard base64.

    The length is judged before anything is decoded, since it follows from the text's.

    Raises:
        InvalidArgument: no string, too long, or not base64.
    """
    if not isinstance(text, str):
        raise InvalidArgument(f"'{field}' must be a base64 string, got {type(text).__name__}")
    if len(text) // 4 * 3 - text[-2:].count("=") > max_bytes:
        raise InvalidArgument(
            f"'{field}' holds a picture of about {len(text) // 4 * 3} bytes, more than the limit of {max_bytes}"
        )
    if not text:
        raise InvalidArgument(f"'{field}' is empty; it must be a picture in base64")
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error, and characters outside ASCII
        raise InvalidArgument(
            f"'{field}' is not valid base64: it must have A-Z a-z 0-9 + / only, padded with = to a multiple of four"
        ) from None
