"""What an ONNX file says of its weights, without the onnx package: how many numbers there are of which type.

ONNX Runtime's session tells inputs and outputs but not the precision of the weights, which decides how far a device's
answers may differ. ONNX is protobuf; only the few fields needed are read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from wherry.errors import ModelError
from wherry.release import Precision

_GRAPH_IN_MODEL = 7
_NODES, _INITIALIZERS = 1, 5
_ATTRIBUTES_IN_NODE = 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 5, 6
_DIMS, _DATA_TYPE, _DATA_LOCATION = 1, 2, 14
_EXTERNAL = 1
_CLASSES = {1: "fp32", 11: "fp32", 10: "fp16", 16: "fp16", 2: "int8", 3: "int8", 21: "int8", 22: "int8"}
_SHARE = 1 / 3
"""A class that holds at least this share of the weights decides: quantized files keep scales and biases in fp32."""

Field = tuple[int, int | memoryview]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def fields(data: memoryview) -> Iterator[Field]:
    """The fields of a protobuf message: number, and its integer or bytes (fixed-width numbers as bytes).

    Raises:
        ValueError, IndexError: the bytes are not a message.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field has wire type {kind}")
        if at + length > len(data):
            raise ValueError("a field runs past the end")
        yield key >> 3, data[at : at + length]
        at += length


def _parts(data: memoryview, number: int) -> Iterator[memoryview]:
    return (value for found, value in fields(data) if found == number and isinstance(value, memoryview))


def _tensors(graph: memoryview, depth: int = 0) -> Iterator[memoryview]:
    """Weights of a graph and of the graphs inside its nodes (If, Loop)."""
    if depth > 16:
        raise ValueError("graphs are nested too deep")
    for number, value in fields(graph):
        if number == _INITIALIZERS and isinstance(value, memoryview):
            yield value
        elif number == _NODES and isinstance(value, memoryview):
            for attribute in _parts(value, _ATTRIBUTES_IN_NODE):
                yield from _parts(attribute, _ATTRIBUTE_TENSOR)
                for inner in _parts(attribute, _ATTRIBUTE_GRAPH):
                    yield from _tensors(inner, depth + 1)


def _dims(value: int | memoryview) -> list[int]:
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        size, at = _varint(value, at)
        found.append(size)
    return found


def _describe(tensor: memoryview) -> tuple[int, int, bool]:
    """Data type, number of elements, and whether they are in another file."""
    dims: list[int] = []
    data_type, external = 0, False
    for number, value in fields(tensor):
        if number == _DIMS:
            dims += _dims(value)
        elif number == _DATA_TYPE and isinstance(value, int):
            data_type = value
        elif number == _DATA_LOCATION:
            external = value == _EXTERNAL
    return data_type, math.prod(dims), external


def classify(counts: Counter[str]) -> Precision:
    """The precision class of weights, from the number of elements of each."""
    total = sum(counts.values())
    for name in ("int8", "fp16"):
        if total and counts[name] / total >= _SHARE:
            return "int8" if name == "int8" else "fp16"
    return "fp32"


def onnx_precision(path: Path) -> Precision:
    """The precision class of an ONNX file's weights.

    Raises:
        ModelError: not an ONNX file, cut off, or its weights are in other files.
    """
    thing = f"model {path.name}"
    counts: Counter[str] = Counter()
    try:
        graphs = list(_parts(memoryview(path.read_bytes()), _GRAPH_IN_MODEL))
        for graph in graphs:
            for tensor in _tensors(graph):
                data_type, count, external = _describe(tensor)
                if external:
                    fix = "Save it as one file (onnx.save without save_as_external_data)"
                    raise ModelError(thing, "keeps its weights in other files", fix)
                counts[_CLASSES.get(data_type, "other")] += count
    except (ValueError, IndexError) as error:
        raise ModelError(thing, f"is not a complete ONNX file ({error})") from error
    except OSError as error:
        raise ModelError(thing, f"cannot be read ({error.strerror})", "Check the path") from error
    if not graphs:
        raise ModelError(thing, "is not a complete ONNX file (it holds no graph)")
    del counts["other"]
    return classify(counts)
