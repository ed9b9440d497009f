"""Picture files to pixels: the only importer of Pillow, which is imported when a model takes pictures.

What comes in is not trusted: only the listed formats are tried, the size in the file's header is checked before
anything is decoded, and whatever Pillow raises becomes one sentence.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from wherry.errors import ConfigError, MalformedMessage
from wherry.release import PictureInput
from wherry_serving.runtimes import Array, first_line

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PICTURE_TYPES = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/x-portable-pixmap": "PPM",
}
"""Content-Type -> Pillow's name. The format is found in the bytes: a PNG sent as image/jpeg is a PNG."""
MOST_PIXELS = 40_000_000
"""Of one picture: 120 MB decoded. The largest common camera sensors of edge devices have 12 to 24 million."""
_ORIENTATION = 0x0112
_DRAFT = 2
"""A JPEG is decoded at a half, quarter or eighth of its size while that is this many times the wanted size."""


def require_pillow(thing: str) -> None:
    """Import Pillow now, so that the first picture is not slower than the second.

    Raises:
        ConfigError: it is not in this image.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        reason = f"takes pictures, but Pillow cannot be imported here ({first_line(error)})"
        raise ConfigError(thing, reason, "Package the model again, or add Pillow to the image") from error
    PIL.Image.MAX_IMAGE_PIXELS = None  # `_open` counts for itself, and without warnings
    PIL.Image.preinit()


def decode_picture(data: bytes | memoryview, spec: PictureInput, most_pixels: int = MOST_PIXELS) -> Array:
    """A picture file as uint8 pixels of the declared size, height x width x channels, in RGB or gray.

    EXIF orientation is honoured. Transparency is dropped, of an animation the first frame is taken, and values of
    16 bits lose their lower 8.

    Raises:
        MalformedMessage: not a picture, broken, cut off, or too large, in words.
    """
    try:
        with _open(data, most_pixels) as image:
            if image.format == "JPEG":
                side = _DRAFT * max(spec.width, spec.height)  # either way round: it may lie on its side
                image.draft(None, (side, side))
            pixels = np.asarray(_fit(_colours(_upright(image), spec), spec))
    except MalformedMessage:
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ValueError …
        raise _refused(f"is broken or cut off ({first_line(error)})") from error
    return pixels.reshape(spec.height, spec.width, -1)


def _refused(reason: str) -> MalformedMessage:
    return MalformedMessage("picture", reason, "Send a whole JPEG, PNG, WebP, BMP or PPM file")


def _open(data: bytes | memoryview, most_pixels: int) -> Picture:
    """The picture's header, its size checked."""
    from PIL import Image, UnidentifiedImageError

    if not len(data):
        raise _refused("is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(PICTURE_TYPES.values()))
    except UnidentifiedImageError as error:
        raise _refused("is not a JPEG, PNG, WebP, BMP or PPM file") from error
    if image.width * image.height > most_pixels:
        size = f"{image.width} x {image.height}"
        image.close()
        raise _refused(f"has {size} pixels, at most {most_pixels / 1e6:g} million are taken")
    return image


def _upright(image: Picture) -> Picture:
    from PIL import ImageOps

    try:
        turned = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a picture whose notes are broken is still a picture
        return image
    return image if turned == 1 else ImageOps.exif_transpose(image)


def _colours(image: Picture, spec: PictureInput) -> Picture:
    """RGB or gray, eight bits a channel."""
    from PIL import Image

    if image.mode == "F":
        raise _refused("holds floating-point pixels, expected 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow itself would cut off at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return image.convert("L" if spec.colour == "gray" else "RGB")


def _fit(image: Picture, spec: PictureInput) -> Picture:
    """The picture at the declared size."""
    from PIL import Image

    size = (spec.width, spec.height)
    if image.size == size:
        return image
    if spec.fit == "stretch":
        return image.resize(size, Image.Resampling.BILINEAR)
    if spec.fit == "cover":
        return image.resize(size, Image.Resampling.BILINEAR, box=cover_box(image.size, size))
    inner = contained_size(image.size, size)
    canvas = Image.new(image.mode, size, (spec.pad,) * len(image.getbands()))
    left, top = (spec.width - inner[0]) // 2, (spec.height - inner[1]) // 2
    canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), (left, top))
    return canvas


def cover_box(source: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """The middle part of a picture that has the target's proportions: left, top, right, bottom."""
    scale = min(source[0] / target[0], source[1] / target[1])
    width, height = target[0] * scale, target[1] * scale
    left, top = (source[0] - width) / 2, (source[1] - height) / 2
    return max(0.0, left), max(0.0, top), min(left + width, source[0]), min(top + height, source[1])


def contained_size(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The largest size with the source's proportions that fits in the target."""
    scale = min(target[0] / source[0], target[1] / source[1])
    width, height = (max(1, min(limit, round(side * scale))) for side, limit in zip(source, target, strict=True))
    return width, height
