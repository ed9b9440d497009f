"""What the fleet page shows, put together from views; the template only lays it out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from wherry.api import DeviceView, HostTelemetry, RolloutTargetView, RolloutView, SlotTelemetry
from wherry.messages import DeploymentReport, Problem, ReleaseRef, SlotReport
from wherry_server.dashboard import words
from wherry_server.domain.selector import describe
from wherry_server.domain.twin import same
from wherry_server.store import views
from wherry_server.store.telemetry_views import telemetry_summary

PAGE = 50
WINDOW = timedelta(hours=1)
_TONES = {
    "committed": "good", "completed": "good", "running": "busy", "assigned": "busy", "pending": "quiet",
    "paused": "warn", "rejected": "bad", "refused": "bad", "failed": "bad", "misfit": "warn",
    "superseded": "quiet", "aborted": "quiet", "removed": "quiet",
}  # fmt: skip
STATE_ORDER = ("committed", "running", "assigned", "pending", "misfit", "superseded", "refused", "rejected")


def tone(state: str) -> str:
    """The colour class of a state or phase; phases on the way are busy."""
    return _TONES.get(state, "busy")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The last deployment of a slot."""

    phase: str
    tone: str
    when: str
    release: str
    reason: str
    fix: str
    progress: int | None


@dataclass(frozen=True, slots=True)
class Inference:
    """How a slot's release answered within the window."""

    requests: str
    failures: str
    failing: bool
    p50: str
    p95: str


@dataclass(frozen=True, slots=True)
class SlotRow:
    """One slot of a device."""

    name: str
    desired: str
    reported: str
    drifts: bool
    health: str
    health_tone: str
    port: int | None
    last: Outcome | None
    inference: Inference | None


@dataclass(frozen=True, slots=True)
class HostRow:
    """The device's newest host sample."""

    temperature: str
    cpu: int
    memory: str
    memory_percent: int
    disk: str
    disk_percent: int
    when: str


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device."""

    id: str
    profile: str
    labels: list[str]
    status: str
    status_tone: str
    seen: str
    agent: str
    drifts: bool
    slots: list[SlotRow]
    host: HostRow | None
    problem: str


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """One rollout, with the parts of its bar and the first reasons why devices failed."""

    id: int
    release: str
    slot: str
    selector: str
    state: str
    tone: str
    when: str
    parts: list[tuple[str, str, int, int]]
    troubles: list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class FleetPage:
    """The whole page."""

    counts: views.FleetCounts
    devices: list[DeviceRow]
    rollouts: list[RolloutRow]
    next: str | None
    show: str
    clock: str


def fleet_page(session: Session, now: datetime, after: str = "", show: str = "") -> FleetPage:
    """Read what the page shows.

    Args:
        session: where to read.
        now: the time, for ages.
        after: `next` of the page before.
        show: only `offline`, `drifting` or `problem` devices; everything else shows all.
    """
    states = {"offline": "offline", "drifting": "drifting", "problem": "problem"}
    wanted = views.DeviceFilter(state=states.get(show))  # type: ignore[arg-type]  # states of devices
    page = views.device_page(session, after, PAGE, wanted)
    summary = telemetry_summary(session, now - WINDOW, [view.id for view in page.items])
    hosts = {host.device: host for host in summary.hosts}
    usage: dict[str, list[SlotTelemetry]] = defaultdict(list)
    for slot in summary.slots:
        usage[slot.device].append(slot)
    rollouts = views.rollout_page(session, None, 4).items
    troubles = views.troubled_targets(session, [view.id for view in rollouts], 3)
    return FleetPage(
        counts=views.fleet_counts(session),
        devices=[device_row(view, usage[view.id], hosts.get(view.id), now) for view in page.items],
        rollouts=[rollout_row(view, troubles.get(view.id, []), now) for view in rollouts],
        next=page.next,
        show=show,
        clock=f"{now:%H:%M:%S} UTC",
    )


def device_row(
    view: DeviceView, usage: Sequence[SlotTelemetry], host: HostTelemetry | None, now: datetime
) -> DeviceRow:
    """A device as the page shows it."""
    reported = {slot.slot: slot for slot in view.slots}
    names = sorted(view.desired.keys() | {name for name, slot in reported.items() if slot.serving or slot.deployment})
    status, status_tone = ("online", "good") if view.online else ("offline", "bad")
    return DeviceRow(
        id=view.id,
        profile=view.profile,
        labels=[f"{name}={value}" for name, value in sorted(view.labels.items())],
        status="revoked" if view.revoked else status,
        status_tone="quiet" if view.revoked else status_tone,
        seen=words.age(view.last_seen, now),
        agent=view.agent_version,
        drifts=bool(view.drift),
        slots=[slot_row(name, view.desired.get(name), reported.get(name), usage, now) for name in names],
        host=host_row(host, now) if host else None,
        problem=sentence(view.problem),
    )


def slot_row(
    name: str, desired: ReleaseRef | None, slot: SlotReport | None, usage: Sequence[SlotTelemetry], now: datetime
) -> SlotRow:
    """A slot as the page shows it; telemetry is of the release that serves."""
    serving = slot.serving if slot else None
    found = [
        used
        for used in usage
        if serving and (used.slot, used.model, used.counter) == (name, serving.model, serving.counter)
    ]
    health, health_tone = ("healthy", "good") if slot and slot.healthy else ("not healthy", "bad")
    if serving is None:
        health, health_tone = "empty", "quiet"
    return SlotRow(
        name=name,
        desired=label(desired),
        reported=label(serving),
        drifts=not same(desired, serving),
        health=health,
        health_tone=health_tone,
        port=slot.port if slot and serving else None,
        last=outcome(slot.deployment, now) if slot and slot.deployment else None,
        inference=inference(found[0]) if found else None,
    )


def label(ref: ReleaseRef | None) -> str:
    """A release as people say it."""
    return f"{ref.model} {ref.version}" if ref else "nothing"


def outcome(report: DeploymentReport, now: datetime) -> Outcome:
    """How a deployment stands, with its reason."""
    fetching = report.phase == "fetching" and report.total_bytes > 0
    return Outcome(
        phase=report.phase.replace("_", " "),
        tone=tone(report.phase),
        when=words.age(report.updated, now),
        release=label(report.release),
        reason=f"{report.problem.thing}: {report.problem.reason}" if report.problem else "",
        fix=report.problem.fix if report.problem else "",
        progress=words.percent(report.fetched_bytes, report.total_bytes) if fetching else None,
    )


def inference(used: SlotTelemetry) -> Inference:
    """Telemetry of a slot in words."""
    return Inference(
        requests=words.number(used.requests),
        failures=words.number(used.failures),
        failing=used.failures > 0,
        p50=words.milliseconds(used.p50_us),
        p95=words.milliseconds(used.p95_us),
    )


def host_row(host: HostTelemetry, now: datetime) -> HostRow:
    """A host sample in words; of several temperatures the highest counts."""
    hottest = max(host.temperatures.values(), default=None)
    return HostRow(
        temperature=f"{hottest:.0f} °C" if hottest is not None else words.NOTHING,
        cpu=words.percent(host.cpu_percent, 100),
        memory=f"{words.size(host.memory_used_bytes)} of {words.size(host.memory_total_bytes)}",
        memory_percent=words.percent(host.memory_used_bytes, host.memory_total_bytes),
        disk=f"{words.size(host.disk_used_bytes)} of {words.size(host.disk_total_bytes)}",
        disk_percent=words.percent(host.disk_used_bytes, host.disk_total_bytes),
        when=words.age(host.at, now),
    )


def rollout_row(view: RolloutView, troubled: Sequence[RolloutTargetView], now: datetime) -> RolloutRow:
    """A rollout as the page shows it."""
    total = sum(view.counts.values())
    counted = [(state, view.counts[state]) for state in STATE_ORDER if view.counts.get(state)]
    return RolloutRow(
        id=view.id,
        release=f"{view.model} {view.version}",
        slot=view.slot,
        selector=describe(view.selector),
        state=view.state,
        tone=tone(view.state),
        when=words.age(view.created, now),
        parts=[(state, tone(state), count, max(2, words.percent(count, total))) for state, count in counted],
        troubles=[(target.device, target.state, sentence(target.problem)) for target in troubled],
    )


def sentence(problem: Problem | None) -> str:
    """A problem as a sentence."""
    return f"{problem.thing}: {problem.reason}. {problem.fix}." if problem else ""
