"""What install.sh made: PREFIX/versions/ID holds this program, PREFIX/installed says where the rest is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

INSTALLED = "installed"
VERSION = re.compile("[0-9a-f]{16}")
USUAL_STATE = Path("/var/lib/wherry")


def installed_prefix() -> Path | None:
    """The folder that install.sh made, when this program runs from it: PREFIX/versions/ID."""
    prefix = Path(sys.prefix).parent.parent
    ours = VERSION.fullmatch(Path(sys.prefix).name) and "state" in read_installed(prefix)
    return prefix if ours else None


def read_installed(prefix: Path) -> dict[str, str]:
    """What was made where: `state`, and `unit` and `link` if there are such; empty for a folder that is not ours."""
    path = prefix / INSTALLED
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {name: value for name, _, value in (line.partition("=") for line in lines) if value}


def usual_state() -> Path:
    """The state folder to use when nobody names one: that of the installation which this program belongs to."""
    prefix = installed_prefix()
    return Path(read_installed(prefix)["state"]) if prefix else USUAL_STATE
