"""`tandem export`: what is written is what the predictor reads, and what cannot be served is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from google.protobuf import text_format
from networks import CifarNet
from torch import nn

from oip import proto
from tandem.export import ExportError, command, describe, export, load_factory
from torchscript_predictor.backends.choice import PyTorchBackend
from torchscript_predictor.backends.compiling import find_obstacle
from torchscript_predictor.configure import read_model_config
from torchscript_predictor.repository import ModelRepository


class TwoOutputs(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.sum(dim=1), x.argmax(dim=1, keepdim=True)


class Unscriptable(nn.Module):
    def forward(self, x):  # type: ignore[no-untyped-def]
        return x * eval("2")


class BakedIn(nn.Module):
    """Tracing keeps the number of rows that it saw."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x.reshape(int(x.shape[0]) if not torch.jit.is_tracing() else 1, -1) * eval("1")


class Dictionary(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x}


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")


class NotBatching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum().reshape(1)


def read_config(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), proto.ModelConfig())


def test_writes_a_repository_folder(tmp_path: Path) -> None:
    lines: list[str] = []
    folder = export(CifarNet, tmp_path, "cifar10", [3, 32, 32], instances=2, version=3, report=lines.append)
    config = read_config(folder)
    assert config.name == "cifar10"
    assert config.platform == "pytorch_libtorch"
    assert config.max_batch_size == 8
    assert list(config.input[0].dims) == [3, 32, 32]
    assert list(config.output[0].dims) == [10]
    assert config.instance_group[0].count == 2
    assert torch.jit.load(str(folder / "3" / "model.pt"))(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert "equal to the model at 1 and 2 rows" in lines[-1]
    assert [path.name for path in (folder / "3").iterdir()] == ["model.pt"]


def test_several_outputs_with_their_types(tmp_path: Path) -> None:
    config = read_config(export(TwoOutputs, tmp_path, "two", [4]))
    sums, best = config.output
    assert (sums.name, best.name) == ("OUTPUT__0", "OUTPUT__1")
    data_types = config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    assert sums.data_type == data_types["TYPE_FP32"].number
    assert best.data_type == data_types["TYPE_INT64"].number
    assert list(sums.dims) == [1]
    assert sums.HasField("reshape")  # the model gives [N], the wire [N, 1]


def test_traces_what_cannot_be_scripted(tmp_path: Path) -> None:
    lines: list[str] = []
    export(Unscriptable, tmp_path, "m", [4], report=lines.append)
    assert "cannot be scripted" in lines[0]
    assert lines[-1].startswith("traced")


def test_without_a_batch_dimension(tmp_path: Path) -> None:
    config = read_config(export(CifarNet, tmp_path, "m", [1, 3, 32, 32], max_batch_size=0))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [1, 3, 32, 32]
    assert list(config.output[0].dims) == [1, 10]


@pytest.mark.parametrize(
    ("factory", "options", "words"),
    [
        (BakedIn, {}, ["2 rows", "--method script"]),
        (Unscriptable, {"method": "script"}, ["--method trace"]),
        (Dictionary, {}, ["tensor", "dict"]),
        (Failing, {}, ["fails", "[2, 4]"]),
        (NotBatching, {}, ["does not batch", "--max-batch-size 0"]),
        (lambda: 3, {}, ["torch.nn.Module", "int"]),
    ],
)
def test_refusals_say_why_and_what_to_try(
    tmp_path: Path, factory: Callable[[], Any], options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ExportError) as refusal:
        export(factory, tmp_path, "m", [4], **options)
    for word in words:
        assert word in str(refusal.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("name", ["nocolon", "no_such_module:f", "json:no_such_function", "json:__name__"])
def test_a_factory_that_is_none(name: str) -> None:
    with pytest.raises(ExportError, match=name.partition(":")[0]):
        load_factory(name)


# PT2, and describing

exporting = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::FutureWarning:torch.*")


def served(repository: Path, name: str) -> Any:
    """The model as the predictor loads it."""
    [folder] = ModelRepository([repository]).models()[name]
    backend = PyTorchBackend()
    config = read_model_config(folder, backend)
    return backend.load(folder.model_file(*folder.versions(), config.model_filename), config, "cpu")


@exporting
@pytest.mark.parametrize(
    "compiled",
    [
        False,
        pytest.param(True, marks=[pytest.mark.slow, pytest.mark.skipif(bool(find_obstacle(True)), reason="no g++")]),
    ],
)
def test_pt2_is_what_the_predictor_reads(tmp_path: Path, compiled: bool) -> None:
    lines: list[str] = []
    network = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).eval()
    folder = export(lambda: network, tmp_path, "m", [4], file_format="pt2", compiled=compiled, report=lines.append)
    assert read_config(folder).platform == "torch_aoti"
    assert [path.name for path in (folder / "1").iterdir()] == ["model.pt2"]
    assert lines == [f"{'compiled' if compiled else 'exported'}; equal to the model at 1 and 2 rows"]
    rows = np.ones((3, 4), np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(rows)).numpy()
    assert np.allclose(served(tmp_path, "m").execute({"INPUT__0": rows})["OUTPUT__0"], expected, atol=1e-5)


@exporting
def test_what_cannot_be_exported_says_what_to_try(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if bool(x.sum() > 0) else -x

    with pytest.raises(ExportError, match=r"torch\.export refuses the model: .*; try --format torchscript"):
        export(Branches, tmp_path, "m", [4], file_format="pt2", compiled=False)
    assert not (tmp_path / "m").exists()


def test_describe_prints_the_configuration_of_what_is_there(tmp_path: Path) -> None:
    export(CifarNet, tmp_path, "net", [3, 32, 32])
    configured = describe(tmp_path / "net")
    (tmp_path / "net" / "config.pbtxt").unlink()
    for path in (tmp_path, tmp_path / "net", tmp_path / "net" / "1" / "model.pt"):
        text = describe(path)
        found = text_format.Parse(text, proto.ModelConfig())
        assert (found.max_batch_size, list(found.input[0].dims), list(found.output[0].dims)) == (8, [3, 32, 32], [10])
    assert configured.replace("INPUT__0", "x") == describe(tmp_path / "net")


def test_describe_on_the_command_line(tmp_path: Path) -> None:
    export(CifarNet, tmp_path, "net", [3, 32, 32])
    result = CliRunner().invoke(command, ["--describe", str(tmp_path / "net" / "1" / "model.pt")])
    assert result.exit_code == 0
    assert 'platform: "pytorch_libtorch"' in result.stdout
    (tmp_path / "net" / "1" / "model.pt").write_text("nothing")
    result = CliRunner().invoke(command, ["--describe", str(tmp_path / "net" / "1" / "model.pt")])
    assert result.exit_code == 1
    assert "failed to load model" in result.output


def test_describing_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds no model"):
        describe(tmp_path)


def test_the_command_line_says_what_is_missing() -> None:
    result = CliRunner().invoke(command, ["some:factory"])
    assert result.exit_code == 2
    assert "or --describe PATH alone" in result.output
