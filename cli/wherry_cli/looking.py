"""Looking at a server again and again: at a bearable pace, and through its restarts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from wherry.errors import AdapterError, WherryError
from wherry_cli.client import Untrusted

T = TypeVar("T")
PATIENCE = timedelta(minutes=5)
"""How long a server may be out of reach before watching ends with its error."""
_SHARE = 4
"""A look that takes long is followed by a rest this many times as long: watching must not be what keeps it busy."""


@dataclass(frozen=True, slots=True)
class Look(Generic[T]):
    """What a look saw, or why it saw nothing; what was seen last stays."""

    seen: T | None = None
    trouble: WherryError | None = None


def now_utc() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def looks(
    ask: Callable[[], T],
    every: float,
    patience: timedelta = PATIENCE,
    passing: tuple[type[WherryError], ...] = (AdapterError,),
    known: bool = False,
) -> Iterator[Look[T]]:
    """Look until the caller stops asking for more.

    Args:
        ask: one look.
        every: seconds of rest between two.
        patience: how long it may fail before its error is raised.
        passing: errors that may pass.
        known: the server answered just before; without it, the very first failure ends it.

    Raises:
        WherryError: whatever `ask` failed with, at once when it will not pass, else when the patience is over.
    """
    lost: datetime | None = None
    while True:
        began = time.monotonic()
        try:
            yield Look(seen=ask())
            lost, known = None, True
        except passing as error:
            lost = lost or now_utc()
            if not known or isinstance(error, Untrusted) or now_utc() - lost > patience:
                raise
            yield Look(trouble=error)
        time.sleep(max(every, _SHARE * (time.monotonic() - began) if every else 0))
