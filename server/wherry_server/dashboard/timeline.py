"""Deployments as a timeline: phases to scale, gates with their numbers, before and after the swap. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from wherry.messages import FINAL_PHASES, DeploymentReport, ReleaseRef
from wherry_server.dashboard import words
from wherry_server.dashboard.fleet import label, sentence
from wherry_server.dashboard.gate_words import GateRow, gate_row
from wherry_server.store.swap_views import Answered

SCALE = 1000
_LEAST = 4
"""A phase is drawn at least so wide, of SCALE."""
ENOUGH = 30
"""Requests on each side of a swap from which on they are compared."""
COMPARED = timedelta(minutes=30)
"""How long before and after a swap is compared."""
_AFTER_SWAP = ("soaking", "committing", "committed")
Ask = Callable[[str, ReleaseRef, datetime, datetime], Answered]
"""(slot, release, since, until) -> how it answered."""


@dataclass(frozen=True, slots=True)
class PhaseBar:
    """A phase in the drawing: where it begins and how wide it is, of SCALE."""

    phase: str
    shade: str
    begin: int
    width: int
    duration: str
    at: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A number before and after a swap, and the difference in words."""

    name: str
    before: str
    after: str
    change: str
    tone: str


@dataclass(frozen=True, slots=True)
class DeploymentCard:
    """One deployment."""

    id: str
    slot: str
    release: str
    previous: str
    phase: str
    tone: str
    running: bool
    when: str
    took: str
    started: str
    mode: str
    fetched: str
    left: str
    phases: list[PhaseBar]
    gates: list[GateRow]
    problem: str
    comparison: list[Comparison]


def deployment_card(report: DeploymentReport, now: datetime, ask: Ask) -> DeploymentCard:
    """A deployment as the page shows it."""
    running = report.phase not in FINAL_PHASES
    end = now if running else report.updated
    left = (report.deadline - now).total_seconds() if running and report.deadline else None
    return DeploymentCard(
        id=report.id,
        slot=report.slot,
        release=label(report.release),
        previous=label(report.previous) if report.previous else "",
        phase=words.phase_words(report.phase),
        tone=words.tone(report.phase),
        running=running,
        when=words.age(report.updated, now),
        took=words.duration((end - report.started).total_seconds()),
        started=words.clock_time(report.started),
        mode={"overlap": "old and new side by side", "replace": "the old one stopped first"}.get(report.mode or "", ""),
        fetched=_fetched(report),
        left=f"the phase ends by itself in {words.duration(left)}" if left is not None and left > 0 else "",
        phases=phase_bars(report, end),
        gates=[gate_row(gate) for gate in report.gates],
        problem=sentence(report.problem),
        comparison=compare(report, now, ask),
    )


def _fetched(report: DeploymentReport) -> str:
    if not report.total_bytes:
        return ""
    return f"{words.size(report.fetched_bytes)} of {words.size(report.total_bytes)} fetched"


def phase_bars(report: DeploymentReport, end: datetime) -> list[PhaseBar]:
    """Phases with their lengths, drawn to scale; the last phase of all is an instant and is left out."""
    begun = [(phase, at) for phase, at in report.phases if phase not in FINAL_PHASES]
    stops = [at for _, at in report.phases[1:]] + [end]
    spans = [
        (phase, at, max(0.0, (stop - at).total_seconds())) for (phase, at), stop in zip(begun, stops, strict=False)
    ]
    widths = scale([seconds for _, _, seconds in spans])
    edges = [sum(widths[:index]) for index in range(len(widths) + 1)]
    return [
        PhaseBar(
            phase=words.phase_words(phase),
            shade=phase,
            begin=begin,
            width=stop - begin,
            duration=words.duration(seconds),
            at=words.clock_time(at),
        )
        for (phase, at, seconds), (begin, stop) in zip(spans, pairwise(edges), strict=True)
    ]


def scale(lengths: Sequence[float]) -> list[int]:
    """Lengths as whole parts of SCALE; each at least visible."""
    total = sum(lengths)
    if not lengths:
        return []
    room = SCALE - _LEAST * len(lengths)
    parts = [_LEAST + int(room * (length / total if total else 1 / len(lengths))) for length in lengths]
    parts[parts.index(max(parts))] += SCALE - sum(parts)
    return parts


def swapped_at(report: DeploymentReport) -> datetime | None:
    """When the release began to answer, if it did."""
    return next((at for phase, at in report.phases if phase in _AFTER_SWAP), None)


def compare(report: DeploymentReport, now: datetime, ask: Ask) -> list[Comparison]:
    """The release before and the one after the swap, half an hour each."""
    at = swapped_at(report)
    if at is None or report.previous is None or report.previous.digest == report.release.digest:
        return []
    before = ask(report.slot, report.previous, at - COMPARED, at)
    after = ask(report.slot, report.release, at, min(at + COMPARED, now))
    if not (before.requests + before.failures and after.requests + after.failures):
        return []
    if min(window.requests + window.failures for window in (before, after)) < ENOUGH:
        return [
            _few("p50", before.p50_us, after.p50_us),
            _few("p95", before.p95_us, after.p95_us),
            _counts(before, after),
        ]
    return [
        _latency("p50", before.p50_us, after.p50_us),
        _latency("p95", before.p95_us, after.p95_us),
        _error_rate(before, after),
        _counts(before, after),
    ]


def _counts(before: Answered, after: Answered) -> Comparison:
    return Comparison("requests", words.number(before.requests), words.number(after.requests), "", "quiet")


def _few(name: str, before: int | None, after: int | None) -> Comparison:
    """Numbers that no verdict can be drawn from."""
    few = "too few requests to compare"
    return Comparison(name, words.milliseconds(before), words.milliseconds(after), few, "quiet")


def _latency(name: str, before: int | None, after: int | None) -> Comparison:
    change, tone = "", "quiet"
    if before and after:
        percent = round(100 * (after - before) / before)
        change = "the same" if percent == 0 else f"{abs(percent)} % {'slower' if percent > 0 else 'faster'}"
        tone = "quiet" if abs(percent) < 10 else "warn" if percent > 0 else "good"
    return Comparison(name, words.milliseconds(before), words.milliseconds(after), change, tone)


def _error_rate(before: Answered, after: Answered) -> Comparison:
    rates = [window.failures / max(1, window.requests + window.failures) for window in (before, after)]
    change, tone = "the same", "quiet"
    if rates[1] > rates[0]:
        change, tone = "more errors", "bad" if rates[1] > rates[0] + 0.001 else "quiet"
    elif rates[1] < rates[0]:
        change, tone = "fewer errors", "good"
    return Comparison("error rate", f"{100 * rates[0]:.2f} %", f"{100 * rates[1]:.2f} %", change, tone)
