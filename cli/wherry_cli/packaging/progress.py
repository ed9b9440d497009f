"""How packaging tells what it is doing; whoever calls it decides how to show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of the work, reported as it advances.

    Attributes:
        stage: what is being done, in words a person reads ("base layer for linux/arm64").
        done: how much of it, in bytes where bytes move, else 0 or 1.
        total: of how much; 0 when not known.
        note: what came of it ("in the registry already"), at the end.
    """

    stage: str
    done: int = 0
    total: int = 0
    note: str = ""


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Report to nobody."""
