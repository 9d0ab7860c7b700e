"""Tensors that lie in shared memory: the three parameters that say where, in both transports' messages.

    shared_memory_region, shared_memory_byte_size, shared_memory_offset (0 if absent)

Knows no memory: whoever decodes a message brings a `RegionReader`.  A tensor of an answer that has these
parameters has no data in the message.

Source: Triton's extension_shared_memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oip.errors import InvalidArgument

REGION = "shared_memory_region"
BYTE_SIZE = "shared_memory_byte_size"
OFFSET = "shared_memory_offset"

_LIMIT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class RegionRange:
    """A range of bytes in a registered region."""

    region: str
    offset: int
    byte_size: int

    def parameters(self) -> dict[str, str | int]:
        """The parameters that say this."""
        parameters: dict[str, str | int] = {REGION: self.region, BYTE_SIZE: self.byte_size}
        if self.offset:
            parameters[OFFSET] = self.offset
        return parameters


RegionReader = Callable[[RegionRange], memoryview]
"""Gives the bytes of a range; raises `InvalidArgument` for one that is not there, `Unsupported` where none is."""


def region_range(parameters: Mapping[str, Any], where: str) -> RegionRange | None:
    """Where a tensor's parameters say that it lies; None if in no region.

    Raises:
        InvalidArgument: the parameters are no such thing; the message names the parameter and `where`.
    """
    if REGION not in parameters:
        for key in (BYTE_SIZE, OFFSET):
            if key in parameters:
                raise InvalidArgument(f"{where} has the parameter '{key}' but no '{REGION}'; give both or neither")
        return None
    region = parameters[REGION]
    if not isinstance(region, str) or not region:
        raise InvalidArgument(f"parameter '{REGION}' of {where} must be a region's name, a non-empty string")
    if BYTE_SIZE not in parameters:
        raise InvalidArgument(f"{where} lies in shared memory and needs the parameter '{BYTE_SIZE}'")
    return RegionRange(region, _count(parameters, OFFSET, where), _count(parameters, BYTE_SIZE, where))


def without_region(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are left once the range has been read."""
    return {key: value for key, value in parameters.items() if key not in (REGION, BYTE_SIZE, OFFSET)}


def _count(parameters: Mapping[str, Any], key: str, where: str) -> int:
    value = parameters.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LIMIT:
        raise InvalidArgument(f"parameter '{key}' of {where} must be a number of bytes from 0, got {str(value)[:40]!r}")
    return value
