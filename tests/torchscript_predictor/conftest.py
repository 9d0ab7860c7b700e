"""What the predictor's tests share: a model repository to write into, and a few scripted models."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from torchscript_predictor.backends import Backend
from torchscript_predictor.backends.torchscript import TorchScriptBackend
from torchscript_predictor.data_plane import PredictorDataPlane
from torchscript_predictor.repository import ModelRepository
from torchscript_predictor.threads import CpuAllowance


class AddSub(nn.Module):
    def forward(self, INPUT0: torch.Tensor, INPUT1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return INPUT0 + INPUT1, INPUT0 - INPUT1


class Identity(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Picky(nn.Module):
    """Fails on a negative input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert bool((x >= 0).all()), "negative input"
        return x.sqrt()


def tensor(kind: str, name: str, data_type: str = "TYPE_FP32", dims: str = "[ 2 ]", extra: str = "") -> str:
    return f'{kind} [ {{ name: "{name}" data_type: {data_type} dims: {dims} {extra} }} ]\n'


def config_text(
    inputs: Iterable[str] = ("INPUT__0",),
    outputs: Iterable[str] = ("OUTPUT__0",),
    *,
    data_type: str = "TYPE_FP32",
    output_type: str | None = None,
    dims: str = "[ 2 ]",
    max_batch_size: int = 4,
    more: str = "",
) -> str:
    """A `config.pbtxt` whose inputs and outputs are all alike."""
    text = f'platform: "pytorch_libtorch"\nmax_batch_size: {max_batch_size}\n'
    text += "".join(tensor("input", name, data_type, dims) for name in inputs)
    text += "".join(tensor("output", name, output_type or data_type, dims) for name in outputs)
    return text + more


class RepositoryWriter:
    """Writes models into a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, module: nn.Module | bytes, config: str = "", versions: Iterable[int] = (1,)) -> Path:
        """Write one model; `bytes` stand for a file that is no TorchScript."""
        folder = self.path / name
        folder.mkdir(parents=True)
        (folder / "config.pbtxt").write_text(config or config_text())
        for version in versions:
            (folder / str(version)).mkdir()
            file = folder / str(version) / "model.pt"
            if isinstance(module, bytes):
                file.write_bytes(module)
            else:
                torch.jit.script(module).save(str(file))
        return folder


@pytest.fixture
def nets() -> SimpleNamespace:
    """The module classes above; a fixture, because test files cannot import each other."""
    return SimpleNamespace(AddSub=AddSub, Identity=Identity, Double=Double, Picky=Picky)


@pytest.fixture(name="config_text")
def config_text_fixture() -> Callable[..., str]:
    return config_text


@pytest.fixture
def repository(tmp_path: Path) -> RepositoryWriter:
    return RepositoryWriter(tmp_path / "models")


Scenario = Callable[[PredictorDataPlane], Awaitable[None]]


@pytest.fixture
def serve(repository: RepositoryWriter) -> Callable[..., None]:
    """Load what the repository holds, run a scenario against it, stop."""

    def run(scenario: Scenario, backend: Callable[[], Backend] = TorchScriptBackend, **options: Any) -> None:
        async def main() -> None:
            options.setdefault("allowance", CpuAllowance(1.0))
            plane = PredictorDataPlane(ModelRepository([repository.path]), backend, **options)
            await plane.start()
            try:
                await plane.loaded()
                await scenario(plane)
            finally:
                await plane.stop()

        asyncio.run(main())

    return run
