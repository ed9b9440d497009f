"""Rollouts as their pages show them: counts, progress of each device, reasons, and what an operator may do. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import get_args

from wherry.api import RolloutTargetView, RolloutView, TargetState
from wherry.errors import Conflict
from wherry.messages import DeploymentReport, Problem
from wherry_server.dashboard import words
from wherry_server.dashboard.fleet import STATE_ORDER, tone
from wherry_server.domain.rollout import change_state
from wherry_server.domain.selector import describe

STATES: tuple[str, ...] = get_args(TargetState)
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
class Part:
    """One state's share of the counts bar; `x` and `width` are percent."""

    state: str
    says: str
    tone: str
    count: str
    x: float
    width: float


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
    model: str
    version: str
    slot: str
    whom: str
    state: str
    tone: str
    created: str
    at: str
    took: str
    devices: str
    done: str
    parts: list[Part]
    why: str


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One device of a rollout.

    Attributes:
        doing: what it does now, or how it ended.
        percent: of the bytes to fetch; None when nothing is being fetched.
        gate: the health gate that asks now.
        left: seconds until the phase fails by itself.
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


@dataclass(frozen=True, slots=True)
class Reason:
    """Why some devices failed."""

    count: int
    state: str
    tone: str
    reason: str
    fix: str
    devices: str


def summary(view: RolloutView, now: datetime) -> Summary:
    """A rollout without its devices."""
    total, settled = sum(view.counts.values()), sum(view.counts.get(state, 0) for state in ("committed",))
    return Summary(
        id=view.id,
        model=view.model,
        version=view.version,
        slot=view.slot,
        whom=describe(view.selector),
        state=view.state,
        tone=tone(view.state),
        created=words.age(view.created, now),
        at=f"{view.created:%Y-%m-%d %H:%M:%S} UTC",
        took=duration((view.ended - view.created).total_seconds()) if view.ended else "",
        devices="1 device" if total == 1 else f"{words.number(total)} devices",
        done=f"{words.number(settled)} of {words.number(total)}",
        parts=parts(view.counts),
        why=why(view),
    )


def parts(counts: Mapping[str, int]) -> list[Part]:
    """The counts bar: what is well first, what failed last."""
    total, x, found = sum(counts.values()), 0.0, []
    order = [*STATE_ORDER, *sorted(counts.keys() - set(STATE_ORDER))]
    for state in order:
        count = counts.get(state, 0)
        if count:
            width = 100 * count / total
            found.append(
                Part(state, _says(state, count), tone(state), words.number(count), round(x, 3), round(width, 3))
            )
            x += width
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
        return _sentence(view.reason)
    failed = sum(view.counts.get(state, 0) for state in FAILED)
    misfits = view.counts.get("misfit", 0)
    match view.state:
        case "failed" if failed:
            return f"{_devices(failed)} of {words.number(sum(view.counts.values()))} did not take it."
        case "failed":
            return f"It fits none of the devices ({_devices(misfits)} cannot run it)."
        case "paused":
            return "An operator paused it. Devices that have their assignment go on; no other gets one."
        case "aborted" if view.counts.get("superseded"):
            return "It ended before every device was served: a newer rollout took over, or an operator aborted it."
        case "aborted":
            return "An operator aborted it. Devices that have their assignment keep it; no other gets one."
    return ""


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{words.number(count)} devices"


def actions(view: RolloutView) -> list[Action]:
    """What an operator may do with a rollout now, the safest first."""
    failed = sum(view.counts.get(state, 0) for state in FAILED)
    waiting = view.counts.get("pending", 0)
    offered = [
        Action("start", "Resume", "Devices that wait get their assignments.", warns=False)
        if view.state == "paused"
        else None,
        Action("pause", "Pause", f"No further device gets it ({_devices(waiting)} wait).", warns=False)
        if view.state == "running"
        else None,
        Action("retry", f"Retry {_devices(failed)}", "Those that failed try it once more.", warns=False)
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
        tone=tone(view.state),
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
        fix=_sentence(problem.fix) if problem and problem.fix else "",
    )


def _doing(view: RolloutTargetView, report: DeploymentReport | None) -> str:
    match view.state:
        case "pending":
            return "waits for its turn"
        case "assigned" if not view.online:
            return "offline; the assignment waits for it"
        case "assigned":
            return "has its assignment"
        case "running":
            return report.phase.replace("_", " ") if report else "has begun"
        case "misfit":
            return "does not fit"
        case _:
            return view.state


def _left(report: DeploymentReport, now: datetime) -> str:
    if report.deadline is None:
        return ""
    seconds = (report.deadline - now).total_seconds()
    return f"{seconds:.0f} s left" if seconds >= 1 else "time is up"


def _reason(problem: Problem | None) -> str:
    return _sentence(f"{problem.thing}: {problem.reason}") if problem else ""


def reasons(troubled: Iterable[tuple[RolloutTargetView, int]], limit: int = 5) -> list[Reason]:
    """The same reason of many devices said once, the most frequent first.

    Args:
        troubled: a device that failed, and how many say the same.
        limit: how many reasons to tell.
    """
    counted: Counter[tuple[str, str, str]] = Counter()
    named: dict[tuple[str, str, str], list[str]] = {}
    for view, count in troubled:
        problem = view.problem or (view.deployment.problem if view.deployment else None)
        key = (view.state, problem.reason if problem else "it gave no reason", problem.fix if problem else "")
        counted[key] += count
        named.setdefault(key, []).append(view.device)
    return [
        Reason(
            count,
            key[0],
            tone(key[0]),
            _sentence(key[1]),
            _sentence(key[2]) if key[2] else "",
            _some(named[key], count),
        )
        for key, count in counted.most_common(limit)
    ]


def _some(devices: list[str], count: int) -> str:
    shown = ", ".join(devices[:3])
    return f"{shown} and {words.number(count - 3)} more" if count > 3 else shown


def duration(seconds: float) -> str:
    """How long something took: `4 s`, `2 min 5 s`, `3 h 10 min`, `2 d 4 h`."""
    whole = max(0, round(seconds))
    for size, unit, below, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"
