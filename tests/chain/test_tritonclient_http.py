"""tritonclient's HTTP clients against a real predictor: every method they have, shared memory included."""

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import Process, call, predictor
from torch import nn

http = pytest.importorskip("tritonclient.http")
aio = pytest.importorskip("tritonclient.http.aio")
shm = pytest.importorskip("tritonclient.utils.shared_memory")
from tritonclient.utils import InferenceServerException  # noqa: E402

pytestmark = pytest.mark.slow


class AddSub(nn.Module):
    def forward(self, INPUT0: torch.Tensor, INPUT1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return INPUT0 + INPUT1, INPUT0 - INPUT1


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Words(nn.Module):
    def forward(self, x: list[str]) -> list[str]:
        return x


def io(kind: str, names: str, data_type: str, dims: str, extra: str = "") -> str:
    return "".join(
        f'{kind} {{ name: "{name}" data_type: {data_type} dims: {dims} {extra} }}\n' for name in names.split()
    )


HEAD = 'platform: "pytorch_libtorch"\nmax_batch_size: {}\n'


def write(folder: Path, module: nn.Module, config: str) -> None:
    (folder / "1").mkdir(parents=True)
    torch.jit.script(module).save(str(folder / "1" / "model.pt"))
    (folder / "config.pbtxt").write_text(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("http")
    models = folder / "models"
    add_sub = io("input", "INPUT0 INPUT1", "TYPE_FP32", "4") + io("output", "OUTPUT__0 OUTPUT__1", "TYPE_FP32", "4")
    write(models / "add_sub", AddSub(), HEAD.format(8) + add_sub)
    labelled = io("output", "OUTPUT__0", "TYPE_FP32", "[ -1 ]", 'label_filename: "labels.txt"')
    write(models / "times", Times(2.0), HEAD.format(8) + io("input", "INPUT__0", "TYPE_FP32", "[ -1 ]") + labelled)
    (models / "times" / "labels.txt").write_text("nought\none\ntwo\n")
    words = io("input", "INPUT__0", "TYPE_STRING", "[ -1 ]") + io("output", "OUTPUT__0", "TYPE_STRING", "[ -1 ]")
    write(models / "words", Words(), HEAD.format(0) + words)
    write(models / "broken", Times(1.0), "max_batch_size: 4\ncolour: 3\n")
    return folder


LOAD = ["--load-model=add_sub", "--load-model=times", "--load-model=words", "--model-control-mode=explicit"]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    with predictor(folder / "models", folder / "log", *LOAD, "--allow-client-shm") as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.output()


class Client:
    """Either client, its methods called the same way; remembers which were."""

    used: set[str] = set()

    def __init__(self, kind: str, port: int) -> None:
        self._runner = asyncio.Runner() if kind == "aio" else None
        address = f"127.0.0.1:{port}"
        self._client = self._finished(self._make_aio(address)) if self._runner else http.InferenceServerClient(address)
        self._kind = kind

    async def _make_aio(self, address: str) -> Any:
        return aio.InferenceServerClient(address)

    def _finished(self, result: Any) -> Any:
        return self._runner.run(result) if self._runner and inspect.isawaitable(result) else result

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        self.used.add(f"{self._kind} {name}")
        return lambda *arguments, **options: self._finished(method(*arguments, **options))

    def end(self) -> None:
        self.close()
        if self._runner:
            self._runner.close()


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest, server: Process) -> Iterator[Client]:
    client = Client(request.param, server.port)
    try:
        yield client
    finally:
        client.end()


def tensor(name: str, array: np.ndarray, binary: bool = True, datatype: str = "FP32") -> Any:
    given = http.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.ones((2, 4), dtype=np.float32)


def test_health_and_metadata(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("add_sub")
    assert client.is_model_ready("add_sub", "1")
    metadata = client.get_server_metadata()
    assert {"statistics", "classification", "system_shared_memory", "model_repository"} <= {*metadata["extensions"]}
    assert "cuda_shared_memory" not in metadata["extensions"]
    assert client.get_model_metadata("add_sub")["inputs"][1] == {"name": "INPUT1", "datatype": "FP32", "shape": [-1, 4]}
    assert client.get_model_config("times", "1")["max_batch_size"] == 8


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_infer(client: Client, binary_in: bool, binary_out: bool, coding: str | None) -> None:
    result = client.infer(
        "add_sub",
        [tensor("INPUT0", A, binary_in), tensor("INPUT1", B, binary_in)],
        outputs=[http.InferRequestedOutput(name, binary_data=binary_out) for name in ("OUTPUT__1", "OUTPUT__0")],
        request_id="seven",
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    np.testing.assert_array_equal(result.as_numpy("OUTPUT__0"), A + B)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT__1"), A - B)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("seven", "add_sub", "1")


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_an_answer_is_compressed_if_one_asks(server: Process, coding: str) -> None:
    zeros = json.dumps(
        {"inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [1, 4000], "data": [0] * 4000}]}
    ).encode()
    plain = call(server.port, "POST", "/v2/models/times/infer", zeros)
    packed = call(server.port, "POST", "/v2/models/times/infer", zeros, {"Accept-Encoding": coding})
    assert packed.headers["content-encoding"] == coding
    assert len(packed.body) < len(plain.body) / 10


def test_strings(client: Client) -> None:
    words = np.array([b"a", b"", "schön".encode()], dtype=object)
    result = client.infer("words", [tensor("INPUT__0", words, datatype="BYTES")])
    assert result.as_numpy("OUTPUT__0").tolist() == words.tolist()


def test_answers_are_parsed_by_their_own_parser(server: Process, client: Client) -> None:
    body, length = client.generate_request_body([tensor("INPUT0", A), tensor("INPUT1", B)])
    reply = call(
        server.port, "POST", "/v2/models/add_sub/infer", bytes(body), {"Inference-Header-Content-Length": str(length)}
    )
    header = reply.headers.get("inference-header-content-length")
    parsed = client.parse_response_body(reply.body, header_length=header and int(header))
    np.testing.assert_array_equal(parsed.as_numpy("OUTPUT__0"), A + B)


def test_async_infer(server: Process) -> None:
    client = Client("sync", server.port)
    requests = [client.async_infer("add_sub", [tensor("INPUT0", A * n), tensor("INPUT1", B)]) for n in range(5)]
    for number, request in enumerate(requests):
        np.testing.assert_array_equal(request.get_result().as_numpy("OUTPUT__0"), A * number + B)
    client.end()


def test_classification(client: Client) -> None:
    wanted = http.InferRequestedOutput("OUTPUT__0", class_count=2)
    rows = np.array([[1, 3, 2, 3], [0, -1, -2, 9]], dtype=np.float32)
    result = client.infer("times", [tensor("INPUT__0", rows)], outputs=[wanted]).as_numpy("OUTPUT__0")
    assert result.tolist() == [[b"6.000000:1:one", b"6.000000:3"], [b"18.000000:3", b"0.000000:0:nought"]]


def test_statistics_are_the_metrics(folder: Path, client: Client) -> None:
    before = client.get_inference_statistics("times")["model_stats"][0]
    client.infer("times", [tensor("INPUT__0", A)])
    with pytest.raises(InferenceServerException):
        client.infer("times", [tensor("nope", A)])
    after = client.get_inference_statistics("times", "1")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] - before["execution_count"] == 1
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert after["inference_stats"]["fail"]["count"] - before["inference_stats"]["fail"]["count"] == 1
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert after["last_inference"] > 1_600_000_000_000
    names = [each["name"] for each in client.get_inference_statistics()["model_stats"]]
    assert {"add_sub", "times", "words"} <= {*names}


def test_the_repository(client: Client, server: Process) -> None:
    index = {(entry["name"], entry.get("state")) for entry in client.get_model_repository_index()}
    assert {("add_sub", "READY"), ("times", "READY"), ("words", "READY")} <= index
    assert "broken" in {name for name, _ in index}
    client.load_model("words")
    client.unload_model("words")
    assert not client.is_model_ready("words")
    with pytest.raises(InferenceServerException, match="no available versions"):
        client.get_model_metadata("words")
    assert 'model="words"' not in call(server.port, "GET", "/metrics").body.decode()
    client.load_model("words")
    assert client.is_model_ready("words")
    with pytest.raises(InferenceServerException, match=r"no field named .colour."):
        client.load_model("broken")
    with pytest.raises(InferenceServerException, match="failed to poll from model repository"):
        client.load_model("absent")
    client.unload_model("absent")
    assert client.is_server_ready()


def test_overrides_last_until_the_unload(folder: Path, client: Client, tmp_path: Path) -> None:
    def answer() -> float:
        return client.infer("times", [tensor("INPUT__0", B)]).as_numpy("OUTPUT__0")[0, 0]

    torch.jit.script(Times(5.0)).save(str(tmp_path / "five.pt"))
    config = client.get_model_config("times")
    del config["output"][0]["label_filename"]
    try:
        client.load_model(
            "times", config=json.dumps(config), files={"file:1/model.pt": (tmp_path / "five.pt").read_bytes()}
        )
        assert answer() == 5.0
        client.load_model("times")  # what was given is kept
        assert answer() == 5.0
        config["max_batch_size"] = 3
        client.load_model("times", config=json.dumps(config))  # the repository's file, that configuration
        assert answer() == 2.0
        assert client.get_model_config("times")["max_batch_size"] == 3
        with pytest.raises(InferenceServerException, match="must be 'file:<version>/<name>'"):
            client.load_model("times", config=json.dumps(config), files={"file:../../x": b"x"})
        with pytest.raises(InferenceServerException, match="'config' must be specified"):
            client.load_model("times", files={"file:1/model.pt": b"x"})
        with pytest.raises(InferenceServerException, match="load failed for model 'times'"):
            client.load_model("times", config=json.dumps(config), files={"file:1/model.pt": b"no archive"})
        assert answer() == 2.0
    finally:
        client.unload_model("times")
        client.load_model("times")
    assert client.get_model_config("times")["max_batch_size"] == 8


def test_shared_memory(client: Client) -> None:
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    given = shm.create_shared_memory_region("given", "/tandem_test_given", 2 * A.nbytes)
    taken = shm.create_shared_memory_region("taken", "/tandem_test_taken", A.nbytes)
    try:
        shm.set_shared_memory_region(given, [A, B])
        client.register_system_shared_memory("given", "/tandem_test_given", 2 * A.nbytes)
        client.register_system_shared_memory("taken", "/tandem_test_taken", A.nbytes)
        status = client.get_system_shared_memory_status()
        assert [(region["name"], region["byte_size"]) for region in status] == [("given", 64), ("taken", 32)]
        assert "tandem_test" not in json.dumps(status)
        assert len(client.get_system_shared_memory_status("taken")) == 1
        inputs = [http.InferInput(name, list(A.shape), "FP32") for name in ("INPUT0", "INPUT1")]
        for number, each in enumerate(inputs):
            each.set_shared_memory("given", A.nbytes, offset=number * A.nbytes)
        output = http.InferRequestedOutput("OUTPUT__1")
        output.set_shared_memory("taken", A.nbytes)
        for _ in range(2):
            result = client.infer("add_sub", inputs, outputs=[output, http.InferRequestedOutput("OUTPUT__0")])
            np.testing.assert_array_equal(shm.get_contents_as_numpy(taken, np.float32, A.shape), A - B)
            np.testing.assert_array_equal(result.as_numpy("OUTPUT__0"), A + B)
            assert result.get_output("OUTPUT__1")["parameters"] == {
                "shared_memory_region": "taken",
                "shared_memory_byte_size": 32,
            }
        inputs[0].set_shared_memory("given", A.nbytes, offset=A.nbytes + 4)
        with pytest.raises(InferenceServerException, match="Invalid offset"):
            client.infer("add_sub", inputs)
        with pytest.raises(InferenceServerException, match="already in manager"):
            client.register_system_shared_memory("taken", "/tandem_test_taken", A.nbytes)
        client.unregister_system_shared_memory("taken")
        with pytest.raises(InferenceServerException, match="Unable to find shared memory region"):
            client.infer("add_sub", [tensor("INPUT0", A), tensor("INPUT1", B)], outputs=[output])
    finally:
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(given)
        shm.destroy_shared_memory_region(taken)
    assert client.get_system_shared_memory_status() == []
    assert client.get_cuda_shared_memory_status() == []
    with pytest.raises(InferenceServerException, match="CUDA shared memory is not served"):
        client.register_cuda_shared_memory("gpu", b"handle", 0, 64)


def test_settings(client: Client) -> None:
    settings = client.get_trace_settings()
    assert settings["trace_level"] == ["OFF"]
    assert client.update_trace_settings("add_sub", {"trace_level": ["OFF"], "trace_rate": None}) == settings
    with pytest.raises(InferenceServerException, match="no traces are written"):
        client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})
    assert client.get_trace_settings("add_sub") == settings
    before = client.get_log_settings()
    try:
        assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
        with pytest.raises(InferenceServerException, match="'log_file' cannot be changed"):
            client.update_log_settings({"log_info": False, "log_file": "x"})
        assert client.get_log_settings()["log_info"] is True
    finally:
        client.update_log_settings({"log_verbose_level": 0})
    assert client.get_log_settings() == before


def test_no_method_was_left_out() -> None:
    """Last, for it counts what the others did."""
    for kind, module in (("sync", http), ("aio", aio)):
        names = {name for name in dir(module.InferenceServerClient) if not name.startswith("_")}
        used = {name.removeprefix(f"{kind} ") for name in Client.used if name.startswith(f"{kind} ")}
        assert names - used <= {"plugin", "register_plugin", "unregister_plugin"}, kind


def test_what_is_switched_off_says_so(folder: Path) -> None:
    with predictor(folder / "models", folder / "log2", "--exit-on-error=false", "--strict-readiness=false") as running:
        client = Client("sync", running.port)
        try:
            assert "system_shared_memory" not in client.get_server_metadata()["extensions"]
            with pytest.raises(InferenceServerException, match="not allowed in model control mode none"):
                client.load_model("times")
            with pytest.raises(InferenceServerException, match="not allowed"):
                client.unload_model("times")
            off = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
            given = http.InferInput("INPUT__0", [1, 4], "FP32")
            given.set_shared_memory("r", 16)
            for refused in (
                lambda: client.get_system_shared_memory_status(),
                lambda: client.register_system_shared_memory("r", "/r", 4),
                lambda: client.unregister_system_shared_memory(),
                lambda: client.get_cuda_shared_memory_status(),
                lambda: client.infer("times", [given]),
            ):
                with pytest.raises(InferenceServerException) as caught:
                    refused()
                assert (caught.value.message(), caught.value.status()) == (off, "501")
            states = {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
            assert states["broken"] == "UNAVAILABLE"
        finally:
            client.end()
