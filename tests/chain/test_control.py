"""Models that come, change and go under a real predictor: no request fails, memory comes back."""

import http.client
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from processes import call, predictor, wait_until
from torch import nn

pytestmark = pytest.mark.slow

CONFIG = """platform: "pytorch_libtorch"
max_batch_size: 4
input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "OUTPUT__1" data_type: TYPE_FP32 dims: [ 2 ] }
dynamic_batching { max_queue_delay_microseconds: 500 }
"""


class Generation(nn.Module):
    """Both outputs name the generation: an answer that mixes two shows it."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 0 + self.number, x + self.number - x


def write(folder: Path, module: nn.Module | None, config: str = CONFIG, version: int = 1) -> None:
    """Write a model file, as a good or (None) a broken one, in one step as deployments do."""
    place = folder / str(version)
    place.mkdir(parents=True, exist_ok=True)
    fresh = place / ".model.pt"
    if module is None:
        fresh.write_bytes(b"no archive")
    else:
        torch.jit.script(module).save(str(fresh))
    (folder / "config.pbtxt").write_text(config)
    fresh.rename(place / "model.pt")


ONE = json.dumps({"inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]}).encode()


def numbers(status: int, body: bytes) -> set[float]:
    assert status == 200, body
    return {value for output in json.loads(body)["outputs"] for value in output["data"]}


def values(port: int) -> set[float]:
    reply = call(port, "POST", "/v2/models/m/infer", ONE)
    return numbers(reply.status, reply.body)


class Asking(threading.Thread):
    """One connection, one request after the other, until told to end."""

    def __init__(self, port: int, ending: threading.Event) -> None:
        super().__init__(daemon=True)
        self.port, self.ending = port, ending
        self.answers: list[set[float]] = []
        self.failures: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self.ending.is_set():
            try:
                connection.request("POST", "/v2/models/m/infer", ONE)
                response = connection.getresponse()
                self.answers.append(numbers(response.status, response.read()))
            except (AssertionError, OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
        connection.close()


def test_reloads_under_load_fail_no_request_and_mix_no_versions(tmp_path: Path) -> None:
    write(tmp_path / "models" / "m", Generation(0.0))
    explicit = ["--model-control-mode=explicit", "--load-model=*"]
    with predictor(tmp_path / "models", tmp_path / "log", *explicit) as running:
        ending = threading.Event()
        asking = [Asking(running.port, ending) for _ in range(8)]
        for each in asking:
            each.start()
        serving = 0.0
        for number in range(1, 21):
            good = number % 2 == 0
            write(tmp_path / "models" / "m", Generation(float(number)) if good else None)
            reply = call(running.port, "POST", "/v2/repository/models/m/load")
            assert reply.status == (200 if good else 400), reply
            serving = float(number) if good else serving
            assert values(running.port) == {serving}
        ending.set()
        for each in asking:
            each.join(20)
        assert [failure for each in asking for failure in each.failures] == []
        seen = [answer for each in asking for answer in each.answers]
        assert all(len(answer) == 1 for answer in seen)
        assert {*range(0, 21, 2)} >= {int(*answer) for answer in seen}
        statistics = call(running.port, "GET", "/v2/models/m/stats").json["model_stats"][0]
        assert statistics["inference_count"] == len(seen) + 20
        assert statistics["inference_stats"]["fail"]["count"] == 0


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5120, 5120)  # 100 MB

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def test_memory_comes_back_after_each_unload(tmp_path: Path) -> None:
    config = CONFIG.replace("[ 2 ]", "[ 5120 ]").replace("dynamic_batching { max_queue_delay_microseconds: 500 }", "")
    config = "".join(line for line in config.splitlines(True) if "OUTPUT__1" not in line)
    write(tmp_path / "models" / "large", Large().eval(), config)
    body = json.dumps(
        {"inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [1, 5120], "data": [0.5] * 5120}]}
    ).encode()
    with predictor(tmp_path / "models", tmp_path / "log", "--model-control-mode=explicit") as running:
        start = resident(running.child.pid)
        for _ in range(50):
            assert call(running.port, "POST", "/v2/repository/models/large/load").status == 200
            assert call(running.port, "POST", "/v2/models/large/infer", body).status == 200
            assert resident(running.child.pid) > start + 90
            assert call(running.port, "POST", "/v2/repository/models/large/unload").status == 200
        assert resident(running.child.pid) < start * 1.1


def test_poll_follows_the_repository(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write(models / "m", Generation(1.0))
    poll = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    with predictor(models, tmp_path / "log", *poll) as running:
        refused = call(running.port, "POST", "/v2/repository/models/m/load")
        assert refused.status == 503
        assert "explicit model load / unload is not allowed if polling is enabled" in refused.json["error"]
        write(models / "m", Generation(2.0))
        write(models / "n", Generation(7.0))
        wait_until(lambda: values(running.port) == {2.0}, "the change is served", 20)
        wait_until(lambda: call(running.port, "GET", "/v2/models/n/ready").status == 200, "the new model serves", 20)
        write(models / "m", None)
        wait_until(lambda: "the reload failed" in running.output(), "the broken file is refused", 20)
        assert values(running.port) == {2.0}
        shutil.rmtree(models / "n")
        wait_until(lambda: call(running.port, "GET", "/v2/models/n/ready").status == 404, "the model is gone", 20)
        assert call(running.port, "GET", "/v2/health/ready").status == 200
