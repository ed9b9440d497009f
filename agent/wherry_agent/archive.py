"""Files out of the tar stream that an engine sends, without keeping the rest of it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from wherry.errors import NotFound, Tampered

_MOST_FILES = 20_000
_PIECE = 1 << 20


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


def unpack_tree(chunks: Iterator[bytes], folder: Path, limit: int) -> int:
    """Write an archive's files and folders below a folder; returns how many bytes that were.

    Args:
        chunks: the archive.
        folder: an empty folder of our own, so that no link in it leads elsewhere.
        limit: most bytes of all files.

    Raises:
        Tampered: more bytes or files than that, a path that leads out of the folder or is there already, or a link
            or device.
        TarError: it is no archive.
        OSError: the disk cannot be written.
    """
    total = 0
    with tarfile.open(fileobj=io.BufferedReader(_Chunks(iter(chunks))), mode="r|") as archive:
        for number, member in enumerate(archive):
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
                raise Tampered(f"file {member.name[:120]!r}", "has no place in a release of the agent")
            total += member.size
            if total > limit or number >= _MOST_FILES:
                raise Tampered("release of the agent", f"unpacks to more than the {limit} bytes that were signed")
            try:
                _write(archive, member, folder / path)
            except (FileExistsError, NotADirectoryError) as error:
                raise Tampered(f"file {member.name[:120]!r}", "is twice in a release of the agent") from error
    return total


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    if content is not None:
        with target.open("xb") as file:
            _copy(content, file)


def _copy(content: IO[bytes], file: IO[bytes]) -> None:
    while piece := content.read(_PIECE):
        file.write(piece)
