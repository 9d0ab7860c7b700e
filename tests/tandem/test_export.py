"""`tandem export`: what is written is what the predictor reads, and what cannot be served is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import text_format
from networks import CifarNet
from torch import nn

from oip import proto
from tandem.export import ExportError, export, load_factory


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
