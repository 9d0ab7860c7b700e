"""One table of cases over HTTP, its Unix socket and gRPC: the same answers and the same errors."""

import json

import numpy as np
import pytest
from rpc import Caller
from serving import FunctionPlane, serving
from wire import exchange

from oip import errors
from oip.errors import ErrorCode, InferenceError
from oip.grpc_codec import decode_response as decode_grpc
from oip.grpc_codec import encode_request as encode_grpc
from oip.http_codec import HEADER_LENGTH, decode_response, encode_request
from oip.messages import InferenceRequest
from oip.proto import message_class
from oip.server.settings import GrpcSettings, ServerSettings
from oip.tensors import Tensor

GRPC = GrpcSettings(port=0, address="127.0.0.1")
LIMIT = 100_000


class Plane(FunctionPlane):
    """Doubles its input, or raises what it is told to."""

    def __init__(self) -> None:
        super().__init__(self._behave)
        self.error: Exception | None = None

    def _behave(self, arrays):
        if self.error is not None:
            raise self.error
        return {"y": arrays["x"] * 2}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "s.sock"
    settings = ServerSettings(http_port=0, http_address="127.0.0.1", http_unix_socket=path, max_body_bytes=LIMIT)
    with serving(Plane(), settings, grpc=GRPC) as running:
        yield running


@pytest.fixture
def plane(running):
    plane = running.service.plane
    plane.error, plane.is_ready = None, True
    return plane


@pytest.fixture
def caller(running):
    with Caller(running.grpc_target) as caller:
        yield caller


def http_addresses(running):
    return [running.url, next(a for a in running.service.addresses if a.startswith("unix:"))]


def request(array=None, *, name="x", model="model", version="", parameters=None):
    tensor = Tensor.of(name, np.array([[1, 2]], np.float32) if array is None else array)
    return InferenceRequest(model, (tensor,), (), version, "7", True, parameters or {})


def infer_route(request):
    version = f"/versions/{request.model_version}" if request.model_version else ""
    return f"/v2/models/{request.model_name}{version}/infer"


def over_http(url, request):
    encoded = encode_request(request)
    return exchange(url, "POST", infer_route(request), encoded.body(), encoded.headers)


# The design's table, row by row: what is raised, the HTTP status, the gRPC status.
RAISED = [
    (errors.InvalidArgument, 400, "INVALID_ARGUMENT"),
    (errors.NotFound, 404, "NOT_FOUND"),
    (errors.MethodNotAllowed, 405, "UNIMPLEMENTED"),
    (errors.TooSlow, 408, "DEADLINE_EXCEEDED"),
    (errors.TooLarge, 413, "RESOURCE_EXHAUSTED"),
    (errors.UnsupportedMediaType, 415, "INVALID_ARGUMENT"),
    (errors.TooManyRequests, 429, "RESOURCE_EXHAUSTED"),
    (errors.Cancelled, 499, "CANCELLED"),
    (errors.Internal, 500, "INTERNAL"),
    (errors.Unsupported, 501, "UNIMPLEMENTED"),
    (errors.BadAnswer, 502, "INTERNAL"),
    (errors.Unavailable, 503, "UNAVAILABLE"),
    (errors.DeadlineExceeded, 504, "DEADLINE_EXCEEDED"),
]


def test_the_table_has_every_code():
    assert {error.code for error, *_ in RAISED} == set(ErrorCode)


@pytest.mark.parametrize(("error", "status", "grpc_status"), RAISED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_raised_is_told_the_same(running, plane, caller, error, status, grpc_status):
    plane.error = error("what, where: and what would be right", instance=3)
    told = caller.call("ModelInfer", encode_grpc(request()), metadata=[("x-request-id", "abc")])
    assert (told.status, told.details) == (grpc_status, "what, where: and what would be right")
    assert (told.trailer["tandem-code"], told.trailer["tandem-instance"]) == (error.code.name, "3")
    assert told.trailer["x-request-id"] == "abc"
    assert told.trailer.get("grpc-retry-pushback-ms") == ("1000" if status == 503 else None)
    for url in http_addresses(running):
        reply = over_http(url, request())
        assert reply.status == status
        body = reply.json
        assert (body["error"], body["code"], body["instance"]) == (told.details, error.code.name, 3)


def test_a_bug_is_told_the_same_and_says_nothing_of_itself(running, plane, caller):
    plane.error = RuntimeError("secret at /home/me/file.py")
    told = caller.call("ModelInfer", encode_grpc(request()))
    assert (told.status, told.trailer["tandem-code"]) == ("INTERNAL", "INTERNAL")
    for url in http_addresses(running):
        reply = over_http(url, request())
        assert (reply.status, reply.json["error"]) == (500, told.details)
        assert "secret" not in told.details


def damaged(datatype="FP32", shape=(1, 2), content=b"\0" * 8, name="x"):
    """A request with one tensor, as (HTTP body, its JSON's length, gRPC message)."""
    entry = {"name": name, "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": len(content)}}
    head = json.dumps({"inputs": [entry]}).encode()
    message = message_class("ModelInferRequest")(model_name="model", raw_input_contents=[content])
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    return head + content, len(head), message.SerializeToString()


DAMAGED = {
    "too short": damaged(content=b"\0" * 7),
    "too long": damaged(content=b"\0" * 9),
    "negative dimension": damaged(shape=(-1, 2)),
    "rank": damaged(shape=[1] * 65),
    "datatype": damaged("FP31"),
    "huge": damaged(shape=(2**62, 2**62)),
    "string": damaged("BYTES", (1,), b"\x09\0\0\0a"),
    "half a length": damaged("BYTES", (1,), b"\0\0\0\0\0"),
    "too many strings": damaged("BYTES", (3,), b"\0" * 8),
}


@pytest.mark.parametrize(("body", "length", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_tensor_is_told_the_same(running, plane, caller, body, length, message):
    told = caller.call("ModelInfer", message)
    assert told.status == "INVALID_ARGUMENT"
    for url in http_addresses(running):
        reply = exchange(url, "POST", "/v2/models/model/infer", body, {HEADER_LENGTH: str(length)})
        assert (reply.status, reply.json["error"]) == (400, told.details)


REFUSED = {
    "unknown model": (request(model="nope"), 404, "NOT_FOUND"),
    "version no number": (request(version="x"), 400, "INVALID_ARGUMENT"),
    "timeout": (request(parameters={"timeout": "soon"}), 400, "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize(("wrong", "status", "grpc_status"), REFUSED.values(), ids=REFUSED)
def test_a_refused_request_is_told_the_same(running, plane, caller, wrong, status, grpc_status):
    told = caller.call("ModelInfer", encode_grpc(wrong))
    assert told.status == grpc_status
    for url in http_addresses(running):
        reply = over_http(url, wrong)
        assert (reply.status, reply.json["error"]) == (status, told.details)


def test_a_body_over_the_limit_is_refused(running, plane, caller):
    wrong = request(np.zeros((1, LIMIT), np.float32))
    assert caller.call("ModelInfer", encode_grpc(wrong)).status == "RESOURCE_EXHAUSTED"
    for url in http_addresses(running):
        assert over_http(url, wrong).status == 413


ANSWERED = [np.array([[1, 2]], np.float32), np.zeros((0, 2), np.float32), np.ones((3, 2), "<f2"), np.array(5, "<i8")]


@pytest.mark.parametrize("array", ANSWERED, ids=str)
def test_answers_are_the_same(running, plane, caller, array):
    told = decode_grpc(caller.call("ModelInfer", encode_grpc(request(array))).body)
    assert told.id == "7"
    assert told.outputs == (Tensor.of("y", array * 2),)
    for url in http_addresses(running):
        reply = over_http(url, request(array))
        assert decode_response(reply.body, reply.headers.get(HEADER_LENGTH.lower())) == told


@pytest.mark.parametrize("ready", [True, False])
def test_health_and_metadata_are_the_same(running, plane, caller, ready):
    plane.is_ready = ready
    assert caller.ask("ServerLive").live
    assert caller.ask("ServerReady").ready is ready
    assert caller.ask("ModelReady", name="model").ready is ready
    server, model = caller.ask("ServerMetadata"), caller.ask("ModelMetadata", name="model", version="1")
    config = caller.ask("ModelConfig", name="model").config
    for url in http_addresses(running):
        assert exchange(url, "GET", "/v2/health/live").status == 200
        assert exchange(url, "GET", "/v2/health/ready").status == (200 if ready else 503)
        assert exchange(url, "GET", "/v2/models/model/ready").status == (200 if ready else 503)
        said = exchange(url, "GET", "/v2").json
        assert (server.name, server.version, list(server.extensions)) == (*list(said.values())[:2], said["extensions"])
        said = exchange(url, "GET", "/v2/models/model").json
        inputs = [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in model.inputs]
        assert (model.name, list(model.versions), inputs) == (said["name"], said["versions"], said["inputs"])
        assert exchange(url, "GET", "/v2/models/model/config").json["max_batch_size"] == config.max_batch_size


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_questions_about_models_are_refused_alike(running, plane, caller, method):
    route = {"ModelMetadata": "", "ModelConfig": "/config", "ModelStatistics": "/stats"}[method]
    for name, version in (("nope", ""), ("model", "x")):
        body = message_class(f"{method}Request")(name=name, version=version).SerializeToString()
        told = caller.call(method, body)
        path = f"/v2/models/{name}" + (f"/versions/{version}" if version else "") + route
        reply = exchange(running.url, "GET", path)
        assert (told.trailer["tandem-code"], told.details) == (reply.json["code"], reply.json["error"])
        assert told.status == ErrorCode[reply.json["code"]].grpc_status


def test_a_model_that_is_not_here_is_not_ready(running, plane, caller):
    """The one difference: a 404 over HTTP, an answer over gRPC.  Triton's clients read both as "no"."""
    assert caller.ask("ModelReady", name="nope").ready is False
    assert exchange(running.url, "GET", "/v2/models/nope/ready").status == 404


def test_every_error_has_a_status_that_grpc_knows():
    import grpc

    def leaves(kind):
        yield kind
        for child in kind.__subclasses__():
            yield from leaves(child)

    for error in leaves(InferenceError):
        assert error.code.grpc_status in grpc.StatusCode.__members__
