"""The hop to the predictor: what its failures become, waiting for it, and what is passed on."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from serving import FunctionPlane, serving
from transforming import Serving, make, pair, picture_plane, plain, transforming

from kserve_transformer.contract import Contract
from kserve_transformer.predictor import State, breakdown, describe
from kserve_transformer.transformer import Transformer
from oip.errors import (
    DeadlineExceeded,
    InferenceError,
    Internal,
    InvalidArgument,
    NotFound,
    TooManyRequests,
    Unavailable,
    error_for_status,
)
from oip.server.data_plane import RequestContext
from oip.server.settings import ServerSettings

GOOD = {"b64": plain(255)}
SECRETS = (b"127.0.0.1", b"localhost", b"Traceback", b'File "')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- what the predictor answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "instance"),
    [
        (InvalidArgument("unexpected shape for input 'INPUT__0'"), 1),
        (NotFound("Request for unknown model"), None),
        (TooManyRequests("slow down", retry_after_seconds=7), None),
        (Internal("the model failed"), None),
        (Unavailable("the queue is full", retry_after_seconds=7), None),
        (DeadlineExceeded("too late"), None),
    ],
)
def test_what_the_predictor_says_is_passed_on_with_its_meaning(error: InferenceError, instance: int | None) -> None:
    def compute(x: np.ndarray) -> np.ndarray:
        if x.max() < 0.5:
            raise error
        return x[:, 0, 0]

    with pair("predictor: {retries: 0}", plane=picture_plane(compute, max_batch_size=1)) as (served, _):
        reply = served.predict(GOOD, {"b64": plain(0)})
        assert (reply.status, reply.json["code"]) == (error.code.http_status, error.code.name)
        assert reply.json["error"] == error.message
        assert reply.json.get("instance") == instance
        assert not any(secret in reply.body for secret in SECRETS)
        if error.retry_after_seconds:
            assert reply.headers["retry-after"] == "7"
        assert served.predict(GOOD).json == {"predictions": [[1.0] * 4]}


def test_a_mistake_in_a_batch_of_several_blames_no_single_instance() -> None:
    def compute(x: np.ndarray) -> np.ndarray:
        raise InvalidArgument("no")

    with pair(plane=picture_plane(compute)) as (served, _):
        reply = served.predict(GOOD, GOOD)
        assert (reply.status, "instance" in reply.json) == (400, False)


class Canned(BaseHTTPRequestHandler):
    """A predictor whose metadata are right and whose answers are whatever the test wants."""

    protocol_version = "HTTP/1.1"
    answer: Callable[["Canned"], None]
    metadata: Any = {
        "name": "m",
        "versions": ["1"],
        "platform": "x",
        "inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [-1, 3, 4, 4]}],
        "outputs": [{"name": "OUTPUT__0", "datatype": "FP32", "shape": [-1, 4]}],
    }
    config: Any = {"max_batch_size": 8}

    def log_message(self, format: str, *args: Any) -> None: ...

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path.endswith("/config"):
            self.reply(200 if self.config is not None else 404, json.dumps(self.config).encode())
        elif self.path.endswith("/ready"):
            self.reply(200, b"")
        else:
            self.reply(200, json.dumps(self.metadata).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).answer(self)


@contextlib.contextmanager
def canned(answer: Callable[[Canned], None], **attributes: Any) -> Iterator[str]:
    handler = type("Handler", (Canned,), {"answer": staticmethod(answer), **attributes})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def body(*outputs: Any) -> bytes:
    return json.dumps({"model_name": "m", "model_version": "1", "outputs": [*outputs]}).encode()


RIGHT = {"name": "OUTPUT__0", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "breaks the V2 protocol"),
        (b"<html>hello</html>", "breaks the V2 protocol"),
        (b"[]", "breaks the V2 protocol"),
        (b"{}", "breaks the V2 protocol"),
        (b'{"predictions": [1]}', "breaks the V2 protocol"),
        (body(), "the predictor's answer holds no output"),
        (body({**RIGHT, "data": [1]}), "breaks the V2 protocol"),
        (body({**RIGHT, "datatype": "FP31"}), "breaks the V2 protocol"),
        (body({**RIGHT, "shape": "x"}), "breaks the V2 protocol"),
        (body({**RIGHT, "shape": [2, 2]}), "'OUTPUT__0' has shape [2, 2]; its first dimension must be 1"),
        (body({**RIGHT, "shape": [], "data": [1]}), "'OUTPUT__0' has shape []; its first dimension must be 1"),
        (body({**RIGHT, "name": "other"}), "the predictor gave no output 'OUTPUT__0', only other"),
    ],
)
def test_nonsense_is_502_and_the_next_answer_counts(answer: bytes, message: str) -> None:
    answers = [answer, body(RIGHT)]
    with (
        canned(lambda handler: handler.reply(200, answers.pop(0))) as host,
        transforming(make(host, "output: {output: OUTPUT__0}")) as served,
    ):
        reply = served.predict(GOOD)
        assert (reply.status, reply.json["code"]) == (502, "BAD_ANSWER")
        assert message in reply.json["error"]
        assert not any(secret in reply.body for secret in SECRETS)
        assert served.predict(GOOD).json == {"predictions": [[1.0, 2.0, 3.0, 4.0]]}


@pytest.mark.parametrize("status", [400, 404, 413, 429, 500, 501, 502, 503, 504])
@pytest.mark.parametrize("text", [b"", b"<html>nginx at 127.0.0.1</html>", b'{"error": "in its own words"}'])
def test_statuses_without_sense_in_the_body_keep_theirs(status: int, text: bytes) -> None:
    with (
        canned(lambda handler: handler.reply(status, text)) as host,
        transforming(make(host, "predictor: {retries: 0}")) as served,
    ):
        reply = served.predict(GOOD)
        assert reply.status == status
        assert reply.json["code"] == error_for_status(status).code.name
        expected = "in its own words" if b"error" in text else f"the predictor answered with status {status}"
        assert reply.json["error"] == expected


def test_an_answer_that_breaks_off_is_502() -> None:
    def short(handler: Canned) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"model')
        handler.close_connection = True

    with canned(short) as host, transforming(make(host)) as served:
        reply = served.predict(GOOD)
        assert (reply.status, reply.json["code"]) == (502, "BAD_ANSWER")


def test_different_outputs_for_instances_of_one_request() -> None:
    names = iter(["a", "b"])
    with (
        canned(lambda handler: handler.reply(200, body({**RIGHT, "name": next(names)}))) as host,
        transforming(make(host, "predictor: {max_batch_size: 1}\noutput: {response: outputs}")) as served,
    ):
        reply = served.predict(GOOD, GOOD)
        assert (reply.status, reply.json["error"]) == (
            502,
            "the predictor gave different outputs for the instances of one request",
        )


def test_bf16_outputs_are_numbers() -> None:
    values = np.array([[1.5, -2.0, 0.0, 3.0]], dtype=np.float32)
    raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    head = json.dumps(
        {
            "model_name": "m",
            "outputs": [{"name": "y", "datatype": "BF16", "shape": [1, 4], "parameters": {"binary_data_size": 8}}],
        }
    ).encode()

    def answer(handler: Canned) -> None:
        handler.reply(200, head + raw, Inference_Header_Content_Length=str(len(head)))

    with canned(answer) as host, transforming(make(host)) as served:
        assert served.predict(GOOD).json == {"predictions": [[1.5, -2.0, 0.0, 3.0]]}


# --- waiting for it ---------------------------------------------------------------------------------------------------


def test_live_but_not_ready_until_the_predictor_is_there_and_then_it_serves() -> None:
    port = free_port()
    with transforming(make(f"127.0.0.1:{port}"), wait=False) as served:
        assert served.get("/v2/health/live").status == 200
        assert served.get("/v2/health/ready").status == 503
        assert served.get("/v2/models/m/ready").json == {"name": "m", "ready": False}
        reply = served.predict(GOOD)
        assert (reply.status, reply.json["code"]) == (503, "UNAVAILABLE")
        assert reply.headers["retry-after"] == "1"
        assert not any(secret in reply.body + served.get("/v1/models/m").body for secret in SECRETS)
        settings = ServerSettings(http_port=port, http_address="127.0.0.1")
        with serving(picture_plane(), settings):
            served.wait()
            assert served.get("/v2/health/ready").status == 200
            assert served.predict(GOOD).status == 200
        reply = served.predict(GOOD)
        assert (reply.status, reply.json["code"]) == (503, "UNAVAILABLE")
        assert reply.json["error"] == "the predictor cannot be reached"
        assert not any(secret in reply.body for secret in SECRETS)
        with serving(picture_plane(), settings):
            assert served.predict(GOOD).status == 200


def test_a_model_that_still_loads_is_waited_for() -> None:
    plane = picture_plane()
    plane.is_ready = False
    with serving(plane) as predictor, transforming(make(predictor.url), wait=False) as served:
        until(served, lambda: served.transformer.predictor.reason.startswith("the predictor's model is not ready"))
        assert served.get("/v2/health/ready").status == 503
        plane.is_ready = True
        served.wait()
        assert served.predict(GOOD).status == 200


def until(served: Serving, condition: Callable[[], bool]) -> None:
    """Wait for something that the transformer's event loop does, turn by turn of that loop."""

    async def turns() -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)

    asyncio.run_coroutine_threadsafe(turns(), served.running.loop).result(25)


def test_a_mismatch_is_refused_with_both_sides_and_heals_when_the_predictor_changes() -> None:
    plane = picture_plane(side=32)
    with pair(plane=plane) as (served, _):
        assert served.transformer.predictor.state is State.MISMATCH
        reply = served.predict(GOOD)
        assert reply.status == 503
        assert "the transformer makes pictures of [3, 4, 4]" in reply.json["error"]
        assert "the predictor's input 'INPUT__0' takes [3, 32, 32]" in reply.json["error"]
        assert served.get("/v2/health/live").status == 200
        assert served.get("/v2/health/ready").status == 503
        plane.inputs = picture_plane().inputs
        until(served, lambda: served.transformer.predictor.state is State.READY)
        assert served.predict(GOOD).status == 200


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("predictor: {model: other}", "the transformer calls model 'other', the predictor has none of that name"),
        ("predictor: {input: x}", "the transformer's predictor.input is 'x', the predictor's model has INPUT__0"),
        ("predictor: {max_batch_size: 9}", "the predictor's model has max_batch_size 8"),
        ("output: {output: x}", "the transformer's output.output is 'x', the predictor's model has OUTPUT__0"),
        (
            "output: {task: classification, labels: [a, b]}",
            "the transformer has 2 labels, the predictor's output 'OUTPUT__0' has 4 classes",
        ),
        ("image: {mode: L}", "the transformer makes pictures of [1, any, any]"),
    ],
)
def test_other_mismatches(yaml: str, message: str) -> None:
    with pair(yaml) as (served, _):
        assert served.transformer.predictor.state is State.MISMATCH
        assert message in served.get("/v1/models/m").json["error"]
        assert message in describe(served.transformer.predictor)["contract"]


@pytest.mark.parametrize(
    "metadata", [[], "x", {}, {"inputs": 3}, {"inputs": [{}]}, {"versions": 3, "inputs": []}, {"inputs": [None]}, None]
)
def test_metadata_that_make_no_sense_end_no_search(metadata: Any) -> None:
    with (
        canned(lambda handler: handler.reply(200, body(RIGHT)), metadata=metadata) as host,
        transforming(make(host), wait=False) as served,
    ):
        until(served, lambda: served.transformer.predictor.reason != "the predictor has not been reached yet")
        assert served.predict(GOOD).status == 503
        assert served.transformer.predictor._connecting is not None
        assert not served.transformer.predictor._connecting.done()


def test_a_bug_on_the_way_to_an_agreement_ends_no_search(caplog: pytest.LogCaptureFixture) -> None:
    class Stumbling(Transformer):
        stumbled = False

        def check(self, contract: Contract) -> None:
            if not self.stumbled:
                self.stumbled = True
                raise ZeroDivisionError

    with pair(transformer=Stumbling) as (served, _):
        assert served.predict(GOOD).status == 200
    assert "the predictor's metadata cannot be used" in caplog.text


@pytest.mark.parametrize(("yaml", "counts"), [("", [1, 1, 1]), ("max_batch_size: 2, ", [2, 1])])
def test_a_server_without_configurations_gets_one_instance_a_call_unless_told(yaml: str, counts: list[int]) -> None:
    left = list(counts)

    def answer(handler: Canned) -> None:
        count = left.pop(0)
        handler.reply(200, body({**RIGHT, "shape": [count, 4], "data": [0.5] * 4 * count}))

    with (
        canned(answer, config=None) as host,
        # one call at a time, so that the answers come in the order of the calls
        transforming(make(host, f"predictor: {{{yaml}concurrency: 1}}")) as served,
    ):
        assert served.predict(GOOD, GOOD, GOOD).json == {"predictions": [[0.5] * 4] * 3}
    assert not left


# --- what is passed on ------------------------------------------------------------------------------------------------


def test_ids_headers_and_deadlines_go_on_to_the_predictor_and_nothing_else() -> None:
    with pair() as (served, plane):
        served.predict(
            GOOD,
            **{
                "X-Request-Id": "abc",
                "Authorization": "Bearer x",
                "traceparent": "00-1",
                "Cookie": "c",
                "X-Other": "o",
            },
        )
        (request,), (context,) = plane.requests, plane.contexts
        assert request.id == "abc"
        assert request.model_version == ""
        assert request.parameters == {}
        assert request.binary_output is True
        sent = context.headers
        assert (sent["x-request-id"], sent["authorization"], sent["traceparent"]) == ("abc", "Bearer x", "00-1")
        assert not sent.keys() & {"cookie", "x-other", "x-envoy-expected-rq-timeout-ms"}


@pytest.mark.parametrize(
    ("hand_off", "extensions", "binary"),
    [
        ("json", ("binary_tensor_data",), False),
        ("binary", (), True),
        ("auto", ("classification", "binary_tensor_data"), True),
        ("auto", ("model_repository_extension",), False),
        ("auto", (), False),
    ],
)
def test_the_hand_off_is_what_was_asked_for_or_what_the_server_reads(
    hand_off: str, extensions: tuple[str, ...], binary: bool
) -> None:
    plane = picture_plane()
    plane.extensions = extensions
    with pair(f"predictor: {{hand_off: {hand_off}}}", plane=plane) as (served, _):
        assert served.predict(GOOD).json == {"predictions": [[1.0] * 4]}
        assert plane.requests[0].binary_output is binary
        assert (plane.contexts[0].headers.get("inference-header-content-length") is not None) is binary


def test_one_request_has_so_many_calls_in_flight_and_no_more() -> None:
    running, most = 0, 0

    async def compute(x: np.ndarray) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return {"OUTPUT__0": x[:, 0, 0]}

    plane = picture_plane(max_batch_size=1)
    plane.compute = lambda arrays: compute(arrays["INPUT__0"])  # type: ignore[assignment,return-value]
    with pair("predictor: {concurrency: 3}", plane=plane) as (served, _):
        assert served.predict(*[GOOD] * 40).status == 200
    assert most <= 3


def test_a_long_request_does_not_keep_the_others_waiting() -> None:
    """`concurrency` bounds a request, not the process: a batcher behind it needs many calls at once."""
    both, together = asyncio.Event(), 0

    async def compute(x: np.ndarray) -> Any:
        nonlocal together
        together += 1
        if together == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 20)
        return {"OUTPUT__0": x[:, 0, 0]}

    plane = picture_plane(max_batch_size=1)
    plane.compute = lambda arrays: compute(arrays["INPUT__0"])  # type: ignore[assignment,return-value]
    with pair("predictor: {concurrency: 1}", plane=plane) as (served, _):
        replies: list[Any] = []
        threads = [threading.Thread(target=lambda: replies.append(served.predict(GOOD))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert [reply.status for reply in replies] == [200, 200]


def test_the_first_failure_cancels_the_rest() -> None:
    started: list[int] = []

    def compute(x: np.ndarray) -> np.ndarray:
        started.append(1)
        raise Internal("the model failed")

    plane: FunctionPlane = picture_plane(compute, max_batch_size=1)
    with pair("predictor: {concurrency: 1}", plane=plane) as (served, _):
        assert served.predict(*[GOOD] * 30).status == 500
    assert len(started) < 30


def test_times_are_told_apart_for_a_single_call_only() -> None:
    with pair(plane=picture_plane(max_batch_size=1)) as (served, _):
        assert "predict;dur" in served.predict(GOOD).headers["server-timing"]
        assert 'desc="hop' in served.predict(GOOD).headers["server-timing"]
        assert "desc=" not in served.predict(GOOD, GOOD).headers["server-timing"]


def test_breakdown() -> None:
    assert breakdown({}, 3.0) == ""
    assert breakdown({"queue": (1.0, ""), "compute": (0.5, ""), "total": (1.5, "")}, 2.0) == (
        "hop 0.50 + queue 1.00 + compute 0.50"
    )
    assert breakdown({"compute": (5.0, "")}, 2.0).startswith("hop 0.00")


def test_a_call_before_the_start_is_not_ready() -> None:
    transformer = make("localhost:1")
    predictor = transformer.predictor
    with pytest.raises(Unavailable, match="the model is not ready: the predictor has not been reached yet"):
        _ = predictor.contract
    assert describe(predictor) == {
        "address": "http://localhost:1",
        "state": "waiting",
        "contract": "the predictor has not been reached yet",
    }
    asyncio.run(predictor.stop())


def test_an_author_may_call_the_predictor() -> None:
    class Twice(Transformer):
        async def postprocess(self, result: Any) -> Any:
            again = await self.predictor.infer({"INPUT__0": np.full((1, 3, 4, 4), 0.5)}, RequestContext("x"))
            return {"first": result["predictions"], "second": again["OUTPUT__0"]}

    with pair(transformer=Twice) as (served, _):
        assert served.predict(GOOD).json == {"first": [[1.0] * 4], "second": [[0.5] * 4]}
