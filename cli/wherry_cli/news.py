"""What happened to a rollout between two looks: lines for logs and pipes, JSON for programs. Pure."""

from __future__ import annotations

from typing import Any

from wherry.api import RolloutTargetView, RolloutView
from wherry.messages import GateResult
from wherry_cli.watch import ENDED_ROLLOUTS, FINAL_TARGETS, reason_of, seconds_of, title
from wherry_cli.words import duration, printable, size


def news(before: RolloutView | None, after: RolloutView) -> list[str]:
    """What happened between two looks, one line an event."""
    lines = []
    if before is None:
        lines.append(title(after))
    elif before.state != after.state and after.state not in ENDED_ROLLOUTS:
        lines.append(f"rollout is {after.state}" + (f": {after.reason}" if after.reason else ""))
    known = {target.device: target for target in before.targets} if before else {}
    for target in after.targets:
        lines.extend(f"{target.device}: {line}" for line in _target_news(known.get(target.device), target))
    return lines


def changes(before: RolloutView | None, after: RolloutView) -> list[dict[str, Any]]:
    """The same for programs: the rollout without its devices when it changed, and every device that changed, whole."""
    found: list[dict[str, Any]] = []
    plain = [view and view.model_copy(update={"targets": [], "counts": {}}) for view in (before, after)]
    if plain[0] != plain[1]:
        found.append({"event": "rollout", **after.model_dump(mode="json", exclude={"targets"})})
    known = {target.device: target for target in before.targets} if before else {}
    new = [target for target in after.targets if known.get(target.device) != target]
    return found + [{"event": "device", **target.model_dump(mode="json")} for target in new]


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
    return printable(f"gate {gate.kind} {verdict}: {gate.detail} ({gate.seconds:.1f} s)")


def _ending(target: RolloutTargetView) -> str:
    reason = reason_of(target)
    if reason:
        return f"{target.state}: {reason}"
    if target.deployment is None:
        return target.state
    deployment = target.deployment
    took = duration(seconds_of(deployment, True, deployment.updated))
    return f"{target.state} after {took}"
