"""PT2 files: saved ExportedPrograms, and AOTInductor packages through their C entry; and all runtimes side by side.

Compiling takes seconds, so that each package is made once and its tests are slow ones.
"""

import inspect
import itertools
import json
import threading
import time
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from oip.errors import Internal
from torchscript_predictor.backends import LoadError
from torchscript_predictor.backends.aoti import CHECK_VARIABLE, Package, unfit
from torchscript_predictor.backends.choice import PyTorchBackend
from torchscript_predictor.backends.compiling import find_obstacle
from torchscript_predictor.model_config import config_text, parse_model_config

# torch.export and its compiler warn about modules of torch's own
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]
compiles = pytest.mark.skipif(bool(find_obstacle(True)), reason="there is no C++ compiler")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(256, 512), nn.Linear(512, 4)
        self.inner = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))

    def forward(self, x: torch.Tensor):
        return self.last(torch.tanh(self.inner(self.first(x))))


SOURCE = f"import torch\nfrom torch import nn\n\n{inspect.getsource(Net)}"


class Nested(nn.Module):
    def forward(self, x, others, *, mask):
        return {"sum": x + others["b"], "rest": [x * mask, others["a"]]}


LARGEST = 4096
BATCH = {0: torch.export.Dim("batch", min=1, max=LARGEST)}
AOTI = 'platform: "torch_aoti"\n'


def config(inputs=("x",), outputs=("OUTPUT__0",), dims=(256, 4), more="", max_batch_size=LARGEST):
    text = f"max_batch_size: {max_batch_size}\n"
    text += "".join(f'input {{ name: "{name}" data_type: TYPE_FP32 dims: {dims[0]} }}\n' for name in inputs)
    return text + "".join(f'output {{ name: "{n}" data_type: TYPE_FP32 dims: {dims[1]} }}\n' for n in outputs) + more


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def program(network):
    """The exported network, with a variable first dimension."""
    return torch.export.export(network, (torch.zeros(2, 256),), dynamic_shapes=(BATCH,))


@pytest.fixture(scope="module")
def files(tmp_path_factory, network, program):
    """One network in every form that needs no compiler, in a folder each."""
    root = tmp_path_factory.mktemp("files")
    for name in ("torchscript", "python", "exported"):
        (root / name).mkdir()
    torch.jit.script(network).save(str(root / "torchscript" / "model.pt"))
    (root / "python" / "model.py").write_text(SOURCE)
    torch.save(network.state_dict(), root / "python" / "model.pt")
    torch.export.save(program, root / "exported" / "model.pt2")
    return root


@pytest.fixture(scope="module")
def package(tmp_path_factory, program):
    """The network as an AOTInductor package."""
    path = tmp_path_factory.mktemp("aoti") / "model.pt2"
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return path


def load(path, text, device="cpu"):
    backend = PyTorchBackend(allow_python_models=True)
    return backend.load(path, parse_model_config(text, "m", files=[path.name]), device)


def describe(path, text=""):
    backend = PyTorchBackend()
    return parse_model_config(text, "m", files=[path.name], describe=lambda draft: backend.describe(path, draft))


ROWS = np.random.default_rng(0).standard_normal((3, 256), np.float32)


# ExportedPrograms


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(["x"], ["OUTPUT__0"]), (["INPUT__0"], ["RESULT"]), (["ARGS[0]"], ["y"]), (["odd"], ["y"])],
)
def test_an_exported_program(files, network, inputs, outputs):
    model = load(files / "exported" / "model.pt2", config(inputs, outputs))
    answer = model.execute({inputs[0]: ROWS})[outputs[0]]
    with torch.inference_mode():
        assert np.allclose(answer, network(torch.from_numpy(ROWS)).numpy(), rtol=1e-5, atol=1e-6)
    assert ("taken in the order of the configuration" in "".join(model.warnings)) == (inputs == ["odd"])


def test_an_exported_program_says_what_it_takes(files):
    found = describe(files / "exported" / "model.pt2")
    assert found.platform == "torch_aoti"
    assert found.model_filename == "model.pt2"
    text = config_text(found)
    assert 'name: "x"\n  data_type: TYPE_FP32\n  dims: [256]' in text
    assert 'name: "OUTPUT__0"\n  data_type: TYPE_FP32\n  dims: [4]' in text
    assert found.max_batch_size == 8


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    x = [torch.zeros(2, 3) + index for index in range(4)]
    path = tmp_path_factory.mktemp("nested") / "model.pt2"
    torch.export.save(torch.export.export(Nested(), (x[0], {"a": x[1], "b": x[2]}), {"mask": x[3]}), path)
    return path


def test_a_program_without_a_variable_first_size_does_not_batch(nested):
    found = describe(nested)
    assert found.max_batch_size == 0
    assert [tensor.name for tensor in found.inputs] == ["x", "others_a", "others_b", "mask"]
    assert {tensor.dims for tensor in found.inputs} == {(2, 3)}
    assert [tensor.name for tensor in found.outputs] == ["OUTPUT__0", "OUTPUT__1", "OUTPUT__2"]
    with pytest.raises(LoadError, match="max_batch_size is 4, but the program was not exported with a variable first"):
        describe(nested, "max_batch_size: 4")


def test_nested_arguments_and_results_go_by_their_paths(nested):
    names = ["KWARGS[mask]", "ARGS[1][b]", "ARGS[0]", "ARGS[1][a]"]
    text = config(names, ["RESULT[rest][1]", "sum", "RESULT[rest][0]"], dims=("[2, 3]", "[2, 3]"), max_batch_size=0)
    ones = np.ones((2, 3), np.float32)
    values = {"KWARGS[mask]": ones * 5, "ARGS[1][b]": ones * 3, "ARGS[0]": ones * 2, "ARGS[1][a]": ones * 7}
    answer = load(nested, text).execute(values)
    assert {name: array[0, 0] for name, array in answer.items()} == {
        "RESULT[rest][1]": 7,
        "sum": 5,
        "RESULT[rest][0]": 10,
    }


def test_a_shape_that_was_not_exported_is_refused(files):
    model = load(files / "exported" / "model.pt2", config(dims=("[-1]", 4)))
    with pytest.raises(Internal, match="PyTorch execute failure: Guard failed"):
        model.execute({"x": ROWS[:, :7]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "failed to load model 'm': model.pt2 is no PT2 archive; write it with torch.export.save"),
        (b"PK\x03\x04", "model.pt2 is no PT2 archive"),
        ({"model/readme": "x"}, "failed to load model 'm': model.pt2 cannot be read: "),
        ({"model/data/aotinductor/model/a.cpp": "x"}, "failed to load model 'm': the package holds no shared library"),
        (
            {"model/data/aotinductor/a/a.so": "x", "model/data/aotinductor/b/b.so": "x"},
            "the package holds 2 models: a, b; package one of them",
        ),
        ({"model/data/aotinductor/model/a.so": "x"}, "its shared library cannot be loaded: "),
        (
            {
                "model/data/aotinductor/model/a.so": "x",
                "model/data/aotinductor/model/a_metadata.json": json.dumps({"AOTI_MACHINE": "pdp11"}),
            },
            "the package is compiled for pdp11, this machine is ",
        ),
        (
            {
                "model/data/aotinductor/model/a.so": "x",
                "model/data/aotinductor/model/a_metadata.json": json.dumps({"AOTI_DEVICE_KEY": "cuda"}),
            },
            "the package is compiled for cuda, the instance is on cpu; change instance_group's kind",
        ),
    ],
)
def test_a_file_that_cannot_be_served(tmp_path, content, message):
    path = tmp_path / "model.pt2"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
    with pytest.raises(LoadError) as caught:
        load(path, config())
    assert message in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "capabilities", "fault"),
    [
        ({}, {}, ""),
        ({"AOTI_MACHINE": "x86_64", "AOTI_CPU_ISA": "AVX2"}, {"avx2": True}, ""),
        ({"AOTI_CPU_ISA": "AVX512 AVX512_VNNI"}, {"avx512_f": True, "avx512_vnni": True}, ""),
        (
            {"AOTI_CPU_ISA": "AVX512 AVX512_VNNI"},
            {"avx512_f": True, "avx2": True},
            "the package uses avx512_vnni, ",
        ),
        (
            {"AOTI_CPU_ISA": "AVX512"},
            {"avx512_f": False},
            "the package uses avx512, which this processor lacks",
        ),
        ({"AOTI_MACHINE": "aarch64"}, {}, "the package is compiled for aarch64, this machine is x86_64"),
    ],
)
def test_a_package_must_fit_the_processor(metadata, capabilities, fault):
    found = unfit(metadata, "x86_64", capabilities)
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


# AOTInductor


@compiles
@pytest.mark.slow
def test_a_package(package, network):
    for inputs, outputs in ((["ARGS[0]"], ["RESULT"]), (["INPUT__0"], ["OUTPUT__0"])):
        model = load(package, AOTI + config(inputs, outputs))
        assert model.warnings == ()
        for rows in (1, 3):
            answer = model.execute({inputs[0]: ROWS[:rows]})[outputs[0]]
            with torch.inference_mode():
                assert np.allclose(answer, network(torch.from_numpy(ROWS[:rows])).numpy(), rtol=1e-4, atol=1e-5)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dims": (255, 4)},
            "compiled for other shapes or datatypes than dims and max_batch_size say (not [2, 255]",
        ),
        ({"max_batch_size": LARGEST + 1}, f"(not [{LARGEST + 1}, 256] for 'ARGS[0]')"),
        ({"max_batch_size": 0, "dims": ("[4, 128, 2]", 4)}, "(not [4, 128, 2] for 'ARGS[0]')"),
    ],
)
def test_a_configuration_of_other_shapes_than_compiled_is_refused(package, options, message):
    with pytest.raises(LoadError) as caught:
        load(package, AOTI + config(["ARGS[0]"], **options))
    assert message in str(caught.value)


@compiles
@pytest.mark.slow
def test_variable_sizes_that_were_not_compiled_are_warned_about(package):
    model = load(package, AOTI + config(["ARGS[0]"], dims=("[-1]", 4)))
    [warning] = model.warnings
    assert "write the sizes that it was compiled for into dims: it does not check requests" in warning


@compiles
@pytest.mark.slow
def test_one_row_is_served_although_the_package_s_own_check_refuses_it(package, monkeypatch):
    assert load(package, AOTI + config(["ARGS[0]"])).execute({"ARGS[0]": ROWS[:1]})["OUTPUT__0"].shape == (1, 4)
    monkeypatch.setenv(CHECK_VARIABLE, "1")  # whoever asks for the check gets it
    with pytest.raises(Internal, match="the compiled function refuses its inputs or failed"):
        load(package, AOTI + config(["ARGS[0]"])).execute({"ARGS[0]": ROWS[:1]})


@compiles
@pytest.mark.slow
def test_a_package_does_not_say_its_shapes(package):
    with pytest.raises(LoadError, match="an AOTInductor package does not say its shapes"):
        describe(package)


@compiles
@pytest.mark.slow
def test_a_shared_package_has_a_runner_for_each_instance(package):
    more = 'instance_group { count: 2 }\nparameters { key: "ENABLE_WEIGHT_SHARING" value { string_value: "true" } }'
    model = load(package, AOTI + config(["ARGS[0]"], more=more))
    answers = {}

    def instance(number):
        model.enter_thread(1)
        answers[number] = [model.execute({"ARGS[0]": ROWS * number})["OUTPUT__0"] for _ in range(20)]

    threads = [threading.Thread(target=instance, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (1, 2):
        expected = model.execute({"ARGS[0]": ROWS * number})["OUTPUT__0"]
        assert all(np.array_equal(answer, expected) for answer in answers[number])


@compiles
@pytest.mark.slow
def test_what_needs_torch_s_own_loader_is_loaded_by_it_and_said(package, monkeypatch):
    monkeypatch.setattr(Package, "is_self_contained", False)
    model = load(package, AOTI + config(["ARGS[0]"]))
    [warning] = model.warnings
    assert "runs through torch's own loader, which holds up this process" in warning
    assert model.execute({"ARGS[0]": ROWS})["OUTPUT__0"].shape == (3, 4)


# All runtimes


COMPILED = config()
EAGER = config(
    more='parameters { key: "TORCH_COMPILE_OPTIONAL_PARAMETERS" value { string_value: "{\\"disable\\": true}" } }'
)


@pytest.fixture(scope="module")
def models(files, package):
    return {
        "torchscript": load(files / "torchscript" / "model.pt", config()),
        "eager": load(files / "python" / "model.py", EAGER),
        "compiled": load(files / "python" / "model.py", COMPILED),
        "exported": load(files / "exported" / "model.pt2", config()),
        "aoti": load(package, AOTI + config(["INPUT__0"])),
    }


NAMES = ("torchscript", "eager", "compiled", "exported", "aoti")


def run(models, name, rows):
    return models[name].execute({"INPUT__0" if name == "aoti" else "x": rows})["OUTPUT__0"]


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_every_runtime_gives_the_same_numbers(models, rows):
    answers = {name: run(models, name, ROWS[:rows]) for name in NAMES}
    for one, other in itertools.pairwise(NAMES):
        assert np.allclose(answers[one], answers[other], rtol=1e-4, atol=1e-5), (one, other)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_interpreter_is_free_while_a_model_computes(models, name):
    """A thread that wants to run every millisecond can, during a forward of 30 ms."""
    models[name].enter_thread(1)
    rows, seconds = 256, 0.0
    while seconds < 0.03 and rows < LARGEST:
        rows *= 2
        batch = np.ones((rows, 256), np.float32)
        for _ in range(3):
            started = time.perf_counter()
            run(models, name, batch)
            seconds = time.perf_counter() - started
    longest = []
    for _ in range(10):  # the machine itself may be busy; an interpreter that is held is held every time
        ended, gaps = threading.Event(), [0.0]

        def tick(ended=ended, gaps=gaps):
            last = time.perf_counter()
            while not ended.wait(0.001):
                now = time.perf_counter()
                gaps.append(now - last)
                last = now

        ticker = threading.Thread(target=tick)
        ticker.start()
        run(models, name, batch)
        ended.set()
        ticker.join()
        longest.append(max(gaps))
        if longest[-1] < 0.01 and len(gaps) > 5:
            return
    pytest.fail(f"{rows} rows, {seconds * 1000:.0f} ms: the ticker waited {[round(gap * 1000) for gap in longest]} ms")
