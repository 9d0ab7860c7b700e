"""NVIDIA's own client as the independent peer: each side reads what the other writes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from oip.datatypes import DATATYPES
from oip.http_codec import HEADER_LENGTH, decode_request, encode_response
from oip.messages import InferenceRequest, InferenceResponse, RequestedOutput
from oip.tensors import Tensor, bytes_array

http = pytest.importorskip("tritonclient.http")

# BF16 is ml_dtypes' to their client, 16 bits to us: it has a test of its own.
PLAIN = [name for name in DATATYPES if name not in ("BF16", "BYTES")]
SHAPES = npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


def their_request(tensors, **options):
    """The body and header length of their encoder for {name: (datatype, array, binary)}."""
    inputs = []
    for name, (datatype, array, binary) in tensors.items():
        tensor = http.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    body, length = http.InferenceServerClient.generate_request_body(inputs, **options)
    return decode_request(body, None if length is None else str(length), model_name="m")


def their_reading(response, request):
    encoded = encode_response(response, request)
    length = encoded.headers.get(HEADER_LENGTH)
    return http.InferenceServerClient.parse_response_body(
        encoded.body(), header_length=None if length is None else int(length)
    )


@st.composite
def arrays(draw, *, finite):
    datatype = draw(st.sampled_from([name for name in PLAIN if DATATYPES[name].json or not finite]))
    dtype = DATATYPES[datatype].dtype
    options = {"allow_nan": False, "allow_infinity": False} if finite and dtype.kind == "f" else {}
    return datatype, draw(npst.arrays(dtype, SHAPES, elements=npst.from_dtype(dtype, **options)))


@pytest.mark.parametrize("binary", [True, False])
@given(data=st.data())
def test_we_read_their_requests(binary, data):
    datatype, array = data.draw(arrays(finite=not binary))
    request = their_request({"x": (datatype, array, binary)}, request_id="7")
    assert request.inputs == (Tensor.of("x", array, datatype),)
    assert (request.id, request.binary_output) == ("7", True)


@pytest.mark.parametrize("binary", [True, False])
@given(data=st.data())
def test_they_read_our_answers(binary, data):
    datatype, array = data.draw(arrays(finite=not binary))
    response = InferenceResponse("m", "1", (Tensor.of("y", array, datatype),), "7")
    result = their_reading(response, InferenceRequest("m", (), binary_output=binary))
    read = result.as_numpy("y")
    assert read.shape == array.shape
    assert read.dtype == array.dtype
    assert read.tobytes() == array.tobytes()
    assert (result.get_response()["id"], result.get_response()["model_version"]) == ("7", "1")


STRINGS = [b"", b"one", b"a\0b", "ä".encode(), b"\xff\xfe"]


def test_we_read_their_strings():
    request = their_request({"x": ("BYTES", np.array(STRINGS, object), True)})
    assert request.inputs == (Tensor("x", "BYTES", (5,), bytes_array(STRINGS, (5,))),)
    text = STRINGS[:4]
    request = their_request({"x": ("BYTES", np.array(text, object), False)})
    assert request.inputs == (Tensor("x", "BYTES", (4,), bytes_array(text, (4,))),)


@pytest.mark.parametrize("binary", [True, False])
def test_they_read_our_strings(binary):
    strings = STRINGS if binary else STRINGS[:4]
    response = InferenceResponse("m", "1", (Tensor("y", "BYTES", (len(strings),), bytes_array(strings, (-1,))),))
    read = their_reading(response, InferenceRequest("m", (), binary_output=binary)).as_numpy("y")
    assert [item if binary else item.encode() for item in read] == strings


def test_bf16_goes_both_ways():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    numbers = np.array([[1.0, -2.5, 3.140625]], bfloat16)
    tensor = Tensor.of("x", numbers.view(np.uint16), "BF16")
    assert their_request({"x": ("BF16", numbers, True)}).inputs == (tensor,)
    answer = InferenceResponse("m", "1", (tensor,))
    read = their_reading(answer, InferenceRequest("m", (), binary_output=True)).as_numpy("x")
    assert read.astype(np.float32).tolist() == numbers.astype(np.float32).tolist()


def test_mixed_forms_and_every_option_of_theirs():
    request = their_request(
        {
            "a": ("FP32", np.ones((1, 2), np.float32), True),
            "b": ("INT64", np.array([[-(2**63)]]), False),
            "c": ("BYTES", np.array([b"x"], object), True),
        },
        outputs=[http.InferRequestedOutput("y", binary_data=True), http.InferRequestedOutput("z", binary_data=False)],
        request_id="id",
        sequence_id=5,
        sequence_start=True,
        priority=2,
        timeout=1_000_000,
        parameters={"own": "x", "number": 1, "flag": True},
    )
    assert [(tensor.name, tensor.datatype, tensor.array.tolist()) for tensor in request.inputs] == [
        ("a", "FP32", [[1.0, 1.0]]),
        ("b", "INT64", [[-(2**63)]]),
        ("c", "BYTES", [b"x"]),
    ]
    assert request.outputs == (RequestedOutput("y", True), RequestedOutput("z", False))
    assert not request.binary_output
    assert request.parameters == {
        "sequence_id": 5,
        "sequence_start": True,
        "sequence_end": False,
        "priority": 2,
        "timeout": 1_000_000,
        "own": "x",
        "number": 1,
        "flag": True,
    }


def test_an_answer_of_mixed_forms():
    response = InferenceResponse(
        "m", "1", (Tensor.of("a", np.ones((2, 1), np.float64)), Tensor.of("b", np.array([b"x"], object)))
    )
    request = InferenceRequest("m", (), (RequestedOutput("a", True), RequestedOutput("b", False)))
    result = their_reading(response, request)
    assert result.as_numpy("a").tolist() == [[1.0], [1.0]]
    assert result.as_numpy("b").tolist() == ["x"]
