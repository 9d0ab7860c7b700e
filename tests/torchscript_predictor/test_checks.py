"""What is checked before a request is queued."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oip.errors import InvalidArgument
from oip.messages import InferenceRequest, RequestedOutput
from oip.tensors import Tensor
from torchscript_predictor.checks import RequestChecker
from torchscript_predictor.model_config import parse_model_config

TEXT = """
max_batch_size: %d
input [ { name: "A" data_type: TYPE_FP32 dims: [ 2, -1 ] }, { name: "B" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] }, { name: "Z" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


def checker(max_batch_size=4):
    return RequestChecker(parse_model_config(TEXT % max_batch_size, "m"))


def zeros(name, *shape, dtype=np.float32):
    return Tensor.of(name, np.zeros(shape, dtype))


def request(*inputs, outputs=()):
    return InferenceRequest("m", inputs, outputs)


def test_arrays_come_back_by_name():
    a, b = zeros("A", 3, 2, 5), zeros("B", 3, 1)
    arrays = checker().inputs(request(b, a))
    assert arrays["A"] is a.array
    assert arrays["B"] is b.array


@pytest.mark.parametrize(
    ("max_batch_size", "inputs", "message"),
    [
        (4, [zeros("A", 1, 2, 1)], "expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['A'], but missing"),
        (4, [], "missing required input(s) ['A','B']"),
        (4, [zeros("A", 1, 2, 1), zeros("X", 1, 1)], "unexpected inference input 'X' for model 'm'"),
        (4, [zeros("A", 1, 2, 1)] * 2, "input 'A' already exists in request"),
        (
            4,
            [zeros("A", 1, 2, 1), zeros("B", 1, 1, dtype=np.int32)],
            "inference input 'B' data-type is 'INT32', but model 'm' expects 'FP32'",
        ),
        (
            4,
            [zeros("A", 1, 3, 1), zeros("B", 1, 1)],
            "unexpected shape for input 'A' for model 'm'. Expected [-1,2,-1], got [1,3,1]. NOTE: Setting a non-zero",
        ),
        (4, [zeros("A", 2, 1), zeros("B", 1, 1)], "got [2,1]"),
        (4, [zeros("A"), zeros("B", 1, 1)], "got []"),
        (4, [zeros("A", 5, 2, 1), zeros("B", 5, 1)], "inference request batch-size must be <= 4 for 'm', got 5"),
        (4, [zeros("A", 2, 2, 1), zeros("B", 3, 1)], "input 'B' batch size does not match other inputs for 'm'"),
        (0, [zeros("A", 1, 2, 1), zeros("B", 1)], "Expected [2,-1], got [1,2,1]."),
    ],
)
def test_inputs_refused(max_batch_size, inputs, message):
    with pytest.raises(InvalidArgument) as caught:
        checker(max_batch_size).inputs(request(*inputs))
    assert message in caught.value.message
    assert ("NOTE" in caught.value.message) == ("unexpected shape" in caught.value.message and max_batch_size > 0)


def test_without_batching_dims_are_exact_and_minus_1_is_any():
    assert checker(0).inputs(request(zeros("A", 2, 0), zeros("B", 1))).keys() == {"A", "B"}


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3), st.integers(0, 3))
def test_exactly_fitting_shapes_pass(batch_a, batch_b, fixed, variable):
    fits = batch_a == batch_b <= 4 and fixed == 2
    inputs = request(zeros("A", batch_a, fixed, variable), zeros("B", batch_b, 1))
    try:
        checker().inputs(inputs)
    except InvalidArgument:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize(
    ("outputs", "names"),
    [((), ("Y", "Z")), (("Z",), ("Z",)), (("Z", "Y"), ("Z", "Y"))],
)
def test_outputs_in_the_order_asked_for(outputs, names):
    wanted = tuple(RequestedOutput(name) for name in outputs)
    assert checker().outputs(request(outputs=wanted)) == names


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        (("NO",), InvalidArgument, "unexpected inference output 'NO' for model 'm', allowed outputs are: Y, Z"),
        (("Y", "Y"), InvalidArgument, "output 'Y' already exists in request"),
    ],
)
def test_outputs_refused(outputs, error, message):
    with pytest.raises(error) as caught:
        checker().outputs(request(outputs=tuple(RequestedOutput(name) for name in outputs)))
    assert caught.value.message == message
