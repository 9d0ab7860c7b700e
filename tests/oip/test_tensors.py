"""Tensors as values: how they are made and when two are equal."""

from dataclasses import replace

import numpy as np
import pytest

from oip.datatypes import DATATYPES
from oip.tensors import Tensor, bytes_array

NUMBERS = [name for name in DATATYPES if name != "BYTES"]


@pytest.mark.parametrize("datatype", NUMBERS)
def test_of_keeps_an_array_that_fits_without_a_copy(datatype):
    array = np.zeros((2, 3), DATATYPES[datatype].dtype)
    tensor = Tensor.of("x", array, datatype)
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", datatype, (2, 3))
    assert np.shares_memory(tensor.array, array)


def test_of_finds_the_datatype_and_the_byte_order():
    tensor = Tensor.of("x", np.array([1, 2], ">i4"))
    assert tensor.datatype == "INT32"
    assert tensor.array.dtype.str == "<i4"
    assert tensor.array.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.array([1.5]), "FP32"),
        (np.array([1]), "FP32"),
        (np.array([1], np.uint8), "INT32"),
        (np.array([True]), "UINT8"),
    ],
)
def test_of_converts_within_a_kind_of_number(array, datatype):
    tensor = Tensor.of("x", array, datatype)
    assert tensor.array.dtype == DATATYPES[datatype].dtype
    assert tensor.array.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.array([1.5]), "INT32"),
        (np.array([1.5], np.float32), "BF16"),
        (np.array([1], np.int64), "BF16"),
        (np.array([1j]), "FP32"),
        (np.array([-1]), "UINT8"),
        (np.array([1]), "BYTES"),
        (np.array([None]), "BYTES"),
        (np.array([1j]), None),
    ],
)
def test_of_refuses_another_kind_of_number(array, datatype):
    with pytest.raises(TypeError):
        Tensor.of("x", array, datatype)


def test_of_takes_text_of_every_kind():
    for array in (np.array([["ä", "b"]]), np.array([["ä", b"b"]], object), np.array([["ä".encode(), b"b"]])):
        tensor = Tensor.of("x", array)
        assert (tensor.datatype, tensor.shape) == ("BYTES", (1, 2))
        assert tensor.array.tolist() == [["ä".encode(), b"b"]]


BASE = Tensor("x", "FP32", (2,), np.array([1.0, np.nan], np.float32), {"a": 1})


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, name="y"),
        replace(BASE, datatype="FP64", array=BASE.array.astype("f8")),
        replace(BASE, shape=(1, 2), array=BASE.array.reshape(1, 2)),
        replace(BASE, array=np.array([1.0, 2.0], np.float32)),
        replace(BASE, array=np.array([1.0, -np.nan], np.float32)),
        replace(BASE, parameters={}),
        "x",
    ],
)
def test_unequal(other):
    assert other != BASE


def test_equal_bit_for_bit():
    assert replace(BASE, array=BASE.array.copy(), parameters={"a": 1}) == BASE
    zeros = [replace(BASE, array=np.array([zero, 1], np.float32)) for zero in (0.0, -0.0)]
    assert zeros[0] != zeros[1]


def test_equal_whatever_the_layout():
    rows = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert Tensor.of("x", rows) == Tensor.of("x", np.asfortranarray(rows))


def test_equal_strings():
    first, second = (Tensor("x", "BYTES", (2,), bytes_array([b"a", b"b\0"], (2,))) for _ in range(2))
    assert first == second
    assert first != Tensor("x", "BYTES", (2,), bytes_array([b"a", b"b"], (2,)))


def test_bytes_array_keeps_every_byte():
    elements = [b"", b"\0", b"a\0\0", b"\xff\xfe", "ä", bytearray(b"c"), memoryview(b"d")]
    array = bytes_array(elements, (7, 1))
    assert array.dtype == object
    assert array.shape == (7, 1)
    assert array[:, 0].tolist() == [b"", b"\0", b"a\0\0", b"\xff\xfe", "ä".encode(), b"c", b"d"]
    assert {type(element) for element in array.flat} == {bytes}


@pytest.mark.parametrize(("elements", "shape"), [([b"a"], ()), ([], (0,)), ([], (2, 0, 3))])
def test_bytes_array_of_odd_shapes(elements, shape):
    assert bytes_array(elements, shape).shape == shape


@pytest.mark.parametrize(("elements", "shape"), [([b"a"], (2,)), ([], ()), ([b"a", b"b"], (1,))])
def test_bytes_array_of_another_length(elements, shape):
    with pytest.raises(ValueError):
        bytes_array(elements, shape)


@pytest.mark.parametrize("element", [3, 2**40, None, [1], 1.5])
def test_bytes_array_takes_no_number_for_so_many_zeros(element):
    with pytest.raises(TypeError, match="bytes or a string"):
        bytes_array([element], (1,))
