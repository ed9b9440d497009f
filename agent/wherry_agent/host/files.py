"""Small files of the kernel and of the system: what cannot be read is empty, never an error."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path("/")
_LIMIT = 65_536


def text(path: Path) -> str:
    """The beginning of a file, or nothing."""
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT).decode("utf-8", errors="replace")
    except OSError:
        return ""


def word(path: Path) -> str:
    """A file of one word or line, without its end; device-tree files end in a NUL."""
    return text(path).strip("\0 \n")


def number(path: Path, base: int = 10) -> int | None:
    """A file that holds one whole number."""
    try:
        return int(text(path), base)
    except ValueError:
        return None


def meminfo_kb(root: Path, field: str) -> int | None:
    """A line of /proc/meminfo."""
    match = re.search(rf"^{field}:\s+(\d+) kB", text(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) if match else None
