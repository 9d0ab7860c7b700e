"""The V2 datatypes: wire names, their numpy form and their names in `config.pbtxt`.

Knows nothing of tensors or encodings.  Source: the protocol's "Tensor Data Types" table and
Triton's `model_config.proto` (enum `DataType`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Datatype:
    """One row of the table.

    `dtype` is little-endian, as on the wire.  BF16 has no numpy type: its arrays hold the
    16 bits as `uint16`, and only the datatype's name tells them from UINT16.  BYTES arrays
    are `object` arrays of `bytes`; `itemsize` is 0 because elements differ in length.
    """

    name: str
    config_name: str
    dtype: np.dtype[Any]
    itemsize: int
    json: bool  # may travel as JSON; FP16 and BF16 exist in binary form only


def _datatype(name: str, config_name: str, dtype: str, *, json: bool = True) -> Datatype:
    numpy_dtype: np.dtype[Any] = np.dtype(dtype)
    return Datatype(name, config_name, numpy_dtype, 0 if name == "BYTES" else numpy_dtype.itemsize, json)


DATATYPES: Mapping[str, Datatype] = MappingProxyType(
    {
        row.name: row
        for row in (
            _datatype("BOOL", "TYPE_BOOL", "?"),
            _datatype("UINT8", "TYPE_UINT8", "u1"),
            _datatype("UINT16", "TYPE_UINT16", "<u2"),
            _datatype("UINT32", "TYPE_UINT32", "<u4"),
            _datatype("UINT64", "TYPE_UINT64", "<u8"),
            _datatype("INT8", "TYPE_INT8", "i1"),
            _datatype("INT16", "TYPE_INT16", "<i2"),
            _datatype("INT32", "TYPE_INT32", "<i4"),
            _datatype("INT64", "TYPE_INT64", "<i8"),
            _datatype("FP16", "TYPE_FP16", "<f2", json=False),
            _datatype("FP32", "TYPE_FP32", "<f4"),
            _datatype("FP64", "TYPE_FP64", "<f8"),
            _datatype("BF16", "TYPE_BF16", "<u2", json=False),
            _datatype("BYTES", "TYPE_STRING", "O"),
        )
    }
)

BY_CONFIG_NAME: Mapping[str, Datatype] = MappingProxyType({row.config_name: row for row in DATATYPES.values()})

_BY_DTYPE = {row.dtype: row.name for row in DATATYPES.values() if row.name not in ("BF16", "BYTES")}


def datatype_of(array: np.ndarray) -> str:
    """The wire name for an array's dtype; `object`, `bytes` and `str` arrays are BYTES.

    Raises:
        TypeError: the dtype has no counterpart in V2 (complex numbers, dates).
    """
    if array.dtype.kind in "OSU":
        return "BYTES"
    try:
        return _BY_DTYPE[array.dtype.newbyteorder("<")]
    except KeyError:
        raise TypeError(f"numpy dtype {array.dtype} has no V2 datatype; use one of {', '.join(DATATYPES)}") from None
