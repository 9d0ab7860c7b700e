"""A V2 tensor: a name, a datatype, a shape and a view on its elements.

Knows no encoding.  An array is always of the datatype's numpy form (see `datatypes`) and of the
tensor's shape; it is usually a view on the bytes it arrived in, so nobody may write to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

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

        Strings become UTF-8 bytes.

        Raises:
            TypeError: the array's dtype has no counterpart in V2.
        """
        datatype = datatype or datatype_of(array)
        if datatype == "BYTES":
            array = bytes_array(array.reshape(-1), array.shape)
        else:
            array = np.asarray(array, dtype=DATATYPES[datatype].dtype)
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
        ValueError: the number of elements does not fit the shape.
    """
    items = [element.encode() if isinstance(element, str) else bytes(element) for element in elements]
    array = np.empty(len(items), dtype=object)
    array[:] = items  # a plain np.array() would make a fixed-width array that drops trailing NULs
    return array.reshape(shape)
