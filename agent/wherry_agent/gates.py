"""What a health gate concludes from what was measured. Pure; the executor measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from wherry.golden import Comparison
from wherry.messages import GateResult
from wherry.release import GoldenGate, HttpGate, LatencyGate, ReadyGate, Signature, TensorSpec


def ready(gate: ReadyGate, answered: bool, seconds: float, words: str = "") -> GateResult:
    """The model answered ready in time. `words` are the container's own, if it did not."""
    if answered:
        detail = f"ready after {seconds:.2f} s"
    else:
        detail = f"not ready after {seconds:.1f} s{': ' + words if words else ''}"
    numbers = {"seconds": round(seconds, 3), "deadline": float(gate.deadline_seconds)}
    return GateResult(kind="ready", ok=answered, detail=detail, seconds=seconds, numbers=numbers)


def exited(kind: str, seconds: float, exit_code: int | None, oom_killed: bool, words: str) -> GateResult:
    """The candidate's process ended while it was on trial."""
    how = "was killed for using more memory than its limit" if oom_killed else f"exited with code {exit_code}"
    detail = f"the container {how}{': ' + words if words else ''}"
    return GateResult(kind=kind, ok=False, detail=detail, seconds=seconds)


def http(gate: HttpGate, status: int | None, seconds: float) -> GateResult:
    """The path answered with the status."""
    found = "no answer" if status is None else f"status {status}"
    detail = f"GET {gate.path}: {found}" + ("" if status == gate.status else f", wanted {gate.status}")
    return GateResult(kind="http", ok=status == gate.status, detail=detail, seconds=seconds)


def signature(
    declared: Signature | None, provider: str, metadata: dict[str, Any], seconds: float
) -> GateResult:  # fmt: skip
    """The model names the inputs, outputs and execution provider that the release declares."""
    problems = []
    for side in ("inputs", "outputs"):
        wanted = getattr(declared, side) if declared else []
        problems += _differences(side[:-1], wanted, metadata.get(side)) if declared else []
    parameters = metadata.get("parameters")
    running = parameters.get("provider") if isinstance(parameters, dict) else None
    if running is not None and running != provider:
        problems.append(f"runs on {running}, the release declares {provider}")
    detail = "; ".join(problems) or "inputs, outputs and provider as released"
    return GateResult(kind="signature", ok=not problems, detail=detail, seconds=seconds)


def _differences(side: str, wanted: Sequence[TensorSpec], found: Any) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        return [f"the model names no {side}s"]
    seen = {str(item.get("name")): item for item in found}
    problems = [f"{side} {name!r} is not in the release" for name in seen if name not in {s.name for s in wanted}]
    for spec in wanted:
        item = seen.get(spec.name)
        if item is None:
            problems.append(f"{side} {spec.name!r} is missing")
            continue
        shape = item.get("shape")
        if item.get("datatype") != spec.datatype or shape != spec.shape:
            problems.append(
                f"{side} {spec.name!r} is {item.get('datatype')}{shape}, released as {spec.datatype}{spec.shape}"
            )  # fmt: skip
    return problems


def golden(gate: GoldenGate, names: Sequence[str], found: Sequence[Comparison], seconds: float) -> GateResult:
    """Every golden case gave its recorded outputs."""
    failed = [(name, comparison) for name, comparison in zip(names, found, strict=True) if not comparison.ok]
    if failed:
        name, comparison = failed[0]
        detail = f"{len(failed)} of {len(found)} golden cases answered wrongly: case {name!r}: {comparison.detail}"
    else:
        detail = f"{len(found)} golden cases answered as recorded"
    numbers = {
        "cases": float(len(found)),
        "failed": float(len(failed)),
        "tolerance": float(gate.tolerance),
        "worst_error": _finite(max((c.worst_error for c in found), default=0.0)),
        "worst_cosine": _finite(min((c.worst_cosine for c in found), default=1.0)),
        "margin": _finite(max((c.margin for c in found), default=0.0)),
    }
    return GateResult(kind="golden", ok=not failed, detail=detail, seconds=seconds, numbers=numbers)


def golden_unusable(reason: str, seconds: float) -> GateResult:
    """The golden cases in the image are not what the release signed."""
    return GateResult(kind="golden", ok=False, detail=reason, seconds=seconds)


def latency(gate: LatencyGate, latencies: Sequence[float], seconds: float) -> GateResult:
    """95 of 100 golden requests were answered within the bound."""
    ordered = sorted(latencies)
    if not ordered:
        return GateResult(kind="latency", ok=False, detail="no request could be timed", seconds=seconds)
    p95 = 1000 * ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)]
    detail = f"p95 {p95:.1f} ms of {len(ordered)} requests, bound {gate.p95_ms} ms"
    numbers = {"p95_ms": round(p95, 3), "bound_ms": float(gate.p95_ms), "requests": float(len(ordered))}
    return GateResult(kind="latency", ok=p95 <= gate.p95_ms, detail=detail, seconds=seconds, numbers=numbers)


def unanswered(kind: str, reason: str, seconds: float) -> GateResult:
    """The model server gave no usable answer to a gate's question."""
    return GateResult(kind=kind, ok=False, detail=reason, seconds=seconds)


def alive(seconds: float) -> GateResult:
    """The container still runs after a while; for images whose release declares no gate that asks it anything."""
    return GateResult(kind="alive", ok=True, detail=f"still runs after {seconds:.1f} s", seconds=seconds)


def _finite(value: float) -> float:
    """JSON knows no infinity; the largest double stands for it."""
    return value if math.isfinite(value) else math.copysign(1.7e308, value if value == value else 1.0)
