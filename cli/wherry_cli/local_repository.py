"""The owner's copy of the metadata, and its comparison with what the server says it holds.

The server is never trusted: what it serves is verified with the owner's own root before it is built upon, and
a server that lost or changed metadata is named as such.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from wherry.api.repository import RepositoryInfo
from wherry.errors import StoreError, Tampered
from wherry.metadata import Files, file_name, newest, verify_owner_set

ROLES = ("root", "targets", "snapshot")
KEPT = 5
"""Newest versions of targets and snapshot that stay on disk; every root stays."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What to build the next metadata on.

    Attributes:
        files: every root, and the newest targets and snapshot, verified. Empty: nobody signed anything yet.
        missing: files that the server lost; upload them together with the new ones.
        warning: what the operator must hear about the server, if anything.
    """

    files: Files
    missing: Files = field(default_factory=dict)
    warning: str | None = None


class LocalRepository:
    """The folder of the owner's copy, `$WHERRY_HOME/repository`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> dict[str, bytes]:
        """All files; empty before the first `save`.

        Raises:
            StoreError: a file cannot be read.
        """
        try:
            found = sorted(self._folder.glob("*.json"))
            files = {path.name: path.read_bytes() for path in found}
        except OSError as error:
            raise StoreError(f"folder {self._folder}", str(error)) from error
        return {name: data for name, data in files.items() if any(newest({name: data}, role) for role in ROLES)}

    def save(self, files: Files) -> None:
        """Add files, durably; old targets and snapshots are dropped. Call it once the server accepted them.

        Raises:
            StoreError: a file cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name, data in files.items():
                _replace(self._folder / name, data)
            for name in stale_names(self.load()):
                (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"folder {self._folder}", str(error)) from error


def names_of(info: RepositoryInfo) -> list[str]:
    """The files to fetch from the server to know what it holds: all roots, newest targets and snapshot."""
    names = [file_name("root", version) for version in range(1, info.root + 1)]
    names += [file_name("targets", info.targets)] if info.targets else []
    names += [file_name("snapshot", info.snapshot)] if info.snapshot else []
    return names


def stale_names(files: Files) -> list[str]:
    """Targets and snapshots too old to keep."""
    return [
        name
        for name in files
        for role in ("targets", "snapshot")
        if 0 < newest({name: b""}, role) <= newest(files, role) - KEPT
    ]


def compare(local: Files, server: Files) -> Standing:
    """Decide what the next metadata is built on.

    Args:
        local: the owner's copy; empty on a machine that never published.
        server: what the server serves (see `names_of`); empty for a fresh server.

    Raises:
        Tampered: the server holds other bytes than the owner signed under the same version.
        TrustError: the server's files do not verify with the owner's root.
    """
    if not server:
        missing = _newest_files(local)
        lost = "The server holds no metadata although you published some; it is sent again" if missing else None
        return Standing(missing, missing, lost)
    for name in sorted(set(local) & set(server)):
        if local[name] != server[name]:
            raise Tampered(f"{name} on the server", "differs from the one that you signed")
    both = {**server, **local}
    verify_owner_set(server, local.get(file_name("root", 1)))
    verify_owner_set(both, local.get(file_name("root", 1)))
    files = _newest_files(both)
    missing = {name: data for name, data in files.items() if name not in server}
    if not missing:
        return Standing(files)
    behind = ", ".join(sorted(missing))
    return Standing(files, missing, f"The server holds older metadata than you published ({behind} missing)")


def _newest_files(files: Files) -> dict[str, bytes]:
    names = [file_name("root", version) for version in range(1, newest(files, "root") + 1)]
    names += [file_name(role, newest(files, role)) for role in ("targets", "snapshot")]
    return {name: files[name] for name in names if name in files}


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
