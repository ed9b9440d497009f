"""The elements of a tensor: datatypes of the Open Inference Protocol v2, raw bytes to values, golden.json and back.

Raw bytes are little-endian and row-major, as is every machine that Wherry runs on. BYTES elements have a u32 length
before each. No numpy here: the agent imports this module and counts its megabytes.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from wherry.errors import MalformedMessage
from wherry.release import Datatype, GoldenTensor

_FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
ELEMENT_SIZE: Mapping[str, int] = {name: struct.calcsize("<" + code) for name, code in _FORMATS.items()}
"""Datatype -> bytes of one element; BYTES has no fixed size and is not in it."""
FLOATS = frozenset({"FP16", "FP32", "FP64"})

Data = bytes | memoryview
Values = Sequence[float] | Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named, typed array. `data` holds raw bytes as the binary extension has them.

    Attributes:
        name: as the model calls it.
        datatype: one of `wherry.release.Datatype`.
        shape: no dimension is negative.
        data: little-endian row-major bytes; BYTES elements are length-prefixed.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data

    def values(self) -> Values:
        """The elements in row-major order: numbers (bool for BOOL), or `bytes` for BYTES."""
        if self.datatype == "BYTES":
            return unpack_bytes(self.data)
        if self.datatype == "FP16":
            return struct.unpack(f"<{len(self.data) // 2}e", self.data)
        return cast(Sequence[float], memoryview(self.data).cast("B").cast(cast(Any, _FORMATS[self.datatype])))


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """The raw form of a BYTES tensor: a u32 length before each element."""
    return b"".join(part for element in elements for part in (struct.pack("<I", len(element)), element))


def unpack_bytes(data: Data) -> list[bytes]:
    """The elements of a BYTES tensor's raw form.

    Raises:
        MalformedMessage: a length points past the end.
    """
    found, at, end = [], 0, len(data)
    while at < end:
        start = at + 4
        stop = start + struct.unpack_from("<I", data, at)[0] if start <= end else end + 1
        if stop > end:
            raise MalformedMessage("BYTES tensor", f"an element at byte {at} runs past the end at {end}")
        found.append(bytes(data[start:stop]))
        at = stop
    return found


def make_tensor(name: str, datatype: str, shape: Sequence[int], data: Data) -> Tensor:
    """A tensor whose bytes are checked against its datatype and shape.

    Raises:
        MalformedMessage: naming the tensor, what is wrong and what was expected.
    """
    thing = f"tensor {name[:120]!r}"
    size = ELEMENT_SIZE.get(datatype)
    if size is None and datatype != "BYTES":
        raise MalformedMessage(
            thing, f"has datatype {datatype[:40]!r}, expected one of {', '.join(get_args(Datatype))}"
        )
    count = math.prod(shape)
    if size is None:
        found, expected, unit = len(unpack_bytes(data)), count, "elements"
    else:
        found, expected, unit = len(data), count * size, "bytes"
    if found != expected:
        reason = f"has {found} {unit}, expected {expected} for {datatype} of shape {list(shape)}"
        raise MalformedMessage(thing, reason)
    return Tensor(name, datatype, tuple(shape), data)


def tensor_from_values(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> Tensor:
    """A tensor from flat row-major values; BYTES takes `str` or `bytes`.

    Raises:
        MalformedMessage: a value does not fit the datatype, or their number the shape.
    """
    data = _pack(name, datatype, values)
    if len(values) != math.prod(shape):
        reason = f"has {len(values)} values, expected {math.prod(shape)} for shape {list(shape)}"
        raise MalformedMessage(f"tensor {name[:120]!r}", reason)
    return make_tensor(name, datatype, shape, data)


def _pack(name: str, datatype: str, values: Sequence[Any]) -> bytes:
    try:
        if datatype == "BYTES":
            return pack_bytes(value if isinstance(value, bytes) else value.encode() for value in values)
        if datatype == "BOOL":
            return bytes(map((False, True).index, values))
        if datatype == "FP16":
            return struct.pack(f"<{len(values)}e", *values)
        if datatype in _FORMATS:
            return array(_FORMATS[datatype], values).tobytes()
    except (TypeError, ValueError, OverflowError, AttributeError, struct.error) as error:
        raise MalformedMessage(f"tensor {name[:120]!r}", f"has data that is not {datatype} ({error})") from error
    return b""


def json_values(tensor: Tensor) -> list[Any]:
    """The elements as JSON has them.

    Raises:
        MalformedMessage: FP16, bytes that are not UTF-8, or NaN or Inf: they have no JSON form.
    """
    thing = f"tensor {tensor.name!r}"
    if tensor.datatype == "FP16":
        raise MalformedMessage(thing, "is FP16, which has no JSON form, expected binary data to be asked for")
    if tensor.datatype == "BYTES":
        try:
            return [element.decode() for element in unpack_bytes(tensor.data)]
        except UnicodeDecodeError as error:
            raise MalformedMessage(thing, "holds bytes that are not UTF-8, expected binary data") from error
    values = list(tensor.values())
    if tensor.datatype in FLOATS and not all(map(math.isfinite, cast(list[float], values))):
        raise MalformedMessage(thing, "holds NaN or Inf, which have no JSON form, expected binary data")
    return values


def tensor_to_golden(tensor: Tensor) -> GoldenTensor:
    """The tensor as golden.json has it."""
    raw = base64.b64encode(tensor.data).decode()
    return GoldenTensor(name=tensor.name, datatype=cast(Datatype, tensor.datatype), shape=list(tensor.shape), raw=raw)


def tensor_from_golden(golden: GoldenTensor) -> Tensor:
    """A tensor of golden.json.

    Raises:
        MalformedMessage: not base64, or bytes that do not fit datatype and shape.
    """
    try:
        data = base64.b64decode(golden.raw, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedMessage(f"golden tensor {golden.name!r}", "is not base64") from error
    if any(size < 0 for size in golden.shape):
        raise MalformedMessage(f"golden tensor {golden.name!r}", f"has shape {golden.shape}, expected no negative size")
    return make_tensor(golden.name, golden.datatype, golden.shape, data)
