"""The HTTP codec: what one side writes is what the other side reads, for every datatype, shape and form."""

import json
from dataclasses import replace

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from oip import http_codec
from oip.datatypes import DATATYPES
from oip.errors import BadAnswer, Internal, InvalidArgument, Unsupported
from oip.http_codec import (
    HEADER_LENGTH,
    decode_model_metadata,
    decode_request,
    decode_response,
    encode_model_metadata,
    encode_request,
    encode_response,
    encode_server_metadata,
)
from oip.messages import (
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    RequestedOutput,
    ServerMetadata,
    TensorMetadata,
)
from oip.tensors import Tensor, bytes_array

JSON_DATATYPES = [name for name, row in DATATYPES.items() if row.json]
TEXT = st.text(st.characters(codec="utf-8"))
NAMES = TEXT.filter(bool)
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
RESERVED = ("binary_data_size", "binary_data", "binary_data_output", "shared_memory_region")
PARAMETERS = st.dictionaries(
    TEXT.filter(lambda key: key not in RESERVED),
    TEXT | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    max_size=3,
)


@st.composite
def tensors(draw, *, json_form=False):
    """A tensor of any datatype and shape; with `json_form` one that JSON can carry."""
    datatype = draw(st.sampled_from(JSON_DATATYPES if json_form else list(DATATYPES)))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        element = TEXT.map(str.encode) if json_form else st.binary(max_size=9)
        count = int(np.prod(shape))
        array = bytes_array(draw(st.lists(element, min_size=count, max_size=count)), shape)
    else:
        dtype = DATATYPES[datatype].dtype
        finite = {"allow_nan": False, "allow_infinity": False} if json_form and dtype.kind == "f" else {}
        array = draw(npst.arrays(dtype, shape, elements=npst.from_dtype(dtype, **finite)))
    return Tensor(draw(NAMES), datatype, shape, array, draw(PARAMETERS))


@st.composite
def requests(draw, *, json_form):
    inputs = tuple(draw(st.lists(tensors(json_form=json_form), max_size=3)))
    outputs = draw(st.lists(st.builds(RequestedOutput, NAMES, st.booleans(), PARAMETERS), max_size=3))
    return InferenceRequest(
        draw(TEXT), inputs, tuple(outputs), draw(TEXT), draw(TEXT), draw(st.booleans()), draw(PARAMETERS)
    )


def request_through(request, *, binary):
    encoded = encode_request(request, binary=binary)
    return decode_request(
        encoded.body(),
        encoded.headers.get(HEADER_LENGTH),
        model_name=request.model_name,
        model_version=request.model_version,
    )


def response_through(response, request):
    encoded = encode_response(response, request)
    return decode_response(encoded.body(), encoded.headers.get(HEADER_LENGTH))


@given(requests(json_form=False))
def test_a_binary_request_arrives_as_it_was(request):
    assert request_through(request, binary=True) == request


@given(requests(json_form=True))
def test_a_json_request_arrives_as_it_was(request):
    assert request_through(request, binary=False) == request


@given(st.lists(tensors(), max_size=3, unique_by=lambda tensor: tensor.name), TEXT, PARAMETERS)
def test_a_binary_answer_arrives_as_it_was(outputs, text, parameters):
    response = InferenceResponse(text, text, tuple(outputs), text, parameters)
    assert response_through(response, InferenceRequest("", (), binary_output=True)) == response


@given(st.lists(tensors(json_form=True), max_size=3, unique_by=lambda tensor: tensor.name), st.data())
def test_an_answer_of_mixed_forms_arrives_as_it_was(outputs, data):
    response = InferenceResponse("m", "1", tuple(outputs))
    forms = tuple(RequestedOutput(tensor.name, data.draw(st.booleans())) for tensor in outputs)
    encoded = encode_response(response, InferenceRequest("", (), forms))
    assert decode_response(encoded.body(), encoded.headers.get(HEADER_LENGTH)) == response
    header = json.loads(encoded.chunks[0])
    for form, output in zip(forms, header["outputs"], strict=True):
        assert ("binary_data_size" in output.get("parameters", {})) is form.binary
        assert ("data" in output) is not form.binary


@given(NAMES, st.lists(TEXT), TEXT, st.lists(st.tuples(NAMES, st.sampled_from(list(DATATYPES)))))
def test_model_metadata_arrives_as_it_was(name, versions, platform, rows):
    described = tuple(TensorMetadata(row, datatype, (-1, 3, 0)) for row, datatype in rows)
    metadata = ModelMetadata(name, tuple(versions), platform, described, described[::-1])
    assert decode_model_metadata(orjson.dumps(encode_model_metadata(metadata))) == metadata


def test_server_metadata():
    assert encode_server_metadata(ServerMetadata("n", "1", ("a", "b"))) == {
        "name": "n",
        "version": "1",
        "extensions": ["a", "b"],
    }


# --- the form of what is written --------------------------------------------------------------------------------------


def one(datatype, array, name="x"):
    return InferenceRequest("m", (Tensor.of(name, array, datatype),))


def test_a_json_body_as_the_protocol_shows_it():
    encoded = encode_request(
        InferenceRequest("m", (Tensor.of("x", np.array([[1.5, 2]], np.float32)),), id="7"), binary=False
    )
    assert encoded.headers == {"Content-Type": "application/json"}
    assert json.loads(encoded.body()) == {
        "id": "7",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.0]}],
    }


def test_a_binary_body_as_the_extension_shows_it():
    request = InferenceRequest(
        "m",
        (Tensor.of("x", np.array([1, 2], np.int16)), Tensor.of("s", np.array([b"ab", b""], object))),
        (RequestedOutput("y", True),),
        binary_output=True,
    )
    encoded = encode_request(request)
    length = int(encoded.headers[HEADER_LENGTH])
    assert encoded.headers["Content-Type"] == "application/octet-stream"
    assert json.loads(encoded.body()[:length]) == {
        "parameters": {"binary_data_output": True},
        "inputs": [
            {"name": "x", "datatype": "INT16", "shape": [2], "parameters": {"binary_data_size": 4}},
            {"name": "s", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 10}},
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    assert encoded.body()[length:] == b"\1\0\2\0" + b"\2\0\0\0ab" + b"\0\0\0\0"
    assert length % 64 == 0


def test_binary_tensors_are_neither_copied_out_nor_in():
    array = np.arange(100_000, dtype=np.float32)
    encoded = encode_request(one("FP32", array))
    assert np.shares_memory(np.frombuffer(encoded.chunks[1], np.uint8), array)
    body = bytearray(encoded.body())
    decoded = decode_request(body, encoded.headers[HEADER_LENGTH]).inputs[0].array
    assert np.shares_memory(decoded, np.frombuffer(body, np.uint8))
    assert decoded.flags.writeable
    assert decoded.ctypes.data % 4 == 0


@pytest.mark.parametrize("layout", [lambda a: a.T, lambda a: a[::2], lambda a: a[:, ::-1], np.asfortranarray])
def test_an_array_of_any_layout_is_written_row_by_row(layout):
    array = layout(np.arange(12, dtype=np.int32).reshape(4, 3))
    for binary in (True, False):
        assert request_through(one("INT32", array), binary=binary).inputs[0].array.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("outputs", "binary_output", "binary"),
    [
        ((), False, {"a": False, "b": False}),
        ((), True, {"a": True, "b": True}),
        ((RequestedOutput("a", True),), False, {"a": True, "b": False}),
        ((RequestedOutput("a", False),), True, {"a": False, "b": True}),
    ],
)
def test_an_output_has_the_form_that_was_asked_for(outputs, binary_output, binary):
    response = InferenceResponse("m", "1", tuple(Tensor.of(name, np.zeros(1, np.int8)) for name in "ab"))
    encoded = encode_response(response, InferenceRequest("m", (), outputs, binary_output=binary_output))
    document = json.loads(encoded.chunks[0])
    assert {output["name"]: "data" not in output for output in document["outputs"]} == binary


@pytest.mark.parametrize(("value", "wanted"), [({}, True), ({"binary_data": False}, False)])
def test_binary_data_output_is_the_default_of_each_output(value, wanted):
    body = {
        "inputs": [],
        "outputs": [{"name": "y", "parameters": value}],
        "parameters": {"binary_data_output": True, "own": 1},
    }
    request = decode_request(orjson.dumps(body))
    assert request.outputs == (RequestedOutput("y", wanted),)
    assert request.binary_output
    assert request.parameters == {"own": 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_a_number_that_is_none_goes_out_in_binary_only(datatype, bad):
    output = Tensor.of("scores", np.array([1, bad]), datatype)
    response = InferenceResponse("m", "1", (output,))
    with pytest.raises(Internal, match="tensor 'scores' holds NaN or infinity"):
        encode_response(response, InferenceRequest("m", ()))
    assert response_through(response, InferenceRequest("m", (), binary_output=True)) == response


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_a_datatype_without_a_json_form_is_refused_with_the_way_out(datatype):
    tensor = Tensor.of("y", np.zeros(2, DATATYPES[datatype].dtype), datatype)
    with pytest.raises(InvalidArgument, match=f"{datatype} has no JSON form; ask for tensor 'y' in binary"):
        encode_response(InferenceResponse("m", "1", (tensor,)), InferenceRequest("m", ()))
    body = {"inputs": [{"name": "x", "datatype": datatype, "shape": [1], "data": [1]}]}
    with pytest.raises(InvalidArgument, match=f"{datatype} has no JSON form; send tensor 'x' as binary data"):
        decode_request(orjson.dumps(body))


def test_bytes_that_are_no_text_go_out_in_binary_only():
    response = InferenceResponse("m", "1", (Tensor("y", "BYTES", (1,), bytes_array([b"\xff\0"], (1,))),))
    with pytest.raises(InvalidArgument, match="tensor 'y' holds bytes that are no UTF-8 text"):
        encode_response(response, InferenceRequest("m", ()))
    assert response_through(response, InferenceRequest("m", (), binary_output=True)) == response


# --- what is read -----------------------------------------------------------------------------------------------------


def decode_one(datatype, shape, data, **entry):
    body = {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data, **entry}]}
    return decode_request(json.dumps(body).encode()).inputs[0].array


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "read"),
    [
        ("FP32", [2], [1, 2.5], [1.0, 2.5]),
        ("FP32", [2, 2], [[1, 2], [3, 4]], [[1.0, 2.0], [3.0, 4.0]]),
        ("FP32", [2, 2], [1, 2, 3, 4], [[1.0, 2.0], [3.0, 4.0]]),
        ("FP32", [4], [[1, 2], [3, 4]], [1.0, 2.0, 3.0, 4.0]),
        ("FP32", [], [1], 1.0),
        ("FP32", [0], [], []),
        ("FP32", [2, 0], [[], []], [[], []]),
        ("INT8", [0, 5], [], np.empty((0, 5)).tolist()),
        ("FP64", [1], [1e308], [1e308]),
        ("FP32", [1], [2**64 - 1], [float(2**64)]),
        ("UINT64", [2], [1, 2**64 - 1], [1, 2**64 - 1]),
        ("UINT64", [3], [2**63, 0, 2**63 - 1], [2**63, 0, 2**63 - 1]),
        ("INT64", [2], [-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1]),
        ("UINT8", [2], [0, 255], [0, 255]),
        ("INT8", [2], [-128, 127], [-128, 127]),
        ("BOOL", [2], [True, False], [True, False]),
        ("BYTES", [2], ["ä\0", ""], ["ä\0".encode(), b""]),
        ("BYTES", [2, 1], [["a"], ["b"]], [[b"a"], [b"b"]]),
        ("BYTES", [0], [], []),
        ("FP32", [1] * 64, [1], np.ones((1,) * 64).tolist()),
    ],
)
def test_json_data_is_read(datatype, shape, data, read):
    array = decode_one(datatype, shape, data)
    assert array.dtype == DATATYPES[datatype].dtype
    assert array.shape == tuple(shape)
    assert array.tolist() == read


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP32", [2], [1], "has 2 elements, its 'data' holds 1"),
        ("FP32", [1], [1, 2], "has 1 elements, its 'data' holds 2"),
        ("FP32", [2, 2], [[1, 2], [3]], "differ in length"),
        ("FP32", [3], [[1, 2], 3], "mixes lists"),
        ("FP32", [3], [1, [2, 3]], "needs numbers"),
        ("BYTES", [3], [["a"], ["b", "c"]], "differ in length"),
        ("BYTES", [3], [["a"], "b", "c"], "mixes lists"),
        ("BYTES", [1], [1], "needs strings in 'data', got a number"),
        ("BYTES", [1], [None], "needs strings in 'data', got null"),
        ("FP32", [2], ["1", 2], "needs numbers"),
        ("FP32", [2], [1, "2"], "needs numbers"),
        ("FP32", [1], [None], "needs numbers"),
        ("FP32", [2], [True, 2], "needs numbers"),
        ("FP32", [1], [{}], "needs numbers"),
        ("INT32", [2], [True, 2], "needs integers"),
        ("INT32", [2], [1, False], "needs integers"),
        ("INT32", [1], [1.0], "needs integers"),
        ("UINT64", [1], [2**64], "needs integers"),
        ("BOOL", [1], [1], "needs true and false"),
        ("BOOL", [2], [True, 0], "needs true and false"),
        ("FP32", [1], [1e39], "outside the range of FP32"),
        ("FP32", [1], [-1e39], "outside the range of FP32"),
        ("UINT8", [2], [1, 256], "UINT8 holds 0 to 255, got 256"),
        ("UINT8", [2], [-1, 256], "UINT8 holds 0 to 255, got -1"),
        ("INT8", [1], [128], "INT8 holds -128 to 127, got 128"),
        ("INT64", [1], [2**63], "INT64 holds"),
        ("UINT64", [2], [2**63, -1], "UINT64 holds 0 to 18446744073709551615, got -1"),
        ("FP32", [-1], [1], "each dimension must be an integer >= 0, got -1"),
        ("FP32", [True], [1], "each dimension must be an integer >= 0, got True"),
        ("FP32", [1.0], [1], "each dimension must be an integer"),
        ("FP32", ["1"], [1], "each dimension must be an integer"),
        ("FP32", [None], [1], "each dimension must be an integer"),
        ("FP32", 1, [1], "'shape' must be a list"),
        ("FP32", None, [1], "'shape' must be a list"),
        ("FP32", [1] * 65, [1], "at most 64 dimensions"),
        ("FP32", [2**32, 2**32], [], "elements"),
        ("FP32", [2**63 - 1, 2], [1], "elements"),
        ("FP32", [0, 2**63], [], "larger than an array can be"),
        ("FP32", [0, 2**62, 2**62], [], "larger than an array can be"),
        ("BYTES", [2**32, 2**32], [], "elements"),
        ("BYTES", [0, 2**64 - 1], [], "larger than an array can be"),
        ("FP8", [1], [1], "'datatype' must be one of BOOL"),
        (None, [1], [1], "'datatype' must be one of BOOL"),
        (["FP32"], [1], [1], "'datatype' must be one of BOOL"),
        ("fp32", [1], [1], "'datatype' must be one of BOOL"),
        ("FP32", [1], 1, "needs one of 'data'"),
        ("FP32", [1], None, "got neither"),
        ("FP32", [1], {"0": 1}, "got an object"),
        ("FP32", [1], "1", "got a string"),
    ],
)
def test_json_data_that_breaks_a_rule_is_refused_by_name(datatype, shape, data, message):
    with pytest.raises(InvalidArgument, match=message) as caught:
        decode_one(datatype, shape, data)
    assert "'x'" in caught.value.message


X = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "must be a JSON object, got a list"),
        (None, "must be a JSON object, got null"),
        ("x", "got a string"),
        ({}, "'inputs' is missing"),
        ({"inputs": None}, "'inputs' is missing"),
        ({"inputs": {}}, "'inputs' must be a list, got an object"),
        ({"inputs": [1]}, "each entry of 'inputs' must be an object, got a number"),
        ({"inputs": [{}]}, "each entry of 'inputs' needs a 'name'"),
        ({"inputs": [{**X, "name": ""}]}, "non-empty string"),
        ({"inputs": [{**X, "name": 1}]}, "non-empty string"),
        ({"inputs": [{**X, "parameters": []}]}, "'parameters' of tensor 'x' must be an object"),
        ({"inputs": [{**X, "parameters": {"a": []}}]}, "parameter 'a' of tensor 'x' must be a string, number or bool"),
        ({"inputs": [{**X, "parameters": {"a": None}}]}, "got null"),
        ({"inputs": [{**X, "parameters": {"a": {}}}]}, "got an object"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 4}}]}, "has both 'data' and 'binary_data_size'"),
        ({"inputs": [], "outputs": 1}, "'outputs' must be a list"),
        ({"inputs": [], "outputs": [1]}, "each entry of 'outputs' must be an object"),
        ({"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "must be true or false, got 1"),
        ({"inputs": [], "parameters": {"binary_data_output": "true"}}, "must be true or false, got 'true'"),
        ({"inputs": [], "parameters": 1}, "'parameters' of the request must be an object"),
        ({"inputs": [], "parameters": {"a": []}}, "parameter 'a' of the request"),
        ({"inputs": [], "id": 1}, "'id' must be a string, got a number"),
    ],
)
def test_a_document_that_breaks_a_rule_is_refused(body, message):
    with pytest.raises(InvalidArgument, match=message):
        decode_request(orjson.dumps(body))


def test_what_typed_clients_leave_null_is_absent():
    request = decode_request(
        orjson.dumps({"inputs": [{**X, "parameters": None}], "outputs": None, "id": None, "parameters": None})
    )
    assert (request.outputs, request.id, request.parameters) == ((), "", {})


def test_unknown_keys_are_ignored():
    body = {"model_name": "other", "inputs": [{**X, "extra": [1]}], "extra": {}}
    assert decode_request(orjson.dumps(body), model_name="m").model_name == "m"


def test_of_a_key_that_repeats_the_last_counts():
    body = b'{"inputs": 1, "id": "a", "inputs": [], "id": "b"}'
    assert decode_request(body).id == "b"


def test_a_tensor_in_shared_memory_is_not_served():
    parameters = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "parameters": parameters}]}
    with pytest.raises(Unsupported, match="tensor 'x' lies in shared memory"):
        decode_request(orjson.dumps(body))


def binary_request(datatype, shape, raw, size=None):
    header = orjson.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": datatype,
                    "shape": shape,
                    "parameters": {"binary_data_size": len(raw) if size is None else size},
                }
            ]
        }
    )
    return header + raw, str(len(header))


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "size", "message"),
    [
        ("FP32", [2], b"\0" * 4, None, r"takes 8 bytes, got 4"),
        ("FP32", [1], b"\0" * 8, None, r"takes 4 bytes, got 8"),
        ("FP32", [1], b"\0" * 4, 5, "announces 5 bytes of binary data, but only 4 follow"),
        ("FP32", [1], b"\0" * 5, 4, "1 bytes follow the last tensor"),
        ("FP32", [1], b"\0" * 4, -4, "must be a number of bytes, got -4"),
        ("FP32", [1], b"\0" * 4, True, "must be a number of bytes, got True"),
        ("FP32", [1], b"\0" * 4, 4.0, "must be a number of bytes, got 4.0"),
        ("FP32", [1], b"\0" * 4, "4", "must be a number of bytes, got '4'"),
        ("FP32", [1], b"\0" * 4, 2**64 - 1, "only 4 follow"),
        ("FP32", [2**32, 2**32], b"", None, "takes"),
        ("FP32", [2**32, 2**32], b"\0" * 4, None, "takes"),
        ("FP32", [0, 2**63], b"", None, "larger than an array can be"),
        ("BYTES", [1], b"", None, "1 string elements take more than the 0 bytes"),
        ("BYTES", [1], b"\1\0\0", None, "1 string elements take more than the 3 bytes"),
        ("BYTES", [2], b"\1\0\0\0a\0\0\0", None, "incomplete string length indicator at byte 5"),
        ("BYTES", [1], b"\2\0\0\0a", None, "a string of 2 bytes at byte 4, only 1 follow"),
        ("BYTES", [1], b"\xff\xff\xff\xffa", None, "a string of 4294967295 bytes"),
        ("BYTES", [2], b"\5\0\0\0aaaaa", None, "unexpected number of string elements 1, expecting 2"),
        ("BYTES", [1], b"\0\0\0\0\0\0\0\0", None, "unexpected number of string elements, expecting 1"),
        ("BYTES", [0], b"\0\0\0\0", None, "unexpected number of string elements, expecting 0"),
        ("BYTES", [2**40], b"\0" * 64, None, "string elements take more than the 64 bytes"),
    ],
)
def test_binary_data_that_breaks_a_rule_is_refused(datatype, shape, raw, size, message):
    with pytest.raises(InvalidArgument, match=message):
        decode_request(*binary_request(datatype, shape, raw, size))


@pytest.mark.parametrize("shape", [[], [0], [3, 0, 2]])
def test_binary_data_of_odd_shapes(shape):
    raw = b"\0\0\0\0" * int(np.prod(shape))
    for datatype in ("FP32", "BYTES"):
        assert decode_request(*binary_request(datatype, shape, raw)).inputs[0].array.shape == tuple(shape)


@pytest.mark.parametrize("length", ["", "-1", "+1", " 2", "2 ", "2.0", "0x2", "1e1", "²", "9" * 16, "9" * 5000, "two"])
def test_a_header_length_that_is_no_number_is_refused(length):
    with pytest.raises(InvalidArgument, match=f"{HEADER_LENGTH} must be a number of bytes") as caught:
        decode_request(b'{"inputs": []}', length)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("length", ["15", "999999999999999"])
def test_a_header_length_past_the_body_is_refused(length):
    with pytest.raises(InvalidArgument, match="but the body has 14 bytes"):
        decode_request(b'{"inputs": []}', length)


@pytest.mark.parametrize("length", ["0", "000"])
def test_raw_requests_are_not_served(length):
    with pytest.raises(Unsupported, match="raw binary requests"):
        decode_request(b'{"inputs": []}', length)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_body_may_be_any_buffer(kind):
    body, length = binary_request("INT16", [1], b"\1\0")
    assert decode_request(kind(body), length).inputs[0].array.tolist() == [1]


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_of_kserve_is_read():
    """Its servers write null for what is not set."""
    body = {
        "model_name": "m",
        "model_version": None,
        "id": None,
        "parameters": None,
        "outputs": [{"name": "y", "shape": [1], "datatype": "FP32", "parameters": None, "data": [1.0]}],
    }
    response = decode_response(orjson.dumps(body))
    assert (response.model_version, response.id) == ("", "")
    assert response.output("y").array.tolist() == [1.0]
    with pytest.raises(KeyError, match="no output 'z'; there are y"):
        response.output("z")


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"", None),
        (b"<html>", None),
        (b"[]", None),
        (b"{}", None),
        (b'{"outputs": [{}]}', None),
        (b'{"outputs": [], "model_name": 1}', None),
        (b'{"outputs": [], "id": {}}', None),
        (b'{"outputs": [], "parameters": {"a": []}}', None),
        (b'{"outputs": []}', "99"),
        (b'{"outputs": []}', "0"),
        (b'{"outputs": []}', "x"),
        (b'{"outputs": []}more', "15"),
        (b"[" * 1000, None),
    ],
)
def test_an_answer_that_breaks_the_protocol(body, length):
    with pytest.raises(BadAnswer, match="the predictor's answer breaks the V2 protocol"):
        decode_response(body, length)


@pytest.mark.parametrize(
    "body",
    [
        {"name": "m"},
        {"name": "m", "versions": None, "platform": None, "inputs": None, "outputs": None},
        {"name": "m", "versions": [], "platform": "", "inputs": [], "outputs": []},
    ],
)
def test_metadata_that_says_little_is_read(body):
    assert decode_model_metadata(orjson.dumps(body)) == ModelMetadata("m", (), "", (), ())


def test_versions_may_be_numbers():
    assert decode_model_metadata(b'{"name": "m", "versions": [1, "2"]}').versions == ("1", "2")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"name": 1}',
        b'{"versions": 5}',
        b'{"versions": "12"}',
        b'{"versions": [[]]}',
        b'{"inputs": 1}',
        b'{"inputs": [1]}',
        b'{"inputs": [{"name": "x"}]}',
        b'{"inputs": [{"name": "x", "datatype": "TYPE_FP32", "shape": [1]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}]}',
        b'{"outputs": [{"name": "x", "datatype": "FP32", "shape": null}]}',
    ],
)
def test_metadata_that_breaks_the_protocol(body):
    with pytest.raises(BadAnswer, match="the predictor's model metadata breaks the V2 protocol"):
        decode_model_metadata(body)


def test_a_parameter_of_a_tensor_survives_beside_the_sizes():
    tensor = Tensor("x", "INT8", (1,), np.zeros(1, np.int8), {"binary_data_size": 99, "own": "x"})
    decoded = request_through(InferenceRequest("m", (tensor,)), binary=True).inputs[0]
    assert decoded == replace(tensor, parameters={"own": "x"})


def test_the_limit_on_dimensions_is_numpys():
    np.empty((1,) * http_codec.MAX_RANK)
    with pytest.raises(ValueError):
        np.empty((1,) * (http_codec.MAX_RANK + 1))
