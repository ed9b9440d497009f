"""What happened to a rollout between two looks: lines for logs and pipes, JSON for programs. Pure."""

from __future__ import annotations

from typing import Any

from wherry.api.rollouts import RolloutTargetView, RolloutView
from wherry.messages import DeploymentReport, GateResult
from wherry_cli.watch import ENDED_ROLLOUTS, FINAL_TARGETS, reason_of, seconds_of, spread, title
from wherry_cli.words import duration, printable, size

_SOAK = "soak"
"""The gate that asks after the switch; all others ask before it."""


def news(before: RolloutView | None, after: RolloutView) -> list[str]:
    """What happened between two looks, one line an event."""
    lines = []
    if before is None:
        lines.append(title(after))
    elif before.state != after.state and after.state not in ENDED_ROLLOUTS:
        lines.append(f"rollout is {after.state}" + (f": {after.reason}" if after.reason else ""))
    known = {target.device: target for target in spread(before)} if before else {}
    for target in spread(after):
        lines.extend(f"{target.device}: {line}" for line in _target_news(known.get(target.device), target))
    return lines


def changes(before: RolloutView | None, after: RolloutView) -> list[dict[str, Any]]:
    """The same for programs: the rollout without its devices when it changed, and every device that changed, whole."""
    found: list[dict[str, Any]] = []
    plain = [view and view.model_copy(update={"targets": [], "counts": {}, "next": None}) for view in (before, after)]
    if plain[0] != plain[1]:
        found.append({"event": "rollout", **after.model_dump(mode="json", exclude={"targets", "next"})})
    known = {target.device: target for target in before.targets} if before else {}
    new = [target for target in after.targets if known.get(target.device) != target]
    return found + [{"event": "device", **target.model_dump(mode="json")} for target in new]


def _target_news(before: RolloutTargetView | None, after: RolloutTargetView) -> list[str]:
    lines = _deployment_news(before.deployment if before else None, after.deployment)
    if before is not None and before.state == after.state:
        return lines
    if after.state in FINAL_TARGETS:
        return [*lines, _ending(after)]
    return [after.state, *lines] if after.state != "running" else lines


def _deployment_news(told: DeploymentReport | None, now: DeploymentReport | None) -> list[str]:
    """Phases and gates in the order they happened: what the gates of a phase said before the phase that follows."""
    if now is None:
        return []
    same = told if told and told.id == now.id else None
    gates = now.gates[len(same.gates) if same else 0 :]
    lines: list[str] = []
    for phase, _began in now.phases[len(same.phases) if same else 0 :]:
        done = [gate for gate in gates if _answered_before(gate, phase)]
        gates = [gate for gate in gates if gate not in done]
        lines += map(gate_text, done)
        if phase not in FINAL_TARGETS:
            lines.append(_phase_text(phase, now))
    return [*lines, *map(gate_text, gates)]


def _answered_before(gate: GateResult, phase: str) -> bool:
    if phase in ("switching", "soaking"):
        return gate.kind != _SOAK
    return phase in ("committing", "rolling_back") or phase in FINAL_TARGETS


def _phase_text(phase: str, deployment: DeploymentReport) -> str:
    detail = f" {size(deployment.total_bytes)}" if phase == "fetching" and deployment.total_bytes else ""
    return phase.replace("_", " ") + detail


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
