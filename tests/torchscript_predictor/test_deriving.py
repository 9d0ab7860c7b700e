"""Inputs and outputs found out, over functions that stand for models, and over real ones."""

import pytest
import torch
import torchvision
from networks import CifarNet, DigitNet
from torch import nn

from torchscript_predictor.backends import LoadError
from torchscript_predictor.backends.torchscript import TorchScriptBackend
from torchscript_predictor.deriving import DerivationError, Result, Trial, TrialError, derive
from torchscript_predictor.model_config import Description, ModelInput, ModelOutput, parse_model_config
from torchscript_predictor.signature import Argument

X = [Argument("x", "Tensor")]


def takes(*dims, gives=(10,), rank_and_batch=True, name=""):
    """A model that takes [N, *dims], -1 for any size, and gives [N, *gives]."""

    def run(trials):
        for trial in trials:
            shape = trial.shape
            if len(shape) != len(dims) + 1 or any(d not in (-1, s) for d, s in zip(dims, shape[1:], strict=True)):
                raise TrialError(f"not {list(shape)}")
        return [Result(name, "TYPE_FP32", (trials[0].shape[0], *gives))]

    return run


def test_the_first_layer_s_weights_say_what_to_try():
    weights = [Trial("TYPE_FP32", (6, 3, 5, 5)), Trial("TYPE_FP32", (6,)), Trial("TYPE_FP32", (10, 400))]
    assert derive(X, weights, takes(3, 32, 32)) == Description(
        8, (ModelInput("x", "TYPE_FP32", (3, 32, 32)),), (ModelOutput("OUTPUT__0", "TYPE_FP32", (10,)),)
    )


def test_sizes_that_the_model_takes_otherwise_are_variable():
    weights = [Trial("TYPE_BF16", (6, 3, 5, 5))]
    found = derive(X, weights, takes(3, -1, -1))
    assert found.inputs == (ModelInput("x", "TYPE_BF16", (3, -1, -1)),)


def test_results_with_names_keep_them():
    assert derive(X, [Trial("TYPE_FP32", (5, 4))], takes(4, name="y")).outputs[0].name == "y"


def test_one_number_a_row_is_reshaped():
    assert derive(X, [Trial("TYPE_FP32", (5, 4))], takes(4, gives=())).outputs == (
        ModelOutput("OUTPUT__0", "TYPE_FP32", (1,), ()),
    )


def test_a_model_without_a_batch_dimension():
    def run(trials):
        if trials[0].shape != (1, 4):
            raise TrialError("no")
        return [Result("", "TYPE_INT64", ())]

    found = derive(X, [Trial("TYPE_FP32", (5, 4))], run)
    assert found == Description(
        0, (ModelInput("x", "TYPE_FP32", (1, 4)),), (ModelOutput("OUTPUT__0", "TYPE_INT64", (1,)),)
    )
    with pytest.raises(DerivationError, match="max_batch_size is 4, but the results"):
        derive(X, [Trial("TYPE_FP32", (5, 4))], run, max_batch_size=4)


def test_the_configured_batch_size_counts():
    assert derive(X, [Trial("TYPE_FP32", (5, 4))], takes(4), max_batch_size=3).max_batch_size == 3


def test_what_has_a_default_is_left_out():
    arguments = [*X, Argument("mask", "Optional[Tensor]"), Argument("k", "int", 3)]
    assert [tensor.name for tensor in derive(arguments, [Trial("TYPE_FP32", (5, 4))], takes(4)).inputs] == ["x"]


@pytest.mark.parametrize(
    ("arguments", "run", "message"),
    [
        (
            [Argument("d", "Dict[str, Tensor]")],
            takes(4),
            "argument 'd' of forward is a Dict[str, Tensor], whose contents",
        ),
        ([Argument("d", "Tuple[int, int]")], takes(4), "argument 'd' of forward is a Tuple[int, int]"),
        ([], takes(4), "forward needs no input"),
        (
            X,
            takes(7, 7, 7, 7, 7),
            "forward takes (x: Tensor), and none of the usual shapes of zeros was accepted (at last",
        ),
    ],
)
def test_what_cannot_be_found_out_is_said(arguments, run, message):
    with pytest.raises(DerivationError) as caught:
        derive(arguments, [], run)
    assert message in str(caught.value)


def test_time_is_bounded():
    ticks = iter(range(0, 10_000, 4))
    runs = []

    def run(trials):
        runs.append(trials)
        raise TrialError("no")

    with pytest.raises(DerivationError):
        derive(X, [Trial("TYPE_FP32", (6, 3, 5, 5))], run, clock=lambda: next(ticks))
    assert len(runs) <= 6


class AddSub(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": a + b, "difference": a - b}


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.embedding(ids).mean(1))


class Upper(nn.Module):
    def forward(self, x: list[str]) -> list[str]:
        return [word.upper() for word in x]


class Power(nn.Module):
    def forward(self, x: torch.Tensor, k: int, f: float, flag: bool, word: str) -> torch.Tensor:
        return (x * k + f).sum()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(2, 3, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(x), x.argmax(dim=2)


def fp32(name, *dims):
    return (name, "TYPE_FP32", dims)


@pytest.mark.parametrize(
    ("module", "max_batch_size", "inputs", "outputs"),
    [
        (CifarNet(), 8, [fp32("x", 3, 32, 32)], [fp32("OUTPUT__0", 10)]),
        (DigitNet(), 8, [fp32("x", 1, 28, 28)], [fp32("OUTPUT__0", 10)]),
        (AddSub(), 8, [fp32("a", -1), fp32("b", -1)], [fp32("sum", -1), fp32("difference", -1)]),
        (Words(), 8, [("ids", "TYPE_INT64", (-1,))], [fp32("OUTPUT__0", 3)]),
        (Upper(), 0, [("x", "TYPE_STRING", (-1,))], [("OUTPUT__0", "TYPE_STRING", (-1,))]),
        (nn.Linear(5, 2).double(), 8, [("input", "TYPE_FP64", (5,))], [("OUTPUT__0", "TYPE_FP64", (2,))]),
        (Counting(), 8, [fp32("x", 2, -1)], [fp32("OUTPUT__0", 3, -1), ("OUTPUT__1", "TYPE_INT64", (2,))]),
        (
            Power(),
            0,
            [
                fp32("x", -1, -1),
                ("k", "TYPE_INT64", (1,)),
                fp32("f", 1),
                ("flag", "TYPE_BOOL", (1,)),
                ("word", "TYPE_STRING", (1,)),
            ],
            [fp32("OUTPUT__0", 1)],
        ),
        pytest.param(
            torchvision.models.squeezenet1_1(weights=None),
            *(8, [fp32("x", 3, -1, -1)], [fp32("OUTPUT__0", 1000)]),
            id="squeezenet",
        ),
    ],
)
def test_real_models(tmp_path, module, max_batch_size, inputs, outputs):
    path = tmp_path / "model.pt"
    torch.jit.script(module.eval()).save(str(path))
    drafts = []

    def describe(draft):
        drafts.append(draft)
        return TorchScriptBackend().describe(path, draft)

    config = parse_model_config("", "m", describe=describe)
    assert len(drafts) == 1
    assert config.max_batch_size == max_batch_size
    assert [(t.name, t.data_type, t.dims) for t in config.inputs] == inputs
    assert [(t.name, t.data_type, t.dims) for t in config.outputs] == outputs
    TorchScriptBackend().load(path, config, "cpu")  # and it is served so


class ComplexOut(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.complex(x, x)


def test_a_real_model_that_cannot_be_described(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.script(ComplexOut()).save(str(path))
    with pytest.raises(LoadError) as caught:
        parse_model_config("", "m", describe=lambda draft: TorchScriptBackend().describe(path, draft))
    assert str(caught.value) == (
        "the inputs and outputs of model 'm' cannot be derived: RESULT is torch.complex64, which the protocol has no "
        "datatype for; change the model"
    )
