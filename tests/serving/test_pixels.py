"""From pixels to a tensor, against a slow reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.release import PictureInput
from wherry_serving.pixels import level_table, tensor_shape, to_tensor
from wherry_serving.runtimes import DTYPES

SMALL = st.floats(0.01, 300, allow_nan=False)


def reference(pixels, spec, datatype):
    """The declaration read word by word, one number at a time."""
    order = {"rgb": (0, 1, 2), "bgr": (2, 1, 0), "gray": (0,)}[spec.colour]
    found = {}
    for row in range(spec.height):
        for column in range(spec.width):
            for channel, source in enumerate(order):
                value = float(pixels[row, column, source]) * spec.scale
                value = (value - (spec.mean or [0.0] * 3)[channel]) / (spec.std or [1.0] * 3)[channel]
                if DTYPES[datatype].kind in "iu":
                    bounds = np.iinfo(DTYPES[datatype])
                    value = min(max(round(value), bounds.min), bounds.max)
                at = (channel, row, column) if spec.layout == "NCHW" else (row, column, channel)
                found[(0, *at)] = value
    array = np.empty(tensor_shape(spec, 4), DTYPES[datatype])
    for at, value in found.items():
        array[at] = value
    return array


@st.composite
def declarations(draw):
    colour = draw(st.sampled_from(["rgb", "bgr", "gray"]))
    count = 1 if colour == "gray" else 3
    numbers = st.lists(SMALL, min_size=count, max_size=count) | st.just([])
    return PictureInput(
        input="x",
        width=draw(st.integers(1, 5)),
        height=draw(st.integers(1, 5)),
        layout=draw(st.sampled_from(["NCHW", "NHWC"])),
        colour=colour,
        scale=draw(st.sampled_from([1.0, 1 / 255, 2 / 255])),
        mean=draw(numbers),
        std=draw(numbers),
    )


@settings(max_examples=150, deadline=None)
@given(declarations(), st.sampled_from(["FP32", "FP16", "FP64", "UINT8", "INT8", "INT64"]), st.integers(0, 2**32))
def test_every_declaration_gives_what_it_says(spec, datatype, seed):
    count = 1 if spec.colour == "gray" else 3
    pixels = np.random.default_rng(seed).integers(0, 256, (spec.height, spec.width, count), dtype=np.uint8)
    table = level_table(spec, DTYPES[datatype])
    found = to_tensor(pixels, spec, table, tensor_shape(spec, 4))
    wanted = reference(pixels, spec, datatype)
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (wanted.dtype, wanted.shape, True)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_uint8_pixels_pass_as_they_are(layout):
    spec = PictureInput(input="x", width=3, height=2, layout=layout)
    assert level_table(spec, np.dtype(np.uint8)) is None
    assert level_table(spec, np.dtype(np.float32)) is not None
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    found = to_tensor(pixels, spec, None, tensor_shape(spec, 4))
    assert np.shares_memory(found, pixels) is (layout == "NHWC")
    np.testing.assert_array_equal(found, reference(pixels, spec, "UINT8"))


def test_values_outside_a_whole_number_tensor_become_its_ends():
    spec = PictureInput(input="x", width=1, height=1, colour="gray", scale=2.0, mean=[128.0])
    table = level_table(spec, np.dtype(np.int8))
    assert table is not None
    assert (table[0][0], table[0][64], table[0][255]) == (-128, 0, 127)


def test_imagenet_numbers():
    spec = PictureInput(
        input="x", width=1, height=1, scale=1 / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
    )
    pixels = np.array([[[255, 0, 128]]], np.uint8)
    found = to_tensor(pixels, spec, level_table(spec, np.dtype(np.float32)), [1, 3, 1, 1]).ravel()
    wanted = [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
    assert all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(found, wanted, strict=True))


def test_a_tensor_may_have_no_batch_axis():
    spec = PictureInput(input="x", width=4, height=2)
    assert (tensor_shape(spec, 4), tensor_shape(spec, 3)) == ([1, 3, 2, 4], [3, 2, 4])
