"""Outputs as their largest elements, in Triton's words."""

import numpy as np
import pytest

from oip.errors import InvalidArgument
from oip.tensors import Tensor
from torchscript_predictor.classification import classes, requested_classes


@pytest.mark.parametrize(
    ("values", "dtype", "count", "batches", "shape", "texts"),
    [
        ([[1, 9, 3]], "float32", 2, True, (1, 2), ["9.000000:1:b", "3.000000:2"]),
        ([[1, 9], [5, 4]], "float32", 1, True, (2, 1), ["9.000000:1:b", "5.000000:0:a"]),
        ([[1, 9], [5, 4]], "float32", 3, False, (3,), ["9.000000:1:b", "5.000000:2", "4.000000:3"]),
        ([[[1, 2], [3, 4]]], "float32", 2, True, (1, 2), ["4.000000:3", "3.000000:2"]),
        ([[2, 2, 1]], "float64", 9, True, (1, 3), ["2.000000:0:a", "2.000000:1:b", "1.000000:2"]),
        ([[-1.5, np.nan, np.inf]], "float32", 3, True, (1, 3), ["inf:2", "-1.500000:0:a", "nan:1:b"]),
        ([[1, 2]], "float16", 1, True, (1, 1), ["2.000000:1:b"]),
        ([[0, 255, 255]], "uint8", 3, True, (1, 3), ["255:1:b", "255:2", "0:0:a"]),
        ([[-(2**63), 2**63 - 1]], "int64", 2, True, (1, 2), ["9223372036854775807:1:b", "-9223372036854775808:0:a"]),
        ([[False, True]], "bool", 2, True, (1, 2), ["1:1:b", "0:0:a"]),
    ],
)
def test_the_largest_of_each_row(values, dtype, count, batches, shape, texts):
    found = classes(Tensor.of("y", np.array(values, dtype)), count, ("a", "b"), batches=batches)
    assert (found.name, found.datatype, found.shape) == ("y", "BYTES", shape)
    assert [text.decode() for text in found.array.reshape(-1)] == texts


@pytest.mark.parametrize("datatype", ["BYTES", "BF16"])
def test_what_has_no_order(datatype):
    array = np.array([[b"a"]], dtype=object) if datatype == "BYTES" else np.zeros((1, 1), np.uint16)
    with pytest.raises(InvalidArgument, match=f"output 'y' due to unsupported type {datatype}"):
        classes(Tensor.of("y", array, datatype), 1, (), batches=True)


def test_how_many_are_wanted():
    assert requested_classes({}, "y") == 0
    assert requested_classes({"classification": 3}, "y") == 3
    for wrong in (-1, True, "3", 1.5):
        with pytest.raises(InvalidArgument, match="'classification' of output 'y' must be the number of classes"):
            requested_classes({"classification": wrong}, "y")
