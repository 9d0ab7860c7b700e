"""The gRPC codec: what one side writes is what the other side reads, and what protobuf itself makes of it."""

import contextlib
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from oip import grpc_codec
from oip.datatypes import DATATYPES
from oip.errors import BadAnswer, Internal, InvalidArgument, Unsupported
from oip.grpc_codec import (
    FINAL_RESPONSE,
    MAX_FIELDS,
    decode_model_metadata,
    decode_request,
    decode_response,
    encode_model_config,
    encode_model_metadata,
    encode_request,
    encode_response,
    encode_server_metadata,
    encode_stream_error,
    encode_stream_response,
)
from oip.messages import (
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    RequestedOutput,
    ServerMetadata,
    TensorMetadata,
)
from oip.proto import message_class
from oip.regions import RegionRange
from oip.tensors import Tensor, bytes_array

Request, Response = message_class("ModelInferRequest"), message_class("ModelInferResponse")
TEXT = st.text(st.characters(codec="utf-8"))
NAMES = TEXT.filter(bool)
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
PARAMETERS = st.dictionaries(
    TEXT, TEXT | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False), max_size=3
)


@st.composite
def tensors(draw):
    datatype = draw(st.sampled_from(list(DATATYPES)))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        count = int(np.prod(shape))
        array = bytes_array(draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count)), shape)
    else:
        dtype = DATATYPES[datatype].dtype
        array = draw(npst.arrays(dtype, shape, elements=npst.from_dtype(dtype)))
    return Tensor(draw(NAMES), datatype, shape, array, draw(PARAMETERS))


TENSORS = st.lists(tensors(), max_size=3).map(tuple)
OUTPUTS = st.lists(st.builds(RequestedOutput, NAMES, st.just(True), PARAMETERS), max_size=3).map(tuple)
REQUESTS = st.builds(InferenceRequest, TEXT, TENSORS, OUTPUTS, TEXT, TEXT, st.just(True), PARAMETERS)
RESPONSES = st.builds(InferenceResponse, TEXT, TEXT, TENSORS, TEXT, PARAMETERS)


def one(tensor: Tensor, **parts) -> InferenceRequest:
    return InferenceRequest("m", (tensor,), binary_output=True, **parts)


def typed(datatype: str, field: str, elements, shape=None) -> bytes:
    message = Request(model_name="m")
    item = message.inputs.add(name="x", datatype=datatype, shape=[len(elements)] if shape is None else shape)
    getattr(item.contents, field).extend(elements)
    return message.SerializeToString()


# --- both directions --------------------------------------------------------------------------------------------------


@given(REQUESTS)
def test_a_request_comes_back(request):
    assert decode_request(encode_request(request)) == request


@given(RESPONSES)
def test_an_answer_comes_back(response):
    assert decode_response(encode_response(response)) == response


@given(REQUESTS)
def test_protobuf_reads_a_request_as_we_do(request):
    message = Request.FromString(encode_request(request))
    assert len(message.raw_input_contents) == len(message.inputs) == len(request.inputs)
    assert decode_request(message.SerializeToString()) == request  # its own order of fields


@given(RESPONSES)
def test_a_stream_s_answer_is_the_answer_marked_as_the_last(response):
    message = message_class("ModelStreamInferResponse").FromString(encode_stream_response(response))
    assert message.error_message == ""
    expected = replace(response, parameters={**response.parameters, FINAL_RESPONSE: True})
    assert decode_response(message.infer_response.SerializeToString()) == expected


def test_a_stream_s_error_names_its_request():
    message = message_class("ModelStreamInferResponse").FromString(encode_stream_error("no", "7"))
    assert (message.error_message, message.infer_response.id) == ("no", "7")
    assert message.infer_response.parameters[FINAL_RESPONSE].bool_param


def test_a_tensor_is_a_view_on_the_message():
    body = encode_request(one(Tensor.of("x", np.arange(1000, dtype=np.float32))))
    array = decode_request(body).inputs[0].array
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))
    assert not array.flags.writeable


def test_no_field_but_the_raw_ones_reaches_protobuf(monkeypatch):
    seen = []
    monkeypatch.setattr(grpc_codec, "parse", lambda kind, body: (seen.append(len(body)), kind.FromString(body))[1])
    decode_request(encode_request(one(Tensor.of("x", np.zeros(1 << 20, np.uint8)))))
    assert seen[0] < 100


# --- typed contents ---------------------------------------------------------------------------------------------------

TYPED = [
    ("BOOL", "bool_contents", [True, False]),
    ("INT8", "int_contents", [-128, 127]),
    ("INT16", "int_contents", [-32768, 32767]),
    ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
    ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
    ("UINT8", "uint_contents", [0, 255]),
    ("UINT16", "uint_contents", [0, 65535]),
    ("UINT32", "uint_contents", [0, 2**32 - 1]),
    ("UINT64", "uint64_contents", [0, 2**64 - 1]),
    ("FP32", "fp32_contents", [0.5, -1.0]),
    ("FP64", "fp64_contents", [0.1, 1e300]),
    ("BYTES", "bytes_contents", [b"", b"\0a\xff"]),
]


@pytest.mark.parametrize(("datatype", "field", "elements"), TYPED, ids=lambda value: str(value)[:12])
def test_typed_contents_are_read(datatype, field, elements):
    for shape in ([2], [1, 2]):
        (tensor,) = decode_request(typed(datatype, field, elements, shape)).inputs
        assert (tensor.datatype, tensor.shape, tensor.array.shape) == (datatype, tuple(shape), tuple(shape))
        assert tensor.array.dtype == DATATYPES[datatype].dtype
        assert tensor.array.reshape(-1).tolist() == elements
    (empty,) = decode_request(typed(datatype, field, [], [0, 3])).inputs
    assert empty.array.shape == (0, 3)


def test_every_datatype_has_a_row_or_none_in_the_protocol():
    assert set(DATATYPES) - {row[0] for row in TYPED} == {"FP16", "BF16"}


def test_an_answer_with_typed_contents_is_read():
    message = Response(model_name="m", model_version="1")
    message.outputs.add(name="y", datatype="FP32", shape=[1]).contents.fp32_contents.append(2)
    assert decode_response(message.SerializeToString()).output("y").array.tolist() == [2.0]


# --- what is wrong ----------------------------------------------------------------------------------------------------


def raw(inputs=((("x", "FP32", [2])),), contents=(b"\0" * 8,)) -> bytes:
    message = Request(model_name="m", raw_input_contents=contents)
    for name, datatype, shape in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message.SerializeToString()


def both() -> bytes:
    message = Request.FromString(raw())
    message.inputs[0].contents.fp32_contents.append(1)
    return message.SerializeToString()


def parameter() -> bytes:
    message = Request()
    message.parameters["k"].SetInParent()
    return message.SerializeToString()


WRONG = {
    "both forms": (both(), "has 'contents', but the message has 'raw_input_contents' too"),
    "raw too few": (raw([("x", "FP32", [2]), ("y", "FP32", [2])]), "has 1 entries, but tensor 'y' needs one more"),
    "raw too many": (raw(contents=[b"\0" * 8] * 2), "has 2 entries for 1 tensors"),
    "raw without inputs": (raw([], [b""]), "has 1 entries for 0 tensors"),
    "raw too short": (raw(contents=[b"\0" * 7]), "takes 8 bytes, got 7"),
    "raw too long": (raw(contents=[b"\0" * 9]), "takes 8 bytes, got 9"),
    "string length": (raw([("x", "BYTES", [1])], [b"\5\0\0\0a"]), "a string of 5 bytes at byte 4"),
    "no data": (raw(contents=[]), "has 2 elements, its 'fp32_contents' holds 0"),
    "no name": (raw([("", "FP32", [2])]), "needs a 'name'"),
    "no datatype": (raw([("x", "", [2])]), "'datatype' must be one of"),
    "datatype": (raw([("x", "FP31", [2])]), "'datatype' must be one of"),
    "negative": (raw([("x", "FP32", [-1])]), "each dimension must be an integer >= 0, got -1"),
    "rank": (raw([("x", "FP32", [1] * 65)]), "at most 64 dimensions"),
    "huge": (raw([("x", "FP32", [2**62, 2**62])]), "takes "),
    "huge beside zero": (raw([("x", "FP32", [2**62, 0, 2**62])], [b""]), "larger than an array can be"),
    "huge typed": (typed("FP32", "fp32_contents", [1.0], [2**63 - 1] * 3), "its 'fp32_contents' holds 1"),
    "int8": (typed("INT8", "int_contents", [-129, 0]), "INT8 holds -128 to 127, got -129"),
    "uint16": (typed("UINT16", "uint_contents", [65536]), "UINT16 holds 0 to 65535, got 65536"),
    "field": (typed("FP32", "fp64_contents", [1.0]), "takes 'fp32_contents' or 'raw_input_contents', not 'fp64"),
    "fp16": (typed("FP16", "fp32_contents", [1.0]), "FP16 has no typed contents"),
    "bf16": (typed("BF16", "fp32_contents", [1.0]), "BF16 has no typed contents"),
    "parameter": (parameter(), "parameter 'k' of the request holds no value"),
    "bytes": (b"\xff\xff\xff", "no valid protobuf"),
    "json": (b'{"inputs": []}', "no valid"),
    "cut off": (raw()[:-1], "no valid protobuf"),
    "length beyond": (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "no valid protobuf"),
    "endless number": (b"\x08" + b"\x80" * 11 + b"\x01", "no valid protobuf"),
    "half a fixed": (b"\x09\0\0\0", "no valid protobuf"),
    "group": (b"\x0b\x0c", "no valid protobuf"),
    "no text": (b"\x0a\x01\xff", "no valid ModelInferRequest"),
    "many fields": (b"\x3a\0" * (MAX_FIELDS + 1), f"more than {MAX_FIELDS}"),
}


@pytest.mark.parametrize(("body", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_refused_in_words(body, message):
    with pytest.raises(InvalidArgument) as caught:
        decode_request(body)
    assert message in caught.value.message


@given(st.binary(max_size=60) | st.binary(max_size=30).map(lambda tail: raw() + tail))
def test_whatever_comes_is_read_or_refused(body):
    with contextlib.suppress(InvalidArgument, Unsupported):
        decode_request(body)


@given(st.integers(0, len(raw()) - 1), st.integers(0, 255))
def test_a_flipped_byte_is_read_or_refused(place, byte):
    body = bytearray(raw())
    body[place] = byte
    with contextlib.suppress(InvalidArgument, Unsupported):
        decode_request(bytes(body))


def test_what_another_version_of_the_protocol_adds_is_passed_over():
    added = b"\xf8\x07\x01" + b"\xfa\x07\x03abc" + b"\xf9\x07" + b"\0" * 8 + b"\xfd\x07" + b"\0" * 4
    assert decode_request(added + raw() + added) == decode_request(raw())


def test_a_tag_may_be_written_longer_than_needed():
    body = raw().replace(b"\x3a\x08", b"\xba\x00\x88\x00")
    assert decode_request(body) == decode_request(raw())


def test_a_wrong_answer_is_the_predictor_s_fault():
    for body, _ in WRONG.values():
        if body[:1] not in b"\x12":
            with pytest.raises(BadAnswer, match="breaks the V2 protocol"):
                decode_response(b"\x12\x01\xff" + body)


@pytest.mark.parametrize("value", [None, 2**64, -(2**63) - 1, [1]])
def test_a_parameter_that_cannot_be_carried_is_refused(value):
    with pytest.raises(InvalidArgument, match="parameter 'k' must be"):
        encode_request(one(Tensor.of("x", np.zeros(1)), parameters={"k": value}))


# --- shared memory ----------------------------------------------------------------------------------------------------

IN_REGION = {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 4}


def in_region() -> bytes:
    message = Request.FromString(raw([("x", "FP32", [2]), ("y", "FP32", [2])]))
    for key, value in IN_REGION.items():
        parameter = message.inputs[0].parameters[key]
        setattr(parameter, "string_param" if isinstance(value, str) else "int64_param", value)
    return message.SerializeToString()


def test_an_input_is_read_out_of_shared_memory_beside_a_raw_one():
    content = struct.pack("<2f", 1, 2)
    asked = []
    request = decode_request(in_region(), regions=lambda place: (asked.append(place), memoryview(content))[1])
    assert asked == [RegionRange("r", 4, 8)]
    assert [tensor.array.tolist() for tensor in request.inputs] == [[1, 2], [0, 0]]
    assert request.inputs[0].parameters == {}


def test_shared_memory_that_is_not_there_is_not_supported():
    with pytest.raises(Unsupported, match="tensor 'x' lies in shared memory"):
        decode_request(in_region())


def test_an_output_in_shared_memory_leaves_an_empty_entry():
    tensors = (Tensor("y", "FP32", (2,), np.zeros(2, np.float32), IN_REGION), Tensor.of("z", np.ones(1, np.float32)))
    message = Response.FromString(encode_response(InferenceResponse("m", "1", tensors)))
    assert list(message.raw_output_contents) == [b"", struct.pack("<f", 1)]
    assert message.outputs[0].parameters["shared_memory_byte_size"].int64_param == 8


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_metadata_comes_back():
    inputs = (TensorMetadata("x", "FP32", (-1, 3)), TensorMetadata("s", "BYTES", (1,)))
    metadata = ModelMetadata("m", ("1", "2"), "pytorch_libtorch", inputs, inputs[:1])
    assert decode_model_metadata(encode_model_metadata(metadata)) == metadata
    message = message_class("ServerMetadataResponse").FromString(
        encode_server_metadata(ServerMetadata("n", "1", ("a",)))
    )
    assert (message.name, message.version, list(message.extensions)) == ("n", "1", ["a"])


def test_wrong_metadata_is_the_predictor_s_fault():
    message = message_class("ModelMetadataResponse")(inputs=[{"name": "x", "datatype": "FP31"}])
    for body in (message.SerializeToString(), b"\xff"):
        with pytest.raises(BadAnswer):
            decode_model_metadata(body)


def test_a_configuration_is_written_out_of_its_json_form():
    config = {"name": "m", "max_batch_size": 8, "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["3", "-1"]}]}
    message = message_class("ModelConfigResponse").FromString(encode_model_config(config))
    assert (message.config.max_batch_size, list(message.config.input[0].dims)) == (8, [3, -1])
    with pytest.raises(Internal):
        encode_model_config({"nonsense": 1})
