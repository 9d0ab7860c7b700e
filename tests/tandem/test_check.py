"""`tandem check`: the predictor's own verdict, without serving."""

import json
import logging
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from tandem.check import check, command, lines

CONFIG = """max_batch_size: 4
input { name: "INPUT__0" data_type: TYPE_FP32 dims: 2 }
output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: 2 }
"""


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A good model, one with a warning, one without a configuration, one that is Python, two that are refused."""
    root = tmp_path / "models"
    configs = {
        "good": CONFIG,
        "warned": CONFIG + 'parameters { key: "INFERENCE_MOD" value { string_value: "true" } }\n',
        "bare": None,
        "python": CONFIG + 'runtime: "model.py"',
        "ensemble": 'platform: "ensemble"',
        "sequence": CONFIG + "sequence_batching { }",
    }
    for name, config in configs.items():
        folder = root / name / "1"
        folder.mkdir(parents=True)
        if name == "python":
            (folder / "model.py").write_text("import torch\nclass Net(torch.nn.Module): pass\n")
        else:
            torch.jit.script(Double()).save(str(folder / "model.pt"))
        if config is not None:
            (folder.parent / "config.pbtxt").write_text(config)
    return root


@pytest.fixture(autouse=True)
def logs_as_before():
    logger = logging.getLogger("torchscript_predictor")
    before = logger.propagate
    yield
    logger.propagate = before


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_verdicts_are_told_model_by_model(repository: Path, tmp_path: Path) -> None:
    result = run(repository)
    assert result.exit_code == 1
    expected = [
        "ok      bare version 1: x FP32 [-1, -1] -> OUTPUT__0 FP32 [-1, -1]",
        "refused ensemble: ensemble/config.pbtxt:1: ensembles are not served; use one torch.nn.Module that calls the",
        "ok      good version 1: INPUT__0 FP32 [-1, 2] -> OUTPUT__0 FP32 [-1, 2]",
        "refused python version 1: model 'python' is Python code (model.py)",
        "refused sequence: sequence/config.pbtxt:4: sequence batching is not served",
        "ok      warned version 1: ",
        "        warning: warned/config.pbtxt:4: parameter INFERENCE_MOD (value 'true') is not known here and has no "
        "effect; did you mean INFERENCE_MODE?",
        "3 of 6 model versions would be served, warnings: 1",
    ]
    shown = result.output.splitlines()
    assert len(shown) == len(expected)
    for line, beginning in zip(shown, expected, strict=True):
        assert line.startswith(beginning)
    assert str(tmp_path) not in result.output


@pytest.mark.parametrize(
    ("model", "flags", "status"),
    [
        ("good", [], 0),
        ("bare", [], 0),
        ("warned", [], 0),
        ("warned", ["--strict"], 1),
        ("ensemble", [], 1),
        ("python", ["--allow-python-models"], 1),  # its forward is missing
        ("good", ["--model-name", "mine"], 0),
        ("good", ["--model-name", "a b"], 1),
        ("nothing", [], 1),
    ],
)
def test_the_exit_status_is_for_ci(repository: Path, model: str, flags: list[str], status: int) -> None:
    assert run(repository / model, *flags).exit_code == status


def test_an_empty_repository_is_no_success(tmp_path: Path) -> None:
    assert run(tmp_path).exit_code == 1


def test_verdicts_as_json(repository: Path) -> None:
    [verdict] = json.loads(run(repository / "warned", "--json").stdout)
    assert verdict["served"] is True
    assert verdict["inputs"] == ["INPUT__0 FP32 [-1, 2]"]
    assert len(verdict["warnings"]) == 1


def test_as_a_function(repository: Path) -> None:
    [verdict] = check([repository / "good"])
    assert (verdict.model, verdict.version, verdict.served, verdict.warnings) == ("good", "1", True, ())
    assert lines([verdict])[-1] == "1 of 1 model versions would be served, warnings: 0"
