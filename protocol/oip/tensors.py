"""A V2 tensor: a name, a datatype, a shape and a view on its elements.

Knows no encoding.  An array is always of the datatype's numpy form (see `datatypes`) and of the
tensor's shape; it is usually a view on the bytes it arrived in, so nobody may write to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from oip.datatypes import DATATYPES, datatype_of


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One named tensor of a request or an answer; `shape` includes the batch dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    array: np.ndarray
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, array: np.ndarray, datatype: str | None = None) -> "Tensor":
        """A tensor around an array; `datatype` is needed for BF16 alone, whose arrays look like UINT16.

        Strings become UTF-8 bytes.  Where a datatype is given, only its own kind of number is taken:
        float64 becomes FP32, but never an integer, and nothing but 16-bit integers is BF16.

        Raises:
            TypeError: the array's dtype has no counterpart in V2, or is of another kind than the datatype.
        """
        datatype = datatype or datatype_of(array)
        if datatype == "BYTES":
            array = bytes_array(array.reshape(-1), array.shape)
        else:
            casting: Literal["equiv", "same_kind"] = "equiv" if datatype == "BF16" else "same_kind"
            array = array.astype(DATATYPES[datatype].dtype, casting=casting, copy=False)
        return cls(name, datatype, array.shape, array)

    def __eq__(self, other: object) -> bool:
        """Equal in every part, elements bit for bit (so NaN equals NaN)."""
        if not isinstance(other, Tensor):
            return NotImplemented
        same_head = (self.name, self.datatype, self.shape, dict(self.parameters)) == (
            other.name,
            other.datatype,
            other.shape,
            dict(other.parameters),
        )
        if not same_head:
            return False
        if self.datatype == "BYTES":
            return bool(self.array.tolist() == other.array.tolist())
        return bool(self.array.tobytes() == other.array.tobytes())


def bytes_array(elements: Iterable[bytes | str], shape: tuple[int, ...]) -> np.ndarray:
    """An `object` array of `bytes` from as many elements as `shape` holds; strings are encoded as UTF-8.

    Raises:
        TypeError: an element is neither bytes nor a string.
        ValueError: the number of elements does not fit the shape.
    """
    items = [_bytes(element) for element in elements]
    array = np.empty(len(items), dtype=object)
    array[:] = items  # a plain np.array() would make a fixed-width array that drops trailing NULs
    return array.reshape(shape)


def _bytes(element: bytes | str) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, bytes | bytearray | memoryview):
        return bytes(element)
    # bytes(3) would be three zero bytes, which nobody means.
    raise TypeError(f"an element of a BYTES tensor is bytes or a string, got {type(element).__name__}")
