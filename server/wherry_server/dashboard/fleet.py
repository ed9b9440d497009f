"""What the fleet page shows, put together from views; the template only lays it out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import get_args
from urllib.parse import urlencode

from wherry.api.devices import DeviceView
from wherry.api.rollouts import RolloutTargetView, RolloutView
from wherry.api.telemetry import HostTelemetry, SlotTelemetry
from wherry.messages import FINAL_PHASES, DeploymentReport, Problem, ReleaseRef, SlotReport
from wherry_server.dashboard import words
from wherry_server.dashboard.words import STATE_ORDER, tone
from wherry_server.domain.selector import describe
from wherry_server.domain.twin import same
from wherry_server.store.device_views import DeviceFilter, DeviceState, Facets, FleetCounts

_TROUBLE = ("rejected", "refused", "rolling_back")


@dataclass(frozen=True, slots=True)
class FleetQuery:
    """What the visitor asked for, as it stands in the address.

    Attributes:
        version: model and version that a slot serves, "vision 2.0".
        labels: "name=value" each.
    """

    search: str = ""
    state: str = ""
    profile: str = ""
    version: str = ""
    labels: tuple[str, ...] = ()

    def filter(self) -> DeviceFilter:
        """The same for the database; what is not known there filters nothing."""
        states: dict[str, DeviceState] = {state: state for state in get_args(DeviceState)}
        model, _, version = self.version.rpartition(" ")
        pairs = (label.partition("=") for label in self.labels if "=" in label)
        return DeviceFilter(
            profile=self.profile or None,
            labels=tuple((name, value) for name, _, value in pairs),
            state=states.get(self.state, "active"),
            search=self.search,
            model=model or None,
            version=version if model else None,
        )

    def address(self, **changes: str) -> str:
        """The page's address with some fields changed; empty ones are left out."""
        fields = {"q": self.search, "state": self.state, "profile": self.profile, "version": self.version} | changes
        pairs = [(name, value) for name, value in fields.items() if value]
        labels = [] if "label" in changes else [("label", label) for label in self.labels]
        return "/?" + urlencode(pairs + labels) if pairs or labels else "/"

    @property
    def narrowed(self) -> bool:
        """Whether it leaves devices out."""
        return any((self.search, self.state, self.profile, self.version, self.labels))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The last deployment of a slot."""

    phase: str
    tone: str
    when: str
    release: str
    reason: str
    progress: int | None


@dataclass(frozen=True, slots=True)
class SlotRow:
    """One slot of a device."""

    name: str
    desired: str
    reported: str
    drifts: bool
    sick: bool
    last: Outcome | None
    p95: str
    failing: str


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device, one row.

    Attributes:
        settled: nothing about its deployments or problems is worth a line where there is little room.
    """

    id: str
    profile: str
    labels: list[str]
    state: str
    tone: str
    seen: str
    slots: list[SlotRow]
    temperature: str
    hot: bool
    problem: str
    locked: str
    settled: bool


@dataclass(frozen=True, slots=True)
class RolloutCard:
    """One rollout, with the parts of its bar and the first device that failed."""

    id: int
    release: str
    target: str
    state: str
    tone: str
    when: str
    parts: list[tuple[str, str, int, int]]
    trouble: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A number on top that leads to the devices it counts."""

    name: str
    count: str
    title: str
    tone: str
    href: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class FleetPage:
    """The whole page."""

    query: FleetQuery
    tiles: list[Tile]
    devices: list[DeviceRow]
    rollouts: list[RolloutCard]
    total: str
    first: str
    next: str
    profiles: list[tuple[str, str]]
    versions: list[tuple[str, str]]
    label_groups: list[tuple[str, list[tuple[str, str]]]]
    watch: str
    clock: str


def device_row(
    view: DeviceView, usage: Sequence[SlotTelemetry], host: HostTelemetry | None, now: datetime
) -> DeviceRow:
    """A device as the page shows it."""
    reported = {slot.slot: slot for slot in view.slots}
    state, state_tone = device_state(view)
    slots = [slot_row(name, view.desired.get(name), reported.get(name), usage, now) for name in slot_names(view)]
    hottest = max(host.temperatures.values(), default=None) if host else None
    return DeviceRow(
        id=view.id,
        profile=view.profile,
        labels=[f"{name}={value}" for name, value in sorted(view.labels.items())],
        state=state,
        tone=state_tone,
        seen=words.age(view.last_seen, now),
        slots=slots,
        temperature=f"{hottest:.0f} °C" if hottest is not None else words.NOTHING,
        hot=hottest is not None and hottest >= HOT,
        problem=sentence(view.problem),
        locked=f"Swaps are held off by {view.lock.holder}" if view.lock else "",
        settled=view.problem is None and not any(slot.drifts or (slot.last and slot.last.reason) for slot in slots),
    )


HOT = 80
"""Degrees Celsius from which boards begin to run slower."""


def slot_names(view: DeviceView) -> list[str]:
    """Slots of a device worth showing: something is desired there, serves there, or was tried there."""
    told = {slot.slot for slot in view.slots if slot.serving or slot.deployment}
    return sorted(view.desired.keys() | told)


def device_state(view: DeviceView) -> tuple[str, str]:
    """How a device is, in a word, with its tone. What needs a look comes first."""
    deployments = {slot.slot: slot.deployment for slot in view.slots if slot.deployment}
    drifting = [deployments[name] for name in view.drift if name in deployments]
    checks = (
        (view.revoked, "revoked", "quiet"),
        (not view.online, "offline" if view.last_seen else "never seen", "quiet"),
        (view.problem is not None, "problem", "bad"),
        (any(report.phase not in FINAL_PHASES for report in drifting), "updating", "busy"),
        (any(report.phase in _TROUBLE for report in drifting), "drifting", "bad"),
        (bool(view.drift), "drifting", "warn"),
        (any(slot.serving and not slot.healthy for slot in view.slots), "not healthy", "bad"),
        (view.lock is not None, "locked", "warn"),
        (not view.desired, "empty", "quiet"),
    )
    return next(((word, shade) for holds, word, shade in checks if holds), ("converged", "good"))


def slot_row(
    name: str, desired: ReleaseRef | None, slot: SlotReport | None, usage: Sequence[SlotTelemetry], now: datetime
) -> SlotRow:
    """A slot as the page shows it; telemetry is of the release that serves."""
    serving = slot.serving if slot else None
    used = next((found for found in usage if serving and is_of(found, name, serving)), None)
    return SlotRow(
        name=name,
        desired=short_label(desired, serving),
        reported=label(serving),
        drifts=not same(desired, serving),
        sick=bool(slot and serving and not slot.healthy),
        last=outcome(slot.deployment, now) if slot and slot.deployment else None,
        p95=words.milliseconds(used.p95_us) if used else words.NOTHING,
        failing=f"{words.number(used.failures)} failed" if used and used.failures else "",
    )


def is_of(used: SlotTelemetry, slot: str, release: ReleaseRef) -> bool:
    """Whether telemetry is of this release in this slot."""
    return (used.slot, used.model, used.counter) == (slot, release.model, release.counter)


def label(ref: ReleaseRef | None) -> str:
    """A release as people say it."""
    return f"{ref.model} {ref.version}" if ref else "nothing"


def short_label(ref: ReleaseRef | None, beside: ReleaseRef | None) -> str:
    """The version alone where another one of the same model stands beside it."""
    return ref.version if ref and beside and ref.model == beside.model else label(ref)


def outcome(report: DeploymentReport, now: datetime) -> Outcome:
    """How a deployment stands, with its reason."""
    fetching = report.phase == "fetching" and report.total_bytes > 0
    return Outcome(
        phase=words.phase_words(report.phase),
        tone=tone(report.phase),
        when=words.age(report.updated, now),
        release=label(report.release),
        reason=f"{report.problem.thing}: {report.problem.reason}" if report.problem else "",
        progress=words.percent(report.fetched_bytes, report.total_bytes) if fetching else None,
    )


def rollout_card(view: RolloutView, troubled: Sequence[RolloutTargetView], now: datetime) -> RolloutCard:
    """A rollout as the page shows it."""
    total = sum(view.counts.values())
    counted = [(state, view.counts[state]) for state in STATE_ORDER if view.counts.get(state)]
    first = troubled[0] if troubled else None
    return RolloutCard(
        id=view.id,
        release=view.label,
        target=f"to {describe(view.selector)}, slot {' and '.join(part.slot for part in view.parts)}",
        state=view.state,
        tone=tone(view.state),
        when=words.age(view.created, now),
        parts=[(state, tone(state), count, max(2, words.percent(count, total))) for state, count in counted],
        trouble=f"{first.device} {first.state}: {sentence(first.problem)}" if first and first.problem else "",
    )


def sentence(problem: Problem | None) -> str:
    """A problem as a sentence."""
    return f"{problem.thing}: {problem.reason}. {problem.fix}." if problem else ""


def make_tiles(counts: FleetCounts, query: FleetQuery) -> list[Tile]:
    """The numbers on top; one that counts nothing is quiet."""
    numbers = (
        ("", counts.devices, "device" if counts.devices == 1 else "devices", "quiet"),
        ("online", counts.online, "online", "good"),
        ("offline", counts.devices - counts.online, "offline", "quiet"),
        ("drifting", counts.drifting, "drifting", "warn"),
        ("problem", counts.problems, "with a problem", "bad"),
        ("locked", counts.locked, "locked", "warn"),
    )
    return [
        Tile(
            name=name,
            count=words.number(count),
            title=title,
            tone=shade if count else "quiet",
            href=query.address(state=name),
            chosen=query.state == name,
        )
        for name, count, title, shade in numbers
        if count or name != "locked"
    ]


def facet_choices(
    facets: Facets,
) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, list[tuple[str, str]]]]]:
    """Choices of the drop-downs, (value, text) each: profiles, versions, and labels by name."""

    def counted(text: str, count: int) -> str:
        return f"{text} ({words.number(count)})"

    profiles = [(name, counted(name, count)) for name, count in facets.profiles.items()]
    serving = [(f"{model} {version}", counted(f"{model} {version}", count)) for model, version, count in facets.serving]
    groups = [
        (name, [(f"{name}={value}", counted(value or "(empty)", count)) for value, count in values.items()])
        for name, values in facets.labels.items()
    ]
    return profiles, serving, groups


def watch_keys(devices: Sequence[DeviceRow], rollouts: Sequence[RolloutCard]) -> str:
    """What must ring for the page to be fetched again at once."""
    return " ".join([f"device:{row.id}" for row in devices] + [f"rollout:{card.id}" for card in rollouts])
