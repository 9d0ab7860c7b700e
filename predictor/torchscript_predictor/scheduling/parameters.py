"""The request parameters of the V2 schedule policy extension: `priority` and `timeout`."""

from collections.abc import Mapping
from typing import Any

from oip.errors import InvalidArgument

MAX = 2**64 - 1
"""The extension's numbers are unsigned 64-bit."""


def schedule_parameters(parameters: Mapping[str, Any]) -> tuple[int, int]:
    """(priority, timeout in microseconds), each 0 where the request has none.

    Raises:
        InvalidArgument: one is not a whole number from 0.
    """
    if not parameters:
        return 0, 0
    return _number(parameters, "priority", "a priority level"), _number(parameters, "timeout", "microseconds")


def _number(parameters: Mapping[str, Any], name: str, what: str) -> int:
    value = parameters.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX:
        raise InvalidArgument(
            f"parameter '{name}' must be {what}, a whole number from 0 (which means none), got {str(value)[:80]}"
        )
    return value
