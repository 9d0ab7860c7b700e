"""The V1 routes over real sockets: bad input of every kind, and the next good request."""

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transforming import Serving, b64, call, encoded, make, pair, picture_plane, plain, shared, transforming

from kserve_transformer.data_plane import TransformerDataPlane
from oip.server.metrics import ServerMetrics

YAML = "image: {center_crop: 4, limits: {pixels: 50M}}\noutput: {response: predictions}\n"


@pytest.fixture(scope="module")
def service() -> Iterator[Serving]:
    with pair(YAML, plane=picture_plane(classes=1)) as (served, _):
        yield served


GOOD = {"b64": plain(255)}
GIF_BOMB = (
    b"GIF89a" + struct.pack("<HH", 32, 32) + b"\x80\0\0\0\0\0\xff\xff\xff"
    b",\0\0\0\0" + struct.pack("<HH", 65_535, 65_535) + b"\0\x02\x02D\x01\0;"
)
JPEG = encoded(Image.radial_gradient("L"), "JPEG")


def bad_inputs() -> dict[str, tuple[bytes, int, str, int | None]]:
    """What: (body, status, part of the message, instance)."""

    def second(b64_text: Any) -> bytes:
        return json.dumps({"instances": [GOOD, {"b64": b64_text}, GOOD]}).encode()

    return {
        "no body": (b"", 400, "the body is not valid JSON", None),
        "no JSON": (b"{", 400, "the body is not valid JSON", None),
        "deep JSON": (b"[" * 200 + b"]" * 200, 400, "nested deeper", None),
        "a list": (b"[]", 400, 'the body must be a JSON object {"instances": [...]}, got a list', None),
        "null": (b"null", 400, "got null", None),
        "no instances": (
            b"{}",
            400,
            "'instances' is missing; send {\"instances\": [...]}, got an object with no keys",
            None,
        ),
        "another key": (b'{"inputs": []}', 400, "got an object with 'inputs'", None),
        "empty instances": (b'{"instances": []}', 400, "'instances' is empty", None),
        "a string": (b'{"instances": "x"}', 400, "'instances' must be a list, got a string", None),
        "an object": (b'{"instances": {"b64": ""}}', 400, "'instances' must be a list, got an object", None),
        "too many": (
            json.dumps({"instances": [GOOD] * 257}).encode(),
            400,
            "'instances' holds 257, more than the limit of 256",
            None,
        ),
        "an instance that is a string": (b'{"instances": ["x"]}', 400, "no picture; it must be base64 under one of", 0),
        "no field": (
            json.dumps({"instances": [GOOD, {"caption": 1}]}).encode(),
            400,
            "got an object with 'caption'",
            1,
        ),
        "no string": (second(5), 400, "'b64' must be a base64 string, got a number", 1),
        "bad base64": (second("%%%"), 400, "'b64' is not valid base64", 1),
        "truncated JPEG": (second(b64(JPEG[: len(JPEG) // 2])), 400, "(JPEG 256x256) is damaged or cut short", 1),
        "a text file": (
            second(b64(b"hello\n" * 99)),
            400,
            "not a picture that can be read; it must be one of JPEG,",
            1,
        ),
        "a bomb": (second(b64(GIF_BOMB)), 400, "more pixels than the limit", 1),
        "20 MB of zeros": (
            second("0" * 20_000_000),
            400,
            "'b64' holds a picture of about 15000000 bytes, more than the limit of 10485760",
            1,
        ),
        "a small picture": (second(plain(0, 3, 9)), 400, "smaller than the crop of 4x4", 1),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_bad_input_is_named_and_the_next_good_request_succeeds(service: Serving, case: str) -> None:
    body, status, message, instance = bad_inputs()[case]
    reply = service.post(body)
    assert reply.status == status
    document = reply.json
    assert message in document["error"]
    assert document.get("instance") == instance
    assert document["code"] == "INVALID_ARG"
    assert document["request_id"] == reply.headers["x-request-id"]
    assert_nothing_internal(reply.body)
    assert service.predict(GOOD).json == {"predictions": [[1.0]]}


def assert_nothing_internal(body: bytes) -> None:
    text = body.decode()
    for word in ("Traceback", 'File "', ".py", "127.0.0.1", "localhost", "http://", "/tmp", "BytesIO", " at 0x"):
        assert word not in text, word


@pytest.mark.parametrize("name", ["truncated_jpeg.jpg", "decompression_bomb.gif", "broken.png", "zero_width.gif"])
def test_awkward_pictures_over_the_wire(service: Serving, name: str) -> None:
    data = shared(f"data/awkward-images/{name}").read_bytes()
    reply = service.predict(GOOD, {"b64": b64(data)})
    assert (reply.status, reply.json["instance"]) == (400, 1)
    assert service.predict(GOOD).status == 200


def test_a_body_over_the_limit_is_413_whether_it_says_so_or_not(service: Serving) -> None:
    declared = service.running.url.removeprefix("http://").split(":")
    with socket.create_connection((declared[0], int(declared[1])), timeout=30) as connection:
        connection.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 67108865\r\n\r\n{")
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the body is longer than 67108864 bytes" in answer
    assert service.predict(GOOD).status == 200
    with pair(YAML, plane=picture_plane(classes=1), max_body_bytes=1000) as (small, _):
        chunks = iter([b"x" * 600] * 2)
        reply = call(small.running.url, "POST", "/v1/models/m:predict", chunks)
        assert (reply.status, reply.json["code"]) == (413, "TOO_LARGE")
        assert small.predict(GOOD).status == 200


def test_an_unknown_model(service: Serving) -> None:
    reply = service.post({"instances": [GOOD]}, model="other")
    assert (reply.status, reply.json["code"]) == (404, "NOT_FOUND")
    assert "Model with name other does not exist; there are m" in reply.json["error"]
    assert service.get("/v1/models/other").status == 404
    assert service.get("/v2/models/other/ready").status == 404
    assert len(service.post(b"{}", model="x" * 4000).body) < 500


def test_other_routes_and_methods(service: Serving) -> None:
    assert service.get("/").json == {"status": "alive"}
    assert service.get("/v1/models").json == {"models": ["m"]}
    assert service.get("/v1/models/m").json == {"name": "m", "ready": True}
    assert service.get("/v2/health/live").json == {"live": True}
    assert service.get("/v2/health/ready").json == {"ready": True}
    assert service.get("/v2/models/m/ready").json == {"name": "m", "ready": True}
    assert service.get("/v2").json["name"] == "tandem-transformer"
    assert service.get("/v2/models/m").json["inputs"] == []
    assert service.get("/v2/models/m/config").status == 501
    assert service.get("/v2/models/m/versions/1").status == 404
    assert service.get("/nothing").status == 404
    assert service.get("/v1/models/m:predict").status == 405
    assert call(service.running.url, "POST", "/v1/models/m:explain", b"{}").status == 501
    v2 = call(service.running.url, "POST", "/v2/models/m/infer", b'{"inputs": []}')
    assert v2.status == 501
    assert "POST /v1/models/m:predict" in v2.json["error"]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
        "text/plain",
        "",
    ],
)
def test_json_is_read_whatever_it_is_called(service: Serving, content_type: str) -> None:
    assert service.post({"instances": [GOOD]}, {"Content-Type": content_type}).status == 200


@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=x", "video/mp4"])
def test_what_cannot_be_json_is_415(service: Serving, content_type: str) -> None:
    reply = service.post(b"\x89PNG", {"Content-Type": content_type})
    assert (reply.status, reply.json["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert "send JSON with the picture in base64" in reply.json["error"]


def test_every_answer_carries_its_id_and_its_times(service: Serving) -> None:
    reply = service.predict(GOOD, **{"x-request-id": "abc-1"})
    assert reply.headers["x-request-id"] == "abc-1"
    stages = [part.split(";")[0] for part in reply.headers["server-timing"].split(", ")]
    assert stages == ["read", "parse", "preprocess", "predict", "postprocess", "encode", "finish", "total"]
    assert 'desc="hop ' in reply.headers["server-timing"]
    assert reply.headers["content-type"] == "application/json"


def test_kserves_histograms(service: Serving) -> None:
    service.predict(GOOD)
    text = service.get("/metrics").body.decode()
    for stage in ("preprocess", "predict", "postprocess"):
        assert f'request_{stage}_seconds_count{{model_name="m"}}' in text
    assert "# TYPE request_explain_seconds histogram" in text


def test_an_answer_that_json_cannot_carry_is_our_error_and_no_traceback() -> None:
    from kserve_transformer.transformer import Transformer

    class Odd(Transformer):
        def postprocess_instance(self, outputs: Any, instance: Any) -> Any:
            return {"set": {1, 2}, "nan": float("nan")}[instance["answer"]]

    with pair(transformer=Odd) as (served, _):
        reply = served.predict({**GOOD, "answer": "set"})
        assert (reply.status, reply.json["code"]) == (500, "INTERNAL")
        assert "JSON" in reply.json["error"]
        assert_nothing_internal(reply.body)
        reply = served.predict({**GOOD, "answer": "nan"})
        assert (reply.status, reply.json["error"]) == (
            500,
            "the answer holds NaN or infinity at .predictions[0], which JSON cannot carry",
        )


def test_several_models_in_one_process() -> None:
    from serving import serving

    with serving(picture_plane(name="a")) as first, serving(picture_plane(name="b", classes=1)) as second:
        yaml = "image: {resize: {height: 4, width: 4}}\npredictor: {model: %s}\nmodel_name: %s"
        transformers = [make_named(first.url, yaml % ("a", "x")), make_named(second.url, yaml % ("b", "y"))]
        metrics = ServerMetrics()
        plane = TransformerDataPlane(transformers, threads=1, metrics=metrics)
        with serving(plane, metrics=metrics, routes=plane.routes) as running:
            for transformer in transformers:
                Serving(running, transformer).wait()
            served = Serving(running, transformers[0])
            assert served.get("/v1/models").json == {"models": ["x", "y"]}
            assert served.post({"instances": [GOOD]}, model="x").json == {"predictions": [[1.0] * 4]}
            assert served.post({"instances": [GOOD]}, model="y").json == {"predictions": [[1.0]]}
            assert served.get("/v2/health/ready").status == 200


def make_named(host: str, yaml: str) -> Any:
    from kserve_transformer.config import parse_config
    from kserve_transformer.transformer import Transformer

    return Transformer(parse_config(yaml, overrides={"predictor.host": host}))


def test_ready_means_every_model() -> None:
    from serving import serving

    with serving(picture_plane(name="a")) as first:
        good = make_named(first.url, "model_name: a\nimage: {center_crop: 4}")
        bad = make_named(first.url, "model_name: b\nimage: {center_crop: 4}")
        metrics = ServerMetrics()
        plane = TransformerDataPlane([good, bad], threads=1, metrics=metrics)
        with serving(plane, metrics=metrics, routes=plane.routes) as running:
            for transformer in (good, bad):
                Serving(running, transformer).wait()
            served = Serving(running, good)
            assert served.get("/v2/health/ready").status == 503
            assert served.get("/v2/health/live").status == 200
            assert served.get("/v1/models/a").status == 200
            reply = served.get("/v1/models/b")
            assert reply.status == 503
            assert "the transformer calls model 'b', the predictor has none of that name" in reply.json["error"]
            assert served.post({"instances": [GOOD]}, model="a").status == 200
            assert served.post({"instances": [GOOD]}, model="b").status == 503


@pytest.mark.parametrize("key", ["image_bytes", "image"])
def test_kserves_sample_picture_becomes_kserves_sample_tensor(key: str) -> None:
    """The cat of KServe's CIFAR-10 sample, and the exact tensor that its own documents post."""
    folder = shared("data/kserve-torchscript-sample")
    instance = json.loads((folder / "image.json").read_text())["instances"][0]
    tensor = json.loads((folder / "input.json").read_text())["inputs"][0]
    yaml = "image: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], center_crop: 32}\noutput: {response: outputs}\n"
    plane = picture_plane(side=32, max_batch_size=1)
    with pair(yaml, plane=plane) as (served, _):
        reply = served.predict({key: instance["image"]})
        assert reply.status == 200
        assert list(reply.json) == ["OUTPUT__0"]
        (request,) = plane.requests
        expected = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
        np.testing.assert_array_equal(request.inputs[0].array, expected)


def test_a_transformer_can_be_made_before_there_is_a_predictor() -> None:
    with transforming(make("127.0.0.1:9"), wait=False) as served:
        assert served.get("/v2/health/live").status == 200
