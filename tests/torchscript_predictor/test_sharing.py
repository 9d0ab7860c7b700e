"""Which modules several threads may execute at once, and what is done with that."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from oip.errors import Internal
from torchscript_predictor.backends.torchscript import TorchScriptBackend
from torchscript_predictor.model_config import parse_model_config
from torchscript_predictor.weight_sharing import may_share


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


class CountsInAFork(Counts):
    def count(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.jit.wait(torch.jit.fork(self.count, x))


class WritesItsBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen[0] = x.sum()
        return x


class WritesTheSameAgain(WritesItsBuffer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.zero_()
        return x


class KeepsStatistics(nn.Module):
    """Writes in a way that torch does not count."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("var", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.batch_norm(x, None, None, self.mean, self.var, True, 0.1, 1e-5, False)


class KeepsAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.numbers = [1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.numbers.append(2)
        return x


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Plain(), True),
        (Counts(), False),
        (CountsInAFork(), False),
        (WritesItsBuffer(), False),
        (WritesTheSameAgain(), False),
        (KeepsStatistics(), False),
        (KeepsAList(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_module_is_shareable_if_an_execution_leaves_nothing_behind(repository, config_text, module, expected):
    folder = repository.add("m", module)
    model = TorchScriptBackend().load(folder / "1" / "model.pt", parse_model_config(config_text(), "m"), "cpu")
    assert model.is_shareable({"INPUT__0": np.ones((4, 2), np.float32)}) is expected


class Shareable(SimpleNamespace):
    """Fails on inputs whose first dimension's size is in `fails`."""

    def is_shareable(self, inputs):
        self.asked.append(inputs["INPUT__0"].shape)
        if inputs["INPUT__0"].shape[1] in self.fails:
            raise Internal("no")
        return True


def decide(config_text, model, device="cpu", more="", dims="[ 2 ]"):
    config = parse_model_config(config_text(more=more, dims=dims), "m")
    return may_share(model, config, device, lambda file: 1 / 0)


def test_cpu_instances_share_where_that_is_safe(config_text):
    model = Shareable(asked=[], fails=())
    assert decide(config_text, model)
    assert model.asked == [(1, 2)]
    assert not decide(config_text, model, "cuda:0")
    assert not decide(config_text, model, None)
    assert not decide(config_text, object())


@pytest.mark.parametrize("value", ["true", "false"])
def test_the_parameter_decides_where_it_is_set(config_text, value):
    more = f'parameters {{ key: "ENABLE_WEIGHT_SHARING" value {{ string_value: "{value}" }} }}'
    for device in ("cpu", "cuda:0", None):
        assert decide(config_text, object(), device, more) is (value == "true")


def test_a_model_that_cannot_be_tried_is_not_shared(config_text):
    picky = Shareable(asked=[], fails=(1,))
    assert decide(config_text, picky, dims="[ -1 ]")
    assert picky.asked == [(1, 1), (1, 224)]
    assert not decide(config_text, Shareable(asked=[], fails=(1, 224)), dims="[ -1 ]")


def test_configured_samples_are_what_is_tried(config_text):
    more = """model_warmup { name: "w" batch_size: 3
              inputs { key: "INPUT__0" value { data_type: TYPE_FP32 dims: 2 random_data: true } } }"""
    model = Shareable(asked=[], fails=())
    assert decide(config_text, model, more=more)
    assert model.asked == [(3, 2)]
    assert not decide(config_text, Shareable(asked=[], fails=(2,)), more=more)
    broken = more.replace("random_data: true", 'input_data_file: "x"')
    with pytest.raises(ZeroDivisionError):  # not caught: a bug
        decide(config_text, model, more=broken)
