"""Rollouts as their pages show them: counts, progress of each device, reasons, and what an operator may do. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import get_args

from wherry.api.rollouts import RolloutTargetView, RolloutView, TargetPartView, TargetState
from wherry.errors import Conflict
from wherry.messages import DeploymentReport, Problem
from wherry_server.dashboard import words
from wherry_server.domain.rollout import change_state
from wherry_server.domain.selector import describe

STATES: tuple[str, ...] = get_args(TargetState)
STATE_ORDER = ("committed", "running", "assigned", "pending", "misfit", "superseded", "refused", "rejected")
"""As the counts bar shows them: what is well first, what failed last."""
_SAYS = {
    "committed": "serve it",
    "running": "are at it",
    "assigned": "have not begun",
    "pending": "wait for their turn",
    "misfit": "cannot run it",
    "superseded": "were taken over",
    "refused": "refused it",
    "rejected": "rejected it",
}
FAILED = ("rejected", "refused")


@dataclass(frozen=True, slots=True)
class Action:
    """What an operator may do now; `warns` when it cannot be undone."""

    verb: str
    label: str
    explains: str
    warns: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """A rollout in a list, and the head of its page."""

    id: int
    label: str
    releases: list[tuple[str, str, str]]
    whom: str
    state: str
    tone: str
    created: str
    at: str
    took: str
    devices: str
    done: str
    parts: list[tuple[str, str, str, float]]
    why: str


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One device of a rollout.

    Attributes:
        doing: what it does now, or how long it took.
        percent: of the bytes to fetch; None when nothing is being fetched.
        gate: the health gate that asks now.
        left: seconds until the phase fails by itself.
        slots: (slot, what it does, tone) of each, when the rollout has several releases.
    """

    device: str
    state: str
    tone: str
    online: bool
    doing: str
    percent: int | None
    fetched: str
    gate: str
    left: str
    when: str
    reason: str
    fix: str
    slots: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why some devices failed."""

    count: str
    state: str
    tone: str
    reason: str
    fix: str
    devices: list[str]
    more: str


def summary(view: RolloutView, now: datetime) -> Summary:
    """A rollout without its devices."""
    total = sum(view.counts.values())
    return Summary(
        id=view.id,
        label=view.label,
        releases=[(part.label, f"/releases/{part.model}/{part.version}", part.slot) for part in view.parts],
        whom=describe(view.selector),
        state=view.state,
        tone=words.tone(view.state),
        created=words.age(view.created, now),
        at=f"{view.created:%Y-%m-%d %H:%M:%S} UTC",
        took=words.duration((view.ended - view.created).total_seconds()) if view.ended else "",
        devices=devices(total),
        done=f"{words.number(view.counts.get('committed', 0))} of {words.number(total)}",
        parts=parts(view.counts),
        why=why(view),
    )


def parts(counts: Mapping[str, int]) -> list[tuple[str, str, str, float]]:
    """The counts bar: (what they do, tone, how many, percent) by state."""
    total = sum(counts.values())
    return [
        (_says(state, count), words.tone(state), words.number(count), round(100 * count / total, 3))
        for state in (*STATE_ORDER, *sorted(counts.keys() - set(STATE_ORDER)))
        if (count := counts.get(state, 0))
    ]


def state_choices(
    view: RolloutView, chosen: str, address: Callable[[str], str]
) -> list[tuple[str, str, str, str, bool]]:
    """Filters by state, for those that there are: (title, tone, count, address, chosen)."""
    total = sum(view.counts.values())
    found = [("all", "", words.number(total), address(""), not chosen)]
    found += [
        (state, words.tone(state), words.number(view.counts.get(state, 0)), address(state), state == chosen)
        for state in STATE_ORDER
        if view.counts.get(state) or state == chosen
    ]
    return found


def _says(state: str, count: int) -> str:
    text = _SAYS.get(state, state)
    if count != 1:
        return text
    first, _, rest = text.partition(" ")
    singular = {"serve": "serves", "are": "is", "have": "has", "wait": "waits", "were": "was"}
    return f"{singular.get(first, first)} {rest}".replace("their turn", "its turn")


def why(view: RolloutView) -> str:
    """Why a rollout stands or ended as it did, in a sentence; empty while all is well."""
    if view.reason:
        return sentence(view.reason)
    if not sum(view.counts.values()):
        return "Its devices have left the fleet."
    failed = sum(view.counts.get(state, 0) for state in FAILED)
    misfits = view.counts.get("misfit", 0)
    match view.state:
        case "failed" if failed and sum(view.counts.values()) == 1:
            return "Its only device did not take it."
        case "failed" if failed:
            return f"{words.number(failed)} of {devices(sum(view.counts.values()))} did not take it."
        case "failed":
            return f"It fits none of the devices ({devices(misfits)} cannot run it)."
        case "paused":
            return "An operator paused it. Devices that have their assignment go on; no other gets one."
        case "aborted" if view.counts.get("superseded"):
            return "It ended before every device was served: a newer rollout took over, or an operator aborted it."
        case "aborted":
            return "An operator aborted it. Devices that have their assignment keep it; no other gets one."
    return ""


def sentence(text: str) -> str:
    """Text with a capital and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def devices(count: int) -> str:
    """How many devices: `1 device`, `1 200 devices`."""
    return "1 device" if count == 1 else f"{words.number(count)} devices"


def actions(view: RolloutView) -> list[Action]:
    """What an operator may do with a rollout now, the safest first."""
    failed = sum(view.counts.get(state, 0) for state in FAILED)
    waiting = view.counts.get("pending", 0)
    offered = [
        Action("start", "Resume", "Devices that wait get their assignments.", warns=False)
        if view.state == "paused"
        else None,
        Action("pause", "Pause", f"No further device gets it ({devices(waiting)} wait).", warns=False)
        if view.state == "running"
        else None,
        Action("retry", f"Retry {devices(failed)}", "Those that failed try it once more.", warns=False)
        if failed
        else None,
        Action(
            "abort", "Abort",
            "An aborted rollout cannot be started again. Devices that have it keep it; no other gets it.",
            warns=True,
        ),
    ]  # fmt: skip
    return [action for action in offered if action and _allowed(view, action.verb)]


def _allowed(view: RolloutView, verb: str) -> bool:
    if (verb, view.state) == ("abort", "aborted"):
        return False
    try:
        change_state(view.state, verb)  # type: ignore[arg-type]  # verbs are those of `actions`
    except Conflict:
        return False
    return True


def target_row(view: RolloutTargetView, now: datetime) -> TargetRow:
    """A device of a rollout as it stands."""
    report = view.deployment if view.state not in ("pending", "misfit") else None
    problem = view.problem or (report.problem if report else None)
    fetching = report is not None and report.phase == "fetching" and report.total_bytes > 0
    return TargetRow(
        device=view.device,
        state=view.state,
        tone=words.tone(view.state),
        online=view.online,
        doing=_doing(view, report),
        percent=words.percent(report.fetched_bytes, report.total_bytes) if report and fetching else None,
        fetched=f"{words.size(report.fetched_bytes)} of {words.size(report.total_bytes)}"
        if report and fetching
        else "",
        gate=(report.gate or "") if report and view.state == "running" else "",
        left=_left(report, now) if report and view.state == "running" else "",
        when=words.age(report.updated, now) if report else "",
        reason=_reason(problem),
        fix=sentence(problem.fix) if problem and problem.fix else "",
        slots=[(part.slot, _slot_doing(part), words.tone(part.state)) for part in view.parts],
    )


def _slot_doing(part: TargetPartView) -> str:
    report = part.deployment
    if part.state == "running" and report:
        return words.phase_words(report.phase)
    return "went back" if part.state == "rejected" and report and report.culprit else part.state


def _fetched(report: DeploymentReport) -> str:
    return f"{words.size(report.fetched_bytes)} of {words.size(report.total_bytes)}"


def _doing(view: RolloutTargetView, report: DeploymentReport | None) -> str:
    match view.state:
        case "pending":
            return "waits for its turn"
        case "assigned" if not view.online:
            return "offline; the assignment waits for it"
        case "assigned":
            return "has its assignment"
        case "running":
            return words.phase_words(report.phase) if report else "has begun"
        case "committed" if report and report.phase == "committed":
            return f"took {words.duration((report.updated - report.started).total_seconds())}"
    return ""


def _left(report: DeploymentReport, now: datetime) -> str:
    if report.deadline is None:
        return ""
    seconds = (report.deadline - now).total_seconds()
    return f"{seconds:.0f} s left" if seconds >= 1 else "time is up"


def _reason(problem: Problem | None) -> str:
    return sentence(f"{problem.thing}: {problem.reason}") if problem else ""


def reasons(troubled: Iterable[RolloutTargetView], limit: int = 5) -> list[Reason]:
    """The same reason of many devices said once, the most frequent first."""
    named: dict[tuple[str, str, str], list[str]] = {}
    for view in troubled:
        problem = view.problem or (view.deployment.problem if view.deployment else None)
        key = (view.state, problem.reason if problem else "it gave no reason", problem.fix if problem else "")
        named.setdefault(key, []).append(view.device)
    frequent = sorted(named.items(), key=lambda item: -len(item[1]))
    return [
        Reason(
            count=devices(len(names)),
            state=state,
            tone=words.tone(state),
            reason=sentence(text),
            fix=sentence(fix) if fix else "",
            devices=names[:3],
            more=f"and {words.number(len(names) - 3)} more" if len(names) > 3 else "",
        )
        for (state, text, fix), names in frequent[:limit]
    ]
