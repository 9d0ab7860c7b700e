"""The gRPC service over real sockets: the door, streams, health, reflection, limits, TLS and the drain.

What it answers to good and bad requests is in `test_transports`, beside HTTP.
"""

import asyncio
import datetime
import logging
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from rpc import SERVICE, Caller, outcome
from serving import FunctionPlane, Running, serving
from wire import exchange

from oip.errors import InvalidArgument
from oip.grpc_codec import FINAL_RESPONSE, decode_response, encode_request
from oip.messages import InferenceRequest
from oip.proto import message_class
from oip.server.grpc import STREAM_IN_FLIGHT
from oip.server.service import Service
from oip.server.settings import GrpcSettings, ServerSettings
from oip.tensors import Tensor
from oip.timing import parse_header

ROUTE = f"/{SERVICE}/ModelInfer"
StreamResponse = message_class("ModelStreamInferResponse")
STATES = health_pb2.HealthCheckResponse


def good(value: float = 1, id: str = "", **parameters) -> bytes:
    tensor = Tensor.of("x", np.array([[value, 2]], np.float32))
    return encode_request(InferenceRequest("model", (tensor,), id=id, parameters=parameters))


class Plane(FunctionPlane):
    """Doubles its input; a request whose first value is `held` or more waits until released."""

    def __init__(self, held: float = 1000) -> None:
        super().__init__(self._compute)
        self.held, self.begun, self.cancelled = held, queue.Queue(), queue.Queue()
        self._gates: dict[float, asyncio.Event] = {}

    async def _compute(self, arrays):
        value = float(arrays["x"].reshape(-1)[0])
        if value < 0:
            raise InvalidArgument(f"{value} is negative")
        if value >= self.held:
            self._loop = asyncio.get_running_loop()
            gate = self._gates[value] = asyncio.Event()
            self.begun.put(value)
            try:
                await gate.wait()
            except asyncio.CancelledError:
                self.cancelled.put(value)
                raise
        return {"y": arrays["x"] * 2}

    def release(self, value: float) -> None:
        self._loop.call_soon_threadsafe(self._gates[value].set)


def settings(**values) -> ServerSettings:
    return ServerSettings(http_port=0, http_address="127.0.0.1", **values)


def serve(plane=None, *, options=None, **values):
    return serving(
        plane or Plane(),
        settings(**values),
        grpc=GrpcSettings(**{"port": 0, "address": "127.0.0.1", **(options or {})}),
    )


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end


def counted(running: Running, status: str, route: str = ROUTE) -> float:
    name = f'tandem_requests_total{{method="gRPC",route="{route}",status="{status}"}}'
    lines = running.service.metrics.exposition().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


@pytest.fixture(scope="module")
def running():
    with serve() as running:
        yield running


@pytest.fixture
def caller(running, caplog):
    with Caller(running.grpc_target) as caller:
        yield caller
        assert caller.call("ModelInfer", good()).status == "OK"
    assert [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING] == []


def first_value(body: bytes) -> float:
    return float(decode_response(body).output("y").array[0, 0])


# --- the door ---------------------------------------------------------------------------------------------------------


def test_an_answer_carries_its_request_s_id_and_its_times(caller):
    answered = caller.call("ModelInfer", good(), metadata=[("x-request-id", "abc")])
    assert first_value(answered.body) == 2
    assert answered.trailer["x-request-id"] == "abc"
    stages = parse_header(answered.trailer["server-timing"])
    assert list(stages) == ["decode", "encode", "finish", "total"]
    assert sum(ms for name, (ms, _) in stages.items() if name != "total") == pytest.approx(stages["total"][0], abs=1e-6)


@pytest.mark.parametrize("sent", [[], [("x-request-id", "a b")], [("x-request-id", "a" * 129)]])
def test_a_request_without_a_usable_id_gets_one(caller, sent):
    assert len(caller.call("ModelInfer", good(), metadata=sent).trailer["x-request-id"]) == 32


def test_the_plane_sees_the_metadata_and_the_deadline(running, caller):
    contexts = running.service.plane.contexts
    caller.call("ModelInfer", good(), metadata=[("traceparent", "00-x"), ("some-bin", b"\0")], timeout=50)
    assert contexts[-1].headers["traceparent"] == "00-x"
    assert "some-bin" not in contexts[-1].headers
    assert 40 < contexts[-1].deadline - time.monotonic() < 51  # grpc rounds
    caller.call("ModelInfer", good(), metadata=[("x-envoy-expected-rq-timeout-ms", "9000")], timeout=50)
    assert contexts[-1].deadline - time.monotonic() <= 9
    caller.call("ModelInfer", good(timeout=5_000_000), timeout=None)
    assert contexts[-1].deadline - time.monotonic() <= 5
    caller.call("ModelInfer", good(), timeout=None)
    assert contexts[-1].deadline is None


@pytest.mark.parametrize(
    ("timeout", "metadata", "parameters"),
    [(0.2, [], {}), (20, [("x-envoy-expected-rq-timeout-ms", "200")], {}), (20, [], {"timeout": 200_000})],
    ids=["grpc", "envoy", "parameter"],
)
def test_a_deadline_that_passes_ends_the_work(running, caller, timeout, metadata, parameters):
    plane = running.service.plane
    before = counted(running, "DEADLINE_EXCEEDED") + counted(running, "CANCELLED")
    told = caller.call("ModelInfer", good(1000, **parameters), timeout=timeout, metadata=metadata)
    assert told.status == "DEADLINE_EXCEEDED"
    assert plane.cancelled.get(timeout=20) == 1000
    until(lambda: counted(running, "DEADLINE_EXCEEDED") + counted(running, "CANCELLED") == before + 1)


def test_a_caller_that_goes_ends_the_work(running, caller):
    plane = running.service.plane
    before = counted(running, "CANCELLED")
    while not plane.begun.empty():
        plane.begun.get()
    call = caller.begin("ModelInfer", good(1001))
    assert plane.begun.get(timeout=20) == 1001
    call.cancel()
    assert plane.cancelled.get(timeout=20) == 1001
    until(lambda: counted(running, "CANCELLED") == before + 1)
    until(lambda: running.service.admission.in_flight == 0)


def test_what_is_too_much_is_refused_at_once_and_probes_are_answered():
    with serve(plane := Plane(), max_in_flight=1) as running, Caller(running.grpc_target) as caller:
        first = caller.begin("ModelInfer", good(1000))
        plane.begun.get(timeout=20)
        told = caller.call("ModelInfer", good())
        assert (told.status, told.trailer["grpc-retry-pushback-ms"]) == ("UNAVAILABLE", "1000")
        assert told.details == "1 requests are in flight, the limit; try again"
        assert caller.ask("ServerReady").ready
        body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}'
        assert exchange(running.url, "POST", "/v2/models/model/infer", body).status == 503  # one door for both
        plane.release(1000)
        assert outcome(first).status == "OK"


def test_requests_are_counted_by_route_and_status(running, caller):
    before = counted(running, "OK"), counted(running, "NOT_FOUND")
    caller.call("ModelInfer", good())
    caller.call("ModelInfer", message_class("ModelInferRequest")(model_name="nope").SerializeToString())
    assert (counted(running, "OK"), counted(running, "NOT_FOUND")) == (before[0] + 1, before[1] + 1)


def test_an_rpc_that_is_not_there_is_unimplemented(caller):
    assert caller.call("Nothing").status == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "é" * 100_000, "%" * 100_000, "a\nb\0c", "\U0001f600" * 9000, "\ud800"]
)
def test_an_error_always_gets_through(text):
    plane = Plane()
    with serve(plane) as running, Caller(running.grpc_target) as caller:

        async def fail(arrays):
            raise InvalidArgument(text)

        plane.compute = fail
        told = caller.call("ModelInfer", good())
        assert told.status == "INVALID_ARGUMENT"
        assert told.details[:3] == text[:3].encode(errors="replace").decode()


def test_the_access_log_tells_of_a_call(caplog):
    with caplog.at_level(logging.INFO, "tandem.access"), serve(access_log=True) as running:
        with Caller(running.grpc_target) as caller:
            caller.call("ModelInfer", good(), metadata=[("x-request-id", "abc")])
        until(lambda: any(record.name == "tandem.access" for record in caplog.records))
    (record,) = [record for record in caplog.records if record.name == "tandem.access"]
    assert (record.request_id, record.path, record.status) == ("abc", ROUTE, "OK")


# --- limits -----------------------------------------------------------------------------------------------------------


def zeros(size: int) -> bytes:
    return encode_request(InferenceRequest("model", (Tensor.of("x", np.zeros((1, size), np.uint8)),)))


def test_a_message_limit_of_its_own():
    options = {"max_message_bytes": 3000}
    with serve(options=options, max_body_bytes=10**6) as running, Caller(running.grpc_target) as caller:
        assert caller.call("ModelInfer", zeros(2500)).status == "OK"
        told = caller.call("ModelInfer", zeros(3001))
        assert (told.status, "larger than max" in told.details) == ("RESOURCE_EXHAUSTED", True)


def test_a_compressed_message_counts_as_long_as_it_is():
    with serve(max_body_bytes=100_000) as running, Caller(running.grpc_target) as caller:
        for size, status in ((50_000, "OK"), (10_000_000, "RESOURCE_EXHAUSTED")):
            assert caller.call("ModelInfer", zeros(size), compression=grpc.Compression.Gzip).status == status


def test_more_than_grpcio_s_own_four_mebibytes_go_in_and_out(caller):
    answered = caller.call("ModelInfer", zeros(9 << 20))
    assert decode_response(answered.body).output("y").shape == (1, 9 << 20)


def received(running: Running, body: bytes) -> int:
    """Bytes that a caller's connection carries for one call."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        host, _, port = running.grpc_target.rpartition(":")
        total = 0

        def relay() -> None:
            nonlocal total
            near, _ = listener.accept()
            with near, socket.create_connection((host, int(port))) as far:

                def forth() -> None:
                    while data := near.recv(65536):
                        far.sendall(data)
                    far.shutdown(socket.SHUT_WR)

                thread = threading.Thread(target=forth)
                thread.start()
                while data := far.recv(65536):
                    total += len(data)
                    near.sendall(data)
                thread.join()

        thread = threading.Thread(target=relay)
        thread.start()
        with Caller(f"127.0.0.1:{listener.getsockname()[1]}") as caller:
            assert caller.call("ModelInfer", body).status == "OK"
        thread.join(20)
        return total


def test_answers_are_compressed_where_asked_for():
    assert received_with("none") > 100_000 > 20_000 > received_with("high")


def received_with(level: str) -> int:
    with serve(options={"response_compression": level}) as running:
        return received(running, zeros(100_000))


# --- streams ----------------------------------------------------------------------------------------------------------


def read(stream) -> list:
    return [StreamResponse.FromString(body) for body in stream]


def values(responses) -> list[float]:
    return [first_value(response.infer_response.SerializeToString()) for response in responses]


def test_a_stream_answers_in_order_and_says_which_is_the_last_response(caller):
    responses = read(caller.stream(good(value, str(value)) for value in range(50)))
    assert values(responses) == [2 * value for value in range(50)]
    assert [response.infer_response.id for response in responses] == [str(value) for value in range(50)]
    assert all(response.infer_response.parameters[FINAL_RESPONSE].bool_param for response in responses)


def test_a_stream_s_requests_are_worked_on_together_and_answered_in_order():
    with serve(plane := Plane(held=10)) as running, Caller(running.grpc_target) as caller:
        stream = caller.stream([good(10), good(11), good(1)])
        assert {plane.begun.get(timeout=20) for _ in range(2)} == {10, 11}
        plane.release(11)
        plane.release(10)
        assert values(read(stream)) == [20, 22, 2]


def test_a_stream_works_on_so_many_requests_and_no_more():
    with serve(plane := Plane(held=10)) as running, Caller(running.grpc_target) as caller:
        stream = caller.stream(good(10 + number) for number in range(3 * STREAM_IN_FLIGHT))
        answers = []
        for round_ in range(3):
            begun = [plane.begun.get(timeout=20) for _ in range(STREAM_IN_FLIGHT)]
            assert plane.begun.empty()
            assert caller.ask("ServerLive").live  # a round trip: more would have begun by now
            assert running.service.admission.in_flight == STREAM_IN_FLIGHT
            assert plane.begun.empty(), round_
            for value in reversed(begun):
                plane.release(value)
            answers += [StreamResponse.FromString(next(stream)) for _ in begun]
        assert values(answers) == [2 * (10 + number) for number in range(3 * STREAM_IN_FLIGHT)]
        assert list(stream) == []


def test_an_error_in_a_stream_is_a_message_and_the_stream_goes_on(running, caller):
    route = f"/{SERVICE}/ModelStreamInfer"
    before = counted(running, "INVALID_ARGUMENT", route)
    first, second, third = read(caller.stream([good(-1, "7"), b"\xff", good(3)]))
    assert (first.error_message, first.infer_response.id) == ("-1.0 is negative", "7")
    assert "no valid protobuf" in second.error_message
    assert values([third]) == [6]
    assert counted(running, "INVALID_ARGUMENT", route) == before + 2


def test_an_error_in_a_stream_is_a_status_for_who_asks(caller):
    stream = caller.stream([good(1), good(-1), good(3)], metadata=[("triton_grpc_error", "true")])
    assert values([StreamResponse.FromString(next(stream))]) == [2]
    with pytest.raises(grpc.RpcError):
        next(stream)
    told = outcome(stream)
    assert (told.status, told.details) == ("INVALID_ARGUMENT", "-1.0 is negative")
    assert told.trailer["tandem-code"] == "INVALID_ARG"


def test_a_stream_that_is_cancelled_ends_its_work():
    with serve(plane := Plane(held=10)) as running, Caller(running.grpc_target) as caller:
        stream = caller.stream([good(10), good(11)])
        assert {plane.begun.get(timeout=20) for _ in range(2)} == {10, 11}
        stream.cancel()
        assert {plane.cancelled.get(timeout=20) for _ in range(2)} == {10, 11}
        until(lambda: running.service.admission.in_flight == 0)
        assert values(read(caller.stream([good(1)]))) == [2]


def test_a_stream_s_deadline_ends_it():
    with serve(plane := Plane(held=10)) as running, Caller(running.grpc_target) as caller:
        stream = caller.stream([good(10)], timeout=0.3)
        assert outcome(stream).status == "DEADLINE_EXCEEDED"
        assert plane.cancelled.get(timeout=20) == 10
        until(lambda: running.service.admission.in_flight == 0)


# --- health -----------------------------------------------------------------------------------------------------------


def check(caller: Caller, service: str):
    body = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    return caller.call("Check", body, service="grpc.health.v1.Health")


@pytest.mark.parametrize("ready", [True, False])
def test_health_tells_readiness_and_liveness(running, caller, ready):
    running.service.plane.is_ready = ready
    try:
        for service, serving in (("", ready), (SERVICE, ready), ("liveness", True)):
            status = STATES.FromString(check(caller, service).body).status
            assert status == (STATES.SERVING if serving else STATES.NOT_SERVING)
        assert check(caller, "nope").status == "NOT_FOUND"
    finally:
        running.service.plane.is_ready = True


def watch(caller: Caller, service: str = ""):
    body = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    return caller.channel.unary_stream("/grpc.health.v1.Health/Watch", response_deserializer=STATES.FromString)(
        body, timeout=20
    )


def test_health_can_be_watched_until_the_server_stops():
    with serve(plane := Plane()) as running, Caller(running.grpc_target) as caller:
        watched = watch(caller)
        assert next(watched).status == STATES.SERVING
        plane.is_ready = False
        assert next(watched).status == STATES.NOT_SERVING
        plane.is_ready = True
        assert next(watched).status == STATES.SERVING
        running.loop.call_soon_threadsafe(running.service.stop)
        assert next(watched).status == STATES.NOT_SERVING
        with pytest.raises(grpc.RpcError):
            next(watched)
        assert outcome(watched).status == "UNAVAILABLE"
        assert running.stop() == 0


def test_a_service_that_is_not_here_is_watched_as_unknown(caller):
    watched = watch(caller, "nope")
    assert next(watched).status == STATES.SERVICE_UNKNOWN
    watched.cancel()


# --- reflection -------------------------------------------------------------------------------------------------------


def reflect(caller: Caller, version: str, *questions):
    method = caller.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return list(method(iter(reflection_pb2.ServerReflectionRequest(**question) for question in questions), timeout=20))


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_tells_of_services_and_messages(caller, version):
    services, method, kind, nothing = reflect(
        caller,
        version,
        {"list_services": ""},
        {"file_containing_symbol": SERVICE},
        {"file_containing_symbol": "grpc.health.v1.HealthCheckRequest"},
        {"file_containing_symbol": "inference.Nothing"},
    )
    names = {service.name for service in services.list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    files = [FileDescriptorProto.FromString(raw) for raw in method.file_descriptor_response.file_descriptor_proto]
    assert {file.name for file in files} == {"grpc_service.proto", "model_config.proto"}
    (health,) = kind.file_descriptor_response.file_descriptor_proto
    assert FileDescriptorProto.FromString(health).package == "grpc.health.v1"
    assert nothing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


# --- life -------------------------------------------------------------------------------------------------------------


def test_a_drain_finishes_what_is_in_flight_and_refuses_what_is_new():
    plane = Plane()
    with serve(plane) as running, Caller(running.grpc_target) as caller, Caller(running.grpc_target) as other:
        assert other.ask("ServerReady").ready
        held = caller.begin("ModelInfer", good(1000))
        assert plane.begun.get(timeout=20) == 1000
        running.loop.call_soon_threadsafe(running.service.stop)
        until(lambda: other.call("ModelInfer", good()).status == "UNAVAILABLE")
        plane.release(1000)
        assert first_value(outcome(held).body) == 2000
        assert running.stop() == 0


def test_while_a_balancer_notices_calls_are_answered_and_nothing_is_ready():
    with serve(drain_delay_seconds=1) as running, Caller(running.grpc_target) as caller:
        running.loop.call_soon_threadsafe(running.service.stop)
        until(lambda: not caller.ask("ServerReady").ready)
        assert not caller.ask("ModelReady", name="model").ready
        assert STATES.FromString(check(caller, "").body).status == STATES.NOT_SERVING
        assert caller.call("ModelInfer", good()).status == "OK"
        assert running.stop() == 0


def test_idle_streams_do_not_hold_a_stop():
    with serve() as running, Caller(running.grpc_target) as caller:
        requests: queue.Queue[bytes] = queue.Queue()
        requests.put(good())
        stream = caller.stream(iter(requests.get, None))
        next(stream)
        questions = queue.Queue()
        questions.put(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
        method = caller.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        reflected = method(iter(questions.get, None))
        next(reflected)
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 10
        for call, waiting in ((stream, requests), (reflected, questions)):
            assert outcome(call).status == "UNAVAILABLE"
            waiting.put(None)


def test_a_stream_s_requests_in_flight_are_answered_before_a_stop():
    with serve(plane := Plane(held=10)) as running, Caller(running.grpc_target) as caller:
        requests: queue.Queue[bytes] = queue.Queue()
        requests.put(good(10))
        stream = caller.stream(iter(requests.get, None))
        assert plane.begun.get(timeout=20) == 10
        running.loop.call_soon_threadsafe(running.service.stop)
        with Caller(running.grpc_target) as other:
            until(lambda: other.call("ServerLive").status == "UNAVAILABLE")
        plane.release(10)
        assert values([StreamResponse.FromString(next(stream))]) == [20]
        with pytest.raises(grpc.RpcError):
            next(stream)
        assert outcome(stream).status == "UNAVAILABLE"
        requests.put(None)
        assert running.stop() == 0


def test_a_stop_is_bounded():
    with serve(plane := Plane(), exit_timeout_seconds=0.2) as running, Caller(running.grpc_target) as caller:
        held = caller.begin("ModelInfer", good(1000))
        plane.begun.get(timeout=20)
        assert running.stop() == 1
        assert outcome(held).status in ("CANCELLED", "UNAVAILABLE")
        assert plane.cancelled.get(timeout=20) == 1000


def test_a_port_that_is_taken_ends_the_process_before_anything_starts(caplog):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        options = GrpcSettings(port=other.getsockname()[1], address="127.0.0.1")
        assert asyncio.run(Service(Plane(), settings(), grpc=options).run()) == 1
    assert f"cannot listen: port {options.port} of 127.0.0.1 for gRPC: it is taken, or not allowed" in caplog.text


def test_two_servers_share_a_port_only_if_told_to(caplog):
    with serve(options={"reuse_port": True}) as running:
        port = int(running.grpc_target.rpartition(":")[2])
        assert asyncio.run(Service(Plane(), settings(), grpc=GrpcSettings(port=port, address="127.0.0.1")).run()) == 1
        with (
            serve(options={"reuse_port": True, "port": port})
            if False
            else serving(
                Plane(), settings(), grpc=GrpcSettings(port=port, address="127.0.0.1", reuse_port=True)
            ) as second
        ):
            assert second.grpc_target == running.grpc_target


def test_a_process_without_grpc_loads_none():
    code = "import sys, oip.server.service; print(*[m for m in ('grpc', 'google.protobuf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A key and a certificate for localhost that signs itself."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return folder / "key.pem", folder / "cert.pem"


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(certificate, mutual):
    key, cert = certificate
    options = {"tls_key": key, "tls_certificate": cert, "tls_client_roots": cert if mutual else None}
    with serve(options=options) as running:
        target = running.grpc_target

        def answered(pair) -> str:
            credentials = grpc.ssl_channel_credentials(cert.read_bytes(), *pair)
            names = [("grpc.ssl_target_name_override", "localhost")]
            with grpc.secure_channel(target, credentials, options=names) as channel:
                return outcome(channel.unary_unary(ROUTE).future(good(), timeout=5)).status

        assert answered((key.read_bytes(), cert.read_bytes())) == "OK"
        assert answered((None, None)) == ("UNAVAILABLE" if mutual else "OK")
        with Caller(target) as plain:
            assert plain.call("ServerLive", timeout=5).status == "UNAVAILABLE"


def test_a_certificate_that_is_not_there_ends_the_process(caplog, tmp_path):
    options = GrpcSettings(
        port=0, address="127.0.0.1", tls_key=tmp_path / "key.pem", tls_certificate=tmp_path / "cert.pem"
    )
    assert asyncio.run(Service(Plane(), settings(), grpc=options).run()) == 1
    assert "for gRPC: No such file or directory" in caplog.text
