"""tritonclient's gRPC clients against a real predictor: every method they have."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from processes import free_port, predictor

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).parents[1] / "support" / "triton_grpc_driver.py"


class AddSub(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, a - b


class Strings(torch.nn.Module):
    def forward(self, words: list[str]) -> list[str]:
        return words


def write(folder: Path, module: torch.nn.Module, config: str) -> None:
    (folder / "1").mkdir(parents=True)
    torch.jit.script(module).save(str(folder / "1" / "model.pt"))
    (folder / "config.pbtxt").write_text(config)


TENSORS = """
platform: "pytorch_libtorch"
max_batch_size: 8
input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 4 ] }
input { name: "INPUT__1" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "OUTPUT__1" data_type: TYPE_FP32 dims: [ 4 ] }
"""
WORDS = """
platform: "pytorch_libtorch"
max_batch_size: 0
input [ { name: "INPUT__0" data_type: TYPE_STRING dims: [ -1 ] } ]
output [ { name: "OUTPUT__0" data_type: TYPE_STRING dims: [ -1 ] } ]
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """{case: why it failed, or nothing}."""
    folder = tmp_path_factory.mktemp("tritonclient")
    for name in ("add_sub", "other"):
        write(folder / "models" / name, AddSub(), TENSORS)
    write(folder / "models" / "strings", Strings(), WORDS)
    port = free_port()
    flags = [f"--grpc-port={port}", "--model-control-mode=explicit", "--load-model=*", "--allow-client-shm"]
    with predictor(folder / "models", folder / "log", *flags) as running:
        done = subprocess.run(
            [sys.executable, str(DRIVER), f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        yield {line["case"]: line["failure"] for line in lines}
        assert running.stop() == 0
        assert "Traceback" not in running.output()


def test_every_method_of_both_clients(outcomes: Mapping[str, str]) -> None:
    failures = [f"{case}: {failure}" for case, failure in outcomes.items() if failure]
    assert not failures, "\n".join(failures)
    assert {case for case in outcomes if case.endswith("every_method")} == {
        "grpc every_method",
        "grpc.aio every_method",
    }
