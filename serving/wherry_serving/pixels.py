"""From pixels to a tensor: normalisation, order of the channels, order of the axes. Pure numpy, no pictures known.

A pixel has 256 values, so normalisation is a table of 256 numbers a channel, computed once in double precision and
rounded to the tensor's datatype: exact, as quick as multiplying, and the same code for float, int8 and uint8 tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wherry.release import PictureInput
from wherry_serving.runtimes import Array

_LEVELS = 256


def channels(spec: PictureInput) -> int:
    """How many channels the tensor has."""
    return 1 if spec.colour == "gray" else 3


def tensor_shape(spec: PictureInput, rank: int) -> list[int]:
    """The shape of the tensor that a picture becomes; `rank` 3 means without a batch axis."""
    count = channels(spec)
    axes = [count, spec.height, spec.width] if spec.layout == "NCHW" else [spec.height, spec.width, count]
    return [1, *axes] if rank == 4 else axes


def level_table(spec: PictureInput, dtype: np.dtype[Any]) -> Array | None:
    """What each value of a pixel becomes, one row a channel; None when pixels stay as they are.

    Whole-number tensors are rounded half to even, and values outside their range become its ends.
    """
    count = channels(spec)
    levels = np.arange(_LEVELS, dtype=np.float64)
    mean = np.array(spec.mean or [0.0] * count)
    std = np.array(spec.std or [1.0] * count)
    table = (levels * spec.scale - mean[:, None]) / std[:, None]
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        table = np.clip(np.rint(table), bounds.min, bounds.max)
    found: Array = table.astype(dtype)
    return None if dtype == np.uint8 and bool((found == levels).all()) else found


def to_tensor(pixels: Array, spec: PictureInput, table: Array | None, shape: list[int]) -> Array:
    """Lay pixels out as the tensor that is declared.

    Args:
        pixels: uint8, height x width x channels, RGB or gray, of the declared size.
        spec: the declaration.
        table: of `level_table`.
        shape: of `tensor_shape`.
    """
    if spec.colour == "bgr":
        pixels = pixels[..., ::-1]
    planes_first = spec.layout == "NCHW"
    if table is None:
        laid = pixels.transpose(2, 0, 1) if planes_first else pixels
        return np.ascontiguousarray(laid).reshape(shape)
    out = np.empty(tensor_shape(spec, 3), table.dtype)
    for channel, levels in enumerate(table):
        plane = pixels[..., channel]
        if planes_first:
            np.take(levels, plane, out=out[channel], mode="clip")
        else:
            out[..., channel] = levels[plane]
    return out.reshape(shape)
