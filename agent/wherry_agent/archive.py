"""One file out of the tar stream that an engine sends, without keeping the rest of it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import Any

from wherry.errors import NotFound


class _Chunks(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def first_file(chunks: Iterator[bytes], path: str, limit: int) -> bytes:
    """The first regular file of an archive.

    Args:
        chunks: the archive.
        path: what was asked for, to name it in errors.
        limit: most bytes of the file.

    Raises:
        NotFound: there is none, or it is longer.
        TarError: it is no archive.
    """
    with tarfile.open(fileobj=io.BufferedReader(_Chunks(iter(chunks))), mode="r|") as archive:
        for member in archive:
            if member.isfile():
                if member.size > limit:
                    raise NotFound(f"file {path}", f"has {member.size} bytes, the limit is {limit}")
                extracted = archive.extractfile(member)
                return extracted.read() if extracted else b""
    raise NotFound(f"file {path}", "is not a regular file")
