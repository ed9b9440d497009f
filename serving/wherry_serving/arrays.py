"""Tensors of the wire to numpy arrays and back, checked against a model's signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wherry.elements import FLOATS, Tensor, pack_bytes, unpack_bytes
from wherry.errors import MalformedMessage
from wherry.release import TensorSpec
from wherry.tensors import json_values
from wherry_serving.runtimes import DATATYPES, DTYPES, Array

_COPY_BELOW = 4096
"""Bytes up to which copying an output is cheaper than making a view of it."""


def check_inputs(specs: Mapping[str, TensorSpec], tensors: Sequence[Tensor]) -> None:
    """Names, datatypes and shapes of a request's inputs against the model's.

    Raises:
        MalformedMessage: naming the tensor, what is wrong and what was expected.
    """
    for tensor in tensors:
        spec = specs.get(tensor.name)
        thing = f"input {tensor.name[:120]!r}"
        if spec is None:
            raise MalformedMessage(thing, f"is not an input of this model, expected {', '.join(specs)}")
        if tensor.datatype != spec.datatype:
            raise MalformedMessage(thing, f"has datatype {tensor.datatype}, expected {spec.datatype}")
        if not fits_shape(tensor.shape, spec.shape):
            reason = f"has shape {list(tensor.shape)}, expected {spec.shape} (-1 is any size)"
            raise MalformedMessage(thing, reason)
    if len(tensors) != len(specs):
        missing = sorted(set(specs) - {tensor.name for tensor in tensors})
        spec = specs[missing[0]]
        raise MalformedMessage(f"input {spec.name!r}", f"is missing, expected {spec.datatype} of shape {spec.shape}")


def fits_shape(shape: Sequence[int], declared: Sequence[int]) -> bool:
    """Whether a concrete shape is one of those that a declared shape allows."""
    return len(shape) == len(declared) and all(want in (-1, size) for size, want in zip(shape, declared, strict=True))


def to_array(tensor: Tensor) -> Array:
    """The tensor as an array; a view into the request's body where that is possible."""
    if tensor.datatype == "BYTES":
        elements = unpack_bytes(tensor.data)
        array = np.empty(len(elements), dtype=np.object_)
        array[:] = elements
    elif tensor.datatype == "BOOL":
        array = np.frombuffer(tensor.data, dtype=np.uint8) != 0  # any other byte would be undefined as a bool
    else:
        array = np.frombuffer(tensor.data, dtype=DTYPES[tensor.datatype])
    return array.reshape(tensor.shape)


def from_array(name: str, array: Array) -> Tensor:
    """The array as a tensor; a view into it where that is possible.

    Raises:
        MalformedMessage: an element type that the protocol does not have.
    """
    datatype = DATATYPES.get(array.dtype)
    if datatype is None:
        raise MalformedMessage(f"output {name!r}", f"has element type {array.dtype}, which the protocol does not have")
    if datatype == "BYTES":
        return Tensor(name, datatype, array.shape, pack_bytes(array.flat))
    if array.nbytes < _COPY_BELOW:
        return Tensor(name, datatype, array.shape, array.tobytes())
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return Tensor(name, datatype, array.shape, flat.data)


def fast_json_values(tensor: Tensor) -> Any:
    """What orjson is given for a tensor's elements: numbers stay in an array, so that it writes them itself.

    Raises:
        MalformedMessage: the tensor has no JSON form.
    """
    if tensor.datatype == "BYTES" or tensor.datatype == "FP16":
        return json_values(tensor)
    array = np.frombuffer(tensor.data, dtype=DTYPES[tensor.datatype])
    if tensor.datatype in FLOATS and not np.isfinite(array).all():
        raise MalformedMessage(f"output {tensor.name!r}", "holds NaN or Inf, which have no JSON form: ask for binary")
    return array
