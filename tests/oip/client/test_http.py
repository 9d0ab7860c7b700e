"""The client, against our real server and against one that does everything wrong."""

import asyncio
import contextlib
import gzip
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import orjson
import pytest
from serving import FunctionPlane, serving

from oip import errors
from oip.client.address import Address
from oip.client.http import HttpClient, RetryPolicy
from oip.errors import (
    BadAnswer,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    TooManyRequests,
    Unavailable,
)
from oip.http_codec import HEADER_LENGTH, encode_response
from oip.messages import InferenceRequest, InferenceResponse, RequestedOutput
from oip.server.settings import ServerSettings
from oip.tensors import Tensor

ARRAY = np.array([[1, 2]], np.float32)
REQUEST = InferenceRequest("model", (Tensor.of("x", ARRAY),), binary_output=True)
NO_RETRIES = RetryPolicy(attempts=1)


def call(url: str, use, **options):
    """`await use(client)` with a client of this URL in a loop of its own."""

    async def main():
        async with HttpClient(Address.parse(url), **options) as client:
            return await use(client)

    return asyncio.run(main())


def infer(url: str, request=REQUEST, *, deadline=None, headers=None, **options):
    return call(url, lambda client: client.infer(request, deadline=deadline, headers=headers), **options)


# --- RetryPolicy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempt", "error", "now", "deadline", "jitter", "delay"),
    [
        (1, Unavailable("x"), 0.0, None, 0.0, 0.5),
        (1, Unavailable("x"), 0.0, None, 0.5, 1.0),
        (2, Unavailable("x"), 0.0, None, 0.5, 2.0),
        (3, Unavailable("x"), 0.0, None, 0.5, 4.0),
        (4, Unavailable("x"), 0.0, None, 0.5, None),  # the last attempt has been made
        (5, Unavailable("x"), 0.0, None, 0.5, None),
        (1, Unavailable("x"), 100.0, 101.1, 0.5, 1.0),
        (1, Unavailable("x"), 100.0, 101.0, 0.5, None),  # the wait would end at the deadline
        (1, Unavailable("x"), 100.0, 99.0, 0.5, None),
        (1, BadAnswer("x"), 0.0, None, 0.5, None),
        (1, DeadlineExceeded("x"), 0.0, None, 0.5, None),
        (1, TooManyRequests("x"), 0.0, None, 0.5, None),
        (1, Internal("x"), 0.0, None, 0.5, None),
    ],
)
def test_delay(attempt, error, now, deadline, jitter, delay):
    policy = RetryPolicy(attempts=4, first_delay_seconds=1.0)
    assert policy.delay(attempt, error, now, deadline, jitter) == delay


def test_one_attempt_is_no_retry():
    assert NO_RETRIES.delay(1, Unavailable("x"), 0.0, None, 0.0) is None


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running():
    plane = FunctionPlane(lambda arrays: {"y": arrays["x"] * 2})
    with serving(plane, ServerSettings(http_port=0, http_address="127.0.0.1")) as running:
        yield running


@pytest.mark.parametrize("hand_off", ["binary", "json"])
@pytest.mark.parametrize("binary_output", [True, False])
def test_infer(running, hand_off, binary_output):
    request = InferenceRequest("model", (Tensor.of("x", ARRAY),), id="7", binary_output=binary_output)
    answer = infer(running.url, request, hand_off=hand_off, headers={"x-request-id": "mine"})
    assert answer.response == InferenceResponse("model", "1", (Tensor.of("y", ARRAY * 2),), "7")
    assert list(answer.stages) == ["read", "decode", "encode", "finish", "total"]
    context = running.service.plane.contexts[-1]
    assert context.request_id == "mine"
    assert "accept-encoding" not in context.headers  # to compress tensors costs more than it saves


def test_infer_with_a_version_and_an_output(running):
    request = InferenceRequest("model", (Tensor.of("x", ARRAY),), (RequestedOutput("y", True),), model_version="3")
    assert infer(running.url, request).response.output("y").array.tolist() == [[2, 4]]
    assert running.service.plane.requests[-1].model_version == "3"
    assert running.service.plane.requests[-1].outputs == request.outputs


def test_questions(running):
    async def ask(client):
        assert await client.model_ready("model")
        assert await client.model_ready("model", "1")
        assert not await client.model_ready("nope")
        assert await client.extensions() == {"binary_tensor_data"}
        assert (await client.model_metadata("model")).inputs == running.service.plane.inputs
        assert await client.model_config("model") == {"name": "model", "max_batch_size": 8}
        assert await client.model_config("nope") is None
        with pytest.raises(NotFound, match="'nope' is not found"):
            await client.model_metadata("nope")

    call(running.url, ask)


@pytest.mark.parametrize(
    "name", ["a/b", "../model", "..", ".", "model?x=1", "model#x", "a b", "ä", "%2e", "a%2fb", "\n"]
)
def test_a_name_is_one_part_of_the_path_whatever_is_in_it(name):
    """No name may ask for another route than the one that is meant."""
    paths = []

    def answer(request: bytes) -> bytes:
        paths.append(request.split()[1].decode())
        return http(404, {"error": "no"})

    with crooked(*[replying(answer)] * 2) as url:
        with pytest.raises(NotFound):
            infer(url, InferenceRequest(name, ()))
        assert call(url, lambda client: client.model_ready(name, "1")) is False
    plain = set(b"abcdefghijklmnopqrstuvwxyz0123456789.")
    part = "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in name.encode())
    assert paths == [f"/v2/models/{part}/infer", f"/v2/models/{part}/versions/1/ready"]


def test_what_the_server_refuses_keeps_its_words(running):
    with pytest.raises(InvalidArgument, match="'timeout' must be a number of microseconds"):
        infer(running.url, InferenceRequest("model", REQUEST.inputs, parameters={"timeout": "soon"}))


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lambda: http(200, {"extensions": ["a", 3, "b"]}), {"a", "b"}),
        (lambda: http(200, {"extensions": "a"}), set()),
        (lambda: http(200, {"name": "old"}), set()),
        (lambda: http(200, ["a"]), set()),
        (lambda: http(200, body=b"no JSON"), set()),
        (lambda: http(404, {"error": "no"}), set()),
    ],
)
def test_extensions(answer, found):
    with crooked(replying(answer())) as url:
        assert call(url, lambda client: client.extensions()) == found


def test_a_unix_socket(tmp_path):
    path = tmp_path / "s.sock"
    plane = FunctionPlane(lambda arrays: {"y": arrays["x"] * 2})
    with serving(plane, ServerSettings(http_port=0, http_address="127.0.0.1", http_unix_socket=path)):
        assert infer(f"unix:{path}").response.output("y").array.tolist() == [[2, 4]]
    with pytest.raises(Unavailable, match="the predictor cannot be reached") as caught:
        infer(f"unix:{path}", retries=NO_RETRIES)
    assert str(tmp_path) not in str(caught.value)


def test_connections_are_used_again():
    async def many(client):
        for _ in range(5):
            await client.infer(REQUEST)
        assert await client.model_ready("model")

    with crooked(patient) as url:
        call(url, many, timeout_seconds=10)


def test_no_more_connections_than_allowed():
    async def many(client):
        return await asyncio.gather(*(client.infer(REQUEST) for _ in range(20)))

    with crooked(patient, patient) as url:
        assert len(call(url, many, connections=2, timeout_seconds=10)) == 20


def test_a_connection_that_the_server_has_closed_meanwhile_is_replaced():
    async def twice(client):
        for _ in range(2):
            await client.infer(REQUEST)

    with crooked(replying(good()), replying(good())) as url:
        call(url, twice)


# --- a server that does everything wrong ------------------------------------------------------------------------------


def http(status: int, document=None, body: bytes | None = None, **headers: str) -> bytes:
    body = orjson.dumps(document) if body is None else body
    lines = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Status\r\n{head}\r\n".encode() + body


def good() -> bytes:
    encoded = encode_response(InferenceResponse("model", "1", (Tensor.of("y", ARRAY),)), REQUEST)
    return http(200, body=encoded.body(), **{name.replace("-", "_"): value for name, value in encoded.headers.items()})


Behaviour = Callable[[socket.socket], None]


def read_request(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += receive(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = re.findall(rb"(?im)^content-length: (\d+)", head)
    while lengths and len(body) < int(lengths[0]):
        body += receive(connection)
    return head + b"\r\n\r\n" + body


def receive(connection: socket.socket) -> bytes:
    if not (data := connection.recv(1 << 16)):
        raise ConnectionError("the client has gone in the middle of its request")
    return data


def replying(answer: bytes | Callable[[bytes], bytes]) -> Behaviour:
    """Read a request, say this, and close."""

    def behave(connection: socket.socket) -> None:
        request = read_request(connection)
        connection.sendall(answer(request) if callable(answer) else answer)

    return behave


def reset(connection: socket.socket) -> None:
    """Read a request, then end the connection with a reset."""
    read_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def close_at_once(connection: socket.socket) -> None:
    """Say nothing, read nothing."""


def patient(connection: socket.socket) -> None:
    """Answer one request after the other, until the client leaves."""
    while True:
        replying(good())(connection)


@contextlib.contextmanager
def crooked(*behaviours: Behaviour) -> Iterator[str]:
    """A server whose n-th connection behaves as the n-th argument says.  All must be used; a further one would hang."""

    def live(behave: Behaviour, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            connection.settimeout(20)
            behave(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def accept() -> None:
            for behave in behaviours:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=live, args=(behave, connection)))
                threads[-1].start()

        threads = [threading.Thread(target=accept)]
        threads[0].start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for thread in threads:
            thread.join(20)
        assert len(threads) == 1 + len(behaviours)


FRAGMENT = good()[:-4]
UNCLOSED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        (close_at_once, Unavailable, "cannot be reached"),
        (reset, Unavailable, "cannot be reached"),
        (replying(b""), Unavailable, "cannot be reached"),
        (replying(FRAGMENT), BadAnswer, "breaks off"),
        (replying(UNCLOSED), BadAnswer, "breaks off"),
        (replying(b"hello\r\n\r\n"), BadAnswer, "no valid HTTP"),
        (replying(b"\x16\x03\x01\x02\x00"), BadAnswer, "no valid HTTP"),
        (replying(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), BadAnswer, "no valid HTTP"),
        (replying(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"), BadAnswer, "no valid HTTP"),
        (replying(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"), BadAnswer, "no valid HTTP"),
        (replying(http(200, body=b"nonsense", Content_Encoding="gzip")), BadAnswer, "no valid HTTP"),
        (replying(http(200, body=gzip.compress(b"{}")[:9], Content_Encoding="gzip")), BadAnswer, "answer"),
        (replying(http(200, body=b"")), BadAnswer, "breaks the V2 protocol"),
        (replying(http(200, body=b"<html>")), BadAnswer, "breaks the V2 protocol: the body is not valid JSON"),
        (replying(http(200, [])), BadAnswer, "must be a JSON object"),
        (replying(http(200, {})), BadAnswer, "'outputs' is missing"),
        (replying(http(200, {"error": "odd"})), BadAnswer, "'outputs' is missing"),
        (replying(http(200, {"outputs": [{"name": "y"}]})), BadAnswer, "'datatype'"),
        (replying(http(200, {"outputs": []}, **{HEADER_LENGTH.replace("-", "_"): "999"})), BadAnswer, HEADER_LENGTH),
        (replying(http(200, {"outputs": []}, **{HEADER_LENGTH.replace("-", "_"): "x"})), BadAnswer, HEADER_LENGTH),
        (replying(http(204, body=b"")), BadAnswer, "status 204"),
        (replying(http(301, {}, Location="http://127.0.0.1:1/")), BadAnswer, "status 301"),
        (replying(http(307, {}, Location="/v2/models/model/infer")), BadAnswer, "status 307"),
        (replying(http(304, body=b"")), BadAnswer, "status 304"),
        (replying(http(400, {"error": "words"})), InvalidArgument, "^words$"),
        (replying(http(404, {"error": "words"})), NotFound, "^words$"),
        (replying(http(404, {"detail": "kserve's words"})), NotFound, "^kserve's words$"),
        (replying(http(404, {"detail": [{"msg": "x"}]})), NotFound, "status 404"),
        (replying(http(404, body=b"<html>")), NotFound, "status 404"),
        (replying(http(404, body=b"")), NotFound, "status 404"),
        (replying(http(404, body=b"[" * 1000)), NotFound, "status 404"),
        (replying(http(418, {"error": "words"})), InvalidArgument, "words"),
        (replying(http(429, {"error": "words"}, Retry_After="9")), TooManyRequests, "words"),
        (replying(http(500, {"error": "words"})), Internal, "words"),
        (replying(http(500, {"error": 5})), Internal, "status 500"),
        (replying(http(501, {"error": "words"})), errors.Unsupported, "words"),
        (replying(http(502, {"error": "words"})), BadAnswer, "words"),
        (replying(http(503, {"error": "words"}, Retry_After="9")), Unavailable, "words"),
        (replying(http(504, {"error": "words"})), DeadlineExceeded, "words"),
        (replying(http(599, {"error": "words"})), Internal, "words"),
    ],
)
def test_what_comes_back_has_one_meaning(behaviour, error, message):
    with crooked(behaviour) as url, pytest.raises(error, match=message) as caught:
        infer(url, retries=NO_RETRIES)
    assert type(caught.value) is error
    for internal in ("127.0.0.1", "http://", "Traceback", "aiohttp", "object at"):
        assert internal not in caught.value.message


def test_a_reset_in_the_middle_of_an_answer_is_an_answer_that_breaks_off():
    reading = threading.Event()

    class Telling(HttpClient):
        async def _read(self, response):
            reading.set()
            return await super()._read(response)

    def behave(connection: socket.socket) -> None:
        replying(FRAGMENT)(connection)
        assert reading.wait(20)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def main(url):
        async with Telling(Address.parse(url)) as client:
            await client.infer(REQUEST)

    with crooked(behave) as url, pytest.raises(BadAnswer, match="breaks off"):
        asyncio.run(main(url))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("9", 9), ("0", 0), ("-1", None), ("soon", None), ("²", None), ("", None), ("9" * 5000, None), ("1.5", None)],
)
def test_retry_after(value, seconds):
    answer = http(429, {"error": "x"}, Retry_After=value).replace("²".encode(), b"\xb2")
    with crooked(replying(answer)) as url, pytest.raises(TooManyRequests) as caught:
        infer(url)
    assert caught.value.retry_after_seconds == seconds


def test_a_server_that_is_not_there():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: refused
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(Unavailable, match=r"^the predictor cannot be reached$") as caught:
            infer(url, retries=RetryPolicy(attempts=2, first_delay_seconds=0.001))
        assert caught.value.retry_after_seconds == 1
        for ask in ("model_ready", "model_metadata", "model_config"):
            with pytest.raises(Unavailable):
                call(url, lambda client, ask=ask: getattr(client, ask)("model"))


def test_a_host_that_is_not_there():
    with pytest.raises(Unavailable):
        infer("http://predictor.invalid:8000", retries=NO_RETRIES)


@pytest.mark.parametrize(
    "failure",
    [close_at_once, reset, replying(http(503, {"error": "not yet"})), replying(b"")],
    ids=["closes", "resets", "503", "says nothing"],
)
@pytest.mark.parametrize("failures", [1, 2])
def test_a_call_that_got_no_answer_is_repeated(failure, failures):
    with crooked(*[failure] * failures, replying(good())) as url:
        answer = infer(url, retries=RetryPolicy(attempts=3, first_delay_seconds=0.001))
    assert answer.response.output("y").array.tolist() == ARRAY.tolist()


def test_repeating_ends_with_the_last_word():
    replies = [replying(http(503, {"error": f"word {number}"})) for number in range(3)]
    with crooked(*replies) as url, pytest.raises(Unavailable, match="word 2"):
        infer(url, retries=RetryPolicy(attempts=3, first_delay_seconds=0.001))


@pytest.mark.parametrize("status", [400, 404, 429, 500, 502, 504, 302])
def test_an_answer_is_never_asked_for_twice(status):
    with crooked(replying(http(status, {"error": "x"}))) as url, pytest.raises(errors.InferenceError):
        infer(url)


def test_an_answer_that_breaks_off_is_not_asked_for_twice():
    with crooked(replying(FRAGMENT)) as url, pytest.raises(BadAnswer):
        infer(url)


class Silence:
    """Reads the request, says what it is given and then nothing until the client leaves."""

    def __init__(self, says: bytes = b"") -> None:
        self.says = says
        self.left = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        replying(self.says)(connection)
        assert connection.recv(1) == b""
        self.left.set()


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 200 OK\r\n", FRAGMENT], ids=["nothing", "half a head", "half a body"])
@pytest.mark.parametrize("limit", ["deadline", "timeout_seconds"])
def test_a_silent_server_costs_no_more_than_the_deadline(says, limit):
    silence = Silence(says)
    with crooked(silence) as url:
        begun = time.monotonic()
        limits = {"deadline": begun + 0.1} if limit == "deadline" else {"timeout_seconds": 0.1, "deadline": begun + 100}
        with pytest.raises(DeadlineExceeded, match="did not answer in time"):
            infer(url, **limits)
        assert 0.1 <= time.monotonic() - begun < 5
        assert silence.left.wait(20)


def test_questions_have_a_time_limit_too():
    for ask in ("model_ready", "model_metadata", "model_config"):
        with crooked(Silence()) as url, pytest.raises(DeadlineExceeded):
            call(url, lambda client, ask=ask: getattr(client, ask)("model", timeout_seconds=0.05))


def test_a_deadline_that_has_passed_makes_no_call():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        with pytest.raises(DeadlineExceeded):
            infer(f"http://127.0.0.1:{listener.getsockname()[1]}", deadline=time.monotonic() - 1)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_no_retry_waits_past_the_deadline():
    with crooked(replying(http(503, {"error": "not yet"}))) as url:
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="not yet"):
            infer(url, deadline=begun + 5, retries=RetryPolicy(attempts=9, first_delay_seconds=20))
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "answer",
    [
        http(200, body=b" " * 1001),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"10\r\n" + b" " * 16 + b"\r\n") * 100,
        http(200, body=gzip.compress(b" " * (1 << 20)), Content_Encoding="gzip"),
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 2000,
    ],
    ids=["by its length", "in chunks", "compressed", "until it closes"],
)
def test_an_answer_without_end_is_cut(answer):
    with crooked(replying(answer)) as url, pytest.raises(BadAnswer, match="longer than 1000 bytes"):
        infer(url, max_answer_bytes=1000)


def test_what_a_server_sets_is_not_sent_to_it_again():
    seen = []

    def answer(request: bytes) -> bytes:
        seen.append(request.lower())
        return http(200, {}, Set_Cookie="session=1; Path=/")

    async def twice(client):
        for _ in range(2):
            await client.model_ready("m")

    with crooked(replying(answer), replying(answer)) as url:
        call(url, twice)
    assert not any(b"cookie" in request for request in seen)
    assert not any(b"aiohttp" in request for request in seen)


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (http(200, body=b""), True),
        (http(200, {}), True),
        (http(200, {"name": "m", "ready": True}), True),
        (http(200, {"name": "m", "ready": False}), False),
        (http(200, body=b"OK"), True),
        (http(200, []), True),
        (http(400, body=b""), False),
        (http(404, {"error": "x"}), False),
        (http(503, {"error": "x"}), False),
        (http(302, {}, Location="/"), False),
    ],
)
def test_ready_in_every_dialect(answer, ready):
    with crooked(replying(answer)) as url:
        assert call(url, lambda client: client.model_ready("m")) is ready


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (http(200, {"name": "m"}), {"name": "m"}),
        (http(404, body=b""), None),
        (http(405, body=b""), None),
        (http(501, {"error": "x"}), None),
        (http(200, body=b"nonsense"), BadAnswer),
        (http(200, []), BadAnswer),
        (http(500, {"error": "x"}), Internal),
        (http(503, {"error": "x"}), Unavailable),
        (http(302, {}, Location="/"), BadAnswer),
    ],
)
def test_the_configuration_in_every_dialect(answer, found):
    with crooked(replying(answer)) as url:
        if found is None or isinstance(found, dict):
            assert call(url, lambda client: client.model_config("m")) == found
        else:
            with pytest.raises(found):
                call(url, lambda client: client.model_config("m"))


@pytest.mark.parametrize("answer", [http(200, body=b"nonsense"), http(200, {"versions": 1}), http(204, body=b"")])
def test_metadata_that_is_none(answer):
    with crooked(replying(answer)) as url, pytest.raises(BadAnswer):
        call(url, lambda client: client.model_metadata("m"))


def test_many_calls_at_once_get_each_their_own_answer(running):
    async def many(client):
        async def one(number):
            request = InferenceRequest("model", (Tensor.of("x", np.full((1, 2), number, np.float32)),), id=str(number))
            response = (await client.infer(request)).response
            assert (response.id, response.output("y").array.tolist()) == (str(number), [[2 * number] * 2])

        await asyncio.gather(*(one(number) for number in range(200)))

    call(running.url, many, connections=16)


def test_the_json_of_a_request_is_what_is_sent():
    seen = []

    def answer(request: bytes) -> bytes:
        seen.append(request)
        return good()

    with crooked(replying(answer)) as url:
        infer(url, InferenceRequest("model", (Tensor.of("x", ARRAY),), id="7"), hand_off="json")
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert json.loads(body)["inputs"][0]["data"] == [1.0, 2.0]
