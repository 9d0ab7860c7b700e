"""The CIFAR-10 sample of KServe's TorchScript tutorial through the chain, where its files are present."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from networks import CifarNet
from processes import Chain, call, chain

from tandem.export import export

SHARED = Path(__file__).parents[3] / "shared" / "data"
SAMPLE = SHARED / "kserve-torchscript-sample"
PUBLISHED = [-1.35459, -2.09417, 0.39545, 3.43347, -0.08178, 1.74135, 0.98275, -1.34345, 0.63303, -1.53542]
CAT = 3

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SAMPLE.exists(), reason="KServe's sample files are not here")]


def create() -> torch.nn.Module:
    net = CifarNet()
    net.load_state_dict(torch.load(SHARED / "cifar10-net" / "state_dict.pt", weights_only=True))
    return net


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("cifar10")
    export(create, folder / "models", "cifar10", [3, 32, 32], max_batch_size=1)
    config = folder / "transformer.yaml"
    config.write_text(
        "model_name: cifar10\nimage: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}\noutput: {response: outputs}\n"
    )
    with chain("cifar10", folder / "models", config, folder) as running:
        yield running


@pytest.fixture(scope="module")
def request_body() -> bytes:
    return (SAMPLE / "image.json").read_bytes()


def test_the_picture_is_a_cat_with_the_published_numbers(cifar10: Chain, request_body: bytes) -> None:
    answer = cifar10.predict(request_body)
    assert answer.status == 200
    (row,) = answer.json["OUTPUT__0"]
    assert row.index(max(row)) == CAT
    assert row == pytest.approx(PUBLISHED, abs=1e-4)


def test_the_picture_and_the_tensor_give_the_same_numbers(cifar10: Chain, request_body: bytes) -> None:
    tensor = (SAMPLE / "input.json").read_bytes()
    direct = call(cifar10.predictor.port, "POST", "/v2/models/cifar10/infer", tensor)
    (row,) = cifar10.predict(request_body).json["OUTPUT__0"]
    assert row == pytest.approx(direct.json["outputs"][0]["data"], abs=1e-4)


def test_two_instances_although_the_model_takes_one_at_a_time(cifar10: Chain, request_body: bytes) -> None:
    body = json.loads(request_body)
    body["instances"] *= 2
    rows = cifar10.predict(body).json["OUTPUT__0"]
    assert len(rows) == 2
    assert rows[0] == rows[1] == pytest.approx(PUBLISHED, abs=1e-4)


def test_the_other_spelling_of_the_field(cifar10: Chain, request_body: bytes) -> None:
    instance = json.loads(request_body)["instances"][0]
    answer = cifar10.predict({"instances": [{"image_bytes": instance["image"], "caption": "seaside"}]})
    assert answer.json["OUTPUT__0"][0] == pytest.approx(PUBLISHED, abs=1e-4)


def test_curls_default_content_type(cifar10: Chain, request_body: bytes) -> None:
    answer = cifar10.predict(request_body, {"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status == 200
