"""Picture files to pixels: real files of every format, and files that lie."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wherry.errors import MalformedMessage
from wherry.release import PictureInput
from wherry_cli.packaging.release import _PICTURE_MB
from wherry_serving.decoding import contained_size, cover_box, decode_picture, require_pillow

require_pillow("tests")
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(width=32, height=32):
    """Red, green / blue, white."""
    pixels = np.empty((height, width, 3), np.uint8)
    top, left = slice(0, height // 2), slice(0, width // 2)
    bottom, right = slice(height // 2, None), slice(width // 2, None)
    pixels[top, left], pixels[top, right], pixels[bottom, left], pixels[bottom, right] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


def file(image, kind="PNG", **more):
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def spec(width=32, height=32, **more):
    return PictureInput(input="x", width=width, height=height, **more)


def seen(pixels):
    """The colours of the four corners."""
    inset = max(1, pixels.shape[0] // 8)
    points = ((inset, inset), (inset, -inset - 1), (-inset - 1, inset), (-inset - 1, -inset - 1))
    return [tuple(round(value / 255) * 255 for value in pixels[point]) for point in points]


@pytest.mark.parametrize(
    ("kind", "more"),
    [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("PPM", {})],
)
@pytest.mark.parametrize("size", [32, 16, 57])
def test_every_format(kind, more, size):
    pixels = decode_picture(file(corners(), kind, **more), spec(size, size))
    assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
    assert seen(pixels) == [RED, GREEN, BLUE, WHITE]


def test_a_raw_camera_frame_with_a_small_header():
    frame = np.asarray(corners()).tobytes()
    pixels = decode_picture(b"P6 32 32 255\n" + frame, spec())
    assert pixels.tobytes() == frame


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("colour", ["rgb", "gray"])
def test_every_mode_becomes_what_is_declared(mode, colour):
    image = corners().convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    data = file(image, "JPEG") if kind == "TIFF" else file(image)
    pixels = decode_picture(data, spec(8, 8, colour=colour))
    assert pixels.shape == (8, 8, 1 if colour == "gray" else 3)
    assert pixels[-2, -2].min() > 250


def test_sixteen_bits_lose_their_lower_eight():
    image = Image.fromarray(np.array([[0, 0x1234], [0x80FF, 0xFFFF]], np.uint16))
    assert decode_picture(file(image), spec(2, 2, colour="gray")).ravel().tolist() == [0, 0x12, 0x80, 0xFF]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_are_turned_upright(orientation, kind):
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = corners(64, 32)
    stored = image.transpose(turned[orientation]) if orientation in turned else image
    notes = Image.Exif()
    notes[0x0112] = orientation
    pixels = decode_picture(file(stored, kind, exif=notes.tobytes()), spec(64, 32))
    assert seen(pixels) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_notes_do_not_make_a_picture_unusable():
    data = file(corners(), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert seen(decode_picture(data, spec())) == [RED, GREEN, BLUE, WHITE]


def test_cover_cuts_the_edges_and_contain_adds_a_border():
    wide = Image.new("RGB", (40, 20), RED)
    wide.paste(BLUE, (10, 0, 30, 20))
    data = file(wide)
    assert (decode_picture(data, spec(8, 8, fit="cover"))[:, 1:-1] == BLUE).all()
    contained = decode_picture(data, spec(8, 8, fit="contain", pad=114))
    assert (contained[:2] == 114).all()
    assert (contained[6:] == 114).all()
    assert contained[4, 4].tolist() == list(BLUE)
    assert contained[4, 0].tolist() == list(RED)
    assert decode_picture(data, spec(8, 8))[0, 0].tolist() == list(RED)


@given(*[st.integers(1, 9000)] * 4)
def test_boxes_stay_inside(width, height, wide, high):
    left, top, right, bottom = cover_box((width, height), (wide, high))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    inner = contained_size((width, height), (wide, high))
    assert 1 <= inner[0] <= wide
    assert 1 <= inner[1] <= high
    assert wide in inner or high in inner


def test_a_large_jpeg_is_not_decoded_at_full_size(monkeypatch):
    data = file(corners(1600, 1200), "JPEG")
    loaded = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *given, **more: loaded.append(self.size) or resize(self, *given, **more)
    )
    assert seen(decode_picture(data, spec())) == [RED, GREEN, BLUE, WHITE]
    assert loaded == [(200, 150)]


def png_of_size(width, height):
    """A PNG whose header promises more than its few bytes hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"hello", "is not a JPEG, PNG, WebP, BMP or PPM file"),
        (file(corners(), "GIF"), "is not a JPEG"),
        (file(corners(), "TIFF"), "is not a JPEG"),
        (file(corners(200, 200), "JPEG")[:700], "is broken or cut off"),
        (file(corners(200, 200), "PNG")[:80], "is broken or cut off"),
        (file(corners(), "PPM")[:1000], "is broken or cut off"),
        (file(corners(), "BMP")[:200], "is broken or cut off"),
        (file(corners(), "WEBP")[:50], "is broken or cut off"),
        (png_of_size(100, 100), "is broken or cut off"),
        (
            png_of_size(60_000, 60_000),
            "has 60000 x 60000 pixels (PNG, RGB), which take 14400 MB to decode, at most 112 MB are",
        ),
        (b"P6 99999 99999 255\n", "has 99999 x 99999 pixels"),
        (b"Pf 2 2 -1.0\n" + b"\0" * 16, "floating-point"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(data, said):
    with pytest.raises(MalformedMessage) as caught:
        decode_picture(data, spec())
    assert said in caught.value.reason, caught.value.reason


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "PPM"]), st.integers(0, 10**6), st.integers(0, 255))
def test_no_other_error_escapes(kind, at, value):
    data = bytearray(file(corners(16, 16), kind))
    data[at % len(data)] = value
    try:
        pixels = decode_picture(bytes(data), spec(8, 8), most_bytes=1_000_000)
    except MalformedMessage:
        return
    assert pixels.shape == (8, 8, 3)


MEASURE = """
import sys
from pathlib import Path
from wherry.release import PictureInput
from wherry_serving.decoding import decode_picture, require_pillow

def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

require_pillow("test")
spec = PictureInput(input="x", width=64, height=64)
decode_picture(Path(sys.argv[1]).read_bytes(), spec)
for path in map(Path, sys.argv[2:]):
    data = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    before = most()
    try:
        decode_picture(data, spec)
    except Exception as error:
        print(path.name, "refused", error.reason)
    else:
        print(path.name, round(most() - before))
    del data
"""


def shades(width, height, mode):
    if mode == "I;16":
        return Image.fromarray(np.zeros((height, width), np.uint16))
    return Image.new("RGB", (width, height), (200, 100, 50)).convert(mode)


def test_what_is_taken_fits_in_the_memory_that_packaging_adds(tmp_path):
    lying = Image.Exif()
    lying[0x0112] = 6
    taken = {
        "rgb.png": file(shades(7000, 3900, "RGB")),
        "lying.png": file(shades(7000, 3900, "RGB"), exif=lying.tobytes()),
        "rgba.png": file(shades(4000, 3400, "RGBA")),
        "gray16.png": file(shades(7000, 5000, "I;16")),
        "camera.jpg": file(shades(9000, 7000, "RGB"), "JPEG", exif=lying.tobytes()),
        "scans.jpg": file(shades(4500, 4000, "RGB"), "JPEG", progressive=True, subsampling=0),
        "small.webp": file(shades(3000, 2200, "RGB"), "WEBP", method=0),
    }
    refused = {
        "wide.png": file(shades(7000, 4100, "RGB")),
        "clear.png": file(shades(5000, 4000, "RGBA")),
        "more.jpg": file(shades(5000, 4000, "RGB"), "JPEG", progressive=True),
        "large.webp": file(shades(3000, 2500, "RGB"), "WEBP", method=0),
    }
    (tmp_path / "first.png").write_bytes(file(corners()))
    for name, data in (taken | refused).items():
        (tmp_path / name).write_bytes(data)
    names = ["first.png", *taken, *refused]
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in names)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = dict(line.split(" ", 1) for line in said.splitlines())
    assert all(int(found[name]) < _PICTURE_MB for name in taken), found
    assert not [found[name] for name in refused if "MB to decode" not in found[name]]


def test_a_jpeg_in_separate_scans_is_known_before_it_is_decoded():
    data = file(corners(), "JPEG")
    start = data.index(b"\xff\xda")
    for several in (data[: start + 4] + b"\x01" + data[start + 5 :], file(corners(), "JPEG", progressive=True)):
        with pytest.raises(MalformedMessage, match="of several scans"):
            decode_picture(several, spec(), most_bytes=4000)
    assert decode_picture(data, spec(), most_bytes=32 * 32 * 4 + len(data)).shape == (32, 32, 3)


def test_pillow_is_imported_for_models_with_pictures_only():
    code = "import sys, wherry_serving.app; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
