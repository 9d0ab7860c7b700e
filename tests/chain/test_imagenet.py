"""The demo's model and photo: one picture keeps its class in whatever form it comes; bad input is named."""

import base64
import io
import json
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import Chain, call, chain, free_port, predictor, transformer, wait_until

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "examples" / "photos" / "coffee.png"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import importlib.util

    from tandem.export import export

    spec = importlib.util.spec_from_file_location("imagenet_model", ROOT / "examples" / "imagenet" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    folder = tmp_path_factory.mktemp("imagenet")
    export(model.create, folder / "models", "efficientnet_lite0", [3, 224, 224], method="trace")
    from torchvision.models import MobileNet_V2_Weights

    (folder / "labels.txt").write_text("\n".join(MobileNet_V2_Weights.DEFAULT.meta["categories"]))
    (folder / "transformer.yaml").write_text((ROOT / "examples" / "imagenet" / "transformer.yaml").read_text())
    return folder


@pytest.fixture(scope="module")
def imagenet(repository: Path) -> Iterator[Chain]:
    with chain("efficientnet_lite0", repository / "models", repository / "transformer.yaml", repository) as running:
        yield running


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def instance(picture: bytes) -> dict[str, Any]:
    return {"image_bytes": {"b64": base64.b64encode(picture).decode()}}


def grey_16_bits(photo: Image.Image) -> bytes:
    return encoded(Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257), "PNG")


def lying_on_its_side(photo: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown upright once rotated by 90 degrees clockwise
    return encoded(photo.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


FORMS = {
    "as it is": lambda photo: PHOTO.read_bytes(),
    "16-bit grey PNG": grey_16_bits,
    "CMYK JPEG": lambda photo: encoded(photo.convert("CMYK"), "JPEG", quality=95),
    "palette PNG": lambda photo: encoded(photo.quantize(256), "PNG"),
    "RGBA PNG": lambda photo: encoded(photo.convert("RGBA"), "PNG"),
    "EXIF-rotated JPEG": lying_on_its_side,
    "WebP": lambda photo: encoded(photo, "WEBP"),
    "BMP": lambda photo: encoded(photo, "BMP"),
    "TIFF": lambda photo: encoded(photo, "TIFF"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_cup_of_espresso_stays_one(imagenet: Chain, form: str) -> None:
    with Image.open(PHOTO) as photo:
        picture = FORMS[form](photo.convert("RGB"))
    answer = imagenet.predict({"instances": [instance(picture)]})
    assert answer.status == 200, answer.body
    (best, *others) = answer.json["predictions"][0]
    assert best["label"] == "espresso"
    assert len(others) == 4
    assert 1 >= best["score"] > others[0]["score"]


def test_the_times_of_an_answer_add_up(imagenet: Chain) -> None:
    from oip.timing import parse_header

    stages = parse_header(imagenet.predict({"instances": [instance(PHOTO.read_bytes())]}).headers["server-timing"])
    total = stages.pop("total")[0]
    assert sum(milliseconds for milliseconds, _ in stages.values()) == pytest.approx(total, abs=0.02)
    assert {"read", "parse", "preprocess", "predict", "postprocess", "encode"} <= stages.keys()
    assert "compute" in stages["predict"][1]


# --- bad input --------------------------------------------------------------------------------------------------------

GIGAPIXEL_GIF = (
    b"GIF89a"
    + (65535).to_bytes(2, "little") * 2
    + b"\x80\x00\x00"
    + b"\x00" * 6
    + (b"\x2c" + b"\x00" * 4 + (65535).to_bytes(2, "little") * 2 + b"\x00\x02\x02\x44\x01\x00\x3b")
)


def truncated_jpeg() -> bytes:
    with Image.open(PHOTO) as photo:
        return encoded(photo.convert("RGB"), "JPEG")[:5000]


def png_of_zeros() -> bytes:
    """A small PNG that decodes to more pixels than the limit."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = 13000
    header = side.to_bytes(4, "big") * 2 + b"\x01\x00\x00\x00\x00"
    rows = zlib.compress(b"\x00" * (side * (1 + (side + 7) // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


GOOD = instance(PHOTO.read_bytes())

BAD = {
    "no instances": (json.dumps({"pictures": []}).encode(), 400, None, "instances"),
    "empty instances": (b'{"instances": []}', 400, None, "empty"),
    "instances is a string": (b'{"instances": "photo"}', 400, None, "list"),
    "the body is a string": (b'"photo"', 400, None, "object"),
    "not JSON": (b"photo", 400, None, "JSON"),
    "an instance is a string": (json.dumps({"instances": [GOOD, "photo"]}).encode(), 400, 1, "picture"),
    "bad base64": (json.dumps({"instances": [GOOD, {"b64": "%%%%"}]}).encode(), 400, 1, "base64"),
    "truncated JPEG": (json.dumps({"instances": [instance(truncated_jpeg())]}).encode(), 400, 0, "damaged"),
    "a text file": (json.dumps({"instances": [GOOD, GOOD, instance(b"hello " * 50)]}).encode(), 400, 2, "picture"),
    "44 bytes that claim 4.4 gigapixels": (
        json.dumps({"instances": [instance(GIGAPIXEL_GIF)]}).encode(), 400, 0, "pixels",
    ),
    "169 megapixels of zeros": (json.dumps({"instances": [instance(png_of_zeros())]}).encode(), 400, 0, "pixels"),
    "20 MB of zeros": (
        json.dumps({"instances": [instance(bytes(20_000_000))]}).encode(), 400, 0, "10485760",
    ),
    "257 instances": (json.dumps({"instances": [{}] * 257}).encode(), 400, None, "256"),
    "over 64 MiB": (b'{"instances": ["' + b"A" * (64 * 2**20) + b'"]}', 413, None, "67108864"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_the_next_request_is_answered(imagenet: Chain, case: str) -> None:
    body, status, index, word = BAD[case]
    answer = imagenet.predict(body)
    assert answer.status == status, answer.body[:500]
    assert answer.json.get("instance") == index
    assert word in answer.json["error"]
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    text = answer.body.decode()
    assert "Traceback" not in text
    assert "127.0.0.1" not in text
    assert " at 0x" not in text
    assert imagenet.predict({"instances": [GOOD]}).status == 200


def test_an_unknown_model(imagenet: Chain) -> None:
    answer = call(imagenet.transformer.port, "POST", "/v1/models/nope:predict", b"{}")
    assert answer.status == 404
    assert "nope" in answer.json["error"]


def test_a_predictor_that_goes_away_is_503_and_comes_back(repository: Path, tmp_path: Path) -> None:
    config = repository / "transformer.yaml"
    body = {"instances": [GOOD]}
    port = free_port()
    with (
        predictor(repository / "models", tmp_path / "predictor.log", port=port) as behind,
        transformer(config, tmp_path / "transformer.log", "--predictor-host", f"127.0.0.1:{port}") as front,
    ):
        running = Chain("efficientnet_lite0", front, behind)
        assert running.predict(body).status == 200
        behind.stop(signal.SIGKILL)
        answer = running.predict(body)
        assert answer.status == 503
        assert "retry-after" in answer.headers
        assert str(port) not in answer.json["error"]
        with predictor(repository / "models", tmp_path / "again.log", port=port):
            wait_until(lambda: running.predict(body).status == 200, "the chain answers again", 20)
