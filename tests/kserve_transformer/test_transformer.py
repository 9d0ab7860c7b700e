"""The way of a request: order, extra fields, hooks of every kind, what their failures become, deadlines."""

import asyncio
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import FunctionPlane, serving
from transforming import b64, encoded, make, pair, picture_plane, plain

from kserve_transformer.config import ConfigError, parse_config
from kserve_transformer.transformer import Transformer
from oip.errors import DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from oip.messages import TensorMetadata
from oip.server.data_plane import RequestContext

# --- pictures and answers ---------------------------------------------------------------------------------------------


def level(value: int) -> float:
    return float(np.float32(value) / np.float32(255))


def test_two_hundred_instances_split_by_three_come_back_in_order() -> None:
    plane = picture_plane(max_batch_size=3, classes=1)
    with pair(plane=plane) as (served, _):
        reply = served.predict(*({"b64": plain(value)} for value in range(200)))
        assert reply.json == {"predictions": [[level(value)] for value in range(200)]}
        assert sorted(request.inputs[0].shape[0] for request in plane.requests) == [2] + [3] * 66


def test_two_instances_for_a_model_that_takes_one() -> None:
    plane = picture_plane(max_batch_size=1, classes=2)
    with pair("output: {response: outputs}", plane=plane) as (served, _):
        reply = served.predict({"b64": plain(0)}, {"b64": plain(255)})
        assert reply.json == {"OUTPUT__0": [[0.0, 0.0], [1.0, 1.0]]}
        assert [request.inputs[0].shape for request in plane.requests] == [(1, 3, 4, 4)] * 2


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (3, 4, 4)])
def test_a_model_without_batches_gets_its_declared_shape(shape: tuple[int, ...]) -> None:
    def compute(x: np.ndarray) -> np.ndarray:
        return x.reshape(*shape[:-3], -1)[..., :2]

    plane = picture_plane(compute, max_batch_size=0)
    plane.inputs = (TensorMetadata("INPUT__0", "FP32", shape),)
    with pair(plane=plane) as (served, _):
        reply = served.predict({"b64": plain(0)}, {"b64": plain(255)})
        assert reply.json == {"predictions": [[0.0, 0.0], [1.0, 1.0]]}
        assert {request.inputs[0].shape for request in plane.requests} == {shape}


def test_pictures_of_different_sizes_for_a_model_that_takes_any() -> None:
    plane = picture_plane(lambda x: x.mean(axis=(1, 2, 3))[:, None], classes=1)
    plane.inputs = (TensorMetadata("INPUT__0", "FP32", (-1, 3, -1, -1)),)
    with pair("image: {mode: RGB}", plane=plane) as (served, _):
        pictures = [{"b64": plain(value, width, 3)} for value, width in [(0, 4), (255, 4), (0, 5), (255, 4)]]
        assert served.predict(*pictures).json == {"predictions": [[0.0], [1.0], [0.0], [1.0]]}
        assert sorted(request.inputs[0].shape for request in plane.requests) == [
            (1, 3, 3, 4),
            (1, 3, 3, 5),
            (2, 3, 3, 4),
        ]


def test_fields_are_tried_in_order_and_may_be_dotted() -> None:
    yaml = "image: {field: [a.b.c, picture], resize: {height: 4, width: 4}}"
    with pair(yaml, plane=picture_plane(classes=1)) as (served, _):
        reply = served.predict({"a": {"b": {"c": plain(255)}}, "picture": plain(0)}, {"a": 1, "picture": plain(0)})
        assert reply.json == {"predictions": [[1.0], [0.0]]}


def test_classification() -> None:
    yaml = "output: {task: classification, labels: [a, b, c, d], activation: softmax, top_k: 2}"
    plane = picture_plane(lambda x: np.array([[0, 3, 1, 3]] * len(x), dtype=np.float32))
    with pair(yaml, plane=plane) as (served, _):
        ((first, second),) = served.predict({"b64": plain(0)}).json["predictions"]
        assert (first["label"], first["index"]) == ("b", 1)
        assert (second["label"], second["index"]) == ("d", 3)
        assert first["score"] == second["score"] == pytest.approx(np.exp(3) / (2 * np.exp(3) + np.exp(1) + 1))


def several(**outputs: np.ndarray) -> FunctionPlane:
    plane = picture_plane()
    plane.compute = lambda arrays: {name: np.stack([row] * len(arrays["INPUT__0"])) for name, row in outputs.items()}
    plane.outputs = tuple(TensorMetadata(name, "FP32", (-1, *row.shape)) for name, row in outputs.items())
    return plane


@pytest.mark.parametrize(
    ("picture", "yaml", "thread"),
    [
        (plain(7, 32, 32), "image: {}", "MainThread"),
        (plain(7, 32, 32), "image: {resize: {height: 64, width: 64}}", "MainThread"),
        (plain(7, 65, 64), "image: {}", "decode"),  # more pixels than a thumbnail has
        (plain(7, 32, 32), "image: {resize: {height: 65, width: 64}}", "decode"),
        (plain(7, 32, 32), "image: {resize: {shorter_side: 32}}", "decode"),  # the longer side could be anything
        (b64(encoded(Image.new("RGB", (32, 32)), "JPEG")), "image: {}", "decode"),
        (b64(encoded(Image.new("RGB", (32, 32)), "PNG") + bytes(7000)), "image: {}", "decode"),  # too long a text
        ("", "image: {}", "decode"),
        ("%%%%", "image: {}", "decode"),
        (5, "image: {}", "decode"),
    ],
)
def test_only_a_thumbnail_is_read_on_the_event_loop(picture: Any, yaml: str, thread: str) -> None:
    readers = []

    class Watching(Transformer):
        def _read_picture(self, instance: Any, out: np.ndarray | None) -> np.ndarray:
            readers.append(threading.current_thread().name)
            return super()._read_picture(instance, out)

    plane = picture_plane(lambda x: x.reshape(len(x), -1)[:, :1], classes=1)
    plane.inputs = (TensorMetadata("INPUT__0", "FP32", (-1, 3, -1, -1)),)
    with pair(yaml, Watching, plane) as (served, _):
        reply = served.predict({"b64": picture})
        assert reply.status in (200, 400)
    assert [reader.startswith("decode") for reader in readers] == [thread == "decode"]


def test_several_outputs() -> None:
    y, z = np.array([1.0, 2], np.float32), np.array([3.0], np.float32)
    with pair(plane=several(y=y, z=z)) as (served, _):
        assert served.predict({"b64": plain(0)}).json == {"predictions": [{"y": [1.0, 2.0], "z": [3.0]}]}
    with pair("output: {output: z}", plane=several(y=y, z=z)) as (served, _):
        assert served.predict({"b64": plain(0)}).json == {"predictions": [[3.0]]}
    with pair("output: {output: z, response: outputs}", plane=several(y=y, z=z)) as (served, _):
        assert served.predict({"b64": plain(0)}).json == {"z": [[3.0]]}
    with pair("output: {task: classification, output: y}", plane=several(y=y, z=z)) as (served, _):
        assert served.predict({"b64": plain(0)}).json["predictions"][0][0] == {"label": "1", "index": 1, "score": 2.0}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("yaml", ["", "output: {response: outputs}", "output: {task: classification}"])
def test_nan_in_an_output_is_our_error_and_names_it(value: float, yaml: str) -> None:
    plane = picture_plane(lambda x: np.where(x[:, 0, 0, :4] > 0.5, np.float32(value), np.float32(1)))
    with pair(yaml, plane=plane) as (served, _):
        reply = served.predict({"b64": plain(0)}, {"b64": plain(255)})
        assert (reply.status, reply.json["code"]) == (500, "INTERNAL")
        assert "the model's output 'OUTPUT__0' holds NaN or infinity" in reply.json["error"]
        assert served.predict({"b64": plain(0)}).status == 200


def test_labels_that_were_not_read_are_no_labels() -> None:
    with pytest.raises(ConfigError, match=r"output\.labels: labels\.txt was not read; use load_config"):
        Transformer(parse_config("output: {task: classification, labels: labels.txt}"))
    assert isinstance(parse_config("output: {task: classification, labels: a}").output.labels, Path)


# --- hooks for one instance -------------------------------------------------------------------------------------------


class Captions(Transformer):
    def postprocess_instance(self, outputs: Mapping[str, np.ndarray], instance: Any) -> Any:
        return {
            "caption": instance["caption"],
            "first": outputs["OUTPUT__0"][0],
            "thread": threading.current_thread().name,
        }


def test_other_fields_of_an_instance_reach_the_answer_hook() -> None:
    with pair(transformer=Captions) as (served, _):
        reply = served.predict({"b64": plain(255), "caption": "seaside"}, {"b64": plain(0), "caption": "mountains"})
        answers = reply.json["predictions"]
        assert [(answer["caption"], answer["first"]) for answer in answers] == [("seaside", 1.0), ("mountains", 0.0)]
        assert all(answer["thread"].startswith("decode") for answer in answers)


class Numbers(Transformer):
    """No pictures at all; two inputs."""

    def preprocess_instance(self, instance: Any) -> Mapping[str, Any]:
        if instance["a"] < 0:
            raise InvalidArgument("'a' must not be negative")
        return {"a": np.array([instance["a"]]), "b": [instance["b"]]}


def two_inputs(datatype: str = "FP32") -> FunctionPlane:
    return FunctionPlane(
        lambda arrays: {"sum": arrays["a"] + arrays["b"]},
        (TensorMetadata("a", datatype, (-1, 1)), TensorMetadata("b", datatype, (-1, 1))),
        (TensorMetadata("sum", datatype, (-1, 1)),),
        name="m",
    )


def test_a_hook_may_make_several_tensors_of_any_kind_of_number() -> None:
    plane = two_inputs()
    with pair(transformer=Numbers, plane=plane) as (served, _):
        assert served.predict({"a": 1, "b": 2}, {"a": 1.5, "b": 2}).json == {"predictions": [[3.0], [3.5]]}
        reply = served.predict({"a": 1, "b": 2}, {"a": -1, "b": 2})
        assert (reply.status, reply.json["instance"], reply.json["error"]) == (400, 1, "'a' must not be negative")


def test_floats_for_a_model_of_integers_are_a_bug_of_the_hook() -> None:
    with pair(transformer=Numbers, plane=two_inputs("INT64")) as (served, _):
        reply = served.predict({"a": 1.5, "b": 2})
        assert reply.status == 500
        assert reply.json["error"] == "the transformer made float64 for input 'a', the model takes INT64"
        assert served.predict({"a": 1, "b": 2}).json == {"predictions": [[3]]}


class Lists(Transformer):
    def preprocess_instance(self, instance: Any) -> Any:
        return instance["x"]


def test_a_hook_may_return_lists_and_arrays_of_any_origin() -> None:
    class Bytes(Transformer):
        def preprocess_instance(self, instance: Any) -> np.ndarray:
            return np.frombuffer(np.array(instance["x"], np.float32).tobytes(), np.float32)

    for hooked in (Lists, Bytes):
        plane = FunctionPlane(lambda arrays: {"y": arrays["x"] * 2}, name="m")
        with pair(transformer=hooked, plane=plane) as (served, _):
            assert served.predict({"x": [1, 2]}, {"x": [3, 4]}).json == {"predictions": [[2.0, 4.0], [6.0, 8.0]]}


def test_a_hook_that_makes_the_wrong_tensors() -> None:
    class Wrong(Transformer):
        def preprocess_instance(self, instance: Any) -> Any:
            return {"other": np.zeros(2, np.float32)}

    with pair(transformer=Wrong) as (served, _):
        reply = served.predict({})
        assert (reply.status, reply.json["error"]) == (
            500,
            "the transformer made tensors other; the model takes INPUT__0",
        )


@pytest.mark.parametrize("hook", ["preprocess_instance", "postprocess_instance"])
def test_a_hook_that_raises_is_our_error_with_the_instance_and_no_traceback(
    hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(self: Any, *arguments: Any) -> Any:
        if arguments[-1].get("fail"):
            raise RuntimeError("secret of /etc/passwd")
        return getattr(Transformer, hook)(self, *arguments)

    with pair(transformer=type("Failing", (Transformer,), {hook: failing})) as (served, _):
        good = {"b64": plain(0)}
        reply = served.predict(good, good, {**good, "fail": 1}, {**good, "fail": 1})
        assert (reply.status, reply.json["instance"]) == (500, 2)
        assert reply.json["error"] == f"{hook} failed: RuntimeError"
        assert b"secret" not in reply.body
        assert "secret of" in caplog.text  # the operator's log has it all
        assert served.predict(good).status == 200


def test_a_stop_iteration_in_a_hook_is_a_failure_like_any_other() -> None:
    class Empty(Transformer):
        def postprocess_instance(self, outputs: Any, instance: Any) -> Any:
            return next(iter([]))

    class Whole(Transformer):
        def preprocess(self, payload: Any) -> Any:
            return next(iter([]))

    for hooked in (Empty, Whole):
        with pair(transformer=hooked) as (served, _):
            assert served.predict({"b64": plain(0)}).status == 500


def test_of_several_bad_instances_the_first_is_named() -> None:
    with pair() as (served, _):
        good, bad = {"b64": plain(0)}, {"b64": "x"}
        for count in (3, 17, 64):
            for first in (0, 1, count // 2, count - 1):
                instances = [good] * first + [bad] * (count - first)
                assert served.predict(*instances).json["instance"] == first


# --- hooks for a whole request ----------------------------------------------------------------------------------------


class Whole(Transformer):
    """`preprocess` and `postprocess` as in KServe."""

    def preprocess(self, payload: Any, headers: Any) -> Any:
        assert threading.current_thread().name.startswith("decode")
        return {"instances": [{"b64": item, "user": headers["x-user"]} for item in payload["pictures"]]}

    def postprocess(self, result: Any, headers: Any) -> Any:
        assert threading.current_thread().name.startswith("decode")
        return {"answers": result["predictions"], "user": headers["x-user"]}


class Async(Transformer):
    async def preprocess(self, payload: Any, headers: Any) -> Any:
        await asyncio.sleep(0)
        return {"instances": [{"b64": item} for item in payload["pictures"]]}

    async def postprocess(self, result: Any, headers: Any) -> Any:
        await asyncio.sleep(0)
        return {"answers": result["predictions"], "user": headers["x-user"]}


class WithoutHeaders(Transformer):
    user = ""

    def preprocess(self, payload: Any) -> Any:
        return {"instances": [{"b64": item} for item in payload["pictures"]]}

    def postprocess(self, result: Any) -> Any:
        return {"answers": result["predictions"], "user": "me"}


class WithDefaults(Transformer):
    def preprocess(self, payload: Any, headers: Any = None, **others: Any) -> Any:
        return {"instances": [{"b64": item} for item in payload["pictures"]]}

    def postprocess(self, *arguments: Any) -> Any:
        result, headers = arguments
        return {"answers": result["predictions"], "user": headers["x-user"]}


class ReturnsAwaitables(Transformer):
    def preprocess(self, payload: Any, headers: Any) -> Any:
        return Async.preprocess(self, payload, headers)  # type: ignore[arg-type]

    def postprocess(self, result: Any, headers: Any) -> Any:
        return Async.postprocess(self, result, headers)  # type: ignore[arg-type]


@pytest.mark.parametrize("hooked", [Whole, Async, WithoutHeaders, WithDefaults, ReturnsAwaitables])
def test_whole_request_hooks(hooked: type[Transformer]) -> None:
    with pair(transformer=hooked, plane=picture_plane(classes=1)) as (served, _):
        reply = served.post({"pictures": [plain(255), plain(0)]}, {"X-User": "me"})
        assert reply.json == {"answers": [[1.0], [0.0]], "user": "me"}


class Tensors(Transformer):
    async def preprocess(self, payload: Any) -> Any:
        return {"INPUT__0": np.full((payload["n"], 3, 4, 4), 0.5)}

    def postprocess(self, result: Any) -> Any:
        return {"shape": result["OUTPUT__0"].shape}


def test_a_hook_may_return_tensors_which_are_sent_as_they_are() -> None:
    plane = picture_plane(max_batch_size=2)
    with pair(transformer=Tensors, plane=plane) as (served, _):
        assert served.post({"n": 5}).json == {"shape": [5, 4]}
        assert [request.inputs[0].shape for request in plane.requests] == [(5, 3, 4, 4)]


def test_tensors_without_an_answer_hook_are_an_answer() -> None:
    class Only(Transformer):
        def preprocess(self, payload: Any) -> Any:
            return {"INPUT__0": np.full((1, 3, 4, 4), payload["value"], np.float32)}

    with pair(transformer=Only) as (served, _):
        assert served.post({"value": 0.5}).json == {"OUTPUT__0": [[0.5] * 4]}
        served_nan = picture_plane(lambda x: np.full((len(x), 4), np.nan, np.float32))
    with pair(transformer=Only, plane=served_nan) as (served, _):
        reply = served.post({"value": 0.5})
        assert reply.status == 500
        assert "OUTPUT__0" in reply.json["error"]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RuntimeError("secret"), 500, "preprocess failed: RuntimeError"),
        (InvalidArgument("send a picture"), 400, "send a picture"),
        (NotFound("no such album"), 404, "no such album"),
    ],
)
def test_what_a_whole_request_hook_raises(error: Exception, status: int, message: str) -> None:
    def plain_hook(self: Any, payload: Any) -> Any:
        raise error

    async def async_hook(self: Any, payload: Any) -> Any:
        raise error

    for hook in (plain_hook, async_hook):
        with pair(transformer=type("Failing", (Transformer,), {"preprocess": hook})) as (served, _):
            reply = served.post({})
            assert (reply.status, reply.json["error"]) == (status, message)
            assert "instance" not in reply.json


@pytest.mark.parametrize("step", ["preprocess", "preprocess_instance", "postprocess_instance", "postprocess"])
def test_a_slow_hook_does_not_hold_up_the_event_loop(step: str) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(self: Any, value: Any, *others: Any) -> Any:
        entered.set()
        assert leave.wait(20)
        if step.endswith("_instance"):
            return getattr(Transformer, step)(self, value, *others)
        return value

    with (
        pair(transformer=type("Slow", (Transformer,), {step: slow})) as (served, _),
        ThreadPoolExecutor(1) as elsewhere,
    ):
        reply = elsewhere.submit(served.predict, {"b64": plain(0)})
        try:
            assert entered.wait(20)
            assert served.get("/v2/health/live").status == 200
            assert served.get("/v1/models/m").status == 200
            assert not reply.done()
        finally:
            leave.set()
        assert reply.result(20).status == 200


# --- deadlines and leaving --------------------------------------------------------------------------------------------


def test_the_deadline_of_the_header_is_504() -> None:
    release = threading.Event()

    async def stuck(x: np.ndarray) -> Mapping[str, np.ndarray]:
        await asyncio.get_running_loop().run_in_executor(None, release.wait, 20)
        return {"OUTPUT__0": x[:, 0, 0]}

    plane = picture_plane()
    plane.compute = lambda arrays: stuck(arrays["INPUT__0"])  # type: ignore[assignment,return-value]
    with pair(plane=plane) as (served, _):
        began = time.monotonic()
        reply = served.predict({"b64": plain(0)}, **{"x-envoy-expected-rq-timeout-ms": "100"})
        release.set()
        assert (reply.status, reply.json["code"]) == (504, "DEADLINE_EXCEEDED")
        assert time.monotonic() - began < 10
        assert 0 < plane.requests[0].parameters["timeout"] <= 100_000  # microseconds, passed on
        assert served.predict({"b64": plain(0)}).status == 200


def direct(transformer: Transformer, payload: Any, context: RequestContext) -> Any:
    """`predict` without a server."""

    async def run() -> Any:
        transformer.start(1)
        try:
            await transformer.predictor.decided()
            return await transformer.predict(payload, context)
        finally:
            await transformer.stop()

    return asyncio.run(run())


def test_a_request_whose_deadline_has_passed_is_dropped_before_decoding() -> None:
    class Counting(Transformer):
        seen = 0

        def preprocess_instance(self, instance: Any) -> Any:
            Counting.seen += 1
            return super().preprocess_instance(instance)

    with serving(picture_plane()) as predictor:
        late = RequestContext(deadline=time.monotonic() - 1)
        with pytest.raises(DeadlineExceeded, match="the deadline passed before the request was worked on"):
            direct(make(predictor.url, transformer=Counting), {"instances": [{"b64": plain(0)}]}, late)
        assert Counting.seen == 0


def test_what_is_left_of_a_request_is_dropped_once_its_deadline_passes() -> None:
    class Expiring(Transformer):
        seen = 0

        def preprocess_instance(self, instance: Any) -> Any:
            Expiring.seen += 1
            context.deadline = time.monotonic()  # as if decoding had taken that long
            return super().preprocess_instance(instance)

    context = RequestContext(deadline=time.monotonic() + 60)
    with serving(picture_plane()) as predictor:
        with pytest.raises(DeadlineExceeded):
            direct(make(predictor.url, transformer=Expiring), {"instances": [{"b64": plain(0)}] * 50}, context)
        assert Expiring.seen == 1


def test_instances_behind_a_bad_one_are_not_decoded() -> None:
    class Counting(Transformer):
        seen = 0

        def preprocess_instance(self, instance: Any) -> Any:
            Counting.seen += 1
            return super().preprocess_instance(instance)

    with serving(picture_plane()) as predictor:
        with pytest.raises(InvalidArgument) as caught:
            direct(
                make(predictor.url, transformer=Counting),
                {"instances": [{"b64": plain(0)}, {}, *[{"b64": plain(0)}] * 50]},
                RequestContext(),
            )
        assert caught.value.instance == 1
        assert Counting.seen == 2


def test_a_caller_who_leaves_stops_the_work() -> None:
    entered, leave, done = threading.Event(), threading.Event(), threading.Event()

    class Slow(Transformer):
        seen = 0

        def preprocess_instance(self, instance: Any) -> Any:
            Slow.seen += 1
            entered.set()
            assert leave.wait(20)
            return super().preprocess_instance(instance)

    async def run(host: str) -> None:
        transformer = make(host, transformer=Slow)
        transformer.start(1)
        await transformer.predictor.decided()
        request = asyncio.ensure_future(transformer.predict({"instances": [{"b64": plain(0)}] * 50}, RequestContext()))
        await asyncio.to_thread(entered.wait, 20)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        leave.set()
        assert transformer._pool is not None
        transformer._pool.submit(done.set)  # one thread: it comes when the share is over
        await asyncio.to_thread(done.wait, 20)
        await transformer.stop()

    with serving(picture_plane()) as predictor:
        asyncio.run(run(predictor.url))
    assert Slow.seen == 1


def test_many_callers_at_once_each_get_their_own() -> None:
    with pair(plane=picture_plane(classes=1)) as (served, _), ThreadPoolExecutor(16) as callers:
        replies = callers.map(lambda value: served.predict({"b64": plain(value)}).json, range(128))
        assert [*replies] == [{"predictions": [[level(value)]]} for value in range(128)]


def test_a_transformer_that_was_not_started_is_not_ready() -> None:
    with pytest.raises(Unavailable, match="the model is not ready: the predictor has not been reached yet"):
        asyncio.run(make("localhost:1").predict({"instances": [{"b64": plain(0)}]}, RequestContext()))
