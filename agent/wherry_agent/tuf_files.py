"""The agent's TUF folder: bounded reads, and writes that survive a power cut.

```
STATE/tuf/first.root.json          the root that enrolment pinned; never written again
          root.json                the newest verified root
          root_history/N.root.json every root on the way
          timestamp.json snapshot.json targets.json
```
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

FIRST_ROOT = "first.root.json"
HISTORY = "root_history"
TEMPORARY = ".new"
"""One fixed name a folder, so that crashes never pile up temporary files."""


def read_bounded(path: Path, limit: int) -> bytes:
    """A file's bytes.

    Raises:
        OSError: it cannot be read, or is longer than `limit`.
    """
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(f"{path} is longer than {limit} bytes")
    return data


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file in one step and have it on the medium when this returns; the same bytes are not written again.

    Raises:
        OSError: it cannot be written; the old file stands.
    """
    if _holds(path, data):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.parent / TEMPORARY
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _sync_folder(path.parent)


def remove_metadata(folder: Path) -> None:
    """Forget everything but the pinned root, before another root is pinned.

    Raises:
        OSError: a file cannot be removed.
    """
    for name in ("timestamp.json", "snapshot.json", "targets.json", "root.json"):
        (folder / name).unlink(missing_ok=True)
    if (folder / HISTORY).exists():
        shutil.rmtree(folder / HISTORY)
    _sync_folder(folder)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return read_bounded(path, len(data)) == data
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
