"""What a TFLite file says of itself, read from its tables alone: operators with versions, and weights by datatype."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from wherry.errors import ModelError
from wherry_cli.packaging.protobuf import printable

_IDENTIFIER = b"TFL3"
_MIN_BYTES = 16
_TYPES = {
    "FLOAT32": "FP32", "FLOAT16": "FP16", "FLOAT64": "FP64", "BFLOAT16": "BF16", "STRING": "BYTES", "BOOL": "BOOL",
}  # fmt: skip
_STATEFUL = {"VAR_HANDLE"}
_CUSTOM = 32


@dataclass(slots=True)
class TfliteFacts:
    """What a TFLite file says of itself.

    Attributes:
        operators: name with version ("CONV_2D v3") to how often it is used.
        custom: names of operators that are not TFLite's own.
        weights: datatype to number of elements.
        stateful: keeps variables from one run to the next.
    """

    description: str = ""
    operators: Counter[str] = field(default_factory=Counter)
    custom: set[str] = field(default_factory=set)
    weights: Counter[str] = field(default_factory=Counter)
    metadata: dict[str, str] = field(default_factory=dict)
    stateful: bool = False


def tflite_facts(path: Path) -> TfliteFacts:
    """What the file says.

    Raises:
        ModelError: not a TFLite file, or cut off.
    """
    from ai_edge_litert import schema_py_generated as schema

    thing = f"model {path.name}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(thing, f"cannot be read ({error.strerror})", "Check the path") from error
    if len(data) < _MIN_BYTES or data[4:8] != _IDENTIFIER:
        raise ModelError(thing, "is not a TFLite file (it does not begin as one)")
    found = TfliteFacts()
    try:
        _read_model(schema.Model.GetRootAsModel(data, 0), len(data), found)
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ModelError(thing, "is not a complete TFLite file: its tables point past its end") from error
    return found


def _all(count: int, limit: int, item: Any) -> Iterator[Any]:
    """The items of a vector; a length that the file cannot hold is refused before it is walked."""
    if not 0 <= count <= limit:
        raise ValueError(f"a list claims {count} items")
    return (item(number) for number in range(count))


def _read_model(model: Any, limit: int, found: TfliteFacts) -> None:
    found.description = printable(model.Description() or b"")
    codes = [_operator(code) for code in _all(model.OperatorCodesLength(), limit, model.OperatorCodes)]
    found.custom = {name for name, custom in codes if custom}
    stored = [_stored(buffer, limit) for buffer in _all(model.BuffersLength(), limit, model.Buffers)]
    subgraphs = list(_all(model.SubgraphsLength(), limit, model.Subgraphs))
    if not subgraphs:
        raise ValueError("it holds no graph")
    for graph in subgraphs:
        for step in _all(graph.OperatorsLength(), limit, graph.Operators):
            name, _ = codes[step.OpcodeIndex()]
            found.operators[name] += 1
            found.stateful = found.stateful or name.partition(" ")[0] in _STATEFUL
        for tensor in _all(graph.TensorsLength(), limit, graph.Tensors):
            _read_tensor(tensor, stored, limit, found)
    for item in _all(model.MetadataLength(), limit, model.Metadata):
        name, buffer = printable(item.Name() or b""), item.Buffer()
        found.metadata[name] = f"{stored[buffer]} bytes"


def _stored(buffer: Any, limit: int) -> int:
    """Bytes of a buffer, which must be inside the file."""
    count = int(buffer.DataLength()) or int(buffer.Size())
    offset = int(buffer.Offset())
    if count + offset > limit:
        raise ValueError("a buffer runs past the end")
    if count and not offset:
        buffer.Data(count - 1)
    return count


def _read_tensor(tensor: Any, stored: list[int], limit: int, found: TfliteFacts) -> None:
    found.stateful = found.stateful or bool(tensor.IsVariable())
    if not stored[tensor.Buffer()]:
        return  # computed, not stored
    shape = list(_all(tensor.ShapeLength(), limit, tensor.Shape))
    found.weights[_type_name(tensor.Type())] += math.prod(shape)


def _operator(code: Any) -> tuple[str, bool]:
    """An operator's name with its version, and whether it is a custom one."""
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    custom = code.CustomCode()
    if number == _CUSTOM or custom:
        return printable(custom or b"custom"), True
    return f"{_builtin_names().get(number, f'operator {number}')} v{code.Version()}", False


@cache
def _builtin_names() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


def _type_name(number: int) -> str:
    from ai_edge_litert import schema_py_generated as schema

    names: dict[int, str] = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    name = names.get(number, "other")
    return _TYPES.get(name, name)
