"""A posted picture as the inputs of a model, as its model.json declares them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from wherry.errors import ConfigError
from wherry.release import ModelFile, PictureInput, TensorSpec
from wherry_serving.arrays import fits_shape
from wherry_serving.decoding import PICTURE_TYPES, decode_picture, require_pillow
from wherry_serving.pixels import channels, level_table, tensor_shape, to_tensor
from wherry_serving.runtimes import DTYPES, Array

_AGAIN = "Correct the declaration and package the model again"


class Pictures:
    """Turns pictures into inputs, for one model.

    Args:
        file: a model.json that declares a picture.

    Raises:
        ConfigError: the declaration does not fit the signature, or Pillow is missing.
    """

    def __init__(self, file: ModelFile) -> None:
        spec, tensor = check_picture(file)
        require_pillow(f"model {file.name}")
        self._spec, self._name = spec, tensor.name
        self._shape = tensor_shape(spec, len(tensor.shape))
        self._table = level_table(spec, DTYPES[tensor.datatype])
        others = [other for other in file.signature.inputs if other.name != tensor.name]
        self._fixed = {other.name: _fixed_array(other, spec.fixed[other.name]) for other in others}

    def inputs(self, data: bytes | memoryview) -> dict[str, Array]:
        """The model's inputs for a picture.

        Raises:
            MalformedMessage: the picture cannot be used, in words.
        """
        pixels = decode_picture(data, self._spec)
        return {self._name: to_tensor(pixels, self._spec, self._table, self._shape), **self._fixed}

    def describe(self) -> dict[str, Any]:
        """For the model's metadata: what is taken, and what becomes of it."""
        fields = ("input", "width", "height", "layout", "colour", "fit")
        return {name: getattr(self._spec, name) for name in fields} | {"types": list(PICTURE_TYPES)}


def check_picture(file: ModelFile) -> tuple[PictureInput, TensorSpec]:
    """The picture that a model.json declares, and the input that it fills.

    Raises:
        ConfigError: it declares none, or one that does not fit the model's signature.
    """
    spec = file.picture
    if spec is None:
        raise ConfigError(f"model {file.name}", "declares no picture", _AGAIN)
    found = {tensor.name: tensor for tensor in file.signature.inputs}
    thing = f"picture of model {file.name}"
    tensor = found.get(spec.input)
    if tensor is None:
        raise ConfigError(thing, f"fills input {spec.input!r}, the model has {', '.join(found)}", _AGAIN)
    reason = _misfit(spec, tensor)
    for other in found.values():
        if other.name != spec.input:
            reason = reason or _unfilled(other, spec)
    if reason:
        raise ConfigError(thing, reason, _AGAIN)
    return spec, tensor


def _misfit(spec: PictureInput, tensor: TensorSpec) -> str:
    """Why a picture cannot become this tensor; empty when it can."""
    if tensor.datatype in ("BYTES", "BOOL"):
        return f"fills input {tensor.name!r}, which is {tensor.datatype}, expected numbers"
    shape = tensor_shape(spec, len(tensor.shape))
    if not fits_shape(shape, tensor.shape):
        return f"gives {shape} ({spec.layout}), input {tensor.name!r} is {tensor.shape}"
    for name, numbers in (("mean", spec.mean), ("std", spec.std)):
        if len(numbers) not in (0, channels(spec)):
            return f"has {len(numbers)} numbers in {name}, expected {channels(spec)}, one a channel"
    if 0 in spec.std:
        return "has a 0 in std, which would divide by it"
    return ""


def _unfilled(other: TensorSpec, spec: PictureInput) -> str:
    """Why another input of the model is not filled; empty when it is."""
    values = spec.fixed.get(other.name)
    if values is None:
        return f"leaves input {other.name!r} without a value, expected one under fixed"
    count = math.prod(_concrete(other))
    if other.datatype == "BYTES":
        return f"gives input {other.name!r} numbers, but it is BYTES"
    if len(values) not in (1, count):
        return f"gives input {other.name!r} {len(values)} values, expected {count}, or 1 for all"
    return ""


def _concrete(spec: TensorSpec) -> list[int]:
    return [1 if size < 0 else size for size in spec.shape]


def _fixed_array(spec: TensorSpec, values: list[float]) -> Array:
    shape, dtype = _concrete(spec), DTYPES[spec.datatype]
    array: Array = np.array(values, dtype=dtype)
    return np.full(shape, array[0]) if len(values) == 1 else array.reshape(shape)
