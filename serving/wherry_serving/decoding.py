"""Picture files to pixels: the only importer of Pillow, which is imported when a model takes pictures.

What comes in is not trusted: only the listed formats are tried, what decoding would take is reckoned from the file's
header before anything is decoded, and whatever Pillow raises becomes one sentence. A file of 100 kB may hold 40 million
pixels, and a container has only the memory that packaging adds for pictures.
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
MOST_BYTES = 112_000_000
"""For one picture, its file and what decoding it takes: within the 128 MiB that packaging adds (`_PICTURE_MB`).
Enough for 28 million pixels in RGB, 14 in RGBA, 7 of a WebP, and for a baseline JPEG of any camera, which is decoded
smaller."""
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
"""Pillow's bytes a pixel; 4 in every other mode, also in RGB."""
_DIRECT = ("RGB", "L")
"""Modes that can be made smaller as they are; others are converted first, which makes a second picture."""
_BESIDE = {"webp": 12, "ppm": 8, "ppm_plain": 8, "bmp_rle": 3}
"""Bytes a pixel that decoders hold besides Pillow's picture, found by measuring."""
_COEFFICIENTS = 2
"""Bytes a pixel and channel that a JPEG of several scans takes at its full size."""
_STRIP = 64
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


def decode_picture(data: bytes | memoryview, spec: PictureInput, most_bytes: int = MOST_BYTES) -> Array:
    """A picture file as uint8 pixels of the declared size, height x width x channels, in RGB or gray.

    EXIF orientation is honoured. Transparency is dropped, of an animation the first frame is taken, and values of
    16 bits lose their lower 8.

    Raises:
        MalformedMessage: not a picture, broken, cut off, or too large, in words.
    """
    try:
        with _open(data) as image:
            full, coefficients = image.size, 0
            if image.format == "JPEG":
                coefficients = _coefficients(data, image)
                side = _DRAFT * max(spec.width, spec.height)  # either way round: it may lie on its side
                image.draft(None, (side, side))
            needed = len(data) + _decoded_bytes(image) + full[0] * full[1] * coefficients
            _check_bytes(image, full, needed, most_bytes, coefficients > 0)
            fitted = _fit(_plain(image, spec), spec, _turned(image))
            pixels = np.asarray(fitted.convert(_mode(spec)))
    except MalformedMessage:
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ValueError …
        raise _refused(f"is broken or cut off ({first_line(error)})") from error
    return pixels.reshape(spec.height, spec.width, -1)


def _refused(reason: str) -> MalformedMessage:
    return MalformedMessage("picture", reason, "Send a whole JPEG, PNG, WebP, BMP or PPM file")


def _open(data: bytes | memoryview) -> Picture:
    """The picture's header."""
    from PIL import Image, UnidentifiedImageError

    if not len(data):
        raise _refused("is empty")
    try:
        return Image.open(io.BytesIO(data), formats=tuple(PICTURE_TYPES.values()))
    except UnidentifiedImageError as error:
        raise _refused("is not a JPEG, PNG, WebP, BMP or PPM file") from error


def _decoded_bytes(image: Picture) -> int:
    """What decoding takes at most, and converting where that must come before making it smaller."""
    tiles = getattr(image, "tile", None)  # WebP is decoded without
    codec = tiles[0][0] if tiles else (image.format or "").lower()
    converted = 0 if image.mode in _DIRECT else 1 if image.mode.startswith("I") else 4
    return image.width * image.height * (_STORED.get(image.mode, 4) + _BESIDE.get(codec, 0) + converted)


def _check_bytes(image: Picture, full: tuple[int, int], needed: int, most: int, scans: bool) -> None:
    if needed <= most:
        return
    kind = f"{image.format}{' of several scans' if scans else ''}, {image.mode}"
    fix = "send it smaller" if image.format == "JPEG" and not scans else "send it smaller, or as a baseline JPEG"
    limits = f"{needed / 1e6:.0f} MB to decode, at most {most / 1e6:.0f} MB are given: {fix}"
    raise _refused(f"has {full[0]} x {full[1]} pixels ({kind}), which take {limits}")


def _coefficients(data: bytes | memoryview, image: Picture) -> int:
    """Bytes a pixel that a JPEG's decoder collects before it can begin: none when its one scan has all channels.

    Raises:
        MalformedMessage: the file ends before its pixels begin.
    """
    at, channels = 2, len(image.getbands())
    while at + 5 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at] != 0xFF or marker in (0xC2, 0xCA):
            break  # progressive, or not as it should be: the decoder may collect
        if marker == 0xDA:
            return 0 if data[at + 4] == channels else _COEFFICIENTS * channels
        at += 1 if marker == 0xFF else 2 + length
    return _COEFFICIENTS * channels


def _turned(image: Picture) -> int:
    """How the camera was held, as EXIF says it: 1 is upright, from 5 on it lies on its side."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a picture whose notes are broken is still a picture
        return 1


def _upright(image: Picture, turned: int) -> Picture:
    from PIL.Image import Transpose

    steps = (
        Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
        Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90,
    )  # fmt: skip
    return image.transpose(steps[turned - 2]) if 2 <= turned <= 8 else image


def _mode(spec: PictureInput) -> str:
    return "L" if spec.colour == "gray" else "RGB"


def _plain(image: Picture, spec: PictureInput) -> Picture:
    """RGB or gray, eight bits a channel, by as little copying as possible."""
    if image.mode in _DIRECT:
        return image
    if image.mode == "F":
        raise _refused("holds floating-point pixels, expected 8 or 16 bits")
    if image.mode.startswith("I"):
        return _eight_bits(image)
    return image.convert(_mode(spec))


def _eight_bits(image: Picture) -> Picture:
    """The upper half of 16 bits, which Pillow itself would cut off at 255; in strips, to hold no third picture."""
    from PIL import Image

    found = Image.new("L", image.size)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        found.paste(Image.fromarray((np.asarray(strip).astype(np.uint32) >> 8).astype(np.uint8)), (0, top))
    return found


def _fit(image: Picture, spec: PictureInput, turned: int) -> Picture:
    """The picture upright and at the declared size; turned only when it is small."""
    from PIL import Image

    size = (spec.width, spec.height)
    lying = size if turned < 5 or turned > 8 else (spec.height, spec.width)
    if image.size == lying:
        return _upright(image, turned)
    if spec.fit == "stretch":
        return _upright(image.resize(lying, Image.Resampling.BILINEAR), turned)
    if spec.fit == "cover":
        box = cover_box(image.size, lying)
        return _upright(image.resize(lying, Image.Resampling.BILINEAR, box=box), turned)
    inner = _upright(image.resize(contained_size(image.size, lying), Image.Resampling.BILINEAR), turned)
    canvas = Image.new(image.mode, size, (spec.pad,) * len(image.getbands()))
    canvas.paste(inner, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))
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
