"""Bytes from strangers: whatever they are, the codec reads them or refuses them in its own words."""

import json
import struct
from contextlib import suppress

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oip.datatypes import DATATYPES
from oip.errors import BadAnswer, InvalidArgument, Unsupported
from oip.http_codec import (
    HEADER_LENGTH,
    decode_model_metadata,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from oip.messages import InferenceRequest, InferenceResponse, RequestedOutput
from oip.tensors import Tensor

TENSORS = (
    Tensor.of("numbers", np.arange(6, dtype=np.float32).reshape(2, 3)),
    Tensor.of("strings", np.array([b"one", b"", b"\0\xff"], object)),
    Tensor.of("flags", np.array([True, False])),
)
REQUEST = InferenceRequest("m", TENSORS, (RequestedOutput("numbers", True),), id="7", parameters={"own": 1})
ENCODED = encode_request(REQUEST)
ANSWER = encode_response(InferenceResponse("m", "1", TENSORS, "7"), InferenceRequest("m", (), binary_output=True))


def read_or_refuse(body, length):
    """Both directions take the bytes, or refuse them as they promise; anything else fails the test."""
    request = response = None
    with suppress(InvalidArgument, Unsupported):
        request = decode_request(body, length)
    with suppress(BadAnswer):
        response = decode_response(body, length)
    with suppress(BadAnswer):
        decode_model_metadata(body)
    return request, response


def check(tensors):
    """What was read is what the values promise: an array of the datatype and shape."""
    for tensor in tensors:
        assert tensor.array.shape == tensor.shape
        assert tensor.array.dtype == DATATYPES[tensor.datatype].dtype


@pytest.mark.parametrize("encoded", [ENCODED, ANSWER], ids=["request", "answer"])
def test_every_truncation_is_refused(encoded):
    body, length = encoded.body(), encoded.headers[HEADER_LENGTH]
    for end in range(len(body)):
        assert read_or_refuse(body[:end], length) == (None, None), end


def test_every_truncation_of_a_json_request_is_refused():
    body = encode_request(InferenceRequest("m", TENSORS[:1], id="7"), binary=False).body()
    for end in range(len(body)):
        assert read_or_refuse(body[:end], None) == (None, None), end


def test_every_wrong_header_length_is_refused():
    body, right = ENCODED.body(), int(ENCODED.headers[HEADER_LENGTH])
    for length in range(len(body) + 2):
        # Without some of the blanks that pad it the JSON still is JSON; those then are too many bytes of tensors.
        request, _ = read_or_refuse(body, str(length))
        assert (request is not None) is (length == right), length


def test_every_wrong_binary_data_size_is_refused():
    document = json.loads(ENCODED.chunks[0])
    raw = b"".join(ENCODED.chunks[1:])
    for entry in document["inputs"]:
        right = entry["parameters"]["binary_data_size"]
        for size in [*range(-2, len(raw) + 2), 2**31, 2**32, 2**63, 2**64 - 1, 1e400, None, "4", True, [], 4.0]:
            if size == right and type(size) is int:
                continue
            entry["parameters"]["binary_data_size"] = size
            header = json.dumps(document).encode()
            request, _ = read_or_refuse(header + raw, str(len(header)))
            assert request is None, size
        entry["parameters"]["binary_data_size"] = right


def test_every_flipped_bit_of_a_string_length_is_refused():
    body = bytearray(ENCODED.body())
    start = len(ENCODED.chunks[0]) + len(ENCODED.chunks[1])
    offset = start
    for element in TENSORS[1].array:
        assert struct.unpack_from("<I", body, offset) == (len(element),)
        for bit in range(32):
            flipped = bytearray(body)
            flipped[offset + bit // 8] ^= 1 << bit % 8
            request, _ = read_or_refuse(flipped, ENCODED.headers[HEADER_LENGTH])
            assert request is None, (offset, bit)
        offset += 4 + len(element)


@pytest.mark.parametrize("encoded", [ENCODED, ANSWER], ids=["request", "answer"])
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(encoded, data):
    body = bytearray(encoded.body())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    for message in read_or_refuse(body, encoded.headers[HEADER_LENGTH]):
        if message is not None:
            check(message.inputs if isinstance(message, InferenceRequest) else message.outputs)


@given(st.binary(max_size=200), st.none() | st.integers(0, 220).map(str) | st.text(max_size=5))
def test_arbitrary_bytes_are_read_or_refused(body, length):
    read_or_refuse(body, length)


# Documents of the right words in the wrong places.
WORDS = st.sampled_from(
    [*DATATYPES, "name", "datatype", "shape", "data", "parameters", "inputs", "outputs", "binary_data_size", "id"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([2**31, 2**32, 2**63, 2**64 - 1, -(2**63), 1e39, 0.5])
    | WORDS
    | st.text(max_size=3)
)
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | DOCUMENTS,
        "datatype": st.sampled_from(list(DATATYPES)) | DOCUMENTS,
        "shape": st.lists(st.integers(-1, 3) | SCALARS, max_size=3) | DOCUMENTS,
        "data": st.recursive(st.lists(SCALARS, max_size=3), lambda inner: st.lists(inner, max_size=3)) | DOCUMENTS,
        "parameters": st.fixed_dictionaries(
            {}, optional={"binary_data_size": st.integers(-1, 20) | SCALARS, "shared_memory_region": SCALARS}
        )
        | DOCUMENTS,
    },
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(ENTRY, max_size=3) | DOCUMENTS,
        "outputs": st.lists(ENTRY, max_size=3) | DOCUMENTS,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_output": SCALARS}) | DOCUMENTS,
        "id": SCALARS,
        "model_name": SCALARS,
        "model_version": SCALARS,
        "versions": DOCUMENTS,
        "platform": SCALARS,
        "name": SCALARS,
    },
)


@settings(max_examples=400)
@given(MESSAGE | DOCUMENTS, st.binary(max_size=24))
def test_arbitrary_documents_are_read_or_refused(document, raw):
    header = orjson.dumps(document)
    for body, length in ((header, None), (header + raw, str(len(header)))):
        request, response = read_or_refuse(body, length)
        if request is not None:
            check(request.inputs)
        if response is not None:
            check(response.outputs)


def test_a_thousand_inputs_are_read():
    entry = {"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}
    assert len(decode_request(orjson.dumps({"inputs": [entry] * 1000})).inputs) == 1000
