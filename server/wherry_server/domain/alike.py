"""What a mistyped name may mean. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST = 3


def perhaps(wanted: str, known: Iterable[str], otherwise: str) -> str:
    """What to do about a name that does not exist: the names that look alike, or else the usual word."""
    by_lower = {name.lower(): name for name in known}
    alike = difflib.get_close_matches(wanted.lower(), list(by_lower), n=_MOST, cutoff=0.7)
    return f"Perhaps {' or '.join(by_lower[name] for name in alike)} is meant" if alike else otherwise
