"""The gRPC form of the V2 messages, in both directions and in one file so that the two cannot drift apart.

Bytes in, values out, and back: knows protobuf, knows no socket and no grpc.  The tensors of a message
(`raw_input_contents`, `raw_output_contents`) are decoded as views on the bytes that came, and go out with one copy:
protobuf's own accessors would copy each of them three times.  Everything else of a message is protobuf's.

Sources: the protocol's `grpc_service.proto`; Triton's grpc_server for what may be mixed.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from oip.datatypes import DATATYPES, Datatype
from oip.errors import BadAnswer, Internal, InvalidArgument, Unsupported
from oip.messages import (
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    RequestedOutput,
    ServerMetadata,
    TensorMetadata,
)
from oip.proto import message_class
from oip.raw_tensors import MAX_RANK, array_from_raw, raw_of, reshaped
from oip.regions import REGION, RegionReader, region_range, without_region
from oip.tensors import Tensor, bytes_array

MAX_FIELDS = 65536
"""Entries of a message's lists together: an empty one takes two bytes to send, and hundreds to keep."""

FINAL_RESPONSE = "triton_final_response"
"""The parameter by which a stream's client knows that no further response to a request follows."""

_TYPED: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of `InferTensorContents` for a datatype; FP16 and BF16 travel raw alone."""

_RAW_INPUT_TAG = 7 << 3 | 2
_RAW_OUTPUT_TAG = 6 << 3 | 2
_STREAM_RESPONSE_TAG = 2 << 3 | 2

_InferRequest = message_class("ModelInferRequest")
_InferResponse = message_class("ModelInferResponse")
_StreamResponse = message_class("ModelStreamInferResponse")

Piece = bytes | memoryview


# --- requests ---------------------------------------------------------------------------------------------------------


def encode_request(request: InferenceRequest) -> bytes:
    """A `ModelInferRequest`; inputs travel raw.

    Raises:
        InvalidArgument: a parameter is nothing that the protocol can carry.
    """
    message = _InferRequest(model_name=request.model_name, model_version=request.model_version, id=request.id)
    _set_parameters(message.parameters, request.parameters)
    _add_tensors(message.inputs, request.inputs)
    for output in request.outputs:
        _set_parameters(message.outputs.add(name=output.name).parameters, output.parameters)
    return b"".join(_with_raw(message, _RAW_INPUT_TAG, request.inputs))


def decode_request(body: bytes, *, regions: RegionReader | None = None) -> InferenceRequest:
    """A request out of a `ModelInferRequest`; its outputs are asked for in binary, for gRPC has no other form.

    Args:
        regions: reads the inputs that lie in shared memory; None where there is none.

    Raises:
        InvalidArgument: the message breaks the protocol; the text names the tensor and what would be right.
        Unsupported: an input lies in shared memory, and there is none.
    """
    head, raw = _split(body, _RAW_INPUT_TAG)
    message = parse(_InferRequest, head)
    return InferenceRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        inputs=_tensors(message.inputs, raw, "raw_input_contents", regions),
        outputs=tuple(
            RequestedOutput(_named(item, "outputs"), True, _parameters(item.parameters, item.name))
            for item in message.outputs
        ),
        id=message.id,
        binary_output=True,
        parameters=_parameters(message.parameters, "the request"),
    )


def request_id(body: bytes) -> str:
    """The id in a `ModelInferRequest` that may be broken elsewhere; "" if it cannot be read."""
    try:
        head, _ = _split(body, _RAW_INPUT_TAG)
        return str(parse(_InferRequest, head).id)
    except InvalidArgument:
        return ""


# --- answers ----------------------------------------------------------------------------------------------------------


def encode_response(response: InferenceResponse) -> bytes:
    """A `ModelInferResponse`; outputs always travel raw."""
    return b"".join(_response_pieces(response))


def encode_stream_response(response: InferenceResponse) -> bytes:
    """A `ModelStreamInferResponse` around the one response to a request."""
    pieces = _response_pieces(replace(response, parameters={**response.parameters, FINAL_RESPONSE: True}))
    return b"".join((_varint(_STREAM_RESPONSE_TAG), _varint(sum(map(len, pieces))), *pieces))


def encode_stream_error(message: str, id: str) -> bytes:
    """A `ModelStreamInferResponse` that tells why the request of that id has no answer."""
    error = _StreamResponse(error_message=message)
    error.infer_response.id = id
    error.infer_response.parameters[FINAL_RESPONSE].bool_param = True
    return _bytes(error)


def decode_response(body: bytes) -> InferenceResponse:
    """An answer out of a `ModelInferResponse`, whether its outputs travel raw or typed.

    Raises:
        BadAnswer: the message breaks the protocol.
    """
    try:
        head, raw = _split(body, _RAW_OUTPUT_TAG)
        message = parse(_InferResponse, head)
        return InferenceResponse(
            model_name=message.model_name,
            model_version=message.model_version,
            outputs=_tensors(message.outputs, raw, "raw_output_contents", None),
            id=message.id,
            parameters=_parameters(message.parameters, "the answer"),
        )
    except (InvalidArgument, Unsupported) as error:
        raise BadAnswer(f"the predictor's answer breaks the V2 protocol: {error.message}") from None


def _response_pieces(response: InferenceResponse) -> list[Piece]:
    message = _InferResponse(model_name=response.model_name, model_version=response.model_version, id=response.id)
    _set_parameters(message.parameters, response.parameters)
    _add_tensors(message.outputs, response.outputs)
    return _with_raw(message, _RAW_OUTPUT_TAG, response.outputs)


# --- metadata and configuration ---------------------------------------------------------------------------------------


def encode_server_metadata(metadata: ServerMetadata) -> bytes:
    """A `ServerMetadataResponse`."""
    return encoded(
        "ServerMetadataResponse", name=metadata.name, version=metadata.version, extensions=metadata.extensions
    )


def encode_model_metadata(metadata: ModelMetadata) -> bytes:
    """A `ModelMetadataResponse`."""
    return encoded(
        "ModelMetadataResponse",
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=[_tensor_metadata(tensor) for tensor in metadata.inputs],
        outputs=[_tensor_metadata(tensor) for tensor in metadata.outputs],
    )


def decode_model_metadata(body: bytes) -> ModelMetadata:
    """A model's metadata out of a `ModelMetadataResponse`.

    Raises:
        BadAnswer: the message breaks the protocol.
    """
    try:
        found = parse(message_class("ModelMetadataResponse"), body)
        return ModelMetadata(
            name=found.name,
            versions=tuple(found.versions),
            platform=found.platform,
            inputs=tuple(_decode_tensor_metadata(item, "inputs") for item in found.inputs),
            outputs=tuple(_decode_tensor_metadata(item, "outputs") for item in found.outputs),
        )
    except InvalidArgument as error:
        raise BadAnswer(f"the predictor's model metadata breaks the V2 protocol: {error.message}") from None


def encode_model_config(config: Mapping[str, Any]) -> bytes:
    """A `ModelConfigResponse` out of the configuration's JSON form.

    Raises:
        Internal: it is no such thing.
    """
    response = message_class("ModelConfigResponse")()
    try:
        json_format.ParseDict(dict(config), response.config)
    except json_format.ParseError:
        raise Internal("the model's configuration has no protobuf form; ask for it over HTTP") from None
    return _bytes(response)


def _tensor_metadata(tensor: TensorMetadata) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}


def _decode_tensor_metadata(item: Any, where: str) -> TensorMetadata:
    name = _named(item, where)
    return TensorMetadata(name, _datatype(item).name, _shape(item, lowest=-1))


# --- tensors ----------------------------------------------------------------------------------------------------------


def _tensors(
    items: Iterable[Any], raw: Sequence[memoryview], field: str, regions: RegionReader | None
) -> tuple[Tensor, ...]:
    """The tensors of a message; together they must use up what is in its raw field."""
    tensors = []
    used = 0
    for item in items:
        name = _named(item, "the tensors")
        datatype = _datatype(item)
        shape = _shape(item, lowest=0)
        parameters = _parameters(item.parameters, name)
        if REGION in parameters:
            array = _in_region(item, name, datatype, shape, parameters, regions)
            parameters = without_region(parameters)
        elif not raw:
            array = _typed(item.contents, name, datatype, shape, field)
        elif item.HasField("contents") and item.contents.ByteSize():
            raise InvalidArgument(f"tensor '{name}' has 'contents', but the message has '{field}' too; use one of them")
        elif used == len(raw):
            raise InvalidArgument(f"'{field}' has {len(raw)} entries, but tensor '{name}' needs one more")
        else:
            array = array_from_raw(raw[used], name, datatype, shape)
            used += 1
        tensors.append(Tensor(name, datatype.name, shape, array, parameters))
    if used != len(raw):
        raise InvalidArgument(f"'{field}' has {len(raw)} entries for {used} tensors; there must be one for each")
    return tuple(tensors)


def _in_region(
    item: Any,
    name: str,
    datatype: Datatype,
    shape: tuple[int, ...],
    parameters: Mapping[str, Any],
    regions: RegionReader | None,
) -> np.ndarray:
    """A tensor's elements out of shared memory."""
    if item.HasField("contents") and item.contents.ByteSize():
        raise InvalidArgument(f"tensor '{name}' lies in shared memory and has 'contents' too; send one of them")
    place = region_range(parameters, f"tensor '{name}'")
    if place is None or regions is None:
        raise Unsupported(f"tensor '{name}' lies in shared memory, which is not read here; send it in the message")
    return array_from_raw(regions(place), name, datatype, shape)


def _typed(contents: Any, name: str, datatype: Datatype, shape: tuple[int, ...], raw_field: str) -> np.ndarray:
    """A tensor's elements out of the typed field for its datatype."""
    field = _TYPED.get(datatype.name)
    if field is None:
        raise InvalidArgument(f"{datatype.name} has no typed contents; send tensor '{name}' in '{raw_field}'")
    for descriptor, _ in contents.ListFields():
        if descriptor.name != field:
            raise InvalidArgument(
                f"tensor '{name}' of datatype {datatype.name} takes '{field}' or '{raw_field}', not '{descriptor.name}'"
            )
    elements = getattr(contents, field)
    count = prod(shape)
    if len(elements) != count:
        raise InvalidArgument(
            f"tensor '{name}' of shape {list(shape)} has {count} elements, its '{field}' holds {len(elements)}"
        )
    if datatype.name == "BYTES":
        return reshaped(bytes_array(elements, (count,)), name, shape)
    return reshaped(_numbers(elements, count, name, datatype), name, shape)


def _numbers(elements: Iterable[Any], count: int, name: str, datatype: Datatype) -> np.ndarray:
    """The elements as an array; the 8- and 16-bit integers come in wider fields and must fit."""
    dtype = datatype.dtype
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        return np.fromiter(elements, dtype, count)
    wide = np.fromiter(elements, np.int64, count)
    limits = np.iinfo(dtype)
    if count and not (limits.min <= wide.min() and wide.max() <= limits.max):
        wrong = wide.min() if wide.min() < limits.min else wide.max()
        raise InvalidArgument(f"tensor '{name}': {datatype.name} holds {limits.min} to {limits.max}, got {wrong}")
    return wide.astype(dtype)


def _add_tensors(items: Any, tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        item = items.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if tensor.parameters:
            _set_parameters(item.parameters, tensor.parameters)


def _with_raw(message: Any, tag: int, tensors: Iterable[Tensor]) -> list[Piece]:
    """The message and, behind it, each tensor's bytes as an entry of the raw field.

    "Parsers must be able to parse fields in any order", so that what is written by hand may stand at the end.
    """
    pieces: list[Piece] = [_bytes(message)]
    for tensor in tensors:
        # As Triton: an entry for every tensor, an empty one where the tensor lies in shared memory.
        raw = b"" if REGION in tensor.parameters else raw_of(tensor)
        pieces += (_varint(tag) + _varint(len(raw)), raw)
    return pieces


# --- pieces of a message ----------------------------------------------------------------------------------------------


def parse(message_type: Any, body: bytes) -> Any:
    """A message out of its bytes.

    Raises:
        InvalidArgument: they are none.
    """
    try:
        return message_type.FromString(body)
    except DecodeError:
        raise _malformed(message_type.DESCRIPTOR.name) from None


def encoded(message_name: str, /, **fields: Any) -> bytes:
    """The bytes of the message of that name."""
    return _bytes(message_class(message_name)(**fields))


def _malformed(name: str = "") -> InvalidArgument:
    return InvalidArgument(f"the message is no valid {name or 'protobuf'}: it is damaged, or of another service")


def _bytes(message: Any) -> bytes:
    serialized: bytes = message.SerializeToString()
    return serialized


def _named(item: Any, where: str) -> str:
    name: str = item.name
    if not name:
        raise InvalidArgument(f"each entry of '{where}' needs a 'name', a non-empty string")
    return name


def _datatype(item: Any) -> Datatype:
    datatype = DATATYPES.get(item.datatype)
    if datatype is None:
        raise InvalidArgument(
            f"tensor '{item.name}': 'datatype' must be one of {', '.join(DATATYPES)}, got {item.datatype!r}"
        )
    return datatype


def _shape(item: Any, *, lowest: int) -> tuple[int, ...]:
    if len(item.shape) > MAX_RANK:
        raise InvalidArgument(f"tensor '{item.name}': 'shape' must be a list of at most {MAX_RANK} dimensions")
    shape = tuple(item.shape)
    if shape and min(shape) < lowest:
        raise InvalidArgument(f"tensor '{item.name}': each dimension must be an integer >= {lowest}, got {min(shape)}")
    return shape


def _parameters(items: Any, where: str) -> dict[str, Any]:
    if not items:
        return {}
    parameters = {}
    for key, value in items.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidArgument(f"parameter '{key}' of {where} holds no value that this protocol knows")
        parameters[key] = getattr(value, choice)
    return parameters


def _set_parameters(items: Any, parameters: Mapping[str, Any]) -> None:
    for key, value in parameters.items():
        if isinstance(value, bool):
            items[key].bool_param = value
        elif isinstance(value, int) and -(2**63) <= value < 2**64:
            setattr(items[key], "int64_param" if value < 2**63 else "uint64_param", value)
        elif isinstance(value, float):
            items[key].double_param = value
        elif isinstance(value, str):
            items[key].string_param = value
        else:
            raise InvalidArgument(
                f"parameter '{key}' must be a string, a boolean or a number of 64 bits, got {type(value).__name__}"
            )


# --- protobuf's wire format -------------------------------------------------------------------------------------------


def _split(body: bytes, raw_tag: int) -> tuple[bytes, list[memoryview]]:
    """The message without the field of that tag, and this field's entries as views.

    Walks over the top level alone: lengths tell where the next field begins.

    Raises:
        InvalidArgument: the bytes are no message.
    """
    view = memoryview(body)
    end = len(body)
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    fields = kept = position = 0
    try:
        while position < end:
            begin = position
            fields += 1
            if fields > MAX_FIELDS:
                raise InvalidArgument(
                    f"the message has more than {MAX_FIELDS} inputs, outputs and parameters, the limit"
                )
            tag = body[position]
            position += 1
            if tag >= 0x80:
                tag, position = _read_varint(body, begin)
            kind = tag & 7
            if kind == 2:
                length = body[position]
                position += 1
                if length >= 0x80:
                    length, position = _read_varint(body, position - 1)
                if tag == raw_tag:
                    rest.append(view[kept:begin])
                    raw.append(view[position : position + length])
                    kept = position + length
                position += length
            elif kind == 0:
                _, position = _read_varint(body, position)
            elif kind in (1, 5):
                position += 8 if kind == 1 else 4
            else:
                raise _malformed()
    except IndexError:
        raise _malformed() from None
    if position != end:
        raise _malformed()
    if not raw:
        return body, raw
    rest.append(view[kept:])
    return b"".join(rest), raw


def _read_varint(body: bytes, position: int) -> tuple[int, int]:
    """A number of at most 64 bits, and where the next field begins."""
    value = shift = 0
    while True:
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise _malformed()


def _varint(value: int) -> bytes:
    if value < 0x80:
        return struct.pack("B", value)
    pieces = bytearray()
    while value >= 0x80:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)
