"""Drives tritonclient's gRPC clients, the blocking and the asyncio one, against a running predictor.

    python triton_grpc_driver.py HOST:PORT

A process of its own: tritonclient's generated modules and kserve's cannot share one.  Prints a line of JSON per
case: its name and, if it failed, why.
"""

import asyncio
import base64
import json
import queue
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as blocking
import tritonclient.grpc.aio as asynchronous
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

A, B = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((2, 4), np.float32)
KEY = "/tandem_grpc_driver"


class Blocking:
    """The blocking client; knows which of its methods were called."""

    def __init__(self, target: str) -> None:
        self.called: set[str] = set()
        self.client: Any = blocking.InferenceServerClient(target)

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self.client, name)

    def uncalled(self) -> set[str]:
        """Methods of the client that no case called; plugins and closing are the client's own affair."""
        public = {name for name in dir(self.client) if not name.startswith("_")}
        return public - self.called - {"close", "plugin", "register_plugin", "unregister_plugin"}


class InLoop(Blocking):
    """The asyncio client as if it were a blocking one."""

    def __init__(self, target: str) -> None:
        self.called = set()
        self.loop = asyncio.new_event_loop()
        self.client = self.loop.run_until_complete(self._open(target))

    async def _open(self, target: str) -> Any:
        return asynchronous.InferenceServerClient(target)

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        method = getattr(self.client, name)
        return lambda *args, **options: self.loop.run_until_complete(method(*args, **options))


def inputs(a: np.ndarray = A, b: np.ndarray = B, name: str = "INPUT__0") -> list[Any]:
    made = []
    for tensor, array in ((name, a), ("INPUT__1", b)):
        made.append(blocking.InferInput(tensor, list(array.shape), "FP32"))
        made[-1].set_data_from_numpy(array)
    return made


def right(result: Any) -> None:
    np.testing.assert_array_equal(result.as_numpy("OUTPUT__0"), A + B)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT__1"), A - B)


def refused(status: str, *words: str) -> Any:
    class Refused:
        def __enter__(self) -> None: ...

        def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
            assert isinstance(error, InferenceServerException), error
            assert error.status() == f"StatusCode.{status}", error
            for word in words:
                assert word in error.message(), error
            return True

    return Refused()


# --- cases for both clients -------------------------------------------------------------------------------------------


def health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("add_sub")
    assert client.is_model_ready("add_sub", "1")
    assert not client.is_model_ready("add_sub", "2")
    assert not client.is_model_ready("nope")


def metadata(client: Any) -> None:
    assert client.get_server_metadata().name == "tandem"
    assert client.get_server_metadata(as_json=True)["extensions"]
    model = client.get_model_metadata("add_sub")
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [
        ("INPUT__0", "FP32", [-1, 4]),
        ("INPUT__1", "FP32", [-1, 4]),
    ]
    config = client.get_model_config("add_sub").config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("add_sub", 8, [4])


def infer(client: Any) -> None:
    result = client.infer("add_sub", inputs(), request_id="7")
    right(result)
    assert result.get_response().id == "7"
    asked = [blocking.InferRequestedOutput("OUTPUT__1")]
    result = client.infer("add_sub", inputs(), outputs=asked, model_version="1", priority=0, timeout=5_000_000)
    assert result.as_numpy("OUTPUT__0") is None
    np.testing.assert_array_equal(result.as_numpy("OUTPUT__1"), A - B)


def infer_compressed(client: Any) -> None:
    for algorithm in ("gzip", "deflate"):
        right(client.infer("add_sub", inputs(), compression_algorithm=algorithm))


def infer_strings(client: Any) -> None:
    words = np.array([b"tandem", b"", "\u00e9".encode()], dtype=np.object_)
    tensor = blocking.InferInput("INPUT__0", [3], "BYTES")
    tensor.set_data_from_numpy(words)
    assert client.infer("strings", [tensor]).as_numpy("OUTPUT__0").tolist() == words.tolist()


def infer_headers(client: Any) -> None:
    right(client.infer("add_sub", inputs(), headers={"x-request-id": "abc", "traceparent": "00-1-2-03"}))


def errors(client: Any) -> None:
    with refused("NOT_FOUND", "Request for unknown model: 'nope' is not found"):
        client.infer("nope", inputs())
    with refused("NOT_FOUND"):
        client.infer("add_sub", inputs(), model_version="9")
    with refused("INVALID_ARGUMENT", "INPUT__0"):
        client.infer("add_sub", inputs(name="wrong"))
    with refused("INVALID_ARGUMENT", "shape"):
        client.infer("add_sub", inputs(A[:, :3].copy()))
    with refused("INVALID_ARGUMENT", "OUTPUT__9"):
        client.infer("add_sub", inputs(), outputs=[blocking.InferRequestedOutput("OUTPUT__9")])
    with refused("DEADLINE_EXCEEDED"):
        client.infer("add_sub", inputs(), timeout=1)


def statistics(client: Any) -> None:
    right(client.infer("add_sub", inputs()))
    (one,) = client.get_inference_statistics("add_sub").model_stats
    assert (one.name, one.version) == ("add_sub", "1")
    assert one.inference_count >= 2
    assert one.inference_stats.success.count >= 1
    assert one.inference_stats.compute_infer.ns > 0
    assert [batch.batch_size for batch in one.batch_stats]
    assert {each.name for each in client.get_inference_statistics().model_stats} >= {"add_sub", "strings"}
    with refused("NOT_FOUND"):
        client.get_inference_statistics("nope")


def repository(client: Any) -> None:
    states = {entry.name: entry.state for entry in client.get_model_repository_index().models}
    assert states["add_sub"] == "READY"
    client.unload_model("other")
    assert client.is_model_ready("add_sub")
    with refused("NOT_FOUND"):
        client.infer("nope", inputs())
    client.load_model("other")
    right(client.infer("other", inputs()))
    config = json.dumps(
        {
            "name": "other",
            "platform": "pytorch_libtorch",
            "max_batch_size": 2,
            "input": [{"name": f"INPUT__{i}", "data_type": "TYPE_FP32", "dims": [4]} for i in (0, 1)],
            "output": [{"name": f"OUTPUT__{i}", "data_type": "TYPE_FP32", "dims": [4]} for i in (0, 1)],
        }
    )
    client.load_model("other", config=config)
    assert client.get_model_config("other").config.max_batch_size == 2
    client.unload_model("other", unload_dependents=True)
    assert not client.is_model_ready("other")
    with refused("NOT_FOUND", "no available versions"):
        client.infer("other", inputs())
    with refused("NOT_FOUND", "failed to load 'nope'"):
        client.load_model("nope")
    client.load_model("other")


def system_shared_memory(client: Any) -> None:
    client.unregister_system_shared_memory()
    size = A.nbytes
    region = shm.create_shared_memory_region("driver", KEY, 4 * size)
    try:
        shm.set_shared_memory_region(region, [A, B])
        client.register_system_shared_memory("driver", KEY, 4 * size)
        (name,) = client.get_system_shared_memory_status().regions
        assert name == "driver"
        with refused("INVALID_ARGUMENT"):
            client.register_system_shared_memory("driver", KEY, 4 * size)
        made = [blocking.InferInput(f"INPUT__{i}", [2, 4], "FP32") for i in (0, 1)]
        for i, tensor in enumerate(made):
            tensor.set_shared_memory("driver", size, offset=i * size)
        asked = [blocking.InferRequestedOutput("OUTPUT__0"), blocking.InferRequestedOutput("OUTPUT__1")]
        asked[0].set_shared_memory("driver", size, offset=2 * size)
        result = client.infer("add_sub", made, outputs=asked)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT__1"), A - B)
        got = shm.get_contents_as_numpy(region, np.float32, [2, 4], offset=2 * size)
        np.testing.assert_array_equal(got, A + B)
        assert result.get_output("OUTPUT__0").parameters["shared_memory_region"].string_param == "driver"
        client.unregister_system_shared_memory("driver")
        with refused("INVALID_ARGUMENT"):
            client.infer("add_sub", made)
        assert not client.get_system_shared_memory_status().regions
        with refused("NOT_FOUND"):
            client.get_system_shared_memory_status("driver")
    finally:
        del got
        shm.destroy_shared_memory_region(region)


def cuda_shared_memory(client: Any) -> None:
    client.unregister_cuda_shared_memory()
    assert not client.get_cuda_shared_memory_status().regions
    with refused("UNIMPLEMENTED", "CUDA"):
        client.register_cuda_shared_memory("c", base64.b64encode(b"handle"), 0, 64)


def settings(client: Any) -> None:
    trace = client.get_trace_settings()
    assert "trace_level" in trace.settings
    assert client.get_trace_settings("add_sub").settings
    client.update_trace_settings(settings={"trace_level": list(trace.settings["trace_level"].value)})
    client.update_trace_settings("add_sub", settings={"trace_rate": None})
    with refused("INVALID_ARGUMENT"):
        client.update_trace_settings(settings={"nonsense": "1"})
    log = client.get_log_settings()
    assert log.settings["log_info"].bool_param in (True, False)
    changed = client.update_log_settings({"log_verbose_level": 0})
    assert "log_verbose_level" in changed.settings
    with refused("INVALID_ARGUMENT"):
        client.update_log_settings({"nonsense": True})


# --- cases for one of them --------------------------------------------------------------------------------------------


def async_infer(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    for _ in range(8):
        client.async_infer("add_sub", inputs(), lambda result, error: answers.put((result, error)))
    for _ in range(8):
        result, error = answers.get(timeout=20)
        assert error is None
        right(result)
    call = client.async_infer("add_sub", inputs(), lambda result, error: answers.put((result, error)))
    call.cancel()
    answers.get(timeout=20)


def stream(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(20):
        client.async_stream_infer("add_sub", inputs(A + number), request_id=str(number))
    client.async_stream_infer("add_sub", inputs(name="wrong"), request_id="bad")
    client.async_stream_infer("add_sub", inputs(), request_id="last", enable_empty_final_response=True)
    for number in range(20):
        result, error = answers.get(timeout=20)
        assert error is None
        assert result.get_response().id == str(number)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT__0"), A + number + B)
    _, error = answers.get(timeout=20)
    assert "INPUT__0" in error.message()
    result, _ = answers.get(timeout=20)
    right(result)
    assert result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()


def stream_as_status(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), headers={"triton_grpc_error": "true"})
    client.async_stream_infer("add_sub", inputs(name="wrong"))
    _, error = answers.get(timeout=20)
    assert error.status() == "StatusCode.INVALID_ARGUMENT"
    client.stop_stream()


def aio_stream(client: Any) -> None:
    async def requests() -> Any:
        for number in range(20):
            yield {"model_name": "add_sub", "inputs": inputs(A + number), "request_id": str(number)}
        yield {"model_name": "nope", "inputs": inputs()}

    async def drive() -> None:
        client.called.add("stream_infer")
        answers = [answer async for answer in client.client.stream_infer(requests())]
        assert len(answers) == 21
        for number, (result, error) in enumerate(answers[:20]):
            assert error is None
            assert result.get_response().id == str(number)
        assert "unknown model" in answers[20][1].message()

    client.loop.run_until_complete(drive())


def every_method(client: Any) -> None:
    assert client.uncalled() == set()


def keepalive(client: Any) -> None:
    options = blocking.KeepAliveOptions(keepalive_time_ms=10_000, keepalive_permit_without_calls=True)
    with blocking.InferenceServerClient(sys.argv[1], keepalive_options=options) as other:
        right(other.infer("add_sub", inputs()))


BOTH: list[Callable[[Any], None]] = [
    health,
    metadata,
    infer,
    infer_compressed,
    infer_strings,
    infer_headers,
    errors,
    statistics,
    repository,
    system_shared_memory,
    cuda_shared_memory,
    settings,
]
CASES = {
    "grpc": [*BOTH, async_infer, stream, stream_as_status, keepalive, every_method],
    "grpc.aio": [*BOTH, aio_stream, every_method],
}


def main(target: str) -> None:
    makers = {"grpc": Blocking, "grpc.aio": InLoop}
    for kind, cases in CASES.items():
        client: Any = makers[kind](target)
        for case in cases:
            failure = ""
            try:
                case(client)
            except Exception:
                failure = traceback.format_exc()
            print(json.dumps({"case": f"{kind} {case.__name__}", "failure": failure}), flush=True)
        client.close()


if __name__ == "__main__":
    main(sys.argv[1])
