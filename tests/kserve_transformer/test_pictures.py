"""Pictures: the geometry against torchvision's, the numbers, orientations, modes, limits, and files that are none."""

import contextlib
import random
import struct
import subprocess
import sys
import time
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from transforming import encoded, shared

from kserve_transformer.config import ImageSection
from kserve_transformer.pictures import ORIENTATION, PictureReader, Plan, normalisation_tables, plan
from oip.errors import InvalidArgument

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def section(**values: Any) -> ImageSection:
    return ImageSection.model_validate(values)


def pixels(data: bytes, **values: Any) -> np.ndarray:
    """What the reader makes of a file, as bytes again: [H, W, C]."""
    made = PictureReader(section(**values)).read(data)
    return np.rint(made * 255).astype(np.uint8).transpose(1, 2, 0)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def scene(width: int, height: int) -> Image.Image:
    """Slopes and hard edges, as photos have."""
    y, x = np.mgrid[0:height, 0:width]
    edges = ((x * 7 // max(width, 1) + y * 5 // max(height, 1)) % 2) * 90
    planes = [x * 160 // max(width, 1) + edges, y * 160 // max(height, 1) + edges, (x + y) % 256]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


# --- geometry ---------------------------------------------------------------------------------------------------------

SIZES = [
    (224, 224),
    (256, 256),
    (255, 257),
    (451, 300),
    (300, 451),
    (640, 480),
    (481, 640),
    (1000, 333),
    (97, 1024),
    (37, 41),
    (3, 5),
    (1, 1),
    (1, 300),
    (4001, 31),
]


@pytest.mark.parametrize("picture", [scene, noise])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_resize_and_crop_are_torchvisions(width: int, height: int, interpolation: str, picture: Any) -> None:
    shorter_side, crop = 73, 64
    image = picture(width, height)
    steps = transforms.Compose(
        [transforms.Resize(shorter_side, InterpolationMode(interpolation)), transforms.CenterCrop(crop)]
    )
    expected = np.asarray(steps(image)).astype(int)
    ours = pixels(
        encoded(image, "BMP"),
        resize={"shorter_side": shorter_side, "interpolation": interpolation},
        center_crop=crop,
    ).astype(int)
    difference = np.abs(ours - expected)
    assert difference.max() <= 4
    assert (difference <= 1).mean() >= 0.999


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    side=st.integers(1, 120),
    share=st.floats(0, 1),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
@settings(max_examples=150, deadline=None)
def test_the_plan_equals_resizing_all_and_then_cropping(
    width: int, height: int, side: int, share: float, interpolation: str
) -> None:
    crop = max(1, round(side * share))
    values = section(resize={"shorter_side": side, "interpolation": interpolation}, center_crop=crop)
    resized = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    image = noise(width, height)
    left, top = round((resized[0] - crop) / 2), round((resized[1] - crop) / 2)
    whole = image.resize(resized, Image.Resampling[interpolation.upper()])
    expected = np.asarray(whole.crop((left, top, left + crop, top + crop))).astype(int)
    made = np.rint(PictureReader(values).read(encoded(image, "BMP")) * 255).astype(int).transpose(1, 2, 0)
    assert made.shape == expected.shape
    assert np.abs(made - expected).max() <= 2


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600), st.floats(0, 1))
@settings(max_examples=500, deadline=None)
def test_a_plan_never_leaves_the_picture(width: int, height: int, side: int, share: float) -> None:
    crop = max(1, round(side * share))
    steps = plan(width, height, section(resize={"shorter_side": side}, center_crop=crop))
    left, top, right, bottom = steps.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert (steps.width, steps.height) == (crop, crop)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Plan((50, 30), (0, 0, 50, 30), False)),
        ({"resize": {"height": 30, "width": 50}}, Plan((50, 30), (0, 0, 50, 30), False)),
        ({"resize": {"height": 7, "width": 9}}, Plan((9, 7), (0, 0, 50, 30), True)),
        ({"resize": {"shorter_side": 15}}, Plan((25, 15), (0, 0, 50, 30), True)),
        ({"center_crop": 20}, Plan((50, 30), (0, 0, 50, 30), False, (15, 5, 35, 25))),
        ({"center_crop": {"height": 30, "width": 50}}, Plan((50, 30), (0, 0, 50, 30), False)),
        ({"resize": {"shorter_side": 15}, "center_crop": 15}, Plan((15, 15), (10, 0, 40, 30), True)),
        (
            {"resize": {"shorter_side": 15, "interpolation": "bicubic"}, "center_crop": 15},
            Plan((25, 15), (0, 0, 50, 30), True, (5, 0, 20, 15)),
        ),
    ],
)
def test_plans(values: dict[str, Any], expected: Plan) -> None:
    assert plan(50, 30, section(**values)) == expected


def test_crops_that_lie_between_pixels_start_at_the_even_one_as_torchvisions_do() -> None:
    image = noise(9, 8)
    for crop in (2, 3, 4, 5, 6, 7, 8):
        expected = np.asarray(transforms.CenterCrop(crop)(image))
        np.testing.assert_array_equal(pixels(encoded(image), center_crop=crop), expected)


def test_a_picture_smaller_than_the_crop_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="the picture is 9x8 pixels after resizing, smaller than the crop of 9x9"):
        plan(9, 8, section(center_crop=9))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_narrow_picture_makes_no_gigapixels(interpolation: str) -> None:
    data = encoded(Image.new("L", (1, 40_000)))
    values = {"resize": {"shorter_side": 256, "interpolation": interpolation}}
    with pytest.raises(InvalidArgument, match="would be 256x10240000 pixels after resizing, more than the limit of"):
        pixels(data, **values)
    if interpolation in ("bilinear", "hamming"):  # the part that is kept is all that is computed
        assert pixels(data, center_crop=224, **values).shape == (224, 224, 3)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((), ()),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.498, 0.498, 0.498), (0.502, 0.502, 0.502)),
        ((0.5, 0.5, 0.5), ()),
        ((), (1 / 255, 1 / 255, 1 / 255)),
        ((-3.0, 0.0, 200.0), (1e-6, 1e6, 2.0)),
    ],
)
def test_values_are_normalised_to_float32_rounding(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels] * 3, axis=-1))
    made = PictureReader(section(mean=mean, std=std)).read(encoded(image))
    for channel in range(3):
        m, s = (mean or (0, 0, 0))[channel], (std or (1, 1, 1))[channel]
        rounding = np.finfo(np.float32).eps * max(1, abs(m)) / s
        np.testing.assert_allclose(made[channel], (levels / 255 - m) / s, rtol=3e-7, atol=rounding)
    assert made.dtype == np.float32
    assert made.flags.c_contiguous


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5), (0.498039, 0.1307, 1 / 3)])
def test_the_numbers_are_torchvisions_to_the_last_bit(mean: tuple[float, ...]) -> None:
    std = (0.229, 0.5, 0.501961)
    image = noise(40, 30)
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    made = PictureReader(section(mean=mean, std=std)).read(encoded(image))
    np.testing.assert_array_equal(made, steps(image).numpy())


def test_tables_are_one_a_channel() -> None:
    assert [table.shape for table in normalisation_tables(section())] == [(256,)] * 3
    assert len(normalisation_tables(section(mode="L", mean=[0.1]))) == 1


def test_a_picture_is_written_into_its_row_and_nowhere_else() -> None:
    reader = PictureReader(section(resize={"height": 4, "width": 5}))
    buffer = np.full((3, *reader.shape), 7, dtype=np.float32)  # type: ignore[misc]
    made = reader.read(encoded(noise(9, 9)), buffer[1])
    assert made.base is buffer
    assert (buffer[[0, 2]] == 7).all()
    np.testing.assert_array_equal(buffer[1], reader.read(encoded(noise(9, 9))))


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ({}, None),
        ({"resize": {"shorter_side": 9}}, None),
        ({"resize": {"height": 3, "width": 4}}, (3, 3, 4)),
        ({"resize": {"shorter_side": 9}, "center_crop": {"height": 5, "width": 6}, "mode": "L"}, (1, 5, 6)),
    ],
)
def test_the_shape_is_known_beforehand_where_it_can_be(values: dict[str, Any], shape: Any) -> None:
    reader = PictureReader(section(**values))
    assert reader.shape == shape
    assert shape is None or reader.read(encoded(noise(20, 12))).shape == shape


# --- orientation ------------------------------------------------------------------------------------------------------

HELD = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}
"""How the upright picture lies in the file, by orientation."""


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", HELD)
def test_every_orientation_gives_the_upright_picture(orientation: int, format: str) -> None:
    upright = np.asarray(scene(24, 16))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encoded(Image.fromarray(HELD[orientation](upright).copy()), format, exif=exif, **lossless.get(format, {}))
    made = pixels(data)
    assert made.shape == upright.shape
    assert np.abs(made.astype(int) - upright).max() <= (6 if format == "JPEG" else 0)


@pytest.mark.parametrize("value", [0, 9, 77, 65535])
def test_an_orientation_that_is_none_changes_nothing(value: Any) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    image = scene(8, 6)
    np.testing.assert_array_equal(pixels(encoded(image, "PNG", exif=exif)), np.asarray(image))


def test_orientation_comes_before_resize_and_crop() -> None:
    upright = scene(60, 30)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    values = {"resize": {"shorter_side": 20}, "center_crop": {"height": 10, "width": 30}}
    np.testing.assert_array_equal(pixels(turned, **values), pixels(encoded(upright), **values))


# --- modes ------------------------------------------------------------------------------------------------------------


def grey(levels: np.ndarray, image: Image.Image, format: str, **options: Any) -> np.ndarray:
    """The picture as mode L, and the same through RGB."""
    data = encoded(image, format, **options)
    made = pixels(data, mode="L")[:, :, 0]
    np.testing.assert_array_equal(pixels(data), np.stack([made] * 3, axis=-1))
    return made


def test_8_bit_grey_and_1_bit() -> None:
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    np.testing.assert_array_equal(grey(levels, Image.fromarray(levels), "PNG"), levels)
    bits = levels > 100
    np.testing.assert_array_equal(grey(levels, Image.fromarray(bits), "PNG"), bits * np.uint8(255))


@pytest.mark.parametrize(
    ("dtype", "format"), [(np.uint16, "PNG"), (np.uint16, "TIFF"), (">u2", "TIFF"), (np.int32, "TIFF")]
)
def test_16_bit_grey_keeps_its_high_byte(dtype: Any, format: str) -> None:
    levels = (np.arange(256) * 257).reshape(16, 16).astype(dtype)
    np.testing.assert_array_equal(
        grey(levels, Image.fromarray(levels), format), np.arange(256, dtype=np.uint8).reshape(16, 16)
    )


def test_floats_are_0_to_1_and_nothing_else_warns() -> None:
    values = np.array([[0, 0.5, 1, 2, -1, np.nan, np.inf, -np.inf]], dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = grey(values, Image.fromarray(values), "TIFF")
    assert made.tolist() == [[0, 128, 255, 255, 0, 0, 255, 0]]


def test_transparency_shows_the_background() -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = (0, 255, 128)
    data = encoded(Image.fromarray(rgba))
    assert pixels(data).tolist() == [[[255, 255, 255], [200, 0, 0], [227, 127, 127]]]
    assert pixels(data, background=[0, 0, 250])[0, 0].tolist() == [0, 0, 250]
    assert pixels(data, mode="L", background=[10, 10, 10])[0, 0].tolist() == [10]


def test_grey_with_alpha() -> None:
    la = np.array([[[90, 0], [90, 255]]], dtype=np.uint8)
    data = encoded(Image.fromarray(la))
    assert pixels(data).tolist() == [[[255] * 3, [90] * 3]]


def test_palettes_with_and_without_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    colours = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    assert pixels(encoded(image)).tolist() == [colours]
    assert pixels(encoded(image, "GIF")).tolist() == [colours]
    white = [[255] * 3, *colours[1:]]
    assert pixels(encoded(image, "GIF", transparency=0)).tolist() == [white]
    assert pixels(encoded(image, "PNG", transparency=0)).tolist() == [white]
    assert pixels(encoded(image, "PNG", transparency=b"\x00\xff\xff")).tolist() == [white]


def test_pa() -> None:
    image = Image.new("PA", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), (0, 0))
    image.putpixel((1, 0), (1, 255))
    reader = PictureReader(section())
    assert np.asarray(reader._in_mode(image)).tolist() == [[[255] * 3, [40, 50, 60]]]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_one_transparent_colour_shows_the_background_even_in_the_mode_that_is_wanted(mode: str) -> None:
    image = Image.new(mode, (2, 1), 60 if mode == "L" else (60, 60, 60))
    image.putpixel((0, 0), 7 if mode == "L" else (7, 7, 7))
    data = encoded(image, transparency=7 if mode == "L" else (7, 7, 7))
    assert pixels(data, mode=mode)[0, :, 0].tolist() == [255, 60]


def test_one_transparent_level_of_16_bits() -> None:
    image = Image.fromarray(np.array([[0x0707, 0x0708]], dtype=np.uint16))
    assert pixels(encoded(image, transparency=0x0707), mode="L")[0, :, 0].tolist() == [255, 7]


def test_cmyk() -> None:
    image = scene(16, 16)
    data = encoded(image.convert("CMYK"), "TIFF")
    assert np.abs(pixels(data).astype(int) - np.asarray(image)).max() <= 2


def test_lab() -> None:
    assert pixels(encoded(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF")).min() >= 253


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    data = encoded(
        frames[0], format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]


# --- limits and damage ------------------------------------------------------------------------------------------------


def test_only_listed_formats_are_tried() -> None:
    data = encoded(noise(4, 4), "BMP")
    with pytest.raises(InvalidArgument, match="not a picture that can be read; it must be one of PNG, JPEG"):
        pixels(data, limits={"formats": ["PNG", "JPEG"]})
    with pytest.raises(InvalidArgument, match="not a picture"):
        pixels(encoded(noise(4, 4), "PPM"))
    with pytest.raises(InvalidArgument, match="not a picture"):
        pixels(encoded(noise(4, 4), "ICO"))


def test_the_bytes_of_a_picture_are_bounded() -> None:
    data = encoded(noise(4, 4))
    assert pixels(data, limits={"bytes": len(data)}).shape == (4, 4, 3)
    with pytest.raises(
        InvalidArgument, match=f"the picture has {len(data)} bytes, more than the limit of {len(data) - 1}"
    ):
        pixels(data, limits={"bytes": len(data) - 1})


def test_the_pixels_of_a_picture_are_bounded() -> None:
    data = encoded(noise(5, 4))
    assert pixels(data, limits={"pixels": 20}).shape == (4, 5, 3)
    with pytest.raises(InvalidArgument, match="the picture is 5x4 pixels, more than the limit of 19 pixels"):
        pixels(data, limits={"pixels": 19})


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"hello, this is a text file\n" * 9, b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"]
)
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="not a picture that can be read; it must be one of JPEG, PNG,"):
        pixels(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
def test_a_picture_that_is_cut_short(format: str) -> None:
    data = encoded(noise(40, 40), format)
    with pytest.raises(InvalidArgument) as caught:
        pixels(data[: len(data) // 2])
    assert "BytesIO" not in caught.value.message
    assert format in caught.value.message


def png(width: int, height: int, depth: int = 1, chunks: bytes = b"") -> bytes:
    """A PNG of one level: as few bytes as possible for its pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width * depth + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunks + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Small files that claim to be large."""
    text = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(60_000_000), 9)
    side = struct.pack("<I", 16_383)[:3]
    jpeg = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 65_000, 65_000)
    bmp = bytearray(encoded(Image.new("RGB", (8, 8)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    tiff = bytearray(encoded(Image.new("RGB", (8, 8)), "TIFF"))
    for tag in (256, 257):
        place = (
            tiff.index(struct.pack("<HH", tag, 4))
            if struct.pack("<HH", tag, 4) in tiff
            else tiff.index(struct.pack("<HH", tag, 3))
        )
        tiff[place : place + 12] = struct.pack("<HHII", tag, 4, 1, 60_000)
    return {
        "gif": b"GIF89a"
        + struct.pack("<HH", 65_535, 65_535)
        + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
        "png": png(13_000, 13_000),
        "png text": png(1, 1, 8, struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))),
        "webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + side + side,
        "jpeg": bytes(jpeg),
        "bmp": bytes(bmp),
        "tiff": bytes(tiff),
    }


MEASURE = """
import resource, sys
from kserve_transformer.config import ImageSection
from kserve_transformer.pictures import PictureReader
from oip.errors import InvalidArgument
from PIL import Image
Image.init()
data = sys.stdin.buffer.read()
reader = PictureReader(ImageSection.model_validate({"resize": {"shorter_side": 256}, "center_crop": 224}))
pieces = [data[int(a):int(b)] for a, b in (pair.split("-") for pair in sys.argv[1:])]
for piece in pieces:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        reader.read(piece)
    except InvalidArgument as error:
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error.message)
"""


def test_bombs_are_refused_and_cost_no_memory() -> None:
    """In a process of its own, since only the highest memory a process ever had can be asked for."""
    named = bombs()
    bounds, end = [], 0
    for data in named.values():
        bounds.append(f"{end}-{end + len(data)}")
        end += len(data)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *bounds], input=b"".join(named.values()), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert len(lines) == len(named)
    for name, line in zip(named, lines, strict=True):
        grown, message = line.split(" ", 1)
        assert int(grown) < 16, f"{name} cost {grown} MiB"
        if name not in ("png text", "webp"):
            assert "pixels" in message, name
    assert time.monotonic() - began < 20


NAMES = [
    "broken.png",
    "decompression_bomb.gif",
    "exif_imagemagick_orientation.png",
    "flower.webp",
    "hopper_bad_exif.jpg",
    "hopper_orientation_2.jpg",
    "hopper_orientation_3.jpg",
    "hopper_orientation_5.jpg",
    "hopper_orientation_6.jpg",
    "hopper_orientation_6.webp",
    "hopper_orientation_8.jpg",
    "i_trns.png",
    "pil_sample_cmyk.jpg",
    "png_decompression_dos.png",
    "truncated_image.png",
    "truncated_jpeg.jpg",
    "unknown_compression_method.png",
    "zero_width.gif",
]
REFUSED = {
    "broken.png",
    "decompression_bomb.gif",
    "png_decompression_dos.png",
    "truncated_image.png",
    "truncated_jpeg.jpg",
    "unknown_compression_method.png",
    "zero_width.gif",
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", NAMES)
def test_awkward_pictures(name: str) -> None:
    data = shared(f"data/awkward-images/{name}").read_bytes()
    reader = PictureReader(section(resize={"shorter_side": 64}, center_crop=64))
    if name in REFUSED:
        with pytest.raises(InvalidArgument) as caught:
            reader.read(data)
        assert "BytesIO" not in caught.value.message
    else:
        made = reader.read(data)
        assert made.shape == (3, 64, 64)
        assert np.isfinite(made).all()
        assert made.std() > 0.05  # something can be seen


@pytest.mark.parametrize(
    "name",
    [
        "hopper_orientation_2.jpg",
        "hopper_orientation_3.jpg",
        "hopper_orientation_5.jpg",
        "hopper_orientation_8.jpg",
        "hopper_orientation_6.webp",
    ],
)
def test_the_same_person_stands_upright(name: str) -> None:
    folder = shared("data/awkward-images")
    reference = pixels((folder / "hopper_orientation_6.jpg").read_bytes()).astype(int)
    assert np.abs(pixels((folder / name).read_bytes()).astype(int) - reference).mean() < 6


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_give_a_picture_or_are_refused(format: str) -> None:
    chance = random.Random(format)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options = {"exif": exif} if format in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    good = encoded(scene(48, 36), format, **options)
    reader = PictureReader(section(resize={"shorter_side": 16}, center_crop=16, limits={"pixels": "1M"}))
    for _ in range(250):
        data = bytearray(good)
        if chance.random() < 0.4:
            del data[chance.randrange(len(data)) :]
        for _ in range(chance.randint(0, 8)):
            if data:
                # headers are where the damage does most
                end = len(data) if chance.random() < 0.5 else min(len(data), 64)
                data[chance.randrange(end)] = chance.randrange(256)
        with contextlib.suppress(InvalidArgument):
            assert reader.read(bytes(data)).shape == (3, 16, 16)


def test_a_reader_serves_several_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    reader = PictureReader(section(resize={"shorter_side": 20}, center_crop=16))
    files = [encoded(noise(40, 30, seed)) for seed in range(8)]
    expected = [reader.read(data) for data in files]
    with ThreadPoolExecutor(4) as pool:
        for index, made in enumerate(pool.map(reader.read, files * 4)):
            np.testing.assert_array_equal(made, expected[index % 8])


def test_reading_leaves_no_file_open() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in FORMATS:
            PictureReader(section()).read(encoded(noise(4, 4), format))
