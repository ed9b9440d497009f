"""The reported state: what the journal and the engine say, as the server and `wherry-agent status` read it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from wherry import __version__
from wherry.agent_release import AGENT_SLOT
from wherry.messages import UNDERSTOOD, DeploymentReport, Problem, ReleaseRef, SlotReport, StateReport
from wherry_agent.agent_slot import runs
from wherry_agent.assignment import Assignment, TrustedImage
from wherry_agent.entry import Deployment, Entry, SlotEntry, container_name, same
from wherry_agent.observed import ActiveSlot, Container, Observed


@dataclass(frozen=True, slots=True)
class View:
    """All that a report is made from.

    Attributes:
        healthy: slot to whether its serving container answered ready when last asked.
        facts: what hardware and system it is, by name.
        refused: sequence of the assignment that `problem` refuses.
    """

    entry: Entry
    desired: Assignment | None
    observed: Observed
    healthy: Mapping[str, bool]
    problem: Problem | None
    facts: Mapping[str, str] = field(default_factory=dict)
    refused: int = 0


def state_report(view: View, profile: str, number: int, now: datetime) -> StateReport:
    """The whole reported state."""
    entry = view.entry
    return StateReport(
        device=entry.device,
        profile=profile,
        agent_version=__version__,
        stream=entry.stream,
        number=number,
        at=now,
        boot_id=entry.boot_id,
        sequence=entry.marks.sequence,
        slots=[_slot_report(view, slot) for _, slot in sorted(entry.slots.items())],
        rejected=sorted(entry.rejected),
        lock=view.observed.lock,
        facts=dict(view.facts),
        problem=view.problem,
        refused=view.refused,
        understands=list(UNDERSTOOD),
    )


def deployment_report(deployment: Deployment, slot: str) -> DeploymentReport:
    """A deployment as messages carry it."""
    return DeploymentReport(
        id=deployment.id,
        slot=slot,
        release=deployment.image.ref,
        previous=deployment.previous,
        sequence=deployment.sequence,
        phase=deployment.phase,
        started=deployment.started,
        updated=deployment.updated,
        phases=list(deployment.phases),
        fetched_bytes=deployment.fetched_bytes,
        total_bytes=deployment.total_bytes,
        mode=deployment.mode,
        gates=list(deployment.gates),
        gate=deployment.gate,
        deadline=deployment.deadline,
        problem=deployment.problem,
        together=[name for name in deployment.group if name != slot],
        culprit=deployment.culprit or None,
    )


def serving(entry: Entry, observed: Observed, slot: SlotEntry) -> tuple[TrustedImage, Container] | None:
    """The release that answers at the slot's stable port, and its container."""
    port = observed.routes.get(slot.port)
    trial = slot.trial.image if slot.trial else None
    for image in (slot.known_good, trial, slot.previous):
        container = observed.containers.get(container_name(entry.device, slot.slot, image)) if image else None
        if image and container and container.port == port and container.state == "running":
            return image, container
    return None


def active_slots(entry: Entry, observed: Observed) -> list[ActiveSlot]:
    """The models that answer callers now, with the address of their container.

    More than one in a slot while a swap is on: the one before goes on answering on connections that are open.
    """
    found = []
    for name, slot in sorted(entry.slots.items()):
        trial = slot.trial.image if slot.trial and slot.trial.holds_route else None
        for image in (slot.previous, slot.known_good, trial):
            container = observed.containers.get(container_name(entry.device, name, image)) if image else None
            if image and container and container.running:
                counts = image.image.runtime != "custom"
                found.append(ActiveSlot(name, image.ref, f"http://127.0.0.1:{container.port}", counts))
    return found


def _slot_report(view: View, slot: SlotEntry) -> SlotReport:
    own = runs(slot, view.observed.agent) if slot.slot == AGENT_SLOT else None
    active = serving(view.entry, view.observed, slot)
    answering = active[0] if active else own
    desired = view.desired.slots.get(slot.slot) if view.desired else None
    report = None
    if slot.deployment:
        report = deployment_report(slot.deployment, slot.slot)
        if same(desired, slot.deployment.image):
            # The server signs the same wish again from time to time: this attempt answers the newest.
            report = report.model_copy(update={"sequence": view.entry.marks.sequence})
    return SlotReport(
        slot=slot.slot,
        port=slot.port,
        route=view.observed.ways.get(slot.port, ""),
        serving=_ref(answering),
        since=_since(slot, answering) if answering else None,
        known_good=_ref(slot.known_good),
        desired=_ref(desired),
        healthy=own is not None or (active is not None and view.healthy.get(slot.slot, False)),
        deployment=report,
    )


def _since(slot: SlotEntry, image: TrustedImage) -> datetime | None:
    if same(slot.known_good, image):
        return slot.since
    return slot.trial.turned if slot.trial and same(slot.trial.image, image) else None


def _ref(image: TrustedImage | None) -> ReleaseRef | None:
    return image.ref if image else None


def status_text(report: StateReport, running: bool) -> str:
    """The reported state for people."""
    lines = [
        f"device {report.device} ({report.profile}), agent {report.agent_version}, "
        f"{'running' if running else 'NOT running'}, assignment {report.sequence or 'none'}, at {report.at:%F %T}Z"
    ]
    if report.problem:
        lines.append(f"problem: {_problem_text(report.problem)}")
    if report.lock:
        why = f": {report.lock.reason}" if report.lock.reason else ""
        lines.append(f"swaps held off until {report.lock.expires:%F %T}Z by {report.lock.holder}{why}")
    if not report.slots:
        lines.append("no slots: nothing was assigned yet")
    for slot in report.slots:
        lines += _slot_lines(slot)
    lines += [f"rejected here: {digest}" for digest in report.rejected]
    return "\n".join(lines)


def _slot_lines(slot: SlotReport) -> list[str]:
    what = _release_text(slot.serving) if slot.serving else "nothing" if slot.port else "the installed agent"
    health = ("healthy" if slot.healthy else "NOT healthy") if slot.serving else "DOWN" if slot.known_good else "empty"
    since = f" since {slot.since:%F %T}Z" if slot.since else ""
    where = f"at 127.0.0.1:{slot.port}: serves" if slot.port else "runs"
    led = f", led by {slot.route}" if slot.route else ""
    lines = [f"slot {slot.slot} {where} {what}{since}, {health}{led}"]
    if slot.known_good and slot.known_good != slot.serving:
        lines.append(f"  known-good: {_release_text(slot.known_good)}")
    if slot.desired and slot.desired != slot.serving:
        lines.append(f"  desired: {_release_text(slot.desired)}")
    if slot.deployment:
        last = slot.deployment
        progress = (
            f", {100 * last.fetched_bytes // last.total_bytes} % fetched"
            if last.phase == "fetching" and last.total_bytes
            else ""
        )
        asked = f", asked by gate {last.gate}" if last.gate else ""
        beside = f", together with {' and '.join(last.together)}" if last.together else ""
        lines.append(
            f"  last deployment {last.id}: {_release_text(last.release)} {last.phase}{beside}{progress}{asked}"
        )
        lines += [f"    gate {gate.kind}: {'passed' if gate.ok else 'FAILED'}, {gate.detail}" for gate in last.gates]
        if last.problem:
            lines.append(f"    reason: {_problem_text(last.problem)}")
    return lines


def _release_text(ref: ReleaseRef) -> str:
    return f"{ref.model} {ref.version} ({ref.digest[7:19]})"


def _problem_text(problem: Problem) -> str:
    return f"{problem.thing}: {problem.reason}. {problem.fix}. [{problem.code}]"
