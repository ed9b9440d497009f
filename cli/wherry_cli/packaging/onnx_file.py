"""What an ONNX file says of itself, without the onnx package: graph, operators, and how many numbers of which type.

ONNX Runtime's session tells inputs and outputs, but neither the operators nor the precision of the weights, which
decides how far a device's answers may differ. Nothing here runs the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wherry.errors import ModelError
from wherry.release import Precision
from wherry_cli.packaging.protobuf import fields, numbers, parts, text

_GRAPH_IN_MODEL = 7
_NODES, _INITIALIZERS = 1, 5
_NODE_TYPE, _ATTRIBUTES_IN_NODE, _NODE_DOMAIN = 4, 5, 7
_NODES_IN_FUNCTION = 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 5, 6
_DIMS, _DATA_TYPE, _DATA_LOCATION = 1, 2, 14
_EXTERNAL = 1
_TYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16", 17: "FP8", 18: "FP8", 19: "FP8", 20: "FP8",
    21: "UINT4", 22: "INT4", 23: "FP4",
}  # fmt: skip
_CLASSES = {
    "FP32": "fp32", "FP64": "fp32", "FP16": "fp16", "BF16": "fp16",
    "UINT8": "int8", "INT8": "int8", "UINT4": "int8", "INT4": "int8",
}  # fmt: skip
_STANDARD = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "ai.onnx.training"}
"""Domains of operators that ONNX Runtime brings."""
_SHARE = 1 / 3
"""A class that holds at least this share of the weights decides: quantized files keep scales and biases in fp32."""
_DEEPEST = 16


@dataclass(slots=True)
class OnnxFacts:
    """What an ONNX file says of itself.

    Attributes:
        operators: how often each is used, also inside branches, loops and functions; others than the standard ones
            with their domain before a colon. Constants are no work and are left out.
        opsets: domain ("ai.onnx" for the standard one) to version.
        custom: those of a domain that ONNX Runtime does not bring.
        weights: datatype to number of elements.
        axes: input or output name to the names of its axes; "" for a fixed or unnamed one.
    """

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)
    custom: set[str] = field(default_factory=set)
    weights: Counter[str] = field(default_factory=Counter)
    axes: dict[str, list[str]] = field(default_factory=dict)
    external: bool = False


def classify(weights: Counter[str]) -> Precision:
    """The precision class of weights, from the number of elements of each datatype."""
    counts: Counter[str] = Counter()
    for datatype, count in weights.items():
        if datatype in _CLASSES:
            counts[_CLASSES[datatype]] += count
    total = sum(counts.values())
    if total and counts["int8"] / total >= _SHARE:
        return "int8"
    return "fp16" if total and counts["fp16"] / total >= _SHARE else "fp32"


def onnx_facts(path: Path) -> OnnxFacts:
    """What the file says.

    Raises:
        ModelError: not an ONNX file, or cut off.
    """
    thing = f"model {path.name}"
    found = OnnxFacts()
    try:
        graphs = _read_model(memoryview(path.read_bytes()), found)
    except (ValueError, IndexError) as error:
        raise ModelError(thing, f"is not a complete ONNX file ({error})") from error
    except OSError as error:
        raise ModelError(thing, f"cannot be read ({error.strerror})", "Check the path") from error
    if not graphs:
        raise ModelError(thing, "is not a complete ONNX file (it holds no graph)")
    return found


def onnx_precision(path: Path) -> Precision:
    """The precision class of an ONNX file's weights.

    Raises:
        ModelError: not an ONNX file, cut off, or its weights are in other files.
    """
    found = onnx_facts(path)
    if found.external:
        fix = "Save it as one file (onnx.save without save_as_external_data)"
        raise ModelError(f"model {path.name}", "keeps its weights in other files", fix)
    return classify(found.weights)


def _read_model(data: memoryview, found: OnnxFacts) -> int:
    """Fill in the facts; the number of graphs."""
    graphs = 0
    functions: set[str] = set()
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            found.ir_version = value
        elif number in (2, 3):
            found.producer = f"{found.producer} {text(value)}".strip()
        elif not isinstance(value, memoryview):
            continue
        elif number == _GRAPH_IN_MODEL:
            graphs += 1
            _read_graph(value, found)
            _read_axes(value, found)
        elif number == 8:
            entry = dict(fields(value))
            version = entry.get(2, 0)
            found.opsets[_text_of(entry, 1) or "ai.onnx"] = version if isinstance(version, int) else 0
        elif number == 14:
            entry = dict(fields(value))
            found.metadata[_text_of(entry, 1)] = _text_of(entry, 2)
        elif number == 25:
            functions.add(_read_function(value, found))
    found.custom -= functions
    return graphs


def _text_of(entry: dict[int, int | memoryview], number: int) -> str:
    return text(entry[number]) if number in entry else ""


def _read_function(data: memoryview, found: OnnxFacts) -> str:
    """Count a function's operators; its name as operators are named."""
    entry = dict(fields(data))
    for node in parts(data, _NODES_IN_FUNCTION):
        _read_node(node, found, 0)
    return _operator_name(_text_of(entry, 10), _text_of(entry, 1))


def _operator_name(domain: str, kind: str) -> str:
    return kind if domain in ("", "ai.onnx") else f"{domain}:{kind}"


def _read_graph(graph: memoryview, found: OnnxFacts, depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise ValueError("graphs are nested too deep")
    for number, value in fields(graph):
        if number == _INITIALIZERS and isinstance(value, memoryview):
            _read_tensor(value, found)
        elif number == _NODES and isinstance(value, memoryview):
            _read_node(value, found, depth)


def _read_node(node: memoryview, found: OnnxFacts, depth: int) -> None:
    """Count an operator, its tensors, and what the graphs inside it (If, Loop) hold."""
    kind = domain = ""
    for number, value in fields(node):
        if number == _NODE_TYPE:
            kind = text(value)
        elif number == _NODE_DOMAIN:
            domain = text(value)
        elif number == _ATTRIBUTES_IN_NODE and isinstance(value, memoryview):
            for tensor in parts(value, _ATTRIBUTE_TENSOR):
                _read_tensor(tensor, found)
            for inner in parts(value, _ATTRIBUTE_GRAPH):
                _read_graph(inner, found, depth + 1)
    name = _operator_name(domain, kind)
    if name != "Constant":
        found.operators[name] += 1
    if domain not in _STANDARD:
        found.custom.add(name)


def _read_tensor(tensor: memoryview, found: OnnxFacts) -> None:
    dims: list[int] = []
    data_type = 0
    for number, value in fields(tensor):
        if number == _DIMS:
            dims += numbers(value)
        elif number == _DATA_TYPE and isinstance(value, int):
            data_type = value
        elif number == _DATA_LOCATION:
            found.external = found.external or value == _EXTERNAL
    found.weights[_TYPES.get(data_type, "other")] += math.prod(dims)


def _read_axes(graph: memoryview, found: OnnxFacts) -> None:
    """Names of the axes of inputs and outputs: ValueInfo -> type -> tensor type -> shape -> dimension -> name."""
    for number, value in fields(graph):
        if number in (11, 12) and isinstance(value, memoryview):
            name = _text_of(dict(fields(value)), 1)
            found.axes[name] = [_axis(axis) for axis in _axes(value)]


def _axes(value_info: memoryview) -> Iterator[memoryview]:
    for kind in parts(value_info, 2):
        for tensor_type in parts(kind, 1):
            for shape in parts(tensor_type, 2):
                yield from parts(shape, 1)


def _axis(axis: memoryview) -> str:
    return _text_of(dict(fields(axis)), 2)
