"""The documents that people come from: what each describes works here as it is written there.

Facts and configurations are theirs; the one correction is the features of the MNIST network's first linear layer, which
are 1600 for pictures of 28x28.
"""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import CifarNet
from torch import nn

from oip.http_codec import decode_request
from oip.messages import InferenceRequest
from oip.server.data_plane import RequestContext
from oip.tensors import Tensor
from torchscript_predictor.backends.choice import PyTorchBackend
from torchscript_predictor.data_plane import PredictorDataPlane
from torchscript_predictor.repository import ModelRepository
from torchscript_predictor.threads import CpuAllowance

SHARED = Path(__file__).parents[3] / "shared" / "data"


def serve(path, scenario, **backend):
    """Serve what is at a path, run the scenario, stop."""

    async def main():
        plane = PredictorDataPlane(
            ModelRepository([path]), lambda: PyTorchBackend(**backend), allowance=CpuAllowance(4.0)
        )
        await plane.start()
        try:
            await plane.loaded()
            await scenario(plane)
        finally:
            await plane.stop()

    asyncio.run(main())


async def infer(plane, model, **arrays):
    tensors = tuple(Tensor.of(name, array) for name, array in arrays.items())
    answer = await plane.infer(InferenceRequest(model, tensors), RequestContext())
    return {output.name: output.array for output in answer.outputs}


def expected(module, x):
    with torch.inference_mode():
        return module(torch.from_numpy(x)).numpy()


# ModelMesh's page about PyTorch, and KServe's about TorchScript: a CIFAR-10 classifier

CIFAR = """
platform: "pytorch_libtorch"
max_batch_size: 1
input [
  {
    name: "INPUT__0"
    data_type: TYPE_FP32
    dims: [3,32,32]
  }
]
output [
  {
    name: "OUTPUT__0"
    data_type: TYPE_FP32
    dims: [10]
  }
]
"""
CPU = "instance_group [ { count: %d kind: KIND_CPU } ]"
PICTURE = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)


@pytest.fixture
def cifar(tmp_path):
    """Write traced networks, one for each version, and a configuration."""

    def write(folder, config, versions=(1,)):
        networks = {}
        for version in versions:
            torch.manual_seed(version)
            networks[str(version)] = CifarNet().eval()
            path = tmp_path / folder / str(version) / "model.pt"
            path.parent.mkdir(parents=True)
            torch.jit.trace(networks[str(version)], torch.rand(1, 3, 32, 32)).save(str(path))
        (tmp_path / folder / "config.pbtxt").write_text(config)
        return networks

    return write


@pytest.mark.parametrize(
    ("versions", "path", "newest"),
    [
        ((1,), "pytorch-model", "1"),  # the simple layout
        ((1, 2), "pytorch-model", "2"),  # Triton's own: one version is used
        ((1,), "", "1"),  # the folder above is a repository
    ],
)
def test_modelmesh_storage_paths(tmp_path, cifar, versions, path, newest):
    networks = cifar("pytorch-model", CIFAR, versions)

    async def scenario(plane):
        assert plane.model_metadata("pytorch-model").versions == (newest,)
        outputs = await infer(plane, "pytorch-model", INPUT__0=PICTURE)
        assert np.allclose(outputs["OUTPUT__0"], expected(networks[newest], PICTURE), atol=1e-5)

    serve(tmp_path / path, scenario)


@pytest.mark.parametrize("count", [1, 4])
def test_kserve_torchscript_repository(tmp_path, cifar, count):
    networks = cifar("torchscript/cifar", 'name: "cifar"' + CIFAR + CPU % count)

    async def scenario(plane):
        [status] = plane.statuses()
        assert (status.name, status.instances) == ("cifar", count)
        answers = await asyncio.gather(*(infer(plane, "cifar", INPUT__0=PICTURE) for _ in range(2 * count)))
        for outputs in answers:
            assert outputs["OUTPUT__0"].shape == (1, 10)
            assert np.allclose(outputs["OUTPUT__0"], expected(networks["1"], PICTURE), atol=1e-5)

    serve(tmp_path / "torchscript", scenario)


def test_a_gpu_instance_group_without_a_gpu_says_so(tmp_path, cifar):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    cifar("torchscript/cifar", 'name: "cifar"' + CIFAR + "instance_group [ { count: 1 kind: KIND_GPU } ]")

    async def scenario(plane):
        [status] = plane.statuses()
        assert "instance group cifar_0 of model cifar has kind KIND_GPU but no GPUs are available; use" in status.reason

    serve(tmp_path / "torchscript", scenario)


@pytest.mark.skipif(not SHARED.exists(), reason="KServe's sample and its weights are not here")
@pytest.mark.parametrize("file", ["input.json", "input-grpc.json"])
def test_kserve_sample_requests(tmp_path, file):
    """The sample's own request bodies, with the weights that KServe published."""
    state = torch.load(SHARED / "cifar10-net" / "state_dict.pt", weights_only=True)
    network = CifarNet()
    network.load_state_dict(state)
    folder = tmp_path / "torchscript" / "cifar10"
    (folder / "1").mkdir(parents=True)
    torch.jit.trace(network.eval(), torch.rand(1, 3, 32, 32)).save(str(folder / "1" / "model.pt"))
    (folder / "config.pbtxt").write_text('name: "cifar10"' + CIFAR + CPU % 1)
    body = json.loads((SHARED / "kserve-torchscript-sample" / file).read_text())

    async def scenario(plane):
        if file == "input.json":
            request = decode_request(json.dumps(body).encode(), model_name="cifar10")
        else:
            [tensor] = body["inputs"]
            array = np.array(tensor["contents"]["fp32_contents"], np.float32).reshape(tensor["shape"])
            request = InferenceRequest("cifar10", (Tensor.of(tensor["name"], array),))
        [output] = (await plane.infer(request, RequestContext())).outputs
        assert output.array.argmax() == 3  # a cat
        assert output.array[0, :4] == pytest.approx([-1.35459, -2.09417, 0.39545, 3.43347], abs=1e-3)

    serve(tmp_path / "torchscript", scenario)


# The course's page about the TorchScript backend: an MNIST classifier


class SimpleCNN(nn.Module):
    """The page's network; its `fc1` must take 1600 features, not 9216."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(1600, 128)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        x = self.pool2(self.relu2(self.conv2(self.pool1(self.relu1(self.conv1(x))))))
        return torch.log_softmax(self.fc2(self.relu3(self.fc1(self.flatten(x)))), dim=1)


MNIST = """
name: "simple_cnn"
platform: "pytorch_libtorch"
max_batch_size: 8
input [
  {
    name: "input__0"
    data_type: TYPE_FP32
    dims: [ 1, 28, 28 ]
  }
]
output [
  {
    name: "output__0"
    data_type: TYPE_FP32
    dims: [ 10 ]
  }
]
"""


@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("file", ["model.pt", "simple_cnn.pt"])
def test_the_mnist_classifier(tmp_path, how, file):
    module = SimpleCNN().eval()
    folder = tmp_path / "simple_cnn"
    (folder / "1").mkdir(parents=True)
    exported = torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.rand(2, 1, 28, 28))
    exported.save(str(folder / "1" / file))
    renamed = f'default_model_filename: "{file}"\n' if file != "model.pt" else ""
    (folder / "config.pbtxt").write_text(MNIST + renamed)
    digits = np.random.default_rng(0).random((8, 1, 28, 28), np.float32)

    async def scenario(plane):
        outputs = await infer(plane, "simple_cnn", input__0=digits)
        assert np.allclose(outputs["output__0"], expected(module, digits), atol=1e-5)

    serve(tmp_path, scenario)


# The Python backend's and the PyTorch backend's pages: a model that is Python code

MODEL = """
import torch
from torch import nn

class Neurons(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return torch.relu(self.layer(x))
"""
TENSORS = """
max_batch_size: 4
input { name: "INPUT__0" data_type: TYPE_FP32 dims: 4 }
output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: 2 }
"""
SETTINGS = """
parameters: {
    key: "NUM_THREADS"
    value: { string_value: "4" }
}
parameters: {
    key: "TORCH_COMPILE_OPTIONAL_PARAMETERS"
    value: { string_value: "{\\"disable\\": true}" }
}
"""


@pytest.mark.parametrize(
    ("selection", "state_file"),
    [
        ('backend: "python"\nplatform: "pytorch"\n', "model.py.pt"),
        ('backend: "python"\nplatform: "pytorch"\n', None),
        ('runtime: "model.py"\n', "model.pt"),
        ('backend: "pytorch"\nruntime: "model.py"\n', "model.py.pt"),
    ],
)
def test_a_model_that_is_python_code(tmp_path, selection, state_file):
    folder = tmp_path / "model_repository" / "model_directory"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(MODEL)
    state = {"layer.weight": torch.ones(2, 4), "layer.bias": torch.zeros(2)}
    if state_file:
        torch.save(state, folder / "1" / state_file)
    (folder / "config.pbtxt").write_text(selection + TENSORS + SETTINGS)

    async def scenario(plane):
        [status] = plane.statuses()
        assert status.reason == ""
        assert status.intra_op_threads == 4
        outputs = await infer(plane, "model_directory", INPUT__0=np.ones((2, 4), np.float32))
        assert outputs["OUTPUT__0"].shape == (2, 2)
        if state_file:
            assert outputs["OUTPUT__0"].tolist() == [[4.0, 4.0], [4.0, 4.0]]

    serve(tmp_path / "model_repository", scenario, allow_python_models=True)


@pytest.mark.parametrize("selection", ['backend: "python"\nplatform: "pytorch"\n', 'runtime: "model.py"\n'])
def test_a_torchscript_file_in_place_of_the_python_code(tmp_path, selection):
    folder = tmp_path / "model_directory"
    (folder / "1").mkdir(parents=True)
    torch.jit.script(nn.Linear(4, 2)).save(str(folder / "1" / "model.pt"))
    (folder / "config.pbtxt").write_text(selection + TENSORS)

    async def scenario(plane):
        outputs = await infer(plane, "model_directory", INPUT__0=np.ones((2, 4), np.float32))
        assert outputs["OUTPUT__0"].shape == (2, 2)

    serve(tmp_path, scenario)


SWITCHES = ("DISABLE_OPTIMIZED_EXECUTION", "INFERENCE_MODE", "ENABLE_WEIGHT_SHARING")
NUMBERS = ("INTER_OP_THREAD_COUNT", "INTRA_OP_THREAD_COUNT")


@pytest.mark.parametrize(("key", "value"), [*((key, "true") for key in SWITCHES), *((key, "1") for key in NUMBERS)])
def test_the_pytorch_backend_s_settings_are_accepted(tmp_path, cifar, key, value):
    networks = cifar("m", CIFAR + f'parameters: {{ key: "{key}" value: {{ string_value: "{value}" }} }}')

    async def scenario(plane):
        outputs = await infer(plane, "m", INPUT__0=PICTURE)
        assert np.allclose(outputs["OUTPUT__0"], expected(networks["1"], PICTURE), atol=1e-5)

    serve(tmp_path, scenario)
