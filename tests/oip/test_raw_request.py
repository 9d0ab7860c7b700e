"""Requests that are one tensor's bytes and nothing else."""

import numpy as np
import pytest

from oip.errors import InvalidArgument
from oip.messages import ModelMetadata, TensorMetadata
from oip.raw_request import raw_request


def metadata(*shape, datatype="FP32", inputs=1):
    return ModelMetadata("m", ("1",), "p", tuple(TensorMetadata(f"x{i}", datatype, shape) for i in range(inputs)), ())


@pytest.mark.parametrize(
    ("declared", "batches", "count", "shape"),
    [
        ((-1, 4), True, 4, (1, 4)),
        ((-1, 2, -1), True, 6, (1, 2, 3)),
        ((4,), False, 4, (4,)),
        ((-1,), False, 5, (5,)),
        ((2, -1), False, 8, (2, 4)),
        ((-1,), False, 0, (0,)),
    ],
)
def test_the_shape_is_deduced(declared, batches, count, shape):
    values = np.arange(count, dtype=np.float32)
    request = raw_request(bytearray(values.tobytes()), metadata(*declared), batches=batches, model_version="2")
    [tensor] = request.inputs
    assert (request.model_name, request.model_version, request.binary_output) == ("m", "2", True)
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x0", "FP32", shape)
    assert tensor.array.reshape(-1).tolist() == values.tolist()
    assert tensor.array.flags.writeable or count == 0


@pytest.mark.parametrize(("declared", "batches"), [((-1, 1), True), ((1,), False), ((-1,), False)])
def test_a_string_is_the_body(declared, batches):
    request = raw_request(bytearray(b"\x00text"), metadata(*declared, datatype="BYTES"), batches=batches)
    assert request.inputs[0].array.reshape(-1).tolist() == [b"\x00text"]
    assert all(dimension == 1 for dimension in request.inputs[0].shape)


@pytest.mark.parametrize(
    ("declared", "options", "body", "message"),
    [
        ((-1, 4), {"inputs": 2}, b"", "must only have 1 input"),
        ((-1, 4), {}, b"123", "takes 16 bytes, got 3"),
        ((-1, -1, 3), {}, b"1234", "no multiple of 12"),
        ((-1, -1, -1), {}, b"1234", "more than one variable-sized dimension"),
        ((-1, 2), {"datatype": "BYTES"}, b"1234", "must have input shape"),
    ],
)
def test_what_cannot_be_deduced_is_refused(declared, options, body, message):
    with pytest.raises(InvalidArgument, match=message):
        raw_request(bytearray(body), metadata(*declared, **options), batches=True)
