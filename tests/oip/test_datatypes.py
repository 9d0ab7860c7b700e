"""The table of datatypes, row by row."""

import numpy as np
import pytest

from oip.datatypes import BY_CONFIG_NAME, DATATYPES, datatype_of

# wire name, Triton's name in config.pbtxt, numpy's name on a little-endian machine, bytes an element, JSON form
ROWS = [
    ("BOOL", "TYPE_BOOL", "bool", 1, True),
    ("UINT8", "TYPE_UINT8", "uint8", 1, True),
    ("UINT16", "TYPE_UINT16", "uint16", 2, True),
    ("UINT32", "TYPE_UINT32", "uint32", 4, True),
    ("UINT64", "TYPE_UINT64", "uint64", 8, True),
    ("INT8", "TYPE_INT8", "int8", 1, True),
    ("INT16", "TYPE_INT16", "int16", 2, True),
    ("INT32", "TYPE_INT32", "int32", 4, True),
    ("INT64", "TYPE_INT64", "int64", 8, True),
    ("FP16", "TYPE_FP16", "float16", 2, False),
    ("FP32", "TYPE_FP32", "float32", 4, True),
    ("FP64", "TYPE_FP64", "float64", 8, True),
    ("BF16", "TYPE_BF16", "uint16", 2, False),
    ("BYTES", "TYPE_STRING", "object", 0, True),
]


def test_there_are_these_rows_and_no_others():
    assert [row[0] for row in ROWS] == list(DATATYPES)
    assert [row[1] for row in ROWS] == list(BY_CONFIG_NAME)


@pytest.mark.parametrize(("name", "config_name", "numpy_name", "itemsize", "json"), ROWS)
def test_row(name, config_name, numpy_name, itemsize, json):
    row = DATATYPES[name]
    assert (row.name, row.config_name, row.itemsize, row.json) == (name, config_name, itemsize, json)
    assert row.dtype == np.dtype(numpy_name)
    assert row.dtype.str[0] in "<|"
    assert BY_CONFIG_NAME[config_name] is row
    if name != "BYTES":
        assert row.itemsize == row.dtype.itemsize


def test_config_names_are_those_of_the_model_configuration():
    from oip.proto import message_class

    field = message_class("ModelInput").DESCRIPTOR.fields_by_name["data_type"]
    assert {value.name for value in field.enum_type.values} - {"TYPE_INVALID"} == set(BY_CONFIG_NAME)


def test_the_tables_cannot_be_changed():
    with pytest.raises(TypeError):
        DATATYPES["INT4"] = DATATYPES["INT8"]


@pytest.mark.parametrize("row", [row for row in ROWS if row[0] not in ("BF16", "BYTES")], ids=lambda row: row[0])
def test_datatype_of_an_array_of_either_byte_order(row):
    dtype = np.dtype(row[2])
    assert datatype_of(np.zeros(1, dtype)) == row[0]
    assert datatype_of(np.zeros(1, dtype.newbyteorder(">"))) == row[0]


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([b"a"]), np.array(["a"], object)], ids=["U", "S", "O"])
def test_datatype_of_text(array):
    assert datatype_of(array) == "BYTES"


@pytest.mark.parametrize("spelling", ["l", "q", "i", "L", "Q"])
def test_datatype_of_every_c_spelling_of_an_integer(spelling):
    assert datatype_of(np.zeros(1, spelling)) in ("INT64", "INT32", "UINT64")


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "timedelta64[s]", "longdouble", [("a", "i4")]])
def test_a_dtype_without_a_datatype_is_named(dtype):
    with pytest.raises(TypeError, match="no V2 datatype; use one of BOOL"):
        datatype_of(np.zeros(1, dtype))
