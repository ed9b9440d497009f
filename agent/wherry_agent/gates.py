"""What a health gate concludes from what was measured. Pure; the executor measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.golden import Comparison
from wherry.messages import GateResult
from wherry.release import (
    GoldenGate,
    HttpGate,
    LatencyGate,
    MemoryGate,
    ReadyGate,
    RehearsalGate,
    ShadowGate,
    Signature,
    SoakGate,
    TemperatureGate,
    TensorSpec,
    fraction,
)
from wherry_agent.assignment import TrustedImage

_MIB = 1_048_576
_CRASHES_ONLY = SoakGate(error_percent=100, factor="0")
KILLED = "was killed for using more memory than its limit"
"""Of a container; said in the gate's detail."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One request of a caller, asked again.

    Attributes:
        comparison: with the answer that the caller got; None when the candidate did not answer.
        problem: why it did not.
        seconds: that the candidate took; `beside`: the version that serves, asked in turn; None where it was not.
    """

    comparison: Comparison | None
    problem: str = ""
    seconds: float = 0.0
    beside: float | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What real callers asked, and how it went.

    Attributes:
        mean_ms: mean latency of what was answered.
    """

    requests: int
    failures: int
    mean_ms: float

    @property
    def failed_percent(self) -> float:
        """Share of requests that failed."""
        asked = self.requests + self.failures
        return 100 * self.failures / asked if asked else 0.0

    @classmethod
    def of(cls, requests: int, failures: int, latency_sum_us: int) -> Traffic:
        """As a model server counts."""
        return cls(requests, failures, latency_sum_us / 1000 / requests if requests else 0.0)


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
    how = KILLED if oom_killed else f"exited with code {exit_code}"
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


def latency(
    gate: LatencyGate, found: Sequence[float], beside: Sequence[float], seconds: float, why_alone: str = ""
) -> GateResult:
    """Median and 95th percentile of the golden requests are within their bounds.

    Args:
        gate: the bounds.
        found: seconds of each request of the candidate.
        beside: the same of the version that serves, asked in turn; empty where it could not be asked.
        seconds: that the gate took.
        why_alone: why it could not.
    """
    if not found:
        return GateResult(kind="latency", ok=False, detail="no request could be timed", seconds=seconds)
    p50, p95 = _percentile(found, 0.5), _percentile(found, 0.95)
    numbers = {"p50_ms": round(p50, 3), "p95_ms": round(p95, 3), "requests": float(len(found))}
    said = f"p50 {p50:.1f} ms, p95 {p95:.1f} ms of {len(found)} requests"
    problems = []
    for name, value, bound in (("p50", p50, gate.p50_ms), ("p95", p95, gate.p95_ms)):
        if bound:
            numbers["bound_ms" if name == "p95" else "p50_bound_ms"] = float(bound)
            problems += [f"{name} {value:.1f} ms is above the bound of {bound} ms"] if value > bound else []
    if fraction(gate.factor):
        slower, compared, more = _beside(found, beside, fraction(gate.factor), gate.floor_ms)
        numbers |= more
        problems += slower
        said += f", {compared or why_alone or 'nothing serves to compare with'}"
    return GateResult(
        kind="latency", ok=not problems, detail="; ".join([*problems, said]), seconds=seconds, numbers=numbers
    )


def _beside(
    found: Sequence[float], beside: Sequence[float], factor: float, floor_ms: float
) -> tuple[list[str], str, dict[str, float]]:
    """What is too slow beside the version that serves, how the two compare in words, and in numbers."""
    if not beside:
        return [], "", {}
    problems, numbers = [], {"factor": factor}
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        mine, theirs = _percentile(found, share), _percentile(beside, share)
        numbers[f"running_{name}_ms"] = round(theirs, 3)
        if mine > max(theirs * factor, theirs + floor_ms):
            problems.append(
                f"{name} {mine:.1f} ms is more than {factor:g} times the {theirs:.1f} ms of the version that serves"
            )
    words = f"the version that serves {numbers['running_p50_ms']:.1f} and {numbers['running_p95_ms']:.1f} ms"
    return problems, words, numbers


def _percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank, in milliseconds."""
    ordered = sorted(values)
    return 1000 * ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def memory(gate: MemoryGate, used_bytes: int | None, limit_mb: int, seconds: float) -> GateResult:
    """The container holds no more than its share of the limit, and than the ceiling."""
    if used_bytes is None:
        return GateResult(kind="memory", ok=True, detail="this engine does not say what it uses", seconds=seconds)
    bounds = [limit_mb * gate.percent / 100] if gate.percent else []
    bound = min([*bounds, *([float(gate.ceiling_mb)] if gate.ceiling_mb else [])], default=float(limit_mb))
    used = used_bytes / _MIB
    said = f"uses {used:.0f} MB of its limit of {limit_mb} MB"
    detail = said if used <= bound else f"{said}, {bound:.0f} MB are allowed"
    numbers = {"used_mb": round(used, 1), "bound_mb": round(bound, 1), "limit_mb": float(limit_mb)}
    return GateResult(kind="memory", ok=used <= bound, detail=detail, seconds=seconds, numbers=numbers)


def temperature(gate: TemperatureGate, found: Mapping[str, float], seconds: float) -> GateResult:
    """The warmest sensor of the device is under the ceiling."""
    if not found:
        detail = "this device has no temperature sensor to read"
        return GateResult(kind="temperature", ok=True, detail=detail, seconds=seconds)
    name, warmest = max(found.items(), key=lambda item: item[1])
    ok = warmest <= gate.ceiling_celsius
    detail = f"{name} at {warmest:.1f} °C, " + ("allowed are" if ok else "more than") + f" {gate.ceiling_celsius} °C"
    numbers = {"celsius": warmest, "ceiling_celsius": float(gate.ceiling_celsius)}
    return GateResult(kind="temperature", ok=ok, detail=detail, seconds=seconds, numbers=numbers)


def tcp(kept: bool, seconds: float) -> GateResult:
    """The port took a connection and kept it."""
    detail = "the port takes connections" if kept else f"the port took no connection in {seconds:.1f} s"
    return GateResult(kind="tcp", ok=kept, detail=detail, seconds=seconds)


def replayed(gate: RehearsalGate | ShadowGate, found: Sequence[Replayed], seconds: float, why: str = "") -> GateResult:
    """The candidate answers what callers of this device asked as the version that serves did.

    Args:
        gate: what is enough.
        found: every request that was asked again.
        seconds: that the gate took.
        why: why there was nothing to ask, if that is known.
    """
    numbers = {"requests": float(len(found)), "least": float(gate.least)}
    if len(found) < gate.least:
        some = f"only {len(found)}" if found else "none"
        detail = f"too few requests to rehearse: {some} of at least {gate.least}{': ' + why if why else ''}"
        return GateResult(kind=gate.kind, ok=True, detail=detail, seconds=seconds, numbers=numbers)
    answered = [item for item in found if item.comparison]
    agreed = sum(1 for item in answered if item.comparison and item.comparison.ok)
    errors = 100 * (len(found) - len(answered)) / len(found)
    agreement = 100 * agreed / len(answered) if answered else 0.0
    numbers |= {
        "agreement_percent": round(agreement, 1), "least_agreement_percent": float(gate.agreement_percent),
        "error_percent": round(errors, 1), "most_error_percent": float(gate.error_percent),
    }  # fmt: skip
    problems = []
    if errors > gate.error_percent:
        reason = next(item.problem for item in found if item.comparison is None)
        problems.append(f"{len(found) - len(answered)} of {len(found)} requests failed: {reason}")
    if answered and agreement < gate.agreement_percent:
        example = next(item.comparison.detail for item in answered if item.comparison and not item.comparison.ok)
        problems.append(
            f"{agreed} of {len(answered)} answers agree with the version that serves, "
            f"at least {gate.agreement_percent} % must: {example}"
        )
    slower, compared, more = _pace(gate, answered)
    said = f"{agreed} of {len(found)} recent requests of this device answered alike{compared}"
    return GateResult(
        kind=gate.kind, ok=not problems and not slower, detail="; ".join([*problems, *slower]) or said,
        seconds=seconds, numbers=numbers | more,
    )  # fmt: skip


def _pace(
    gate: RehearsalGate | ShadowGate, answered: Sequence[Replayed]
) -> tuple[list[str], str, dict[str, float]]:  # fmt: skip
    pairs = [(item.seconds, item.beside) for item in answered if item.beside is not None]
    if not pairs or not fraction(gate.factor):
        return [], "", {}
    slower, compared, numbers = _beside(
        [mine for mine, _ in pairs], [theirs for _, theirs in pairs], fraction(gate.factor), gate.floor_ms
    )
    p50, p95 = (_percentile([mine for mine, _ in pairs], share) for share in (0.5, 0.95))
    return slower, f", {compared}", numbers | {"p50_ms": round(p50, 3), "p95_ms": round(p95, 3)}


def soak_gate(image: TrustedImage) -> SoakGate:
    """The release's own; one that asks for crashes only where it says nothing of the soak."""
    return next((gate for gate in image.image.gates if isinstance(gate, SoakGate)), _CRASHES_ONLY)


def soak(gate: SoakGate, before: Traffic | None, after: Traffic | None, crashes: int, seconds: float) -> GateResult:
    """Real traffic of the candidate, beside that of the version before; None where a server does not count."""
    numbers, problems = {"crashes": float(crashes), "seconds": round(seconds, 1)}, []
    said = f"healthy for {seconds:.1f} s of real traffic"
    if crashes:
        problems.append(f"the container was started again {crashes} times")
    if after is not None:
        numbers |= {"requests": float(after.requests), "failures": float(after.failures)}
        asked = after.requests + after.failures
        said += f", {asked} requests" + ("" if asked >= gate.least else ", too few to judge")
        if asked >= gate.least:
            problems += _worse(gate, before, after)
            numbers |= {"failed_percent": round(after.failed_percent, 1), "mean_ms": round(after.mean_ms, 3)}
    if before is not None:
        numbers |= {"before_requests": float(before.requests), "before_failures": float(before.failures)}
        numbers |= {"before_failed_percent": round(before.failed_percent, 1)}
        numbers |= {"before_mean_ms": round(before.mean_ms, 3)}
    return GateResult(
        kind="soak", ok=not problems, detail="; ".join(problems) or said, seconds=seconds, numbers=numbers
    )  # fmt: skip


def _worse(gate: SoakGate, before: Traffic | None, after: Traffic) -> list[str]:
    usual = before.failed_percent if before else 0.0
    problems = []
    if after.failed_percent > usual + gate.error_percent:
        problems.append(
            f"{after.failures} of {after.requests + after.failures} requests failed ({after.failed_percent:.1f} %, "
            f"before {usual:.1f} %)"
        )
    factor, theirs = fraction(gate.factor), before.mean_ms if before and before.requests >= gate.least else 0.0
    if factor and theirs and after.requests and after.mean_ms > max(theirs * factor, theirs + gate.floor_ms):
        problems.append(f"answers take {after.mean_ms:.1f} ms, more than {factor:g} times the {theirs:.1f} ms before")
    return problems


def unanswered(kind: str, reason: str, seconds: float) -> GateResult:
    """The model server gave no usable answer to a gate's question."""
    return GateResult(kind=kind, ok=False, detail=reason, seconds=seconds)


def alive(seconds: float) -> GateResult:
    """The container still runs after a while; for images whose release declares no gate that asks it anything."""
    return GateResult(kind="alive", ok=True, detail=f"still runs after {seconds:.1f} s", seconds=seconds)


def _finite(value: float) -> float:
    """JSON knows no infinity; the largest double stands for it."""
    return value if math.isfinite(value) else math.copysign(1.7e308, value if value == value else 1.0)
