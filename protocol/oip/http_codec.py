"""The HTTP form of the V2 messages, in both directions and in one file so that the two cannot drift apart.

A body is JSON, or JSON followed by raw tensors (the binary tensor data extension).  Which of the two
is decided by the header `Inference-Header-Content-Length` alone: real clients send wrong content
types.  Knows no socket.  Binary tensors are decoded as views on the body, never copied.

Sources: the protocol's "Inference" section; Triton's extension_binary_data.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from oip import json_text
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
from oip.raw_tensors import MAX_RANK, array_from_raw, raw_of, reshaped
from oip.regions import REGION, RegionReader, region_range, without_region
from oip.tensors import Tensor, bytes_array

HEADER_LENGTH = "Inference-Header-Content-Length"

_JSON_KINDS: Mapping[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
"""What JSON elements may become a dtype of that kind."""

_ALIGNMENT = 64
"""The JSON part is padded with spaces to a multiple of this, so that the first tensor's elements are
aligned in the receiver's buffer and can be used where they lie.  JSON allows trailing white space."""

Body = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Encoded:
    """A body as the pieces to be written one after the other; `header_length` is None for pure JSON."""

    chunks: tuple[Body, ...]
    header_length: int | None = None

    @property
    def content_type(self) -> str:
        return "application/json" if self.header_length is None else "application/octet-stream"

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": self.content_type}
        if self.header_length is not None:
            headers[HEADER_LENGTH] = str(self.header_length)
        return headers

    def body(self) -> bytes:
        return self.chunks[0] if len(self.chunks) == 1 and isinstance(self.chunks[0], bytes) else b"".join(self.chunks)


# --- requests ---------------------------------------------------------------------------------------------------------


def encode_request(request: InferenceRequest, *, binary: bool = True) -> Encoded:
    """The body of a request; `binary` says how its inputs travel (FP16 and BF16 can travel no other way).

    Raises:
        InvalidArgument: an input cannot be written as JSON.
    """
    document: dict[str, Any] = {}
    if request.id:
        document["id"] = request.id
    parameters = dict(request.parameters)
    if request.binary_output:
        parameters["binary_data_output"] = True
    if parameters:
        document["parameters"] = parameters
    raw: list[Body] = []
    document["inputs"] = [_encode_tensor(tensor, binary, raw) for tensor in request.inputs]
    if request.outputs:
        document["outputs"] = [
            {"name": output.name, "parameters": {**output.parameters, "binary_data": output.binary}}
            for output in request.outputs
        ]
    return _assemble(document, raw)


def decode_request(
    body: Body,
    header_length: str | None = None,
    *,
    model_name: str = "",
    model_version: str = "",
    regions: RegionReader | None = None,
) -> InferenceRequest:
    """A request out of its body; the model's name and version come from the route.

    Args:
        regions: reads the inputs that lie in shared memory; None where there is none.

    Raises:
        InvalidArgument: the body breaks the protocol; the message names the tensor and what would be right.
        Unsupported: a raw binary request (header length 0; see `raw_request`), or an input in shared memory.
    """
    document, raw = _split(body, header_length)
    parameters = _parameters(document, "the request")
    binary_output = _boolean(parameters, "binary_data_output", "the request")
    inputs = tuple(_decode_tensors(document, "inputs", raw, regions))
    outputs = tuple(
        _decode_requested_output(item, binary_output) for item in _objects(document, "outputs", required=False)
    )
    return InferenceRequest(
        model_name=model_name,
        model_version=model_version,
        inputs=inputs,
        outputs=outputs,
        id=_text(document, "id"),
        binary_output=binary_output,
        parameters=_without(parameters, "binary_data_output"),
    )


def _decode_requested_output(item: Mapping[str, Any], binary_by_default: bool) -> RequestedOutput:
    name = _name(item, "outputs")
    parameters = _parameters(item, f"output '{name}'")
    binary = _boolean(parameters, "binary_data", f"output '{name}'", binary_by_default)
    return RequestedOutput(name, binary, _without(parameters, "binary_data"))


# --- answers ----------------------------------------------------------------------------------------------------------


def encode_response(response: InferenceResponse, request: InferenceRequest) -> Encoded:
    """The body of an answer, each output in the form that the request asked for.

    Raises:
        InvalidArgument: an output that has no JSON form (FP16, BF16, bytes that are no UTF-8) was asked for as JSON.
        Internal: an output that travels as JSON holds NaN or infinity.
    """
    document: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    forms = {output.name: output.binary for output in request.outputs}
    raw: list[Body] = []
    document["outputs"] = [
        _encode_tensor(tensor, forms.get(tensor.name, request.binary_output), raw) for tensor in response.outputs
    ]
    return _assemble(document, raw)


def decode_response(body: Body, header_length: str | None = None) -> InferenceResponse:
    """An answer out of its body.

    Raises:
        BadAnswer: the body breaks the protocol.
    """
    try:
        document, raw = _split(body, header_length)
        return InferenceResponse(
            model_name=_text(document, "model_name"),
            model_version=_text(document, "model_version"),
            outputs=tuple(_decode_tensors(document, "outputs", raw)),
            id=_text(document, "id"),
            parameters=_parameters(document, "the answer"),
        )
    except (InvalidArgument, Unsupported) as error:
        raise BadAnswer(f"the predictor's answer breaks the V2 protocol: {error.message}") from None


# --- metadata ---------------------------------------------------------------------------------------------------------


def encode_server_metadata(metadata: ServerMetadata) -> dict[str, Any]:
    """The JSON value of `GET /v2`."""
    return {"name": metadata.name, "version": metadata.version, "extensions": list(metadata.extensions)}


def encode_model_metadata(metadata: ModelMetadata) -> dict[str, Any]:
    """The JSON value of `GET /v2/models/<name>`."""
    return {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        "inputs": [_encode_tensor_metadata(tensor) for tensor in metadata.inputs],
        "outputs": [_encode_tensor_metadata(tensor) for tensor in metadata.outputs],
    }


def decode_model_metadata(body: Body) -> ModelMetadata:
    """A model's metadata out of an answer's body.  Lists that are missing or null read as empty: KServe's servers
    send such.

    Raises:
        BadAnswer: the body is no such thing.
    """
    try:
        document = _object(json_text.loads(body))
        return ModelMetadata(
            name=_text(document, "name"),
            versions=_versions(document),
            platform=_text(document, "platform"),
            inputs=tuple(
                _decode_tensor_metadata(item, "inputs") for item in _objects(document, "inputs", required=False)
            ),
            outputs=tuple(
                _decode_tensor_metadata(item, "outputs") for item in _objects(document, "outputs", required=False)
            ),
        )
    except InvalidArgument as error:
        raise BadAnswer(f"the predictor's model metadata breaks the V2 protocol: {error.message}") from None


def _versions(document: Mapping[str, Any]) -> tuple[str, ...]:
    versions = document.get("versions")
    if versions is None:
        return ()
    if not isinstance(versions, list) or not all(isinstance(version, str | int) for version in versions):
        raise InvalidArgument("'versions' must be a list of strings")
    return tuple(str(version) for version in versions)


def _encode_tensor_metadata(tensor: TensorMetadata) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _decode_tensor_metadata(item: Mapping[str, Any], where: str) -> TensorMetadata:
    name = _name(item, where)
    return TensorMetadata(name, _datatype(item, name).name, _shape(item, name, variable=True))


# --- one tensor -------------------------------------------------------------------------------------------------------


def _encode_tensor(tensor: Tensor, binary: bool, raw: list[Body]) -> dict[str, Any]:
    """The tensor's JSON object; a binary tensor's bytes are appended to `raw`."""
    parameters = dict(tensor.parameters)
    entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if REGION in parameters:  # its data lies there
        entry["parameters"] = parameters
        return entry
    if binary:
        chunk = raw_of(tensor)
        parameters["binary_data_size"] = len(chunk)
        raw.append(chunk)
    if parameters:
        entry["parameters"] = parameters
    if not binary:
        entry["data"] = _json_data(tensor)
    return entry


def _json_data(tensor: Tensor) -> Any:
    """The tensor's elements as a flat list, or as an array that `json_text.dumps` writes as one."""
    datatype = DATATYPES[tensor.datatype]
    if not datatype.json:
        raise InvalidArgument(
            f"{tensor.datatype} has no JSON form; ask for tensor '{tensor.name}' in binary ('binary_data': true)"
        )
    flat = tensor.array.reshape(-1)
    if tensor.datatype == "BYTES":
        try:
            return [element.decode() for element in flat]
        except UnicodeDecodeError:
            raise InvalidArgument(
                f"tensor '{tensor.name}' holds bytes that are no UTF-8 text; ask for it in binary ('binary_data': true)"
            ) from None
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        raise Internal(f"tensor '{tensor.name}' holds NaN or infinity, which JSON cannot carry; ask for it in binary")
    return np.ascontiguousarray(flat)


def _decode_tensors(
    document: Mapping[str, Any], key: str, raw: memoryview, regions: RegionReader | None = None
) -> Iterable[Tensor]:
    """The tensors of a message; together they must use up the bytes after the JSON part."""
    offset = 0
    for item in _objects(document, key):
        name = _name(item, key)
        datatype = _datatype(item, name)
        shape = _shape(item, name)
        parameters = _parameters(item, f"tensor '{name}'")
        size = parameters.get("binary_data_size")
        if REGION in parameters:
            array = _decode_region(item, name, datatype, shape, parameters, regions)
            parameters = without_region(parameters)
        elif size is None:
            array = _decode_json_data(item, name, datatype, shape)
        else:
            if "data" in item:
                raise InvalidArgument(f"tensor '{name}' has both 'data' and 'binary_data_size'; send one of them")
            if not _is_count(size):
                raise InvalidArgument(f"tensor '{name}': 'binary_data_size' must be a number of bytes, got {size!r}")
            if offset + size > len(raw):
                raise InvalidArgument(
                    f"tensor '{name}' announces {size} bytes of binary data, but only {len(raw) - offset} follow"
                )
            array = array_from_raw(raw[offset : offset + size], name, datatype, shape)
            offset += size
        yield Tensor(name, datatype.name, shape, array, _without(parameters, "binary_data_size"))
    if offset != len(raw):
        raise InvalidArgument(
            f"{len(raw) - offset} bytes follow the last tensor; 'binary_data_size' must add up to the body"
        )


def _decode_region(
    item: Mapping[str, Any],
    name: str,
    datatype: Datatype,
    shape: tuple[int, ...],
    parameters: Mapping[str, Any],
    regions: RegionReader | None,
) -> np.ndarray:
    if "data" in item or "binary_data_size" in parameters:
        raise InvalidArgument(f"tensor '{name}' lies in shared memory and has data in the body too; send one of them")
    place = region_range(parameters, f"tensor '{name}'")
    if place is None or regions is None:
        raise Unsupported(
            f"tensor '{name}' lies in shared memory, which this server does not read; send it in the body"
        )
    return array_from_raw(regions(place), name, datatype, shape)


def _decode_json_data(item: Mapping[str, Any], name: str, datatype: Datatype, shape: tuple[int, ...]) -> np.ndarray:
    data = item.get("data")
    if not isinstance(data, list):
        raise InvalidArgument(
            f"tensor '{name}' needs one of 'data' (a list) and the parameter 'binary_data_size', got "
            f"{'neither' if data is None else _kind(data)}"
        )
    if not datatype.json:
        raise InvalidArgument(f"{datatype.name} has no JSON form; send tensor '{name}' as binary data")
    count = prod(shape)
    array = _strings(data, name) if datatype.name == "BYTES" else _numbers(data, name, datatype)
    if array.size != count:
        raise InvalidArgument(
            f"tensor '{name}' of shape {list(shape)} has {count} elements, its 'data' holds {array.size}"
        )
    return reshaped(array, name, shape)


def _numbers(data: list[Any], name: str, datatype: Datatype) -> np.ndarray:
    """A JSON list, flat or nested, as an array of the datatype; nothing is cut off, wrapped or read out of text.

    The elements' kinds are looked at before numpy sees them: it would take `true` for 1, and integers
    beyond int64 for floats.
    """
    flat = _flat(data, name)
    dtype = datatype.dtype
    kinds = set(map(type, flat))
    if not kinds <= _JSON_KINDS[dtype.kind]:
        needs = {"b": "true and false", "f": "numbers"}.get(dtype.kind, "integers")
        raise InvalidArgument(f"tensor '{name}' of datatype {datatype.name} needs {needs} in 'data'")
    try:
        with np.errstate(over="ignore"):
            array: np.ndarray = np.array(flat, dtype=dtype)
    except OverflowError:
        limits = np.iinfo(dtype)
        low, high = min(flat), max(flat)
        raise InvalidArgument(
            f"tensor '{name}': {datatype.name} holds {limits.min} to {limits.max}, "
            f"got {low if low < limits.min else high}"
        ) from None
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidArgument(f"tensor '{name}': 'data' holds a number outside the range of {datatype.name}")
    return array


def _strings(data: list[Any], name: str) -> np.ndarray:
    flat = _flat(data, name)
    for element in flat:
        if not isinstance(element, str):
            raise InvalidArgument(f"tensor '{name}' of datatype BYTES needs strings in 'data', got {_kind(element)}")
    return bytes_array(flat, (len(flat),))


def _flat(data: list[Any], name: str) -> list[Any]:
    """The elements of lists that may be nested, row by row; lists of one level must be of one length."""
    while data and isinstance(data[0], list):
        if set(map(type, data)) != {list}:
            raise InvalidArgument(f"tensor '{name}': 'data' mixes lists with other elements")
        if len(set(map(len, data))) != 1:
            raise InvalidArgument(f"tensor '{name}': the nested lists of 'data' differ in length")
        data = list(chain.from_iterable(data))
    return data


# --- pieces of a document ---------------------------------------------------------------------------------------------


def _split(body: Body, header_length: str | None) -> tuple[Mapping[str, Any], memoryview]:
    """The JSON part as an object, and the bytes after it."""
    view = memoryview(body)
    if header_length is None:
        return _object(json_text.loads(view)), view[:0]
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 16):
        raise InvalidArgument(f"header {HEADER_LENGTH} must be a number of bytes, got {header_length[:40]!r}")
    length = int(header_length)
    if length == 0:
        raise Unsupported(f"raw binary requests ({HEADER_LENGTH}: 0) are not read here; describe the tensors in JSON")
    if length > len(view):
        raise InvalidArgument(f"header {HEADER_LENGTH} is {length}, but the body has {len(view)} bytes")
    return _object(json_text.loads(view[:length])), view[length:]


def _assemble(document: Mapping[str, Any], raw: list[Body]) -> Encoded:
    text = json_text.dumps(document)
    if not raw:
        return Encoded((text,))
    text += b" " * (-len(text) % _ALIGNMENT)
    return Encoded((text, *raw), len(text))


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"the body must be a JSON object, got {_kind(value)}")
    return value


def _objects(document: Mapping[str, Any], key: str, *, required: bool = True) -> Iterable[Mapping[str, Any]]:
    items = document.get(key)
    if items is None:  # null is what typed clients send for "not set"
        if required:
            raise InvalidArgument(f"'{key}' is missing; it must be a list of tensors")
        return
    if not isinstance(items, list):
        raise InvalidArgument(f"'{key}' must be a list, got {_kind(items)}")
    for item in items:
        if not isinstance(item, dict):
            raise InvalidArgument(f"each entry of '{key}' must be an object, got {_kind(item)}")
        yield item


def _name(item: Mapping[str, Any], where: str) -> str:
    name = item.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"each entry of '{where}' needs a 'name', a non-empty string")
    return name


def _datatype(item: Mapping[str, Any], name: str) -> Datatype:
    datatype = item.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise InvalidArgument(f"tensor '{name}': 'datatype' must be one of {', '.join(DATATYPES)}, got {datatype!r}")
    return DATATYPES[datatype]


def _shape(item: Mapping[str, Any], name: str, *, variable: bool = False) -> tuple[int, ...]:
    shape = item.get("shape")
    lowest = -1 if variable else 0
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise InvalidArgument(f"tensor '{name}': 'shape' must be a list of at most {MAX_RANK} dimensions")
    for dimension in shape:
        if not isinstance(dimension, int) or isinstance(dimension, bool) or dimension < lowest:
            raise InvalidArgument(f"tensor '{name}': each dimension must be an integer >= {lowest}, got {dimension!r}")
    return tuple(shape)


def _parameters(item: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidArgument(f"'parameters' of {where} must be an object, got {_kind(parameters)}")
    for key, value in parameters.items():
        if not isinstance(value, str | int | float | bool):
            raise InvalidArgument(
                f"parameter '{key}' of {where} must be a string, number or boolean, got {_kind(value)}"
            )
    return parameters


def _boolean(parameters: Mapping[str, Any], key: str, where: str, default: bool = False) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise InvalidArgument(f"parameter '{key}' of {where} must be true or false, got {value!r}")
    return value


def _without(parameters: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    if key not in parameters:
        return parameters
    return {name: value for name, value in parameters.items() if name != key}


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    if value is None:  # null is what typed servers and clients (KServe's among them) send for "not set"
        return ""
    if not isinstance(value, str):
        raise InvalidArgument(f"'{key}' must be a string, got {_kind(value)}")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _kind(value: Any) -> str:
    """A JSON value's kind in JSON's words, for messages."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
