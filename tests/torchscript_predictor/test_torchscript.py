"""The TorchScript backend: real modules, numpy in, numpy out."""

import dataclasses
import threading
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from oip.datatypes import BY_CONFIG_NAME, DATATYPES
from oip.errors import Internal, InvalidArgument
from oip.tensors import bytes_array
from torchscript_predictor.backends import LoadError
from torchscript_predictor.backends.torchscript import TorchScriptBackend
from torchscript_predictor.model_config import parse_model_config


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class NamedPair(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Pair:
        return Pair(a - b, b)


class DictSum(nn.Module):
    def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return tensors["A"] - tensors["B"]


class Strings(nn.Module):
    def forward(self, x: list[str]) -> list[str]:
        return [word.upper() for word in x]


class StringsAndCount(nn.Module):
    def forward(self, x: list[str], n: torch.Tensor) -> tuple[list[str], torch.Tensor]:
        return x, n + len(x)


class NoStrings(nn.Module):
    def forward(self, x: torch.Tensor) -> list[str]:
        words: list[str] = []
        return words


class Scalar(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


class Number(nn.Module):
    def forward(self, x: torch.Tensor) -> int:
        return 3


class BigNumber(nn.Module):
    def forward(self, x: torch.Tensor) -> int:
        return 300


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor | None:
        return None


class DictOut(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x, "z": x + 1}


class Argmax(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(dim=1, keepdim=True)


class Complex(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.complex(x, x)


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return self.count


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(-1, -2)


class Shape(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(x.shape)


class InferenceMode(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([x.is_inference()])


@pytest.fixture
def load(tmp_path, config_text):
    def loaded(module, text=None, **options):
        path = tmp_path / "model.pt"
        torch.jit.script(module).save(str(path))
        text = text or config_text(**{"max_batch_size": 0, **options})
        return TorchScriptBackend().load(path, parse_model_config(text, "m"), "cpu")

    return loaded


def floats(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize("data_type", sorted(set(BY_CONFIG_NAME) - {"TYPE_STRING"}))
@pytest.mark.parametrize("writeable", [True, False])
def test_every_datatype_goes_through_bit_for_bit(load, nets, data_type, writeable):
    dtype = BY_CONFIG_NAME[data_type].dtype
    content = bytes(range(256)) if data_type != "TYPE_BOOL" else bytes([0, 1] * 128)
    array = np.frombuffer(bytearray(content) if writeable else content, dtype).reshape(2, -1)
    model = load(nets.Identity(), data_type=data_type, dims="[ -1, -1 ]")
    result = model.execute({"INPUT__0": array})["OUTPUT__0"]  # pytest makes torch's warning for read-only an error
    assert result.dtype == dtype
    assert result.tobytes() == content


def test_the_table_of_datatypes_is_complete():
    assert set(BY_CONFIG_NAME.values()) == set(DATATYPES.values())


def test_an_unaligned_array_is_copied(load, nets):
    array = np.frombuffer(bytearray(b"\x00" + floats(1, 2).tobytes()), np.float32, offset=1)
    assert array.flags.writeable
    assert not array.flags.aligned
    output = load(nets.Identity()).execute({"INPUT__0": array})["OUTPUT__0"]
    assert output.tolist() == [1.0, 2.0]
    assert not np.shares_memory(output, array)


def test_a_writeable_array_is_not_copied(load, nets):
    array = floats(1, 2)
    assert np.shares_memory(load(nets.Identity()).execute({"INPUT__0": array})["OUTPUT__0"], array)


def test_a_model_that_works_in_place_leaves_a_read_only_array_alone(load):
    array = floats(1, 2)
    array.flags.writeable = False
    assert load(InPlace()).execute({"INPUT__0": array})["OUTPUT__0"].tolist() == [2.0, 3.0]
    assert array.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_arrays_without_elements(load, nets, shape):
    model = load(nets.Identity(), dims="[ -1, -1 ]")
    assert model.execute({"INPUT__0": np.zeros(shape, np.float32)})["OUTPUT__0"].shape == shape


def test_inputs_by_argument_name_and_outputs_by_index(load, nets):
    model = load(nets.AddSub(), inputs=("INPUT1", "INPUT0"), outputs=("OUTPUT__1", "OUTPUT__0"))
    outputs = model.execute({"INPUT0": floats(5, 5), "INPUT1": floats(1, 2)})
    assert outputs["OUTPUT__0"].tolist() == [6.0, 7.0]
    assert outputs["OUTPUT__1"].tolist() == [4.0, 3.0]
    assert model.warnings == ()


def test_inputs_in_the_order_of_the_configuration_come_with_a_warning(load, nets):
    model = load(nets.AddSub(), inputs=("second", "first"), outputs=("sum", "difference"))
    outputs = model.execute({"second": floats(5, 5), "first": floats(1, 2)})
    assert outputs["difference"].tolist() == [4.0, 3.0]
    [warning] = model.warnings
    assert "taken in the order of the configuration" in warning


def test_a_dictionary_of_tensors(load):
    outputs = load(DictSum(), inputs=("B", "A")).execute({"A": floats(5, 5), "B": floats(1, 2)})
    assert outputs["OUTPUT__0"].tolist() == [4.0, 3.0]


def test_a_named_tuple_is_a_tuple(load):
    model = load(NamedPair(), inputs=("a", "b"), outputs=("x", "y"))
    assert model.execute({"a": floats(5, 5), "b": floats(1, 2)})["x"].tolist() == [4.0, 3.0]


def test_strings(load):
    model = load(Strings(), data_type="TYPE_STRING", dims="[ -1 ]")
    words = bytes_array(["one", "", "h\u00e9"], (3,))
    assert model.execute({"INPUT__0": words})["OUTPUT__0"].tolist() == [b"ONE", b"", "H\u00e9".encode()]


def test_strings_in_a_batch_go_through_a_reshape(load):
    text = """
    max_batch_size: 4
    input [ { name: "x" data_type: TYPE_STRING dims: [ 1 ] reshape { shape: [ ] } },
            { name: "n" data_type: TYPE_INT64 dims: [ 1 ] } ]
    output [ { name: "words" data_type: TYPE_STRING dims: [ 1 ] reshape { shape: [ ] } },
             { name: "count" data_type: TYPE_INT64 dims: [ 1 ] } ]
    """
    model = load(StringsAndCount(), text=text)
    outputs = model.execute({"x": bytes_array(["a", "b"], (2, 1)), "n": np.array([[10], [20]])})
    assert outputs["words"].tolist() == [[b"a"], [b"b"]]
    assert outputs["count"].tolist() == [[12], [22]]


def test_a_string_that_is_no_text_names_its_element(load):
    model = load(Strings(), data_type="TYPE_STRING", dims="[ -1 ]")
    with pytest.raises(InvalidArgument, match="input 'INPUT__0': element 1 is not UTF-8 text"):
        model.execute({"INPUT__0": bytes_array([b"a", b"\xff"], (2,))})


def test_no_strings_at_all(load):
    model = load(NoStrings(), output_type="TYPE_STRING", dims="[ -1 ]")
    assert model.execute({"INPUT__0": floats(1)})["OUTPUT__0"].shape == (0,)


@pytest.mark.parametrize(
    ("max_batch_size", "shape", "inside"), [(4, (3, 4), [3, 2, 2]), (0, (4,), [2, 2]), (4, (0, 4), [0, 2, 2])]
)
def test_reshape(load, nets, max_batch_size, shape, inside):
    text = f"""
    max_batch_size: {max_batch_size}
    input {{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] reshape {{ shape: [ 2, 2 ] }} }}
    output {{ name: "y" data_type: TYPE_FP32 dims: [ 4 ] reshape {{ shape: [ 2, 2 ] }} }}
    """
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    outputs = load(nets.Double(), text=text).execute({"x": array})
    assert np.array_equal(outputs["y"], array * 2)
    shape_model = load(Shape(), text=text.split("output")[0] + 'output { name: "y" data_type: TYPE_INT64 dims: -1 }')
    assert shape_model.execute({"x": array})["y"].tolist() == inside


def test_outputs_are_contiguous(load):
    output = load(Transposed(), dims="[ 2, 3 ]").execute({"INPUT__0": np.zeros((2, 3), np.float32)})["OUTPUT__0"]
    assert output.flags.c_contiguous
    assert output.shape == (3, 2)


def test_a_later_execution_does_not_change_an_earlier_answer(load):
    model = load(Counter(), dims="[ 1 ]")
    first = model.execute({"INPUT__0": floats(0)})["OUTPUT__0"]
    second = model.execute({"INPUT__0": floats(0)})["OUTPUT__0"]
    assert (first[0], second[0]) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (
            Argmax(),
            {"max_batch_size": 4},
            InvalidArgument,
            "configuration expects datatype TYPE_FP32 for output 'OUTPUT__0', model provides TYPE_INT64",
        ),
        (Complex(), {}, InvalidArgument, "model provides torch.complex64"),
        (Strings(), {"data_type": "TYPE_STRING", "output_type": "TYPE_FP32"}, InvalidArgument, "provides TYPE_STRING"),
        (
            Scalar(),
            {"max_batch_size": 4, "rows": 2},
            InvalidArgument,
            "output 'OUTPUT__0' of model 'm' is a scalar, but the batch has 2 rows; set max_batch_size: 0",
        ),
        (
            Nothing(),
            {},
            InvalidArgument,
            "configuration expects datatype TYPE_FP32 for output 'OUTPUT__0', model provides N",
        ),
        (Number(), {}, InvalidArgument, "model provides TYPE_INT64"),
        (Number(), {"output_type": "TYPE_BOOL"}, InvalidArgument, "model provides TYPE_INT64"),
        (BigNumber(), {"output_type": "TYPE_INT8"}, InvalidArgument, "is a number that TYPE_INT8 cannot hold"),
        (DictOut(), {"outputs": ("nope",)}, InvalidArgument, "model 'm' gives no result 'nope'; its results are y, z"),
        (
            Scalar(),
            {"outputs": ("OUTPUT__2",)},
            InvalidArgument,
            "The output OUTPUT__2 in the model configuration refers to an output index which doesn't exist. "
            "This model has 1 outputs",
        ),
    ],
)
def test_results_that_do_not_fit(load, module, options, error, message):
    rows = options.get("rows", 1)
    options = {key: value for key, value in options.items() if key != "rows"}
    model = load(module, **{"dims": "[ -1 ]", **options})
    array = bytes_array(["a"], (1,)) if options.get("data_type") == "TYPE_STRING" else np.zeros((rows, 1), np.float32)
    with pytest.raises(error) as caught:
        model.execute({"INPUT__0": array})
    assert message in caught.value.message


def test_an_output_that_does_not_fit_its_reshape(load, nets):
    text = """
    max_batch_size: 4
    input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
    output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 2, 2 ] } }
    """
    with pytest.raises(InvalidArgument) as caught:
        load(nets.Double(), text=text).execute({"x": np.zeros((3, 4), np.float32)})
    assert "configuration expects shape [-1, 2, 2] for output 'y' (its reshape), model provides [3, 4]" in str(
        caught.value
    )


def test_a_failure_tells_its_reason_and_no_more(load, nets):
    with pytest.raises(Internal) as caught:
        load(nets.Picky()).execute({"INPUT__0": floats(-1, 1)})
    assert caught.value.message == "PyTorch execute failure: AssertionError: negative input"


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("false", False)])
def test_inference_mode(load, value, expected):
    more = f'parameters {{ key: "INFERENCE_MODE" value {{ string_value: "{value}" }} }}'
    model = load(InferenceMode(), output_type="TYPE_BOOL", dims="[ 1 ]", more=more)
    assert model.execute({"INPUT__0": floats(1)})["OUTPUT__0"].tolist() == [expected]


def test_optimized_execution_is_disabled_for_the_execution_alone(load, nets, monkeypatch):
    more = 'parameters { key: "DISABLE_OPTIMIZED_EXECUTION" value { string_value: "true" } }'
    model = load(nets.Double(), more=more)
    seen = []
    call = model._program.call

    def watched(*arguments):
        seen.append(torch._C._get_graph_executor_optimize())
        return call(*arguments)

    monkeypatch.setattr(model, "_program", dataclasses.replace(model._program, call=watched))
    model.execute({"INPUT__0": floats(1, 2)})
    assert seen == [False]
    assert torch._C._get_graph_executor_optimize()


def test_each_thread_keeps_its_own_intra_op_threads(load, nets):
    model, seen = load(nets.Identity()), {}
    entered = threading.Barrier(2, timeout=5)

    def instance(threads):
        model.enter_thread(threads)
        entered.wait()  # what the other one set must not reach this one's first operation
        torch.ones(100, 100) @ torch.ones(100, 100)
        seen[threads] = torch.get_num_threads()

    before = torch.get_num_threads()
    instances = [threading.Thread(target=instance, args=(threads,)) for threads in (1, 2)]
    for thread in instances:
        thread.start()
    for thread in instances:
        thread.join()
    torch.set_num_threads(before)  # the count that later threads begin with
    assert seen == {1: 1, 2: 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 this is no archive", "failed to load model 'm': PytorchStreamReader failed"),
        (b"", "failed to load model 'm': "),
    ],
)
def test_a_corrupt_file(tmp_path, config_text, content, message):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(LoadError) as caught:
        TorchScriptBackend().load(path, parse_model_config(config_text(), "m"), "cpu")
    assert str(caught.value).startswith(message)
    assert str(tmp_path) not in str(caught.value)


def test_a_state_dict_is_told_from_torchscript(tmp_path, config_text):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(LoadError, match=r"write it with torch\.jit\.script"):
        TorchScriptBackend().load(tmp_path / "model.pt", parse_model_config(config_text(), "m"), "cpu")


def test_a_signature_that_does_not_fit_fails_the_load(load, nets):
    with pytest.raises(LoadError, match="unable to load model 'm', configuration expects 1 inputs, model provides 2"):
        load(nets.AddSub())
