"""From the bytes of a picture to normalised numbers: decode, orient, mode, resize, crop, normalise.

Knows Pillow and numpy; knows no HTTP, no JSON and no predictor.  The geometry is a pure function
(`plan`), the pixels are one small class (`PictureReader`).  Rules that must agree with training:

- the shorter side becomes `shorter_side` and the longer follows, rounded down, as torchvision does;
- the centre crop starts at round((side - crop) / 2), half to even, as torchvision does;
- resizing antialiases, as Pillow (and torchvision on a Pillow image) does;
- what is transparent shows the background, and 16-bit grey keeps its high byte;
- a value is (x / 255 - mean) / std, each step in float32.
"""

import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from kserve_transformer.config import ImageSection, Resize
from oip.errors import InvalidArgument

PNG_HEAD = 24
"""Bytes of a PNG up to and with its width and height."""

ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an orientation.  Pillow's `exif_transpose` does it too, and then rewrites EXIF data nobody reads."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


_FUSED = ("bilinear", "hamming")
"""Filters whose resampling of a part gives the pixels of resizing all and cropping, within 2 of 255.

Pillow rounds to 8 bits between its two passes and starts with the cheaper one, so the part may be
done in the other order than the whole.  Filters with negative lobes turn that into visible
differences on sharp edges, and the two others pick other pixels where a position falls between two.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """Two steps: the part `box` of the source (left, top, right, bottom) becomes `size`, of which `crop` stays.

    `resamples` is false where the first would change nothing, `crop` None where all stays.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]
    resamples: bool
    crop: tuple[int, int, int, int] | None = None

    @property
    def width(self) -> int:
        return self.size[0] if self.crop is None else self.crop[2] - self.crop[0]

    @property
    def height(self) -> int:
        return self.size[1] if self.crop is None else self.crop[3] - self.crop[1]


def plan(width: int, height: int, section: ImageSection) -> Plan:
    """Resize and crop of a picture of the given size, fused into one resampling where that gives the same pixels.

    The fused form never computes what the crop throws away.

    Raises:
        InvalidArgument: the picture is smaller than the crop, or so narrow that resizing it would pass the pixel limit.
    """
    resized = _resized(width, height, section.resize)
    whole = Plan(resized, (0, 0, width, height), resamples=resized != (width, height))
    crop = section.center_crop
    if crop is None or (crop.width, crop.height) == resized:
        return _bounded(whole, section)
    if crop.width > resized[0] or crop.height > resized[1]:
        raise InvalidArgument(
            f"the picture is {resized[0]}x{resized[1]} pixels after resizing, smaller than the crop of "
            f"{crop.width}x{crop.height}; send a larger one"
        )
    left, top = round((resized[0] - crop.width) / 2), round((resized[1] - crop.height) / 2)
    right, bottom = left + crop.width, top + crop.height
    if whole.resamples and section.resize and section.resize.interpolation in _FUSED:
        across, down = width / resized[0], height / resized[1]
        box = (left * across, top * down, min(right * across, width), min(bottom * down, height))
        return Plan((crop.width, crop.height), box, resamples=True)
    return _bounded(replace(whole, crop=(left, top, right, bottom)), section)


def _resized(width: int, height: int, resize: Resize | None) -> tuple[int, int]:
    if resize is None:
        return width, height
    side = resize.shorter_side
    if side is None:
        return resize.width or width, resize.height or height
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _bounded(plan: Plan, section: ImageSection) -> Plan:
    """A picture of 1 x 50000 pixels passes every limit, and its shorter side at 256 would make 3 gigapixels of it."""
    width, height = plan.size
    if section.resize and section.resize.shorter_side and width * height > section.limits.pixels:
        raise InvalidArgument(
            f"the picture would be {width}x{height} pixels after resizing, more than the limit of "
            f"{section.limits.pixels} pixels; send one that is less narrow"
        )
    return plan


class PictureReader:
    """Reads pictures as one configuration says.  Safe to use from several threads."""

    def __init__(self, section: ImageSection) -> None:
        self._section = section
        resampling = section.resize.interpolation if section.resize else "bilinear"
        self._resampling = _RESAMPLING[resampling]
        self._tables = normalisation_tables(section)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width) of every tensor, or None where it depends on the picture."""
        section = self._section
        if section.center_crop:
            return section.channels, section.center_crop.height, section.center_crop.width
        if section.resize and section.resize.height and section.resize.width:
            return section.channels, section.resize.height, section.resize.width
        return None

    def read(self, data: bytes, out: np.ndarray | None = None) -> np.ndarray:
        """The picture as float32 [C, H, W], written into `out` where that is given.

        Raises:
            InvalidArgument: it is no picture, is damaged, or passes a limit; nothing large was allocated.
        """
        image = self._decode(data)
        steps = plan(image.width, image.height, self._section)
        if steps.resamples:
            image = image.resize(steps.size, self._resampling, box=steps.box)
        if steps.crop:
            image = image.crop(steps.crop)
        pixels = np.asarray(image)  # [H, W] or [H, W, 3], uint8
        if out is None:
            out = np.empty((self._section.channels, steps.height, steps.width), dtype=np.float32)
        for channel, table in enumerate(self._tables):
            plane = pixels if pixels.ndim == 2 else pixels[:, :, channel]
            np.take(table, plane, out=out[channel], mode="clip")  # "clip" only because "raise" buffers the output
        return out

    def _decode(self, data: bytes) -> Image.Image:
        """An upright 8-bit picture in the configured mode."""
        limits = self._section.limits
        formats = limits.formats
        if len(data) > limits.bytes:
            raise InvalidArgument(f"the picture has {len(data)} bytes, more than the limit of {limits.bytes}")
        # Pillow raises exceptions of many classes for damaged files (OSError, ValueError, SyntaxError,
        # NotImplementedError, DecompressionBombError, struct.error, ...), and their texts name memory addresses.
        try:
            image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
        except Exception as error:
            if isinstance(error, Image.DecompressionBombError):
                raise InvalidArgument(f"the picture claims more pixels than the limit of {limits.pixels}") from None
            raise InvalidArgument(f"not a picture that can be read; it must be one of {', '.join(formats)}") from None
        width, height = image.size
        if width * height > limits.pixels:
            raise InvalidArgument(
                f"the picture is {width}x{height} pixels, more than the limit of {limits.pixels} pixels"
            )
        if width == 0 or height == 0:
            raise InvalidArgument(f"the picture is {width}x{height} pixels, which is empty")
        try:
            image.load()
            return self._in_mode(_upright(image))
        except Exception:
            raise InvalidArgument(f"the picture ({image.format} {width}x{height}) is damaged or cut short") from None

    def _in_mode(self, image: Image.Image) -> Image.Image:
        mode = self._section.mode
        transparent = image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info
        if image.mode == mode and not transparent:
            return image
        if image.mode.startswith("I") or image.mode == "F":
            image = _to_8_bits(image)
        if transparent:
            opaque = Image.new("RGBA", image.size, (*self._section.background, 255))
            image = Image.alpha_composite(opaque, image.convert("RGBA"))
        return image if image.mode == mode else image.convert(mode)


def png_pixels(head: bytes) -> int | None:
    """How many pixels a PNG declares, from its first 24 bytes; None for anything else."""
    if len(head) < PNG_HEAD or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    return int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big")


def normalisation_tables(section: ImageSection) -> list[np.ndarray]:
    """For each channel, what every byte becomes: float32 [256].

    A table lookup costs less than the arithmetic.  Each step is rounded to float32, as in torchvision's
    ToTensor and Normalize: the network sees the very numbers that it was trained on.
    """
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    mean = section.mean or (0.0,) * section.channels
    std = section.std or (1.0,) * section.channels
    return [(levels - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)]


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation asks; damaged EXIF data count as none."""
    try:
        turn = _TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit and 32-bit grey as 8 bits: the high byte is kept, where Pillow's convert() would saturate.

    Pillow reads a 16-bit PNG as I;16 or, with palette tricks, as I; floating point TIFFs are taken as 0..1.
    """
    values = np.asarray(image)
    if image.mode == "F":
        levels = np.rint(np.clip(np.nan_to_num(values), 0.0, 1.0) * 255)
    else:
        levels = np.clip(values, 0, 65535) // 256
    grey = Image.fromarray(levels.astype(np.uint8))
    if isinstance(key := image.info.get("transparency"), int):
        # The colour that is transparent is named in 16 bits: several of them share a high byte, so it becomes a mask.
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey
