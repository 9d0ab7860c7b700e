"""The HTTP service over real sockets: what it answers, and above all what it answers to what is wrong."""

import asyncio
import gzip
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from serving import FunctionPlane, Running, serving
from wire import Reply, Wire, exchange

from oip import errors
from oip.errors import InferenceError, InvalidArgument, Unavailable
from oip.http_codec import HEADER_LENGTH, decode_response, encode_request
from oip.messages import InferenceRequest
from oip.server.door import drop_if_late, sooner
from oip.server.settings import ServerSettings
from oip.tensors import Tensor
from oip.timing import parse_header

INFER = "/v2/models/model/infer"
GOOD = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()
LIMIT = 100_000


class Plane(FunctionPlane):
    """Doubles its input, unless `behaviour` is set to a function that does otherwise."""

    def __init__(self) -> None:
        super().__init__(lambda arrays: self.behaviour(arrays))
        self.behaviour = self.double

    @staticmethod
    def double(arrays):
        return {"y": arrays["x"] * 2}


class Hold:
    """A behaviour that does not end until told to, and says how it ended."""

    def __init__(self) -> None:
        self.begun, self.cancelled, self._go = threading.Event(), threading.Event(), threading.Event()

    async def __call__(self, arrays):
        self.loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        self.begun.set()
        try:
            await self._ending.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Plane.double(arrays)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self._ending.set)


def until(condition: Callable[[], bool]) -> None:
    """Ask the server again until it is so; each question is a round trip, so its loop turns between them."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end


def metric(url: str, name: str) -> float:
    """The value of one series of `/metrics`, 0 if there is none."""
    lines = exchange(url, "GET", "/metrics").body.decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")), 0.0)


GONE = 'tandem_requests_total{method="POST",route="/v2/models/{name}/infer",status="499"}'


def settings(**values) -> ServerSettings:
    return ServerSettings(http_port=0, http_address="127.0.0.1", **values)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(Plane(), settings(max_body_bytes=LIMIT)) as running:
        yield running


@pytest.fixture
def plane(running) -> Plane:
    running.service.plane.behaviour = Plane.double
    return running.service.plane


@pytest.fixture
def url(running, plane, caplog) -> Iterator[str]:
    """Where the server is; whatever a test did to it, aiohttp has no complaint and the next good request succeeds."""
    yield running.url
    assert [record for record in caplog.get_records("call") if record.name.startswith(("aiohttp", "asyncio"))] == []
    plane.behaviour = Plane.double
    assert exchange(running.url, "POST", INFER, GOOD).json["outputs"][0]["data"] == [2.0, 4.0]


def assert_error(reply: Reply, status: int, code: str, *, instance: int | None = None) -> str:
    """The one error body, and no word of what the server is made of; returns the message."""
    assert reply.status == status, reply
    assert reply.headers["content-type"] == "application/json"
    body = reply.json
    assert set(body) == {"error", "code", "request_id"} | ({"instance"} if instance is not None else set())
    assert body["code"] == code
    assert body.get("instance") == instance
    assert isinstance(body["error"], str)
    assert body["error"]
    assert_discreet(reply)
    return body["error"]


def assert_discreet(reply: Reply) -> None:
    told = (str(reply.headers) + reply.body.decode()).lower()
    for word in ("traceback", 'file "', ".py", "python", "aiohttp", "127.0.0.1", "object at 0x"):
        assert word not in told, told


# --- the error table --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code", "message"),
    [
        ("POST", INFER, b"", {}, 400, "INVALID_ARG", "not valid JSON"),
        ("POST", INFER, b"[" * 200, {}, 400, "INVALID_ARG", "nested deeper than 100 levels"),
        ("POST", INFER, b'{"inputs": 1}', {}, 400, "INVALID_ARG", "'inputs' must be a list"),
        ("POST", INFER, GOOD, {HEADER_LENGTH: "x"}, 400, "INVALID_ARG", HEADER_LENGTH),
        ("POST", INFER, GOOD, {HEADER_LENGTH: "\xff"}, 400, "INVALID_ARG", HEADER_LENGTH),
        ("POST", INFER, GOOD, {HEADER_LENGTH: str(len(GOOD) + 1)}, 400, "INVALID_ARG", "bytes"),
        ("POST", INFER, GOOD, {HEADER_LENGTH: "0"}, 400, "INVALID_ARG", "takes 8 bytes"),
        ("POST", "/v2/models/model/versions/x/infer", GOOD, {}, 400, "INVALID_ARG", "version is a number, got 'x'"),
        ("GET", f"/v2/models/model/versions/{'1' * 5000}", None, {}, 400, "INVALID_ARG", "version is a number"),
        ("GET", "/v2/models/model/versions/%C2%B2", None, {}, 400, "INVALID_ARG", "version is a number"),
        ("POST", "/v2/models/nope/infer", GOOD, {}, 404, "NOT_FOUND", "'nope' is not found"),
        ("GET", "/v2/models/nope", None, {}, 404, "NOT_FOUND", "'nope' is not found"),
        ("GET", "/v2/models/nope/ready", None, {}, 404, "NOT_FOUND", "'nope' is not found"),
        ("GET", "/v2/models/nope/config", None, {}, 404, "NOT_FOUND", "'nope' is not found"),
        ("GET", "/v2/nothing", None, {}, 404, "NOT_FOUND", "no route '/v2/nothing'"),
        ("GET", "/", None, {}, 404, "NOT_FOUND", "no route '/'"),
        ("GET", "/v2/models/a/b/infer", None, {}, 404, "NOT_FOUND", "no route"),
        ("GET", "/v2/models/..%2f..%2fetc%2fpasswd", None, {}, 404, "NOT_FOUND", "not found"),
        ("GET", "/v2/models/%2e%2e%2f/ready", None, {}, 404, "NOT_FOUND", ""),
        ("GET", "/v2/models/../models/nope", None, {}, 404, "NOT_FOUND", ""),
        ("GET", "/v2/models/%00", None, {}, 404, "NOT_FOUND", ""),
        ("GET", "/v2/models/%ff%0d%0a", None, {}, 404, "NOT_FOUND", ""),
        ("GET", "/v2/models/m%D0%BEdel", None, {}, 404, "NOT_FOUND", "m\u043edel"),
        ("GET", f"/v2/models/{'a' * 7000}", None, {}, 404, "NOT_FOUND", "aaa"),
        ("GET", "/v2/models//ready", None, {}, 404, "NOT_FOUND", "no route"),
        ("GET", "/v2/models/{}", None, {}, 404, "NOT_FOUND", ""),
        ("GET", INFER, None, {}, 405, "METHOD_NOT_ALLOWED", "GET is not allowed here; use POST"),
        ("POST", "/v2", b"", {}, 405, "METHOD_NOT_ALLOWED", "use GET,HEAD"),
        ("DELETE", "/v2/health/live", None, {}, 405, "METHOD_NOT_ALLOWED", "use GET,HEAD"),
        ("POST", INFER, GOOD, {"Content-Encoding": "br"}, 415, "UNSUPPORTED_MEDIA_TYPE", "'br' is not read here"),
        ("POST", INFER, GOOD, {"Content-Encoding": "gzip, gzip"}, 415, "UNSUPPORTED_MEDIA_TYPE", "use gzip or"),
        ("POST", INFER, GOOD, {"Content-Encoding": "a" * 900}, 415, "UNSUPPORTED_MEDIA_TYPE", "aaaa"),
        ("POST", INFER, b" " * (LIMIT + 1), {}, 413, "TOO_LARGE", f"longer than {LIMIT} bytes"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_one_form(url, method, path, body, headers, status, code, message):
    reply = exchange(url, method, path, body, headers)
    assert message in assert_error(reply, status, code)
    assert (reply.headers.get("allow") is not None) is (status == 405)


def leaves(error: type[InferenceError]) -> list[type[InferenceError]]:
    return [error, *(leaf for child in error.__subclasses__() for leaf in leaves(child))]


@pytest.mark.parametrize("error", leaves(InferenceError))
@pytest.mark.parametrize("instance", [None, 3])
def test_whatever_a_plane_raises_keeps_its_meaning(url, plane, error, instance):
    def fail(arrays):
        raise error("what, where, and what would be right", instance=instance)

    plane.behaviour = fail
    reply = exchange(url, "POST", INFER, GOOD)
    message = assert_error(reply, error.code.http_status, error.code.name, instance=instance)
    assert message == "what, where, and what would be right"
    assert reply.headers.get("retry-after") == ("1" if error is Unavailable else None)


@pytest.mark.parametrize(("error", "seconds"), [(Unavailable, 7), (errors.TooManyRequests, 5)])
def test_retry_after_says_how_long(url, plane, error, seconds):
    def fail(arrays):
        raise error("later", retry_after_seconds=seconds)

    plane.behaviour = fail
    assert exchange(url, "POST", INFER, GOOD).headers["retry-after"] == str(seconds)


@pytest.mark.parametrize("error", [ValueError("/secret/path"), TimeoutError(), KeyError("x"), ConnectionResetError()])
def test_a_bug_is_a_500_that_tells_nothing_and_a_traceback_in_the_log(url, plane, caplog, error):
    def fail(arrays):
        raise error

    plane.behaviour = fail
    reply = exchange(url, "POST", INFER, GOOD, {"X-Request-Id": "mine"})
    assert "secret" not in assert_error(reply, 500, "INTERNAL")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "mine" in record.getMessage()
    assert record.exc_info[1] is error


def test_a_nan_is_a_500_that_names_the_output(url, plane):
    plane.behaviour = lambda arrays: {"y": np.array([np.nan], np.float32)}
    reply = exchange(url, "POST", INFER, GOOD)
    assert "tensor 'y' holds NaN or infinity" in assert_error(reply, 500, "INTERNAL")
    binary = json.loads(GOOD) | {"parameters": {"binary_data_output": True}}
    reply = exchange(url, "POST", INFER, json.dumps(binary).encode())
    assert np.isnan(decode_response(reply.body, reply.headers[HEADER_LENGTH.lower()]).output("y").array).all()


def test_a_message_is_cut_before_it_floods(url):
    body = json.dumps({"inputs": [{"name": "x", "datatype": "A" * 50_000, "shape": [1], "data": [1]}]}).encode()
    assert len(assert_error(exchange(url, "POST", INFER, body), 400, "INVALID_ARG")) < 5000


def test_a_name_that_is_no_text_can_still_be_told(url):
    with Wire(url) as wire:
        reply = wire.send(b"GET /v2/models/\xff\xfe HTTP/1.1\r\nHost: test\r\n\r\n").reply()
    assert reply.status in (400, 404)
    assert_discreet(reply)
    assert reply.json["code"] in ("INVALID_ARG", "NOT_FOUND")


# --- bodies -----------------------------------------------------------------------------------------------------------


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def test_a_chunked_body_is_read(url):
    headers = {"Transfer-Encoding": "chunked"}
    for size in (1, 7, len(GOOD)):
        with Wire(url) as wire:
            assert wire.request("POST", INFER, None, headers).send(chunked(GOOD, size)).reply().status == 200


def test_a_body_over_the_limit_is_refused_by_its_length_before_a_byte_of_it(url):
    with Wire(url) as wire:
        reply = wire.request("POST", INFER, None, {"Content-Length": str(10 << 30)}).reply()
        assert_error(reply, 413, "TOO_LARGE")
        assert reply.headers["connection"] == "close"


def test_an_endless_chunked_body_is_refused_at_the_limit(url):
    with Wire(url) as wire:
        wire.request("POST", INFER, None, {"Transfer-Encoding": "chunked"})
        wire.send(b"%x\r\n" % (1 << 40), b" " * (LIMIT + 1))
        assert_error(wire.reply(), 413, "TOO_LARGE")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_refused_at_the_limit(url, encoding):
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    bomb = pack(b" " * (64 << 20))
    assert len(bomb) < LIMIT
    assert_error(exchange(url, "POST", INFER, bomb, {"Content-Encoding": encoding}), 413, "TOO_LARGE")


def test_what_is_left_of_a_bomb_is_not_unpacked(url):
    """Unpacking it to throw it away would cost as much as unpacking it to use it."""
    bomb = gzip.compress(b" " * (64 << 20))
    with Wire(url) as wire:
        wire.request("POST", INFER, None, {"Content-Encoding": "gzip", "Content-Length": str(len(bomb))})
        wire.send(bomb[: len(bomb) // 2])
        assert_error(wire.reply(), 413, "TOO_LARGE")
        begun = time.monotonic()
        assert wire.closed()
        assert time.monotonic() - begun < 5  # without a wait for the rest, which never comes


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
        ("", bytes),
    ],
)
def test_an_encoded_body_is_read(url, encoding, pack):
    assert exchange(url, "POST", INFER, pack(GOOD), {"Content-Encoding": encoding}).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: b"no such thing",
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:15] + bytes(8) + packed[23:],
        lambda packed: b"",
    ],
    ids=["garbage", "half", "inside", "empty"],
)
def test_a_damaged_encoded_body_is_refused(url, encoding, damage):
    packed = damage(gzip.compress(GOOD) if encoding == "gzip" else zlib.compress(GOOD))
    assert_error(exchange(url, "POST", INFER, packed, {"Content-Encoding": encoding}), 400, "INVALID_ARG")


@pytest.mark.parametrize(
    "pieces",
    [b"zz\r\n", b"-1\r\n", b"2\r\nabc\r\n", b"1\r\nab\r\n0\r\n\r\n"],
    ids=["no number", "negative", "no line end", "more than it says"],
)
@pytest.mark.parametrize("when", ["with the headers", "while the body is being read"])
def test_a_chunked_body_that_is_none_is_refused_at_once(url, pieces, when):
    with Wire(url) as wire:
        headers = {"Transfer-Encoding": "chunked"}
        if when == "with the headers":
            wire.request("POST", INFER, pieces, headers)
        else:
            assert wire.request("POST", INFER, None, headers | {"Expect": "100-continue"}).reply().status == 100
            wire.send(pieces)
        assert_error(wire.reply(), 400, "INVALID_ARG")
        assert wire.closed()


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "application/x-www-form-urlencoded",
        "text/plain",
        "application/octet-stream",
        "application/octet-stream; boundary=x",
        "image/png",
        "nonsense",
        "/;;=",
    ],
)
def test_the_content_type_decides_nothing(url, content_type):
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert exchange(url, "POST", INFER, GOOD, headers).status == 200
    encoded = encode_request(
        InferenceRequest("model", (Tensor.of("x", np.ones((1, 2), np.float32)),), binary_output=True)
    )
    reply = exchange(url, "POST", INFER, encoded.body(), {HEADER_LENGTH: encoded.headers[HEADER_LENGTH], **headers})
    assert reply.headers["content-type"] == "application/octet-stream"
    answer = decode_response(reply.body, reply.headers[HEADER_LENGTH.lower()])
    assert answer.output("y").array.tolist() == [[2.0, 2.0]]


def test_the_id_and_the_version_go_to_the_plane_and_the_id_comes_back(url, plane):
    body = json.dumps({**json.loads(GOOD), "id": "mine"}).encode()
    reply = exchange(url, "POST", "/v2/models/model/versions/3/infer", body)
    assert reply.json["id"] == "mine"
    assert (plane.requests[-1].id, plane.requests[-1].model_version) == ("mine", "3")


def test_a_slow_body_is_refused_when_its_time_is_up():
    with serving(Plane(), settings(body_timeout_seconds=0.2)) as running, Wire(running.url) as wire:
        wire.request("POST", INFER, None, {"Content-Length": "10"}).send(b"12345")
        reply = wire.reply()
        assert assert_error(reply, 408, "TOO_SLOW") == "the body did not arrive within 0.2 s; 5 bytes came"
        assert reply.headers["connection"] == "close"
        assert exchange(running.url, "POST", INFER, GOOD).status == 200


def test_an_answer_that_nobody_takes_is_cut_off():
    plane = Plane()
    plane.behaviour = lambda arrays: {"y": np.zeros(8 << 20, np.float32)}
    body = json.dumps({**json.loads(GOOD), "parameters": {"binary_data_output": True}}).encode()
    with serving(plane, settings(body_timeout_seconds=0.3)) as running, Wire(running.url) as wire:
        wire.request("POST", INFER, body)
        until(lambda: plane.requests != [])
        admission = running.service.http.admission
        until(lambda: exchange(running.url, "GET", "/v2").status == 200 and admission.in_flight == 0)
        with pytest.raises(ConnectionError):
            wire.reply()


def test_many_small_answers_that_nobody_takes_are_cut_off_too():
    with serving(Plane(), settings(body_timeout_seconds=0.3)) as running, socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.settimeout(20)
        caller.connect(("127.0.0.1", int(running.url.rpartition(":")[2])))
        caller.sendall(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n" * 3000)

        def settled() -> bool:
            """Answers were given, but no more of them, and none is being written."""
            before = metric(running.url, series)
            return 100 < before == metric(running.url, series) - 1 and running.service.http.admission.in_flight == 0

        series = 'tandem_requests_total{method="GET",route="/metrics",status="200"}'
        until(settled)
        assert metric(running.url, series) < 3000


# --- Expect -----------------------------------------------------------------------------------------------------------

EXPECT = {"Expect": "100-continue", "Content-Length": str(len(GOOD))}


@pytest.mark.parametrize("expect", ["100-continue", "100-Continue"])
def test_a_body_that_is_wanted_is_asked_for(url, expect):
    with Wire(url) as wire:
        assert wire.request("POST", INFER, None, {**EXPECT, "Expect": expect}).reply().status == 100
        assert wire.send(GOOD).reply().status == 200
        assert wire.request("POST", INFER, GOOD).reply().status == 200


@pytest.mark.parametrize(
    ("headers", "status"), [({"Content-Length": str(LIMIT + 1)}, 413), ({"Content-Encoding": "br"}, 415)]
)
def test_a_body_that_is_not_wanted_is_not_asked_for(url, headers, status):
    with Wire(url) as wire:
        reply = wire.request("POST", INFER, None, {**EXPECT, **headers}).reply()
        assert (reply.status, reply.headers["connection"]) == (status, "close")


def test_an_expectation_that_is_unknown_is_ignored_or_refused_in_our_words(url):
    assert exchange(url, "POST", INFER, GOOD, {"Expect": "the-unexpected"}).status == 200
    assert_error(exchange(url, "GET", "/nothing", None, {"Expect": "x"}), 400, "INVALID_ARG")


# --- admission, deadlines, callers who go -----------------------------------------------------------------------------


def test_over_the_limit_requests_are_refused_and_probes_answered():
    plane, hold = Plane(), Hold()
    plane.behaviour = hold
    with serving(plane, settings(max_in_flight=1)) as running, Wire(running.url) as first:
        first.request("POST", INFER, GOOD)
        hold.begun.wait(20)
        reply = exchange(running.url, "POST", INFER, GOOD)
        assert "1 requests are in flight, the limit" in assert_error(reply, 503, "UNAVAILABLE")
        assert reply.headers["retry-after"] == "1"
        with Wire(running.url) as wire:
            assert wire.request("POST", INFER, None, EXPECT).reply().status == 503
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/model/ready", "/metrics", "/v2"):
            for method in ("GET", "HEAD"):
                assert exchange(running.url, method, path).status == 200
        plane.behaviour = Plane.double
        hold.end()
        assert first.reply().status == 200
        assert exchange(running.url, "POST", INFER, GOOD).status == 200


@pytest.mark.parametrize(
    ("headers", "parameters"),
    [
        ({"x-envoy-expected-rq-timeout-ms": "50"}, {}),
        ({}, {"timeout": 50_000}),
        ({"x-envoy-expected-rq-timeout-ms": "60000"}, {"timeout": 50_000}),
        ({"x-envoy-expected-rq-timeout-ms": "50"}, {"timeout": 60_000_000}),
        ({}, {"timeout": 1}),
    ],
)
def test_a_deadline_ends_a_request_and_what_it_waits_for(url, plane, headers, parameters):
    hold = Hold()
    plane.behaviour = hold
    body = json.dumps({**json.loads(GOOD), "parameters": parameters}).encode()
    begun = time.monotonic()
    reply = exchange(url, "POST", INFER, body, headers)
    assert "deadline" in assert_error(reply, 504, "DEADLINE_EXCEEDED")
    assert time.monotonic() - begun < 5
    if hold.begun.is_set():
        assert hold.cancelled.wait(20)


def test_a_deadline_ends_the_wait_for_a_body(url, plane):
    before = len(plane.requests)
    with Wire(url) as wire:
        wire.request("POST", INFER, None, {"Content-Length": "10", "x-envoy-expected-rq-timeout-ms": "50"})
        assert_error(wire.reply(), 504, "DEADLINE_EXCEEDED")
    assert len(plane.requests) == before


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", "", "²", "9" * 15, "9" * 5000])
def test_a_timeout_header_that_sets_no_limit(url, value):
    assert exchange(url, "POST", INFER, GOOD, {"x-envoy-expected-rq-timeout-ms": value}).status == 200


@pytest.mark.parametrize("value", [-1, 1.5, True, "1000"])
def test_a_timeout_parameter_that_is_none_is_refused(url, value):
    body = json.dumps({**json.loads(GOOD), "parameters": {"timeout": value}}).encode()
    assert "'timeout' must be a number of micro" in assert_error(exchange(url, "POST", INFER, body), 400, "INVALID_ARG")


@pytest.mark.parametrize("value", [0, 60_000_000, 2**64 - 1])
def test_a_timeout_parameter_reaches_the_plane_as_a_deadline(url, plane, value):
    body = json.dumps({**json.loads(GOOD), "parameters": {"timeout": value}}).encode()
    assert exchange(url, "POST", INFER, body).status == 200
    deadline = plane.contexts[-1].deadline
    assert (deadline is None) is (value == 0)
    if value:
        assert deadline == pytest.approx(time.monotonic() + value / 1e6, abs=20, rel=1e-6)


def test_the_sooner_deadline_counts():
    assert [sooner(1, 2), sooner(None, 2), sooner(1, None), sooner(None, None)] == [1, 2, 1, None]


def test_what_nobody_waits_for_is_dropped():
    drop_if_late(None)
    drop_if_late(time.monotonic() + 100)
    with pytest.raises(errors.DeadlineExceeded):
        drop_if_late(time.monotonic())


def test_a_caller_who_goes_cancels_what_it_waited_for(url, running, plane):
    hold = Hold()
    plane.behaviour = hold
    before = metric(url, GONE)
    with Wire(url) as wire:
        wire.request("POST", INFER, GOOD)
        assert hold.begun.wait(20)
        assert not hold.cancelled.is_set()
    assert hold.cancelled.wait(20)
    until(lambda: metric(url, GONE) == before + 1)


def test_a_caller_who_goes_in_the_middle_of_its_body_is_no_bug(url, caplog):
    before = metric(url, GONE)
    with Wire(url) as wire:
        wire.request("POST", INFER, None, {**EXPECT, "Content-Length": "1000"})
        assert wire.reply().status == 100  # the body is being waited for
        wire.send(b"{")
    until(lambda: metric(url, GONE) == before + 1)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- what every answer carries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["abc", "1", "a" * 128, "0af7651916cd43dd-8448eb211c80319c", "!~"])
def test_a_request_id_is_echoed(url, plane, given):
    reply = exchange(url, "POST", INFER, GOOD, {"X-Request-ID": given})
    assert reply.headers["x-request-id"] == given
    assert plane.contexts[-1].request_id == given
    reply = exchange(url, "GET", "/nothing", None, {"x-request-id": given})
    assert reply.headers["x-request-id"] == reply.json["request_id"] == given


@pytest.mark.parametrize("given", [None, "", "a" * 129, "two words", "tab\there", "\xe9", "\xf0\x9f\x98\x80"])
def test_a_request_id_is_made_where_there_is_no_usable_one(url, given):
    headers = {} if given is None else {"X-Request-ID": given}
    replies = [exchange(url, "GET", "/nothing", None, headers) for _ in range(2)]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert all(len(made) == 32 and made.isalnum() for made in ids)
    assert ids == [reply.json["request_id"] for reply in replies]
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("method", "path", "body", "stages"),
    [
        ("POST", INFER, GOOD, ["read", "decode", "encode", "finish"]),
        ("POST", INFER, b"{", ["read", "finish"]),
        ("GET", "/v2", None, ["finish"]),
        ("GET", "/nothing", None, ["finish"]),
    ],
)
def test_server_timing_adds_up(url, method, path, body, stages):
    begun = time.perf_counter()
    reply = exchange(url, method, path, body)
    elapsed = (time.perf_counter() - begun) * 1000
    timing = {name: milliseconds for name, (milliseconds, _) in parse_header(reply.headers["server-timing"]).items()}
    total = timing.pop("total")
    assert list(timing) == stages
    assert total == pytest.approx(sum(timing.values()), abs=0.0011)
    assert 0 < total <= elapsed


@pytest.mark.parametrize("path", ["/v2", INFER, "/nothing", "/metrics"])
def test_no_answer_says_what_the_server_is_made_of(url, path):
    reply = exchange(url, "GET", path)
    assert reply.headers["server"] == "tandem"
    assert "aiohttp" not in str(reply.headers)


def test_headers_reach_the_plane_with_lower_case_names_and_the_first_of_each(url, plane):
    with Wire(url) as wire:
        wire.send(
            f"POST {INFER} HTTP/1.1\r\nHost: t\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode()
        )
        assert wire.send(GOOD).reply().status == 200
    assert plane.contexts[-1].headers["x-a"] == "1"
    assert all(name == name.lower() for name in plane.contexts[-1].headers)


# --- health, metadata, metrics ----------------------------------------------------------------------------------------


def test_health_and_metadata(url):
    for path, body in {
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
        "/v2/models/model/ready": {"name": "model", "ready": True},
        "/v2/models/model/versions/1/ready": {"name": "model", "ready": True},
        "/v2": {"name": "fake", "version": "1", "extensions": ["binary_tensor_data"]},
        "/v2/models/model": {
            "name": "model",
            "versions": ["1"],
            "platform": "pytorch_libtorch",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
        },
        "/v2/models/model/config": {"name": "model", "max_batch_size": 8},
    }.items():
        reply = exchange(url, "GET", path)
        assert (reply.status, reply.json) == (200, body)
        assert exchange(url, "HEAD", path).status == 200


def test_not_ready(url, plane):
    plane.is_ready = False
    try:
        for path, body in {
            "/v2/health/ready": {"ready": False},
            "/v2/models/model/ready": {"name": "model", "ready": False},
        }.items():
            reply = exchange(url, "GET", path)
            assert (reply.status, reply.json) == (503, body)
        assert exchange(url, "GET", "/v2/health/live").status == 200
    finally:
        plane.is_ready = True


@pytest.mark.parametrize(
    ("method", "path", "body", "route", "status"),
    [
        ("POST", INFER, GOOD, "/v2/models/{name}/infer", 200),
        ("POST", INFER, b"{", "/v2/models/{name}/infer", 400),
        ("POST", "/v2/models/other/infer", GOOD, "/v2/models/{name}/infer", 404),
        ("GET", "/some/path/of/the/callers", None, "unknown", 404),
        ("GET", INFER, None, "unknown", 405),
        ("GET", "/v2", None, "/v2", 200),
    ],
)
def test_requests_are_counted_by_route_and_status(url, method, path, body, route, status):
    series = f'tandem_requests_total{{method="{method}",route="{route}",status="{status}"}}'
    before = metric(url, series)
    exchange(url, method, path, body)
    assert metric(url, series) == before + 1


def test_stages_are_timed_in_the_metrics(url):
    series = 'tandem_stage_seconds_count{stage="decode"}'
    before = metric(url, series)
    exchange(url, "POST", INFER, GOOD)
    assert metric(url, series) == before + 1


def test_metrics_are_what_prometheus_reads(url):
    from prometheus_client.parser import text_string_to_metric_families

    reply = exchange(url, "GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert {family.name for family in text_string_to_metric_families(reply.body.decode())} >= {
        "tandem_requests",
        "tandem_stage_seconds",
    }


def test_the_access_log_has_one_line_a_request_and_no_line_break_of_the_callers(caplog):
    with caplog.at_level(logging.INFO, "tandem.access"), serving(Plane(), settings(access_log=True)) as running:
        exchange(running.url, "POST", INFER + "?secret=1", GOOD, {"x-request-id": "mine"})
        exchange(running.url, "GET", "/a%0aFORGED%0dline")
    lines = [record for record in caplog.records if record.name == "tandem.access"]
    assert [line.getMessage().rsplit(" ", 2)[0] for line in lines] == [
        f"POST {INFER} 200",
        "GET /a%0aFORGED%0dline 404",
    ]
    assert (lines[0].request_id, lines[0].status, lines[0].path) == ("mine", 200, INFER)


def test_an_error_of_the_plane_before_inference_is_translated_too(url, plane, monkeypatch):
    def fail(name, version=""):
        raise InvalidArgument("no")

    for question in ("model_ready", "model_metadata", "model_config"):
        monkeypatch.setattr(plane, question, fail)
    for path in ("/ready", "", "/config"):
        assert_error(exchange(url, "GET", f"/v2/models/model{path}"), 400, "INVALID_ARG")
