"""What the device page says of the device itself and its twin. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from wherry.agent_release import AGENT_SLOT
from wherry.api.devices import DeviceView
from wherry.api.telemetry import HostTelemetry
from wherry.messages import FINAL_PHASES, DeploymentReport, ReleaseRef, SlotReport
from wherry_server.dashboard import words
from wherry_server.dashboard.fleet import device_state, label, sentence, slot_names
from wherry_server.domain.twin import same

_MIB = 1_048_576
_FACTS = {
    "device_tree_model": "Board",
    "system": "System",
    "kernel": "Kernel",
    "l4t_release": "L4T",
    "cuda": "CUDA",
    "tensorrt": "TensorRT",
    "sm": "GPU architecture (SM)",
    "memory_mb": "Memory",
    "machine": "Processor",
    "python": "Python",
}


@dataclass(frozen=True, slots=True)
class Release:
    """A release with what tells it from others."""

    label: str
    digest: str
    short: str
    counter: int
    href: str


@dataclass(frozen=True, slots=True)
class TwinSlot:
    """A slot: what is desired beside what is reported.

    Attributes:
        route: how callers reach it: "kernel" or "haproxy"; empty when nothing serves.
        drift: where they differ, in words; empty when they agree.
        retry: digest that the device rejected and that is desired still, or empty.
    """

    name: str
    desired: Release | None
    serving: Release | None
    known_good: str
    since: str
    port: int | None
    route: str
    health: str
    health_tone: str
    drift: str
    drift_tone: str
    retry: str


@dataclass(frozen=True, slots=True)
class Meter:
    """A share of something that the device has, or only words."""

    name: str
    text: str
    percent: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceHead:
    """Everything but deployments and telemetry."""

    id: str
    state: str
    tone: str
    online: bool
    revoked: bool
    connection: str
    profile: str
    labels: list[str]
    facts: list[tuple[str, str]]
    lock: str
    problem: str
    assignment: str
    slots: list[TwinSlot]
    meters: list[Meter]
    measured: str


def device_head(view: DeviceView, host: HostTelemetry | None, now: datetime) -> DeviceHead:
    """A device as its page shows it."""
    state, tone = device_state(view)
    reported = {slot.slot: slot for slot in view.slots}
    seen = f"seen {words.age(view.last_seen, now)}" if view.last_seen else "never seen"
    return DeviceHead(
        id=view.id,
        state=state,
        tone=tone,
        online=view.online,
        revoked=view.revoked,
        connection=f"{'online' if view.online else 'offline'}, {seen}",
        profile=view.profile,
        labels=[f"{name}={value}" for name, value in sorted(view.labels.items())],
        facts=device_facts(view, now),
        lock=lock_words(view, now),
        problem=sentence(view.problem),
        assignment=assignment_words(view),
        slots=[twin_slot(view, name, reported.get(name), now) for name in slot_names(view)],
        meters=meters(host) if host else [],
        measured=words.age(host.at, now) if host else "",
    )


def device_facts(view: DeviceView, now: datetime) -> list[tuple[str, str]]:
    """Profile, agent, and what the device tells of its hardware and system."""
    facts = [("Profile", view.profile), ("Agent", view.agent_version or words.NOTHING)]
    known = [(title, fact_words(name, view.facts[name])) for name, title in _FACTS.items() if view.facts.get(name)]
    others = [
        (words.phase_words(name).capitalize(), value)
        for name, value in sorted(view.facts.items())
        if name not in _FACTS and value
    ]
    return [*facts, *known, *others, ("Enrolled", words.age(view.enrolled, now))]


def fact_words(name: str, text: str) -> str:
    """A fact with its unit."""
    return words.size(int(text) * _MIB) if name == "memory_mb" and text.isdecimal() else text


def lock_words(view: DeviceView, now: datetime) -> str:
    """Who holds swaps off, why, and until when."""
    if view.lock is None:
        return ""
    why = f" ({view.lock.reason})" if view.lock.reason else ""
    left = (view.lock.expires - now).total_seconds()
    until = f"for {words.duration(left)} more" if left > 0 else "until a moment ago"
    return f"{view.lock.holder} holds off swaps{why}, {until}."


def assignment_words(view: DeviceView) -> str:
    """Which assignment the device has, of those that were signed for it."""
    if not view.sequence:
        return "Nothing was assigned yet."
    if view.reported_sequence >= view.sequence:
        return f"It has the newest assignment, number {view.sequence}."
    behind = "when it is online again" if not view.online else "soon"
    return f"Assignment {view.sequence} waits for it; it has {view.reported_sequence}. It takes the new one {behind}."


def make_release(ref: ReleaseRef | None) -> Release | None:
    """A release with its digest."""
    if ref is None:
        return None
    short = ref.digest.removeprefix("sha256:")[:12]
    return Release(label(ref), ref.digest, short, ref.counter, f"/releases/{ref.model}/{ref.version}")


def twin_slot(view: DeviceView, name: str, slot: SlotReport | None, now: datetime) -> TwinSlot:
    """A slot as the page shows it."""
    desired = view.desired.get(name)
    serving = slot.serving if slot else None
    deployment = slot.deployment if slot else None
    nothing = "the installed agent runs" if name == AGENT_SLOT else "nothing serves"
    drift, tone = drift_words(view, desired, serving, deployment, nothing)
    health, health_tone = ("healthy", "good") if slot and slot.healthy else ("not healthy", "bad")
    if serving is None:
        health, health_tone = "installed" if name == AGENT_SLOT else "empty", "quiet"
    rejected = _rejected(desired, deployment)
    return TwinSlot(
        name=name,
        desired=make_release(desired),
        serving=make_release(serving),
        known_good=label(slot.known_good) if slot and slot.known_good else "",
        since=f"since {words.duration((now - slot.since).total_seconds())}" if slot and slot.since and serving else "",
        port=slot.port if slot and serving else None,
        route=slot.route if slot and serving else "",
        health=health,
        health_tone=health_tone,
        drift=drift,
        drift_tone=tone,
        retry=desired.digest if desired and rejected else "",
    )


def _rejected(desired: ReleaseRef | None, deployment: DeploymentReport | None) -> bool:
    """Whether the device tried what is desired and will not try it again by itself."""
    return bool(
        desired and deployment and deployment.phase == "rejected" and deployment.release.digest == desired.digest
    )


def drift_words(
    view: DeviceView,
    desired: ReleaseRef | None,
    serving: ReleaseRef | None,
    deployment: DeploymentReport | None,
    nothing: str,
) -> tuple[str, str]:
    """Where desired and reported differ, in words with their tone; empty when they agree.

    Args:
        view: the device.
        desired: what should run in the slot.
        serving: what does.
        deployment: the last attempt there.
        nothing: what to say when no release does.
    """
    if same(desired, serving):
        return "", "good"
    serves = f"{label(serving)} serves on" if serving else nothing
    if deployment and desired and deployment.release.digest == desired.digest:
        phase = words.phase_words(deployment.phase)
        if deployment.phase not in FINAL_PHASES:
            return f"{label(desired)} is on its way: {phase}. Meanwhile {serves}.", "busy"
        if deployment.problem:
            why = f"{deployment.problem.thing}: {deployment.problem.reason}"
            return f"{label(desired)} was {phase} ({why}), so {serves}. {deployment.problem.fix}.", "bad"
    if view.reported_sequence < view.sequence:
        where = "It is offline" if not view.online else "It was told"
        wish = f"{label(desired)} is desired" if desired else "The slot is to be empty"
        return f"{wish}, {serves}. {where} and has not taken the newest assignment yet.", "warn"
    if desired is None:
        return f"The slot is to be empty, and {label(serving)} serves still.", "warn"
    return f"{label(desired)} is desired, {serves}; the device has not said why.", "warn"


def meters(host: HostTelemetry) -> list[Meter]:
    """The device's own load."""

    def share(name: str, used: int, total: int) -> Meter:
        return Meter(name, f"{words.size(used)} of {words.size(total)}", words.percent(used, total))

    cpu = words.percent(host.cpu_percent, 100)
    found = [
        Meter("CPU", f"{cpu} %", cpu),
        share("Memory", host.memory_used_bytes, host.memory_total_bytes),
        share("Disk", host.disk_used_bytes, host.disk_total_bytes),
    ]
    temperatures = sorted(host.temperatures.items(), key=lambda pair: -pair[1])[:4]
    found += [Meter(f"{name} sensor", f"{value:.0f} °C", words.percent(value, 100)) for name, value in temperatures]
    return found + _hardware(host)


def _written(by_writer: Mapping[str, int]) -> str:
    """What the agent wrote to disk, and which part of it did most."""
    most = max((name for name in by_writer if name != "all"), key=lambda name: by_writer[name], default="")
    detail = f", {words.size(by_writer[most])} of it its {most}" if most and by_writer[most] else ""
    return f"{words.size(by_writer['all'])} to disk in the last 24 hours{detail}"


def _hardware(host: HostTelemetry) -> list[Meter]:
    """What only some boards tell."""
    found = []
    if host.gpu_percent is not None:
        found.append(Meter("GPU", f"{words.percent(host.gpu_percent, 100)} %", words.percent(host.gpu_percent, 100)))
    if host.gpu_memory_used_bytes is not None:
        share = words.percent(host.gpu_memory_used_bytes, host.memory_total_bytes)
        found.append(Meter("GPU memory", words.size(host.gpu_memory_used_bytes), share))
    for name, used in sorted(host.wear_percent.items()):
        found.append(Meter(f"{name} wear", f"{words.percent(used, 100)} % used up", words.percent(used, 100)))
    if "all" in host.agent_written_bytes:
        found.append(Meter("Agent writes", _written(host.agent_written_bytes)))
    if host.watts:
        found.append(Meter("Power", ", ".join(f"{rail} {watts:.1f} W" for rail, watts in host.watts.items())))
    if host.throttled is not None:
        now = f"by {', '.join(host.throttled)}" if host.throttled else "not now"
        before = f"; since boot by {', '.join(host.throttled_since_boot)}" if host.throttled_since_boot else ""
        found.append(Meter("Slowed", now + before))
    return found
