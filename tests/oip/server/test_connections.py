"""Bytes that are no HTTP request get the one error body, too, and tell nothing of what the server is made of."""

import json
import logging

import pytest
from serving import FunctionPlane, serving
from wire import Wire, exchange

from oip.server.settings import ServerSettings

INFER = "/v2/models/model/infer"
GOOD = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()


@pytest.fixture(scope="module")
def url():
    plane = FunctionPlane(lambda arrays: {"y": arrays["x"]})
    with serving(plane, ServerSettings(http_port=0, http_address="127.0.0.1")) as running:
        yield running.url


def post(*headers: str) -> bytes:
    return "\r\n".join([f"POST {INFER} HTTP/1.1", "Host: test", *headers, "", ""]).encode("latin-1")


MALFORMED = {
    "no HTTP at all": b"hello\r\n\r\n",
    "TLS on a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)) + b"\r\n\r\n",
    "a version that is none": b"GET /v2 HTTP/x.y\r\nHost: test\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\nHost: test\r\n\r\n",
    "blanks in the path": b"GET /a b c HTTP/1.1\r\nHost: test\r\n\r\n",
    "a method that is none": b"G@T /v2 HTTP/1.1\r\nHost: test\r\n\r\n",
    "NUL in the path": b"GET /v2\x00 HTTP/1.1\r\nHost: test\r\n\r\n",
    "a path without end": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: test\r\n\r\n",
    "a header without a colon": post("nonsense"),
    "a blank before the colon": post("X-A : 1"),
    "NUL in a header": post("X-A: \x00"),
    "a header without end": post("X-A: " + "a" * 20_000),
    "a name without end": post("X" * 20_000 + ": a"),
    "headers without end": post(*(f"X-{number}: 1" for number in range(5000))),
    "two lengths": post("Content-Length: 4", "Content-Length: 5"),
    "one length twice": post("Content-Length: 4", "Content-Length: 4"),
    "two lengths in one": post("Content-Length: 4, 5"),
    "a length and chunks": post("Content-Length: 4", "Transfer-Encoding: chunked"),
    "a negative length": post("Content-Length: -1"),
    "a signed length": post("Content-Length: +4"),
    "a length that is no number": post("Content-Length: four"),
    "a length past every number": post("Content-Length: " + "9" * 30),
    "an unknown transfer": post("Transfer-Encoding: chunked, identity"),
    "chunked twice": post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "two hosts": post("Host: other"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_request(url, case, caplog):
    with Wire(url) as wire:
        reply = wire.send(MALFORMED[case]).reply()
        assert reply.status == 400
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["server"] == "tandem"
        assert set(reply.json) == {"error", "code", "request_id"}
        assert reply.json["code"] == "INVALID_ARG"
        told = (str(reply.headers) + reply.body.decode()).lower()
        for word in ("traceback", "python", "aiohttp", "llhttp", ".py"):
            assert word not in told
        assert wire.closed()
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert exchange(url, "POST", INFER, GOOD).status == 200


def test_what_is_no_request_after_one_that_is(url):
    with Wire(url) as wire:
        assert wire.send(post(f"Content-Length: {len(GOOD)}"), GOOD).reply().status == 200
        assert wire.send(b"nonsense\r\n\r\n").reply().status == 400


def test_requests_that_are_none_are_counted(url):
    def count():
        text = exchange(url, "GET", "/metrics").body.decode()
        series = 'tandem_requests_total{method="",route="unknown",status="400"} '
        return sum(float(line.removeprefix(series)) for line in text.splitlines() if line.startswith(series))

    before = count()
    with Wire(url) as wire:
        wire.send(b"nonsense\r\n\r\n").reply()
    assert count() == before + 1


def test_pipelined_requests_are_answered_in_order(url):
    with Wire(url) as wire:
        for number in range(50):
            wire.request("GET", "/v2", None, {"x-request-id": str(number)})
        assert [wire.reply().headers["x-request-id"] for _ in range(50)] == [str(number) for number in range(50)]
