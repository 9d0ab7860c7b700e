"""The Python runtime: model.py, its state dict, torch.compile where it can be."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from oip.errors import Internal
from torchscript_predictor.backends import LoadError, compiling
from torchscript_predictor.backends.choice import PyTorchBackend
from torchscript_predictor.backends.compiling import Compiled, compiled, find_obstacle
from torchscript_predictor.configure import read_model_config
from torchscript_predictor.repository import ModelRepository

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor):
        return self.layer(x)
"""
STATE = {"layer.weight": torch.tensor([[2.0, 3.0]]), "layer.bias": torch.tensor([1.0])}
EAGERLY = 'parameters { key: "TORCH_COMPILE_OPTIONAL_PARAMETERS" value { string_value: "{\\"disable\\": true}" } }\n'
CONFIG = """
%s
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""
PYTHON_BACKEND = CONFIG % 'backend: "python" platform: "pytorch"'
PYTHON_RUNTIME = CONFIG % 'runtime: "model.py"'
ROWS = np.array([[1, 1], [2, 0]], np.float32)


@pytest.fixture
def add(tmp_path):
    """Write a model; `state` under the name of `state_file`."""

    def go(source=NET, state=STATE, state_file="model.pt", config=PYTHON_BACKEND + EAGERLY, **others):
        folder = tmp_path / "models" / "m" / "1"
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(source)
        if state is not None:
            torch.save(state, folder / state_file)
        (folder.parent / "config.pbtxt").write_text(config)
        for name, text in others.items():
            (folder / f"{name}.py").write_text(text)
        return tmp_path / "models"

    return go


@pytest.fixture
def load():
    def go(root, **options):
        [folder] = ModelRepository([root]).models()["m"]
        backend = PyTorchBackend(**{"allow_python_models": True, **options})
        config = read_model_config(folder, backend)
        return backend.load(folder.model_file(1, config.model_filename), config, "cpu")

    return go


def answer(model, name="y"):
    return model.execute({"x": ROWS})[name].tolist()


@pytest.mark.parametrize("config", [PYTHON_BACKEND, PYTHON_RUNTIME, CONFIG % ""])
@pytest.mark.parametrize("state_file", ["model.pt", "model.py.pt"])
def test_both_spellings_of_the_configuration_and_of_the_state_dict(add, load, config, state_file):
    if config == CONFIG % "" and state_file == "model.pt":
        config = PYTHON_RUNTIME  # without a word, model.pt is TorchScript
    assert answer(load(add(state_file=state_file, config=config + EAGERLY))) == [[6.0], [5.0]]


def test_without_a_state_dict_the_weights_are_the_class_s_own(add, load):
    source = NET.replace("nn.Linear(2, 1)", "nn.Linear(2, 1)\n        nn.init.ones_(self.layer.weight)")
    model = load(add(source=source + "\n", state=None))
    first, second = answer(model)
    assert first == pytest.approx(second)  # both rows add up to 2


def test_a_torchscript_file_alone(tmp_path, load, nets, repository):
    repository.add("m", nets.Double(), 'backend: "python" platform: "pytorch"' + CONFIG % "")
    [folder] = ModelRepository([repository.path]).models()["m"]
    backend = PyTorchBackend()  # it is no Python code: no flag is needed
    config = read_model_config(folder, backend)
    assert (config.backend, config.platform) == ("python", "pytorch")
    model = backend.load(folder.model_file(1, config.model_filename), config, "cpu")
    assert answer(model) == (ROWS * 2).tolist()


def test_no_configuration_at_all(add, load, tmp_path):
    root = add(config="", state_file="model.py.pt")
    (root / "m" / "config.pbtxt").unlink()
    [folder] = ModelRepository([root]).models()["m"]
    config = read_model_config(folder, PyTorchBackend(allow_python_models=True))
    assert [(t.name, t.data_type, t.dims) for t in config.inputs] == [("x", "TYPE_FP32", (2,))]
    assert config.max_batch_size == 8


def test_python_code_is_refused_without_the_flag(add, load, tmp_path):
    marker = tmp_path / "ran"
    root = add(source=f"open({str(marker)!r}, 'w')\n" + NET)
    with pytest.raises(LoadError) as caught:
        load(root, allow_python_models=False)
    assert "model 'm' is Python code (model.py)" in str(caught.value)
    assert "--allow-python-models" in str(caught.value)
    assert not marker.exists()


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("state_file", ["model.pt", "model.py.pt"])
@pytest.mark.parametrize("in_zip", [True, False])
def test_the_state_dict_of_a_hostile_pickle_is_refused(add, load, tmp_path, state_file, in_zip):
    marker = tmp_path / "ran"
    root = add(state={**STATE, "extra": Hostile(str(marker))} if in_zip else None, state_file=state_file)
    if not in_zip:
        (root / "m" / "1" / state_file).write_bytes(pickle.dumps(Hostile(str(marker)), protocol=2))
    with pytest.raises(LoadError) as caught:
        load(root)
    assert f"failed to load model 'm': {state_file} is refused: it holds more than tensors" in str(caught.value)
    assert "torch.save(model.state_dict(), ...)" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"state": {"layer.weight": torch.zeros(1, 2)}}, "model.pt does not fit Net: "),
        ({"state": torch.zeros(1)}, "model.pt holds a Tensor; write it with torch.save(model.state_dict(), ...)"),
        ({"source": ""}, "model.py defines no class that extends torch.nn.Module; define one"),
        ({"source": "class TritonPythonModel: pass"}, "(TritonPythonModel is not served)"),
        (
            {"source": NET + NET.replace("Net", "Other")},
            "model.py defines 2 classes that extend torch.nn.Module: Net, Other; name the one to serve with the "
            "parameter MODULE_CLASS_NAME",
        ),
        ({"source": "import nothing_of_that_name"}, "model.py raises ModuleNotFoundError: No module named 'nothing_of"),
        ({"source": "def"}, "model.py raises SyntaxError: "),
        ({"source": "raise SystemExit(3)"}, "model.py raises SystemExit: 3"),
        ({"source": NET.replace("self):", "self, size):")}, "model.py raises TypeError: "),
        (
            {"config": PYTHON_BACKEND + 'parameters { key: "MODULE_METHOD_NAME" value { string_value: "embed" } }'},
            "Net has no method 'embed'; correct the parameter MODULE_METHOD_NAME",
        ),
        (
            {"config": PYTHON_BACKEND + 'parameters { key: "MODULE_CLASS_NAME" value { string_value: "Nat" } }'},
            "model.py defines no torch.nn.Module called Nat; it defines Net",
        ),
        (
            {"config": PYTHON_BACKEND + EAGERLY.replace('\\"disable\\": true', '\\"backend\\": \\"nonsense\\"')},
            "TORCH_COMPILE_OPTIONAL_PARAMETERS are refused by torch.compile: ",
        ),
    ],
)
def test_refused_with_a_reason(add, load, tmp_path, files, message):
    with pytest.raises(LoadError) as caught:
        load(add(**files))
    assert str(caught.value).startswith("failed to load model 'm': ")
    assert message in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_two_state_dicts_are_one_too_many(add, load):
    root = add()
    torch.save(STATE, root / "m" / "1" / "model.py.pt")
    with pytest.raises(LoadError, match=r"both model\.pt and model\.py\.pt are there; keep the one"):
        load(root)


def test_the_class_and_the_method_can_be_named(add, load):
    source = (
        NET.replace("Net", "Base") + "class Net(Base):\n    def doubled(self, x):\n        return self.layer(x) * 2\n"
    )
    more = 'parameters { key: "MODULE_%s_NAME" value { string_value: "%s" } }\n'
    config = PYTHON_BACKEND + EAGERLY + more % ("CLASS", "Net") + more % ("METHOD", "doubled")
    assert answer(load(add(source=source, config=config))) == [[12.0], [10.0]]


def test_modules_beside_the_file_are_its_own(add, load, monkeypatch):
    source = NET.replace("import torch\n", "import torch\nimport helper\n", 1).replace("(x)", "(helper.twice(x))")
    root = add(source=source, helper="def twice(x):\n    return x * 2\n")
    assert answer(load(root)) == [[11.0], [9.0]]
    assert "helper" not in sys.modules  # the next model may have one too
    assert not (root / "m" / "1" / "__pycache__").exists()


def test_annotations_are_the_signature(add, load):
    source = NET.replace("x: torch.Tensor", "x: torch.Tensor, scale: 'float' = 2.0, mask: torch.Tensor | None = None")
    source = source.replace("(x)", "(x) * scale")
    config = PYTHON_BACKEND + EAGERLY + 'input { name: "scale" data_type: TYPE_FP32 dims: 1 optional: true }'
    model = load(add(source=source, config=config))
    assert answer(model) == [[12.0], [10.0]]
    scaled = model.execute({"x": ROWS, "scale": np.float32([[3], [3]])})
    assert scaled["y"].tolist() == [[18.0], [15.0]]


def test_a_failing_forward_tells_its_reason(add, load):
    source = NET.replace("        return self", "        assert x.sum() > 0, 'negative'\n        return self")
    with pytest.raises(Internal, match=r"^PyTorch execute failure: negative$"):
        load(add(source=source)).execute({"x": -ROWS})


# Compiling, with compilers that are none


def test_what_the_compiler_cannot_do_is_done_eagerly(caplog):
    calls = []

    def broken(x):
        calls.append(x)
        raise RuntimeError("g++ fell over")

    function = Compiled("m", lambda x: x + 1, broken)
    assert [function(1), function(2)] == [2, 3]
    assert calls == [1]
    assert "model m: executed eagerly from now on, torch.compile failed: g++ fell over" in caplog.text


def test_a_request_that_fails_eagerly_too_is_the_request_s_fault(caplog):
    def eager(x):
        raise ValueError("eager")

    def compiled_(x):
        raise RuntimeError("compiled")

    function = Compiled("m", eager, compiled_)
    for _ in range(2):
        with pytest.raises(ValueError, match="eager"):
            function(1)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("environment", "obstacle"),
    [
        ({"TORCHINDUCTOR_CACHE_DIR": "/proc/none"}, "its cache folder is not writable; set TORCHINDUCTOR_CACHE_DIR"),
        ({"CXX": "/none/g++"}, "no C++ compiler is installed; install g++, or set CXX"),
    ],
)
def test_where_compiling_cannot_work_the_model_is_eager_with_a_warning(environment, obstacle):
    script = "from torchscript_predictor.backends.compiling import find_obstacle; print(find_obstacle(True))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PATH": "/none", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(obstacle)


def test_the_obstacle_is_a_warning_of_the_model(add, load, monkeypatch):
    monkeypatch.setattr(compiling, "find_obstacle", lambda on_cpu: "no C++ compiler is installed")
    model = load(add(config=PYTHON_BACKEND))
    assert model.warnings == ("model 'm': executed eagerly, without torch.compile: no C++ compiler is installed",)
    assert answer(model) == [[6.0], [5.0]]


@pytest.mark.slow
@pytest.mark.skipif(bool(find_obstacle(True)), reason="torch.compile cannot work here")
@pytest.mark.parametrize("options", [{}, {"mode": "reduce-overhead"}])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_compiled_answers_are_eager_answers(options):
    layer = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh())
    function, warnings = compiled("m", layer, options, on_cpu=True)
    assert warnings == ()
    assert isinstance(function, Compiled)
    with torch.inference_mode():
        for rows in (1, 2, 3):
            x = torch.ones(rows, 2)
            assert torch.allclose(function(x), layer(x), rtol=1e-5)
    assert function._call is not layer  # it was no fallback
