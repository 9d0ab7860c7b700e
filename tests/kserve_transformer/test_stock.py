"""Somebody's `kserve.Model` subclasses on our server, in processes of their own: kserve never enters this one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import Process, call, transformer
from serving import FunctionPlane, serving
from transforming import b64, encoded, plain

from oip.errors import TooManyRequests
from oip.messages import TensorMetadata

# What KServe's tutorial prints, in structure: no headers in the hooks, arguments in the constructor, lists and V2 JSON.
TUTORIAL = """
import base64, io, logging
import kserve
import numpy as np
import torchvision.transforms as transforms
from PIL import Image

logging.basicConfig(level=kserve.constants.KSERVE_LOGLEVEL)
chain = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])


def tensor_of(instance):
    raw = base64.b64decode(instance["image_bytes"]["b64"])
    picture = Image.fromarray(np.asarray(Image.open(io.BytesIO(raw))))
    return chain(picture).tolist()


class Tutorial(kserve.Model):
    def __init__(self, name: str, predictor_host: str, protocol: str):
        super().__init__(name)
        self.predictor_host = predictor_host
        self.protocol = protocol

    def preprocess(self, inputs):
        data = [tensor_of(instance) for instance in inputs["instances"]]
        return {"inputs": [{"name": "INPUT__0", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": data}]}

    def postprocess(self, results):
        return {out["name"]: np.array(out["data"]).reshape(out["shape"]).tolist() for out in results["outputs"]}
"""

CLASSES = '''
import binascii, io, threading
import kserve
import numpy as np
from PIL import Image


def where():
    return threading.current_thread().name.split("_")[0]


class Async(kserve.Model):
    """Async hooks with headers; predicts through super()."""

    async def preprocess(self, payload, headers=None):
        return {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": payload["instances"][0]}]}

    async def predict(self, payload, headers=None, response_headers=None):
        answer = await super().predict(payload, headers, response_headers)
        return {**answer, "user": headers["x-user"], "id": answer["id"]}

    async def postprocess(self, result, headers=None, response_headers=None):
        output = result["outputs"][0]
        return {"predictions": output["data"], "shape": output["shape"], "user": result["user"], "id": result["id"]}


class Values(kserve.Model):
    """`InferRequest` in, `InferResponse` out, plain functions, the documented way to read the predictor's settings."""

    def __init__(self, model_name, **others):
        super().__init__(model_name)
        self.at_start = self.predictor_config.predictor_protocol

    def load(self):
        self.loaded = True
        return super().load()

    def start(self):
        self.started = where()
        super().start()

    def stop(self):
        print("stopped", self.name, flush=True)

    def preprocess(self, payload, headers=None):
        array = np.array(payload["instances"], dtype=np.float32)
        tensor = kserve.InferInput("x", list(array.shape), "FP32", data=array)
        return kserve.InferRequest(model_name="model", infer_inputs=[tensor])

    def postprocess(self, result, headers=None):
        return {
            "predictions": result.outputs[0].as_numpy().tolist(),
            "facts": [self.loaded, self.ready, self.at_start, self.predictor_config.protocol, where()],
        }


class Whole(kserve.Model):
    """Answers with the predictor's `InferResponse` as it is."""

    def preprocess(self, payload, headers=None):
        array = np.array(payload["instances"], dtype=np.float32)
        return kserve.InferRequest("model", [kserve.InferInput("x", list(array.shape), "FP32", data=array)])


class Failing(kserve.Model):
    def preprocess(self, payload, headers=None):
        if payload["fail"] == "key":
            payload["absent"]
        if payload["fail"] == "wrong key type":
            return payload["instances"]["x"]
        if payload["fail"] == "base64":
            raise binascii.Error("Incorrect padding")
        if payload["fail"] == "picture":
            Image.open(io.BytesIO(b"no picture"))
        if payload["fail"] == "invalid":
            raise kserve.errors.InvalidInput("send a cat")
        if payload["fail"] == "not found":
            raise kserve.errors.ModelNotFound("other")
        if payload["fail"] == "not ready":
            raise kserve.errors.ModelNotReady(self.name, "wait")
        if payload["fail"] == "not implemented":
            raise NotImplementedError
        if payload["fail"] == "bug":
            raise RuntimeError("secret of /etc/passwd")
        if payload["fail"] == "instances":
            return {"instances": [1]}
        if payload["fail"] == "inputs":
            return {"inputs": "x"}
        if payload["fail"] == "tensor":
            return {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2]}]}
        data = [int(payload["fail"] == "busy"), 2]
        return {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": data}]}

    def postprocess(self, result, headers=None):
        return {"predictions": result["outputs"][0]["data"]}


class Demanding(kserve.Model):
    def __init__(self, name, colour):
        super().__init__(name)


class NoModel:
    pass
'''


@dataclass
class Stock:
    process: Process
    plane: FunctionPlane

    def post(self, model: str, payload: Any, **headers: str) -> Any:
        return call(self.process.port, "POST", f"/v1/models/{model}:predict", json.dumps(payload).encode(), headers)


def cifar() -> FunctionPlane:
    return FunctionPlane(
        lambda arrays: {"OUTPUT__0": arrays["INPUT__0"].reshape(len(arrays["INPUT__0"]), -1)[:, :10]},
        (TensorMetadata("INPUT__0", "FP32", (-1, 3, 32, 32)),),
        (TensorMetadata("OUTPUT__0", "FP32", (-1, 10)),),
        max_batch_size=1,
        name="cifar10",
    )


def test_the_tutorials_class_runs_unchanged_with_the_tutorials_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tutorial.py").write_text(TUTORIAL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    picture = b64(encoded(Image.fromarray(pixels)))
    with serving(cifar()) as predictor:
        host = predictor.url.removeprefix("http://")
        flags = ("--model_name", "cifar10", "--predictor_host", host, "--protocol", "v2")
        with transformer("tutorial:Tutorial", tmp_path / "log", *flags) as process:

            def post(payload: Any) -> Any:
                return call(process.port, "POST", "/v1/models/cifar10:predict", json.dumps(payload).encode())

            good = {"instances": [{"image_bytes": {"b64": picture}, "caption": "seaside"}]}
            reply = post(good)
            assert reply.status == 200
            assert list(reply.json) == ["OUTPUT__0"]
            expected = (pixels[0, :10, 0].astype(np.float32) / 255 - np.float32(0.5)) / np.float32(0.5)
            np.testing.assert_allclose(reply.json["OUTPUT__0"], [expected], rtol=1e-6)
            for payload, message in [
                ({"instances": [{}]}, "the body lacks the key 'image_bytes'"),
                ({}, "the body lacks the key 'instances'"),
                ({"instances": [{"image_bytes": {"b64": "x"}}]}, "the body holds text that is not valid base64"),
                (
                    {"instances": [{"image_bytes": {"b64": b64(b"hello")}}]},
                    "the body holds something that is no picture",
                ),
                ({"instances": good["instances"] * 2}, "has 3072 elements, its 'data' holds 6144"),
                ({"instances": [{"image_bytes": {"b64": plain(0)}}]}, "has 3072 elements, its 'data' holds 48"),
            ]:
                reply = post(payload)
                assert (reply.status, reply.json["code"]) == (400, "INVALID_ARG"), reply.json
                assert message in reply.json["error"]
            assert "Traceback" not in process.output()  # none of these is a bug
            assert post(good).status == 200
            assert process.stop() == 0


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """Several stock classes in one process, a file each."""
    folder = tmp_path_factory.mktemp("stock")
    (folder / "classes_of_theirs.py").write_text(CLASSES)
    files = []
    for name in ("Async", "Values", "Whole", "Failing"):
        path = folder / f"{name}.yaml"
        path.write_text(
            f"model_name: {name.lower()}\ntransformer: classes_of_theirs:{name}\n"
            "predictor: {model: model, retries: 0}\n"
        )
        files.append(str(path))

    def compute(arrays: Any) -> Any:
        if arrays["x"][0, 0] == 1:
            raise TooManyRequests("slow down")
        return {"y": arrays["x"] * 2}

    plane = FunctionPlane(compute)
    with serving(plane) as predictor:
        host = predictor.url.removeprefix("http://")
        with transformer(files[0], folder / "log", *files[1:], "--predictor-host", host) as process:
            yield Stock(process, plane)
            assert process.stop() == 0
            assert "stopped values" in process.output()


def test_async_hooks_with_headers_and_super(stock: Stock) -> None:
    reply = stock.post("async", {"instances": [[3, 4]]}, **{"X-User": "me", "x-request-id": "abc"})
    assert reply.json == {"predictions": [6.0, 8.0], "shape": [1, 2], "user": "me", "id": "abc"}
    assert stock.plane.requests[-1].id == "abc"


def test_values_the_lifecycle_and_the_predictors_settings(stock: Stock) -> None:
    reply = stock.post("values", {"instances": [[3, 4], [5, 6]]})
    assert reply.json == {
        "predictions": [[6.0, 8.0], [10.0, 12.0]],
        "facts": [True, True, "v2", "v2", "decode"],
    }
    assert stock.plane.requests[-1].inputs[0].shape == (2, 2)


def test_an_infer_response_is_an_answer(stock: Stock) -> None:
    document = stock.post("whole", {"instances": [[3, 4]]}).json
    assert document["model_name"] == "model"
    (output,) = document["outputs"]
    assert (output["name"], output["shape"], output["datatype"], output["data"]) == ("y", [1, 2], "FP32", [6.0, 8.0])


@pytest.mark.parametrize(
    ("fail", "status", "message"),
    [
        ("key", 400, "the body lacks the key 'absent'"),
        ("base64", 400, "the body holds text that is not valid base64"),
        ("picture", 400, "the body holds something that is no picture"),
        ("invalid", 400, "send a cat"),
        ("not found", 404, "Model with name other does not exist."),
        ("not ready", 503, "Model with name failing is not ready. wait"),
        ("not implemented", 501, "preprocess is not implemented"),
        ("inputs", 400, 'Expected "inputs" to be a list'),
        ("tensor", 400, "tensor 'x' of shape [1, 3] has 3 elements, its 'data' holds 2"),
        ("bug", 500, "preprocess failed: RuntimeError"),
        ("wrong key type", 500, "preprocess failed: TypeError"),
        ("instances", 500, "preprocess must return a dict with 'inputs' or an InferRequest for a V2 predictor"),
        ("busy", 429, "slow down"),
    ],
)
def test_failures_keep_their_meaning_and_only_bugs_leave_a_traceback(
    stock: Stock, fail: str, status: int, message: str
) -> None:
    before = stock.process.output().count("Traceback")
    reply = stock.post("failing", {"fail": fail, "instances": []})
    assert (reply.status, reply.json["error"]) == (status, message)
    assert b"secret" not in reply.body
    assert (stock.process.output().count("Traceback") > before) is message.startswith("preprocess failed")
    assert stock.post("failing", {"fail": "no"}).json == {"predictions": [0.0, 4.0]}


REFUSED = """
import sys
import click
from kserve_transformer.__main__ import build
from kserve_transformer.settings import TransformerSettings

for name in ("Demanding", "NoModel", "where"):
    try:
        build((f"classes_of_theirs:{name}",), TransformerSettings(model_name="m"))
    except click.UsageError as error:
        print(error.message)
print("argv", sys.argv)
"""


def test_classes_that_cannot_be_served_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "classes_of_theirs.py").write_text(CLASSES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("TANDEM_CONFIG", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, "--model_name=x"], capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Demanding: its argument 'colour' is unknown; known are name, model_name,")
    expected = "must be a subclass of kserve_transformer.Transformer or of kserve.Model"
    assert lines[1:3] == [f"classes_of_theirs:{name}: {expected}" for name in ("NoModel", "where")]
    assert lines[3] == "argv ['-c', '--model_name=x']"  # kserve reads it while imported; it is as it was
