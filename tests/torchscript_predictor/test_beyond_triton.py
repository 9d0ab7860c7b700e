"""What Triton's PyTorch backend refuses and this one serves: real TorchScript, numpy in, numpy out."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from oip.errors import InvalidArgument
from oip.messages import InferenceRequest
from oip.server.data_plane import RequestContext
from oip.tensors import Tensor, bytes_array
from torchscript_predictor.backends import LoadError
from torchscript_predictor.backends.torchscript import TorchScriptBackend
from torchscript_predictor.model_config import parse_model_config


class Found(NamedTuple):
    boxes: torch.Tensor
    scores: torch.Tensor


class DictOut(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"b": x + 1, "a": x + 2}


class ListOut(nn.Module):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, x * 2]


class NamedOut(nn.Module):
    def forward(self, x: torch.Tensor) -> Found:
        return Found(x, x.sum(dim=1))


class Detections(nn.Module):
    """As torchvision's detection models do."""

    def forward(self, x: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        return [{"boxes": x, "scores": x.sum(dim=1)}]


class Mixed(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[str], int, float, bool, str]:
        return {"y": x}, ["a", "b"], 7, 0.5, True, "ok"


class Sum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


class Masked(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, scale: float = 2.0) -> torch.Tensor:
        return (x if mask is None else x * mask) * scale


class Scalars(nn.Module):
    def forward(self, x: torch.Tensor, k: int, f: float, flag: bool, word: str) -> torch.Tensor:
        return x * k + f if flag and word == "yes" else x


class TwoMethods(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3


X = 'input { name: "x" data_type: TYPE_FP32 dims: [ -1, 2 ] }\n'
ROWS = np.array([[1, 2], [3, 4]], np.float32)


def y(name="y", data_type="TYPE_FP32", dims="-1"):
    return f'output {{ name: "{name}" data_type: {data_type} dims: [ {dims} ] }}\n'


@pytest.fixture
def load(tmp_path):
    def loaded(module, text):
        path = tmp_path / "model.pt"
        torch.jit.script(module).save(str(path))
        return TorchScriptBackend().load(path, parse_model_config(text, "m"), "cpu")

    return loaded


@pytest.mark.parametrize(
    ("module", "outputs", "expected"),
    [
        (DictOut(), y("a") + y("b"), {"a": ROWS + 2, "b": ROWS + 1}),
        (DictOut(), y("a"), {"a": ROWS + 2}),
        (DictOut(), y("OUTPUT__0"), {"OUTPUT__0": ROWS + 1}),
        (ListOut(), y("OUTPUT__1") + y("OUTPUT__0"), {"OUTPUT__0": ROWS, "OUTPUT__1": ROWS * 2}),
        (NamedOut(), y("scores") + y("boxes"), {"boxes": ROWS, "scores": ROWS.sum(axis=1)}),
        (Detections(), y("scores") + y("boxes"), {"boxes": ROWS, "scores": ROWS.sum(axis=1)}),
        (Sum(), y(dims="1"), {"y": np.array([10.0], np.float32)}),
        (
            Mixed(),
            y("OUTPUT__0") + y("OUTPUT__1", "TYPE_STRING") + y("OUTPUT__2", "TYPE_INT16") + y("OUTPUT__3", "TYPE_FP64"),
            {"OUTPUT__0": ROWS, "OUTPUT__1": bytes_array(["a", "b"], (2,)), "OUTPUT__2": np.array([7], np.int16)},
        ),
        (
            Mixed(),
            y("OUTPUT__3") + y("OUTPUT__4", "TYPE_BOOL") + y("OUTPUT__5", "TYPE_STRING"),
            {"OUTPUT__3": np.float32([0.5]), "OUTPUT__4": np.array([True]), "OUTPUT__5": bytes_array(["ok"], (1,))},
        ),
    ],
)
def test_results_that_are_no_tuple_of_tensors(load, module, outputs, expected):
    answer = load(module, X + outputs).execute({"x": ROWS})
    for name, array in expected.items():
        assert answer[name].dtype == array.dtype
        assert np.array_equal(answer[name], array), name


def test_a_scalar_result_of_one_row(load):
    text = "max_batch_size: 4\n" + X.replace("-1, 2", "2") + y(dims="1")
    assert load(Sum(), text).execute({"x": ROWS[:1]})["y"].tolist() == [[3.0]]


@pytest.mark.parametrize(
    ("inputs", "given", "expected"),
    [
        ("", {}, ROWS * 2),
        ('input { name: "mask" data_type: TYPE_FP32 dims: 2 optional: true }', {}, ROWS * 2),
        (
            'input { name: "mask" data_type: TYPE_FP32 dims: 2 optional: true }',
            {"mask": np.float32([1, 0])},
            ROWS * np.float32([2, 0]),
        ),
        ('input { name: "scale" data_type: TYPE_FP64 dims: 1 }', {"scale": np.array([5.0])}, ROWS * 5),
        ('input { name: "scale" data_type: TYPE_FP32 dims: 1 optional: true }', {}, ROWS * 2),
    ],
)
def test_optional_arguments(load, inputs, given, expected):
    model = load(Masked(), X + inputs + y())
    assert model.warnings == ()
    assert np.array_equal(model.execute({"x": ROWS, **given})["y"], expected)


SCALARS = """
input [ { name: "k" data_type: TYPE_INT32 dims: 1 }, { name: "f" data_type: TYPE_FP32 dims: 1 },
        { name: "flag" data_type: TYPE_BOOL dims: 1 }, { name: "word" data_type: TYPE_STRING dims: 1 } ]
"""


def scalars(**changes):
    values = {"k": np.int32([3]), "f": np.float32([0.5]), "flag": np.array([True]), "word": bytes_array(["yes"], (1,))}
    return {"x": ROWS, **values, **changes}


def test_scalar_arguments(load):
    model = load(Scalars(), X + SCALARS + y())
    assert np.array_equal(model.execute(scalars())["y"], ROWS * 3 + 0.5)
    assert np.array_equal(model.execute(scalars(k=np.int32([2, 2])))["y"], ROWS * 2 + 0.5)  # of a merged batch
    assert np.array_equal(model.execute(scalars(word=bytes_array(["no"], (1,))))["y"], ROWS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"k": np.int32([1, 2])},
            "input 'k' of model 'm' is one int for the whole request, it holds 2 elements that dif",
        ),
        ({"f": np.zeros(0, np.float32)}, "input 'f' of model 'm' is one float and holds no element"),
        ({"word": bytes_array([b"\xff"], (1,))}, "input 'word': element 0 is not UTF-8 text"),
    ],
)
def test_scalar_arguments_that_are_none(load, changes, message):
    with pytest.raises(InvalidArgument) as caught:
        load(Scalars(), X + SCALARS + y()).execute(scalars(**changes))
    assert message in caught.value.message


def test_another_method(load):
    more = 'parameters { key: "MODULE_METHOD_NAME" value { string_value: "%s" } }'
    assert np.array_equal(load(TwoMethods(), X + y() + more % "embed").execute({"x": ROWS})["y"], ROWS * 3)
    assert np.array_equal(load(TwoMethods(), X + y() + more % "forward").execute({"x": ROWS})["y"], ROWS)
    with pytest.raises(LoadError, match="it has no method 'embedd', it has embed, forward; set the parameter"):
        load(TwoMethods(), X + y() + more % "embedd")


@pytest.mark.parametrize(
    ("data_type", "array"),
    [
        ("TYPE_UINT16", np.array([[0, 65535]], np.uint16)),
        ("TYPE_UINT32", np.array([[0, 2**32 - 1]], np.uint32)),
        ("TYPE_UINT64", np.array([[0, 2**64 - 1]], np.uint64)),
        ("TYPE_BF16", np.array([[0x3F80, 0xC000]], np.uint16)),
    ],
)
def test_datatypes_that_triton_lacks_go_through_the_whole_predictor(
    repository, serve, nets, config_text, data_type, array
):
    repository.add("m", nets.Identity(), config_text(data_type=data_type))

    async def scenario(plane):
        tensor = Tensor("INPUT__0", data_type.removeprefix("TYPE_"), array.shape, array)
        answer = await plane.infer(InferenceRequest("m", (tensor,)), RequestContext())
        assert answer.outputs[0].datatype == tensor.datatype
        assert np.array_equal(answer.outputs[0].array, array)

    serve(scenario)


def test_a_request_may_leave_an_optional_input_out(repository, serve):
    text = 'input { name: "mask" data_type: TYPE_FP32 dims: [ -1, 2 ] optional: true }\n'
    repository.add("m", Masked(), X + text + y())

    async def scenario(plane):
        for given, expected in (({}, ROWS * 2), ({"mask": ROWS}, ROWS * ROWS * 2)):
            tensors = tuple(Tensor.of(name, array) for name, array in {"x": ROWS, **given}.items())
            answer = await plane.infer(InferenceRequest("m", tensors), RequestContext())
            assert np.array_equal(answer.outputs[0].array, expected)
        with pytest.raises(InvalidArgument, match="missing required input"):
            await plane.infer(InferenceRequest("m", (Tensor.of("mask", ROWS),)), RequestContext())

    serve(scenario)
