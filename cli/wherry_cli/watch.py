"""What a rollout looks like while it runs: pure functions from views to rows, lines and a verdict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from wherry.api import RolloutTargetView, RolloutView
from wherry.messages import DeploymentReport, GateResult, Problem
from wherry_cli.selectors import selector_text
from wherry_cli.words import clause, duration, size

FINAL_TARGETS = frozenset({"committed", "rejected", "refused", "misfit", "superseded"})
FAILED_TARGETS = frozenset({"rejected", "refused", "misfit"})
ENDED_ROLLOUTS = frozenset({"completed", "failed", "aborted"})
STATE_ORDER = ("committed", "running", "assigned", "pending", "rejected", "refused", "misfit", "superseded")
STATE_STYLES = {
    "committed": "green", "rejected": "bold red", "refused": "bold red", "misfit": "bold red", "superseded": "dim",
    "pending": "dim", "assigned": "cyan", "running": "cyan", "rolling_back": "yellow",
    "completed": "green", "failed": "bold red", "aborted": "yellow", "paused": "yellow",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One device of a rollout as the table shows it.

    Attributes:
        state: the target's state, or the deployment's phase while it runs.
        gates: (name, passed) in the order they ran.
        reason: why it is not running the release, empty when there is nothing to say.
    """

    device: str
    state: str
    download: str
    gates: tuple[tuple[str, bool], ...]
    elapsed: str
    reason: str


def rows(view: RolloutView, now: datetime) -> list[Row]:
    """The table of a rollout, one row a device, in the server's order."""
    return [_row(target, now) for target in view.targets]


def pick(found: list[Row], limit: int) -> tuple[list[Row], int]:
    """The rows that fit a screen, and how many are left out: those at work and those with a reason come first."""
    if len(found) <= limit:
        return found, 0
    dull = FINAL_TARGETS | {"pending", "assigned"}
    by_interest = sorted(range(len(found)), key=lambda index: (found[index].state in dull, not found[index].reason))
    chosen = set(by_interest[:limit])
    return [row for index, row in enumerate(found) if index in chosen], len(found) - limit


def _row(target: RolloutTargetView, now: datetime) -> Row:
    deployment = target.deployment
    if deployment is None:
        return Row(target.device, target.state, "", (), "", _reason(target))
    gates = tuple((gate.kind, gate.ok) for gate in deployment.gates)
    elapsed = duration(_seconds(deployment, target.state in FINAL_TARGETS, now))
    return Row(target.device, _state(target), _download(deployment), gates, elapsed, _reason(target))


def _state(target: RolloutTargetView) -> str:
    if target.state == "running" and target.deployment is not None:
        return target.deployment.phase
    return target.state


def _download(deployment: DeploymentReport) -> str:
    done, total = deployment.fetched_bytes, deployment.total_bytes
    if not total:
        return size(done) if done else ""
    if done >= total:
        return size(total)
    return f"{size(done)} of {size(total)} ({100 * done // total} %)"


def _seconds(deployment: DeploymentReport, final: bool, now: datetime) -> float:
    # A final report's own clock on both ends: the device's clock may differ from ours.
    until = deployment.updated if final else now
    return max((until - deployment.started).total_seconds(), 0.0)


def _reason(target: RolloutTargetView) -> str:
    problem = target.problem or (target.deployment.problem if target.deployment else None)
    if problem is not None and target.state != "committed":
        return problem_text(problem)
    failed = [gate for gate in target.deployment.gates if not gate.ok] if target.deployment else []
    return f"{failed[0].kind}: {failed[0].detail}" if failed and target.state != "committed" else ""


def problem_text(problem: Problem) -> str:
    """A problem in one line."""
    return f"{clause(problem.thing, problem.reason)}. {problem.fix}."


def title(view: RolloutView) -> str:
    """`Rollout 3: vision 2 to slot main of all devices`."""
    where = selector_text(view.selector)
    return f"Rollout {view.id}: {view.model} {view.version} to slot {view.slot} of {where}"


def summary(view: RolloutView) -> str:
    """`running: 1 of 3 devices committed, 1 running, 1 rejected`."""
    counts = count_targets(view)
    total = sum(counts.values())
    if not total:
        return f"{view.state}: no device was selected"
    others = [f"{counts[state]} {state}" for state in STATE_ORDER if state != "committed" and counts[state]]
    noun = "device" if total == 1 else "devices"
    return ", ".join([f"{view.state}: {counts['committed']} of {total} {noun} committed", *others])


def count_targets(view: RolloutView) -> Counter[str]:
    """Devices by state; from `counts` where the view carries no targets (lists)."""
    return Counter(target.state for target in view.targets) if view.targets else Counter(view.counts)


def is_settled(view: RolloutView) -> bool:
    """Whether there is nothing left to watch."""
    return view.state in ENDED_ROLLOUTS or all(target.state in FINAL_TARGETS for target in view.targets)


def succeeded(view: RolloutView) -> bool:
    """Whether every device runs the release: what the exit code says. A rollout to nobody is a failure."""
    if view.state in ("failed", "aborted") or not view.targets:
        return False
    return not any(target.state in FAILED_TARGETS for target in view.targets)


def news(before: RolloutView | None, after: RolloutView) -> list[str]:
    """What happened between two looks, one line an event: for logs and pipes."""
    lines = []
    if before is None:
        lines.append(title(after))
    elif before.state != after.state and after.state not in ENDED_ROLLOUTS:
        lines.append(f"rollout is {after.state}")
    known = {target.device: target for target in before.targets} if before else {}
    for target in after.targets:
        lines.extend(f"{target.device}: {line}" for line in _target_news(known.get(target.device), target))
    return lines


def _target_news(before: RolloutTargetView | None, after: RolloutTargetView) -> list[str]:
    lines = [*_phase_news(before, after), *_gate_news(before, after)]
    if before is not None and before.state == after.state:
        return lines
    if after.state in FINAL_TARGETS:
        return [*lines, _ending(after)]
    return [after.state, *lines] if after.state != "running" else lines


def _phase_news(before: RolloutTargetView | None, after: RolloutTargetView) -> list[str]:
    deployment = after.deployment
    if deployment is None:
        return []
    told = before.deployment if before else None
    seen = len(told.phases) if told and told.id == deployment.id else 0
    lines = []
    for phase, _began in deployment.phases[seen:]:
        if phase in FINAL_TARGETS:
            continue
        detail = f" {size(deployment.total_bytes)}" if phase == "fetching" and deployment.total_bytes else ""
        lines.append(phase.replace("_", " ") + detail)
    return lines


def _gate_news(before: RolloutTargetView | None, after: RolloutTargetView) -> list[str]:
    deployment = after.deployment
    if deployment is None:
        return []
    told = before.deployment if before else None
    seen = len(told.gates) if told and told.id == deployment.id else 0
    return [gate_text(gate) for gate in deployment.gates[seen:]]


def gate_text(gate: GateResult) -> str:
    """`gate golden passed: worst error 2e-05 of 0.001 (0.4 s)`."""
    verdict = "passed" if gate.ok else "FAILED"
    return f"gate {gate.kind} {verdict}: {gate.detail} ({gate.seconds:.1f} s)"


def _ending(target: RolloutTargetView) -> str:
    reason = _reason(target)
    if reason:
        return f"{target.state}: {reason}"
    if target.deployment is None:
        return target.state
    deployment = target.deployment
    took = duration(_seconds(deployment, True, deployment.updated))
    return f"{target.state} after {took}"
