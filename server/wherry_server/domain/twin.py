"""The twin: what the server wants of a device beside what the device says, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wherry.messages import ReleaseRef, SlotReport, StateReport


@dataclass(frozen=True, slots=True)
class ReportMark:
    """Which report of a device the server holds: the stream of one agent installation, and its number."""

    stream: str
    number: int


def is_news(held: ReportMark, report: StateReport) -> bool:
    """Whether a report is newer than the one held. Another stream is another installation: it counts."""
    return report.stream != held.stream or report.number > held.number


def drift(desired: Mapping[str, ReleaseRef], reported: Sequence[SlotReport]) -> list[str]:
    """Slots where the device does not serve what the server wants, sorted.

    A slot that the server does not name is to be empty, so a release that still serves there drifts.
    """
    serving = {slot.slot: slot.serving for slot in reported if slot.serving is not None}
    return sorted(slot for slot in desired.keys() | serving.keys() if not same(desired.get(slot), serving.get(slot)))


def same(one: ReleaseRef | None, other: ReleaseRef | None) -> bool:
    """Whether two references name the same image: the digest decides, names are for people."""
    if one is None or other is None:
        return one is other
    return one.digest == other.digest
