"""The cache of layers: files named by their digest, and notes of which input gave which layer."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from wherry.errors import StoreError
from wherry.identity import sha256_digest
from wherry_cli.packaging.package_file import LayerKind

GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an image.

    Attributes:
        digest: of the bytes as transferred; the blob's name.
        diff_id: of the tar archive inside; equal to `digest` for plain tar.
        size: bytes as transferred.
        unpacked: bytes of the tar archive.
        path: the file that holds it; empty while it is only in a registry.
    """

    kind: LayerKind
    media_type: str
    digest: str
    diff_id: str
    size: int
    unpacked: int
    path: str = ""


class _Tee:
    """A file object that hashes and counts what is written on to another."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._hash = hashlib.sha256()
        self.count = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.count += len(data)
        return self._target.write(data)

    def flush(self) -> None:
        self._target.flush()

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def cache_folder() -> Path:
    """$WHERRY_CACHE, else $XDG_CACHE_HOME/wherry, else ~/.cache/wherry."""
    given = os.environ.get("WHERRY_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wherry"


class Store:
    """Layers on disk, by digest. Several processes may use one folder: files appear whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def scratch(self) -> Path:
        """A new private folder on the same file system, for the caller to remove."""
        return Path(tempfile.mkdtemp(dir=self._made("scratch")))

    def path(self, digest: str) -> Path:
        """Where the blob of a digest is or would be."""
        return self.folder / "blobs" / digest.removeprefix("sha256:")

    def add_tar(self, kind: LayerKind, write: Callable[[BinaryIO], None], *, compress: bool) -> Layer:
        """Store what `write` puts into a file object as a layer.

        Args:
            kind: what the layer holds.
            write: writes a tar archive.
            compress: gzip it (with no time and no name in it, so that the same tar gives the same digest).

        Raises:
            StoreError: the cache folder cannot be written.
        """
        with self._incoming() as file:
            outer = _Tee(file)
            if compress:
                with gzip.GzipFile("", "wb", 6, cast("BinaryIO", outer), mtime=0) as packed:
                    inner = _Tee(cast("IO[bytes]", packed))
                    write(cast("BinaryIO", inner))
            else:
                inner = outer
                write(cast("BinaryIO", inner))
            file.flush()
            place = self._adopt(Path(file.name), outer.digest)
        media_type = GZIP_LAYER if compress else PLAIN_LAYER
        return Layer(kind, media_type, outer.digest, inner.digest, outer.count, inner.count, str(place))

    def add_blob(self, pieces: Iterator[bytes], digest: str) -> Path | None:
        """Store a downloaded blob if its bytes have the digest; None, and nothing kept, if they do not.

        Raises:
            StoreError: the cache folder cannot be written.
        """
        with self._incoming() as file:
            tee = _Tee(file)
            for piece in pieces:
                tee.write(piece)
            file.flush()
            return self._adopt(Path(file.name), digest) if tee.digest == digest else None

    def has(self, digest: str) -> bool:
        """Whether the blob of a digest is here."""
        return self.path(digest).is_file()

    def unpacked_size(self, digest: str, diff_id: str, *, compressed: bool) -> int:
        """Bytes of the tar archive inside a stored blob, which must be the one of `diff_id`.

        Raises:
            StoreError: the blob does not unpack to that archive.
        """
        path = self.path(digest)
        if not compressed:
            return path.stat().st_size
        hashed, count = hashlib.sha256(), 0
        try:
            with gzip.open(path) as file:
                while piece := file.read(_PIECE):
                    hashed.update(piece)
                    count += len(piece)
        except (OSError, EOFError, zlib.error) as error:
            raise StoreError(f"layer {digest}", f"does not unpack ({error})", "Push the base image again") from error
        if "sha256:" + hashed.hexdigest() != diff_id:
            raise StoreError(f"layer {digest}", f"does not hold the archive {diff_id}", "Push the base image again")
        return count

    def recall(self, subject: str, key: str) -> Layer | None:
        """The layer noted for an input, if its file is still here."""
        try:
            note = json.loads(self._note(subject, key).read_text(encoding="utf-8"))
            layer = Layer(**(note | {"path": str(self.path(note["digest"]))}))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return layer if self.has(layer.digest) and self.path(layer.digest).stat().st_size == layer.size else None

    def remember(self, subject: str, key: str, layer: Layer) -> None:
        """Note which layer an input gave.

        Raises:
            StoreError: the cache folder cannot be written.
        """
        self._write_note(subject, key, asdict(layer) | {"path": ""})

    def known_places(self, registry: str, digest: str) -> tuple[str, ...]:
        """Repositories of a registry that a layer was pushed to from here; it may have lost it since."""
        try:
            place = json.loads(self._note("place", f"{registry} {digest}").read_text(encoding="utf-8"))
            return (str(place["repository"]),)
        except (OSError, ValueError, TypeError, KeyError):
            return ()

    def note_place(self, registry: str, digest: str, repository: str) -> None:
        """Note that a repository holds a layer.

        Raises:
            StoreError: the cache folder cannot be written.
        """
        self._write_note("place", f"{registry} {digest}", {"repository": repository})

    def _write_note(self, subject: str, key: str, note: dict[str, Any]) -> None:
        with self._incoming() as file:
            file.write(json.dumps(note).encode())
            file.flush()
            self._made("notes")
            Path(file.name).replace(self._note(subject, key))

    def _note(self, subject: str, key: str) -> Path:
        return self.folder / "notes" / f"{subject}-{sha256_digest(key.encode())[7:39]}.json"

    def _made(self, name: str) -> Path:
        place = self.folder / name
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        return place

    def _adopt(self, temporary: Path, digest: str) -> Path:
        place = self.path(digest)
        self._made("blobs")
        temporary.chmod(0o644)
        temporary.replace(place)
        return place

    @contextmanager
    def _incoming(self) -> Iterator[IO[bytes]]:
        """A temporary file that is gone afterwards unless it was moved to its place."""
        folder = self._made("scratch")
        try:
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                try:
                    yield file
                finally:
                    Path(file.name).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from error


def _unwritable(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"package cache {folder}",
        f"cannot be written ({error.strerror or error})",
        "Free disk space there, or point WHERRY_CACHE to a folder with room",
    )


def read_pieces(path: Path, offset: int = 0, limit: int | None = None) -> Iterator[bytes]:
    """The bytes of a file from an offset, in pieces."""
    with path.open("rb") as file:
        file.seek(offset)
        left = limit
        while left is None or left > 0:
            piece = file.read(_PIECE if left is None else min(_PIECE, left))
            if not piece:
                return
            if left is not None:
                left -= len(piece)
            yield piece
