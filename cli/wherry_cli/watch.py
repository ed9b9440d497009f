"""What a rollout looks like while it runs: pure functions from views to rows, lines and a verdict."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from datetime import datetime

from wherry.api.rollouts import RolloutTargetView, RolloutView
from wherry.messages import DeploymentReport
from wherry_cli.selectors import selector_text
from wherry_cli.words import names_text, printable, problem_text

FINAL_TARGETS = frozenset({"committed", "rejected", "refused", "misfit", "superseded"})
FAILED_TARGETS = frozenset({"rejected", "refused", "misfit"})
ENDED_ROLLOUTS = frozenset({"completed", "failed", "aborted"})
STATE_ORDER = ("committed", "running", "assigned", "pending", "rejected", "refused", "misfit", "superseded")
STATE_STYLES = {
    "committed": "green", "rejected": "bold red", "refused": "bold red", "misfit": "bold red", "superseded": "dim",
    "pending": "dim", "assigned": "cyan", "running": "cyan", "rolling_back": "yellow",
    "completed": "green", "failed": "bold red", "aborted": "yellow", "paused": "yellow",
}  # fmt: skip
_RATE_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One device of a rollout as the table shows it.

    Attributes:
        phase: of the deployment while it runs, else the target's state.
        offline: the device is not there, although it has something to do.
        rate: bytes a second of the download that runs.
        gates: what each gate said, in the order they asked.
        asking: kind of the gate that asks now.
        elapsed: seconds since the attempt began, or that it took.
        left: seconds until the download is likely to end, or the phase fails by itself.
        reason: why it is not running the release, empty when there is nothing to say.
    """

    device: str
    state: str
    phase: str
    offline: bool = False
    fetched: int = 0
    total: int = 0
    rate: float | None = None
    gates: tuple[tuple[str, bool], ...] = ()
    asking: str = ""
    elapsed: float | None = None
    left: float | None = None
    reason: str = ""


class Rates:
    """How fast each download goes, from what one look after the other saw."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[datetime, int]]] = {}

    def see(self, view: RolloutView, now: datetime) -> dict[str, float]:
        """Bytes a second of every download that runs now, by device; over the last few changes."""
        found = {}
        before, self._seen = self._seen, {}
        for target in spread(view):
            deployment = target.deployment
            if deployment is None or deployment.phase != "fetching":
                continue
            key = f"{target.device} {deployment.id}"
            samples = self._seen[key] = before.get(key) or deque(maxlen=_RATE_SAMPLES)
            if not samples or samples[-1][1] != deployment.fetched_bytes:
                samples.append((now, deployment.fetched_bytes))
            seconds = (now - samples[0][0]).total_seconds()
            moved = samples[-1][1] - samples[0][1]
            if moved > 0 and seconds > 0:
                found[target.device] = moved / seconds
        return found


def rows(view: RolloutView, now: datetime, rates: dict[str, float] | None = None) -> list[Row]:
    """The table of a rollout, one row a device: trouble first, then what moves, then what waits, then what is done.

    Where several releases go together, each slot of a device has a row.
    """
    found = [_row(target, now, (rates or {}).get(target.device)) for target in spread(view)]
    return sorted(found, key=_rank)


def spread(view: RolloutView) -> list[RolloutTargetView]:
    """The devices; where several releases go together, each slot of a device by itself: `edge-1 cam`."""
    found = []
    for target in view.targets:
        if not target.parts:
            found.append(target)
        for part in target.parts:
            own: dict[str, object] = {
                "state": part.state,
                "deployment": part.deployment,
                "problem": part.problem,
                "parts": [],
            }
            found.append(target.model_copy(update={"device": f"{target.device} {part.slot}"} | own))
    return found


def _rank(row: Row) -> int:
    if row.state in FAILED_TARGETS or row.phase == "rolling_back" or row.reason:
        return 0
    order = {"running": 1, "assigned": 2, "pending": 3, "committed": 4}
    return order.get(row.state, 5)


def _row(target: RolloutTargetView, now: datetime, rate: float | None) -> Row:
    deployment = target.deployment
    final = target.state in FINAL_TARGETS
    offline = not final and not target.online
    if deployment is None:
        return Row(target.device, target.state, target.state, offline, reason=reason_of(target))
    running = target.state == "running"
    return Row(
        device=target.device,
        state=target.state,
        phase=deployment.phase if running else target.state,
        offline=offline,
        fetched=deployment.fetched_bytes,
        total=deployment.total_bytes,
        rate=rate,
        gates=tuple((gate.kind, gate.ok) for gate in deployment.gates),
        asking=(deployment.gate or "") if running else "",
        elapsed=seconds_of(deployment, final, now),
        left=_left(deployment, now, rate) if running else None,
        reason=reason_of(target),
    )


def _left(deployment: DeploymentReport, now: datetime, rate: float | None) -> float | None:
    missing = deployment.total_bytes - deployment.fetched_bytes
    if deployment.phase == "fetching" and rate and missing > 0:
        return missing / rate
    if deployment.deadline is not None:
        return max((deployment.deadline - now).total_seconds(), 0.0)
    return None


def seconds_of(deployment: DeploymentReport, final: bool, now: datetime) -> float:
    """How long an attempt took, or has taken."""
    # A final report's own clock on both ends: the device's clock may differ from ours.
    until = deployment.updated if final else now
    return max((until - deployment.started).total_seconds(), 0.0)


def reason_of(target: RolloutTargetView) -> str:
    """Why a device does not run the release; empty when there is nothing to say."""
    problem = target.problem or (target.deployment.problem if target.deployment else None)
    if problem is not None and target.state != "committed":
        return problem_text(problem)
    failed = [gate for gate in target.deployment.gates if not gate.ok] if target.deployment else []
    return printable(f"{failed[0].kind}: {failed[0].detail}") if failed and target.state != "committed" else ""


def pick(found: list[Row], count: int) -> tuple[list[Row], list[Row]]:
    """The rows that fit a screen, and the others: trouble on top, but not so much that nothing else is seen."""
    if len(found) <= count:
        return found, []
    trouble = sum(_rank(row) == 0 for row in found)
    moving = sum(_rank(row) == 1 for row in found)
    share = min(trouble, max((count + 1) // 2, count - moving))
    shown = [*found[:share], *found[trouble:][: count - share]]
    chosen = {row.device for row in shown}
    return shown, [row for row in found if row.device not in chosen]


def reasons(found: list[Row]) -> list[tuple[str, str]]:
    """(devices, reason): each reason once, with the devices that give it."""
    groups: dict[str, list[str]] = {}
    for row in found:
        if row.reason:
            groups.setdefault(row.reason, []).append(row.device)
    return [(names_text(devices), reason) for reason, devices in groups.items()]


def rest(hidden: list[Row]) -> str:
    """`… and 912 more: 112 committed, 800 pending`, for devices that do not fit the screen."""
    counts = Counter(row.state for row in hidden)
    return f"… and {len(hidden):,} more: {_count_text(counts, STATE_ORDER)}"


def title(view: RolloutView) -> str:
    """`Rollout 3: vision 2 to slot main of all devices`."""
    releases = " together with ".join(f"{part.label} to slot {part.slot}" for part in view.parts)
    return f"Rollout {view.id}: {releases} of {selector_text(view.selector)}"


def summary(view: RolloutView) -> str:
    """`running: 1 of 3 devices committed, 1 running, 1 rejected`, and why the server paused or ended it."""
    counts = count_targets(view)
    total = sum(counts.values())
    if not total:
        return f"{view.state}: its devices have left the fleet"
    noun = "device" if total == 1 else "devices"
    head = f"{view.state}: {counts['committed']:,} of {total:,} {noun} committed"
    others = _count_text(counts, STATE_ORDER[1:])
    return ", ".join(part for part in (head, others) if part) + (f"\n{view.reason}" if view.reason else "")


def _count_text(counts: Counter[str], order: tuple[str, ...]) -> str:
    return ", ".join(f"{counts[state]:,} {state}" for state in order if counts[state])


def count_targets(view: RolloutView) -> Counter[str]:
    """Devices by state, each counted once; the view may carry a page of them, or none."""
    return Counter(view.counts) if view.counts else Counter(target.state for target in view.targets)


def is_settled(view: RolloutView) -> bool:
    """Whether there is nothing left to watch."""
    return view.state in ENDED_ROLLOUTS or count_targets(view).keys() <= FINAL_TARGETS


def succeeded(view: RolloutView) -> bool:
    """Whether every device runs the release: what the exit code says. A rollout to nobody is a failure."""
    counts = count_targets(view)
    if view.state in ("failed", "aborted") or not counts:
        return False
    return FAILED_TARGETS.isdisjoint(counts)
