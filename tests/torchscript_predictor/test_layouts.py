"""Every way in which people lay models out: what is served, under which name, and why not."""

import asyncio
import logging

import pytest
import torch
from networks import CifarNet

from oip.messages import InferenceRequest
from oip.server.data_plane import RequestContext
from oip.tensors import Tensor
from torchscript_predictor.backends.choice import PyTorchBackend
from torchscript_predictor.data_plane import PredictorDataPlane
from torchscript_predictor.repository import ModelRepository, RepositoryError, is_model
from torchscript_predictor.threads import CpuAllowance

CONFIG = """
platform: "pytorch_libtorch"
max_batch_size: 1
input [ { name: "INPUT__0" data_type: TYPE_FP32 dims: [3,32,32] } ]
output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [10] } ]
"""
SCHEMA = """
{"inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [-1, 3, 32, 32]}],
 "outputs": [{"name": "OUTPUT__0", "datatype": "FP32", "shape": [-1, 10]}]}
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The bytes of a TorchScript file."""
    path = tmp_path_factory.mktemp("network") / "model.pt"
    torch.jit.script(CifarNet().eval()).save(str(path))
    return path.read_bytes()


@pytest.fixture
def write(tmp_path, network):
    """Write files: None stands for the network, text for itself."""

    def go(files):
        for name, content in files.items():
            path = tmp_path / "models" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(network if content is None else content.encode())
        return tmp_path / "models"

    return go


@pytest.fixture
def served(serve_path):
    """What is served at a path: {name: (ready versions, first input's name, its shape)}, or the reason of a failure."""

    def go(path, model_name=None):
        result = {}

        async def scenario(plane):
            for status in plane.statuses():
                if status.state.value != "READY":
                    result[status.name] = status.reason
                    continue
                metadata = plane.model_metadata(status.name)
                tensor = metadata.inputs[0]
                result[status.name] = (metadata.versions, tensor.name, tensor.shape)
                shape = tuple(1 if size == -1 else size for size in tensor.shape)
                request = InferenceRequest(status.name, (Tensor.of(tensor.name, torch.zeros(shape).numpy()),))
                [output] = (await plane.infer(request, RequestContext())).outputs
                assert output.shape == (1, 10)

        serve_path(scenario, path, model_name)
        return result

    return go


@pytest.fixture
def serve_path():
    def run(scenario, path, model_name=None, backend=PyTorchBackend):
        async def main():
            plane = PredictorDataPlane(ModelRepository([path], model_name), backend, allowance=CpuAllowance(1.0))
            await plane.start()
            try:
                await plane.loaded()
                await scenario(plane)
            finally:
                await plane.stop()

        asyncio.run(main())

    return run


FROM_CONFIG = (("1",), "INPUT__0", (-1, 3, 32, 32))
FROM_SCHEMA = (("1",), "INPUT__0", (-1, 3, 32, 32))
DERIVED = (("1",), "x", (-1, 3, 32, 32))
EVERY = "version_policy { all { } }"
TWO = "version_policy { latest { num_versions: 2 } }"
SOME = "version_policy { specific { versions: [ 1, 3 ] } }"
VERSIONS = {"m/1/model.pt": None, "m/2/model.pt": None, "m/3/model.pt": None}


def versions(*numbers):
    return {"m": (numbers, *FROM_CONFIG[1:])}


@pytest.mark.parametrize(
    ("files", "path", "expected"),
    [
        # Triton's
        ({"m/config.pbtxt": CONFIG, "m/1/model.pt": None}, "", {"m": FROM_CONFIG}),
        ({"m/config.pbtxt": CONFIG, **VERSIONS}, "", versions("3")),
        ({"m/config.pbtxt": CONFIG + EVERY, **VERSIONS}, "", versions("1", "2", "3")),
        ({"m/config.pbtxt": CONFIG + TWO, **VERSIONS}, "", versions("2", "3")),
        ({"m/config.pbtxt": CONFIG + SOME, **VERSIONS}, "", versions("1", "3")),
        # without a configuration
        ({"m/1/model.pt": None}, "", {"m": DERIVED}),
        ({"m/2/model.pt": None, "m/10/model.pt": None}, "", {"m": (("10",), *DERIVED[1:])}),
        ({"m/config.pbtxt": "max_batch_size: 4", "m/1/model.pt": None}, "", {"m": DERIVED}),
        ({"m/model.pt": None, "n/net.pth": None}, "", {"m": DERIVED, "n": DERIVED}),
        # ModelMesh's, in a repository and as the path itself
        ({"m/model.pt": None, "m/schema.json": SCHEMA}, "", {"m": FROM_SCHEMA}),
        ({"m/resnet.pt": None, "m/_schema.json": SCHEMA}, "", {"m": FROM_SCHEMA}),
        ({"m/model.pt": None, "m/schema.json": SCHEMA}, "m", {"m": FROM_SCHEMA}),
        ({"m/1/model.pt": None, "m/schema.json": SCHEMA}, "m", {"m": FROM_SCHEMA}),
        ({"m/config.pbtxt": CONFIG, "m/1/model.pt": None}, "m", {"m": FROM_CONFIG}),
        ({"m/config.pbtxt": 'name: "other"' + CONFIG, "m/1/model.pt": None}, "m", {"other": FROM_CONFIG}),
        ({"m/config.pbtxt": CONFIG, **VERSIONS}, "m", versions("3")),
        ({"m/config.pbtxt": CONFIG + EVERY, **VERSIONS}, "m", versions("3")),  # ModelMesh: one version
        ({"m/config.pbtxt": CONFIG + SOME, **VERSIONS}, "m", versions("3")),
        ({"m/config.pbtxt": CONFIG, "m/model.pt": None}, "m", {"m": FROM_CONFIG}),
        ({"m/1/model.pt": None, "m/2/model.pt": None}, "m", {"m": (("2",), *DERIVED[1:])}),
        # a bare file
        ({"m/model.pt": None}, "m/model.pt", {"m": DERIVED}),
        ({"m/resnet.pt": None, "m/vgg.pt": None}, "m/vgg.pt", {"vgg": DERIVED}),
    ],
)
def test_served(write, served, files, path, expected):
    assert served(write(files) / path) == expected


@pytest.mark.parametrize("path", ["m", "m/model.pt"])
def test_a_model_name_beats_the_configuration_s_and_the_folder_s(write, served, path):
    folder = write({"m/config.pbtxt": 'name: "other"' + CONFIG, "m/model.pt": None})
    assert served(folder / path, "mine") == {"mine": FROM_CONFIG}


@pytest.mark.parametrize(
    ("files", "path", "reason"),
    [
        ({"m/config.pbtxt": CONFIG, "m/1/net.pt": None}, "", "m/1/model.pt does not exist; put the model's file there"),
        (
            {"m/config.pbtxt": CONFIG, "m/x": ""},
            "",
            "no version of model 'm' is to be served: there is no number",
        ),
        (
            {"m/x": ""},
            "",
            "is to be served: there is no numbered folder; expected m/<version>/model.pt",
        ),
        ({"m/config.pbtxt": CONFIG, "m/a.pt": None, "m/b.pt": None}, "", "there is no numbered folder"),
        ({"m/model.pt": None, "m/schema.json": "{"}, "", "m/schema.json:1: "),
        ({"m/config.pbtxt": "max_batch_size: -1", "m/1/model.pt": None}, "", "m/config.pbtxt:1: max_batch_size is -1"),
        (
            {"m/config.pbtxt": "colour: 1", "m/1/model.pt": None},
            "m",
            'm/config.pbtxt:1:1: Message type "inference.',
        ),
        ({"m/1/model.pt": "no archive"}, "", "failed to load model 'm': "),
        ({"m/1/model.py": ""}, "", "start with --allow-python-models if you trust it"),
        ({"m/1/model.pt2": ""}, "", "failed to load model 'm': model.pt2 is no PT2 archive"),
    ],
)
def test_refused_with_a_reason(write, served, tmp_path, files, path, reason):
    [found] = served(write(files) / path).values()
    assert reason in found
    assert str(tmp_path) not in found


@pytest.mark.parametrize(
    ("files", "path", "model_name", "message"),
    [
        (
            {"m/1/model.pt": None},
            "",
            "mine",
            "--model-name mine needs exactly one --model-repository that itself",
        ),
        ({"m/1/model.pt": None}, "m", "a b", "--model-name 'a b' is no model name"),
        ({"a b/1/model.pt": None}, "a b", None, "'a b' is no model name: a model's name is 1 to 128 letters"),
        (
            {"notes.txt": ""},
            "notes.txt",
            None,
            "is a file; give a folder that holds model folders, or one mod",
        ),
    ],
)
def test_paths_that_are_nothing(write, files, path, model_name, message):
    folder = write(files)
    with pytest.raises(RepositoryError) as caught:
        ModelRepository([folder / path], model_name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.pbtxt": ""}, True),
        ({"1/model.pt": ""}, True),
        ({"1/model.py": ""}, True),
        ({"model.pt2": ""}, True),
        ({"net.pt": ""}, True),
        ({"a.pt": "", "b.pt": ""}, False),
        ({"m/config.pbtxt": ""}, False),
        ({"m/1/model.pt": ""}, False),
        ({"7/1/model.pt": ""}, False),  # a model called 7
        ({"README.md": ""}, False),
    ],
)
def test_a_path_is_one_model_or_a_repository(write, files, expected):
    assert is_model(write(files)) is expected


def test_what_is_derived_is_printed_as_the_configuration_to_write(write, served, caplog):
    caplog.set_level(logging.INFO)
    folder = write({"m/1/model.pt": None})
    served(folder)
    [text] = [record.getMessage() for record in caplog.records if "config.pbtxt" in record.getMessage()]
    heading, _, config = text.partition("\n")
    assert heading.startswith("model m: no input and output is configured; it is served as with this config.pbtxt")
    (folder / "m" / "config.pbtxt").write_text(config)
    caplog.clear()
    assert served(folder) == {"m": DERIVED}  # now configured so
    assert "no input and output is configured" not in caplog.text


def test_only_one_version_of_a_path_that_is_a_model_is_said(write, served, caplog):
    served(write({"m/config.pbtxt": CONFIG + EVERY, **VERSIONS}) / "m")
    assert "model m: only version 3 is served, because the path given is the model itself" in caplog.text


def test_completing_can_be_forbidden(write, serve_path):
    async def scenario(plane):
        [status] = plane.statuses()
        assert "--disable-auto-complete-config forbids finding them out" in status.reason

    serve_path(scenario, write({"m/1/model.pt": None}), backend=lambda: PyTorchBackend(describes_models=False))
