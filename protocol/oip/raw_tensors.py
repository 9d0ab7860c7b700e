"""A tensor's bytes as both transports carry them: row-major, little-endian, strings behind their lengths.

HTTP has them behind the JSON part, gRPC in `raw_input_contents`.  Knows neither.

Source: Triton's extension_binary_data.
"""

import struct
from math import prod

import numpy as np

from oip.datatypes import Datatype
from oip.errors import InvalidArgument
from oip.tensors import Tensor, bytes_array

MAX_RANK = 64
"""numpy's limit on dimensions."""


def raw_of(tensor: Tensor) -> bytes | memoryview:
    """The tensor's bytes, without a copy where they already lie that way."""
    return _pack_bytes(tensor.array) if tensor.datatype == "BYTES" else _raw_view(tensor.array)


def array_from_raw(raw: memoryview, name: str, datatype: Datatype, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor's elements as a view on its bytes; BYTES elements are copied.

    Raises:
        InvalidArgument: the bytes do not fit the datatype and the shape.
    """
    count = prod(shape)
    if datatype.name == "BYTES":
        return reshaped(_unpack_bytes(raw, name, count), name, shape)
    if len(raw) != count * datatype.itemsize:
        raise InvalidArgument(
            f"tensor '{name}' of shape {list(shape)} and datatype {datatype.name} takes "
            f"{count * datatype.itemsize} bytes, got {len(raw)}"
        )
    array = np.frombuffer(raw, dtype=datatype.dtype) if count else np.empty(0, dtype=datatype.dtype)
    return reshaped(array, name, shape)


def reshaped(array: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array in the tensor's shape.

    Raises:
        InvalidArgument: no array can have that shape.
    """
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError):  # a zero beside dimensions whose product no array can have
        raise InvalidArgument(f"tensor '{name}': shape {list(shape)} is larger than an array can be") from None


def _raw_view(array: np.ndarray) -> memoryview:
    """The array's bytes in row-major order, without a copy where it already lies that way."""
    contiguous = np.ascontiguousarray(array).reshape(-1)
    return memoryview(contiguous.view(np.uint8).data) if contiguous.size else memoryview(b"")


def _pack_bytes(array: np.ndarray) -> bytes:
    """BYTES elements as the extension has them: each behind its length as a little-endian uint32."""
    pieces: list[bytes] = []
    for element in array.reshape(-1):
        pieces += (struct.pack("<I", len(element)), element)
    return b"".join(pieces)


def _unpack_bytes(raw: memoryview, name: str, count: int) -> np.ndarray:
    if 4 * count > len(raw):  # before anything is read: a length takes four bytes
        raise InvalidArgument(f"tensor '{name}': {count} string elements take more than the {len(raw)} bytes sent")
    elements: list[bytes] = []
    offset = 0
    while offset < len(raw):
        if len(elements) == count:
            raise InvalidArgument(
                f"tensor '{name}': unexpected number of string elements, expecting {count}; "
                f"{len(raw) - offset} bytes follow the last"
            )
        if offset + 4 > len(raw):
            raise InvalidArgument(f"tensor '{name}': incomplete string length indicator at byte {offset}")
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4
        if offset + length > len(raw):
            raise InvalidArgument(
                f"tensor '{name}': a string of {length} bytes at byte {offset}, only {len(raw) - offset} follow"
            )
        elements.append(bytes(raw[offset : offset + length]))
        offset += length
    if len(elements) != count:
        raise InvalidArgument(
            f"tensor '{name}': unexpected number of string elements {len(elements)}, expecting {count}"
        )
    return bytes_array(elements, (count,))
