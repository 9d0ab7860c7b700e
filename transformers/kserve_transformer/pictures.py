"""From the bytes of a picture to normalised numbers: decode, orient, mode, resize, crop, normalise.

Knows Pillow and numpy; knows no HTTP, no JSON and no predictor.  The geometry is a pure function
(`plan`), the pixels are one small class (`PictureReader`).  Rules that must agree with training:

- the shorter side becomes `shorter_side` and the longer follows, rounded down, as torchvision does;
- the centre crop starts at round((side - crop) / 2), half to even, as torchvision does;
- resizing antialiases, as Pillow (and torchvision on a Pillow image) does;
- a value is (x / 255 - mean) / std, in float32.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from kserve_transformer.config import ImageSection
from oip.errors import InvalidArgument

ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """One resampling: the part `box` (left, top, right, bottom, in source pixels) becomes `width` x `height`."""

    width: int
    height: int
    box: tuple[float, float, float, float]

    @property
    def is_identity(self) -> bool:
        return self.box == (0, 0, self.width, self.height)


def plan(width: int, height: int, section: ImageSection) -> Plan:
    """Resize and crop of a picture of the given size, fused into one resampling.

    Cropping the result of a resize and resizing the part that would be left give the same pixels
    (the filter sees the same neighbours), and the second never computes what is thrown away.

    Raises:
        InvalidArgument: the picture is smaller than the crop.
    """
    resized_width, resized_height = width, height
    if section.resize is not None:
        if section.resize.shorter_side is not None:
            side = section.resize.shorter_side
            if width <= height:
                resized_width, resized_height = side, int(side * height / width)
            else:
                resized_width, resized_height = int(side * width / height), side
        else:
            resized_width, resized_height = section.resize.width or width, section.resize.height or height
    crop = section.center_crop
    if crop is None:
        return Plan(resized_width, resized_height, (0, 0, width, height))
    if crop.width > resized_width or crop.height > resized_height:
        raise InvalidArgument(
            f"the picture is {resized_width}x{resized_height} pixels after resizing, smaller than the crop of "
            f"{crop.width}x{crop.height}; send a larger one"
        )
    left = round((resized_width - crop.width) / 2)
    top = round((resized_height - crop.height) / 2)
    across, down = width / resized_width, height / resized_height
    return Plan(
        crop.width,
        crop.height,
        (left * across, top * down, (left + crop.width) * across, (top + crop.height) * down),
    )


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
        shape = plan(image.width, image.height, self._section)
        if not shape.is_identity:
            image = image.resize((shape.width, shape.height), self._resampling, box=shape.box)
        pixels = np.asarray(image)  # [H, W] or [H, W, 3], uint8
        if out is None:
            out = np.empty((self._section.channels, shape.height, shape.width), dtype=np.float32)
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
        with image:
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
                raise InvalidArgument(
                    f"the picture ({image.format} {width}x{height}) is damaged or cut short"
                ) from None

    def _in_mode(self, image: Image.Image) -> Image.Image:
        mode = self._section.mode
        if image.mode == mode:
            return image
        if image.mode.startswith("I") or image.mode == "F":
            image = _to_8_bits(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            opaque = Image.new("RGBA", image.size, (*self._section.background, 255))
            image = Image.alpha_composite(opaque, image.convert("RGBA"))
        return image if image.mode == mode else image.convert(mode)


def normalisation_tables(section: ImageSection) -> list[np.ndarray]:
    """For each channel, what every byte becomes: float32 [256].

    A table lookup costs less than the arithmetic and is exact: each entry is computed in float64 and
    rounded once.
    """
    levels = np.arange(256, dtype=np.float64) / 255
    mean = section.mean or (0.0,) * section.channels
    std = section.std or (1.0,) * section.channels
    return [((levels - m) / s).astype(np.float32) for m, s in zip(mean, std, strict=True)]


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation asks; damaged EXIF data count as none."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit and 32-bit grey as 8 bits: the high byte is kept, where Pillow's convert() would saturate.

    Pillow reads a 16-bit PNG as I;16 or, with palette tricks, as I; floating point TIFFs are taken as 0..1.
    """
    values = np.asarray(image)
    levels = np.clip(values, 0.0, 1.0) * 255 if image.mode == "F" else np.clip(values, 0, 65535) / 256
    return Image.fromarray(levels.astype(np.uint8))
