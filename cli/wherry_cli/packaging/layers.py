"""Deterministic tar layers: same files, same bytes, same digest, on every machine and every day."""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from wherry_cli.packaging.package_file import LayerKind
from wherry_cli.packaging.progress import Progress, Report
from wherry_cli.packaging.store import Layer, Store

EPOCH = 1_735_689_600
"""Modification time of everything in an image (2025-01-01T00:00:00Z): a time of our own would change the digest."""
EPOCH_TEXT = "2025-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, link or folder of a layer; exactly one of `data`, `source` and `link`, or none for a folder.

    Attributes:
        path: in the image, without leading slash.
        data: the file's bytes.
        source: the file to read them from.
        link: target of a symbolic link.
    """

    path: str
    data: bytes | None = None
    source: Path | None = None
    link: str | None = None
    mode: int = 0o644


def built_once(
    store: Store, kind: LayerKind, key: str, build: Callable[[Path], Layer], report: Report, stage: str, doing: str
) -> Layer:
    """The layer that the store noted for an input, or else what `build` makes of it in a scratch folder.

    Args:
        store: where layers are kept.
        kind: of layer.
        key: all that the layer depends on.
        build: makes it; the folder goes afterwards.
        report: told of it.
        stage: what is built, in words a person reads.
        doing: what is done first.
    """
    known = store.recall(kind, key)
    if known is not None:
        report(Progress(stage, 1, 1, "in the cache"))
        return known
    report(Progress(stage, 0, 1, doing))
    folder = store.scratch()
    try:
        layer = build(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    store.remember(kind, key, layer)
    report(Progress(stage, 1, 1, "built"))
    return layer


def folder_entries(folder: Path, prefix: str, keep: Callable[[PurePosixPath], bool] = lambda _: True) -> list[Entry]:
    """The files and links below a folder as entries below `prefix`; `keep` judges paths relative to the folder."""
    entries = []
    for path in sorted(folder.rglob("*")):
        relative = PurePosixPath(path.relative_to(folder).as_posix())
        if not keep(relative):
            continue
        name = f"{prefix.strip('/')}/{relative}"
        if path.is_symlink():
            entries.append(Entry(name, link=path.readlink().as_posix()))
        elif path.is_file():
            executable = path.stat().st_mode & stat.S_IXUSR
            entries.append(Entry(name, source=path, mode=0o755 if executable else 0o644))
    return entries


def _parents(entries: Iterable[Entry]) -> set[str]:
    found: set[str] = set()
    for entry in entries:
        found.update(str(parent) for parent in PurePosixPath(entry.path).parents)
    return found - {"."}


def _is_folder(entry: Entry) -> bool:
    return entry.data is None and entry.source is None and entry.link is None


def clean_info(name: str, mode: int = 0o644) -> tarfile.TarInfo:
    """A tar header without a trace of this machine: owner root, fixed time."""
    info = tarfile.TarInfo(name)
    info.mode, info.mtime, info.uid, info.gid, info.uname, info.gname = mode, EPOCH, 0, 0, "", ""
    return info


def _members(entries: list[Entry]) -> Iterator[tuple[tarfile.TarInfo, Entry | None]]:
    by_path = {entry.path: entry for entry in entries}
    folders = _parents(entries) | {entry.path for entry in entries if _is_folder(entry)}
    for path in sorted(folders | set(by_path)):
        entry = by_path.get(path)
        if path in folders:
            info = clean_info(path, entry.mode | 0o111 if entry else 0o755)
            info.type = tarfile.DIRTYPE
            yield info, None
        elif entry is not None and entry.link is not None:
            info = clean_info(path, 0o777)
            info.type, info.linkname = tarfile.SYMTYPE, entry.link
            yield info, None
        elif entry is not None:
            info = clean_info(path, entry.mode)
            info.size = entry.source.stat().st_size if entry.source else len(entry.data or b"")
            yield info, entry


def write_tar(entries: Iterable[Entry], target: BinaryIO) -> None:
    """Write entries as a tar archive, sorted, with their folders."""
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for info, entry in _members(list(entries)):
            if entry is None:
                archive.addfile(info)
            elif entry.source is not None:
                with entry.source.open("rb") as file:
                    archive.addfile(info, file)
            else:
                archive.addfile(info, io.BytesIO(entry.data or b""))


def make_layer(kind: LayerKind, entries: Iterable[Entry], store: Store, *, compress: bool = True) -> Layer:
    """Put entries into a layer in the store.

    Raises:
        StoreError: the cache folder cannot be written, or a source file cannot be read.
    """
    listed = list(entries)
    return store.add_tar(kind, lambda target: write_tar(listed, target), compress=compress)
