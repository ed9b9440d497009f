"""Protocol buffers read by hand: the few fields that packaging needs, without generated code."""

from __future__ import annotations

from collections.abc import Iterator

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


def parts(data: memoryview, number: int) -> Iterator[memoryview]:
    """The messages or bytes of one field, in order."""
    return (value for found, value in fields(data) if found == number and isinstance(value, memoryview))


def text(data: int | memoryview) -> str:
    """A field's bytes as text; what is not UTF-8, or would steer a terminal, is replaced."""
    return printable(bytes(data)) if isinstance(data, memoryview) else str(data)


def printable(data: bytes) -> str:
    """Text of a file that nobody vouches for, safe to show."""
    return "".join(char if char.isprintable() else " " for char in data.decode("utf-8", "replace"))


def numbers(value: int | memoryview) -> list[int]:
    """A repeated number, packed or one of several."""
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        size, at = _varint(value, at)
        found.append(size)
    return found
