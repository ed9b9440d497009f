"""The health gates of a release: the usual ones for what the image serves, and those that the operator asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from wherry.errors import InputError
from wherry.gates import GATES
from wherry.identity import sha256_digest
from wherry.release import (
    TOLERANCES,
    Gate,
    GoldenFile,
    GoldenGate,
    HttpGate,
    MemoryGate,
    ReadyGate,
    RunSpec,
    SignatureGate,
    SoakGate,
    TcpGate,
)

if TYPE_CHECKING:
    from wherry_cli.packaging.release import Served

_LATER = ("memory", "temperature", "latency", "rehearsal", "shadow", "soak")
_CHOSEN = ("tcp", *_LATER)
_ORDER = (
    "ready",
    "http",
    "tcp",
    "signature",
    "golden",
    "memory",
    "temperature",
    "latency",
    "rehearsal",
    "shadow",
    "soak",
)
"""Quick ones first: a bad candidate is found out early."""
_NEED_GOLDEN = ("latency", "rehearsal", "shadow")


def parse_gate(text: str) -> Gate:
    """`KIND` or `KIND:NAME=VALUE,...`.

    Raises:
        InputError: no such gate or setting, or a value that does not fit.
    """
    kind, _, rest = text.partition(":")
    if kind not in _CHOSEN:
        raise InputError(f"--gate {text}", f"names no gate {kind!r}", f"Choose from {', '.join(_CHOSEN)}")
    model, values = GATES[kind], {}
    for part in filter(None, rest.split(",")):
        name, _, value = part.partition("=")
        if name not in model.model_fields or name == "kind":
            known = ", ".join(field for field in model.model_fields if field != "kind")
            raise InputError(f"--gate {text}", f"names no setting {name!r} of gate {kind}", f"Choose from {known}")
        values[name] = value
    if kind == "latency" and not values.keys() & {"p50_ms", "p95_ms", "factor"}:
        values["factor"] = "1.5"
    try:
        found: Gate = model.model_validate(values)  # type: ignore[assignment]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"--gate {text}", f"{name}: {first['msg']}", "Correct the value") from error
    return found


def gates(
    golden: bytes | None, served: Served, run: RunSpec, health_path: str | None, chosen: Sequence[Gate] = ()
) -> list[Gate]:
    """What a candidate must pass on a device before it may serve, in the order it is asked.

    Raises:
        InputError: a gate asks what this image cannot answer.
    """
    found: list[Gate] = []
    if health_path is not None or (served.signature is None and golden is None):
        if health_path is not None or not any(isinstance(gate, TcpGate) for gate in chosen):
            found = [HttpGate(path=health_path or "/", deadline_seconds=run.start_seconds)]
    else:
        found = _usual(golden, served, run)
    for gate in chosen:
        if gate.kind in _NEED_GOLDEN and golden is None:
            reason = "needs a model server of the Open Inference Protocol with golden cases"
            raise InputError(f"--gate {gate.kind}", reason, "Leave it out, or package with golden cases")
        found = [*(other for other in found if other.kind != gate.kind), gate]
    return sorted(found, key=lambda gate: _ORDER.index(gate.kind))


def _usual(golden: bytes | None, served: Served, run: RunSpec) -> list[Gate]:
    found: list[Gate] = [ReadyGate(deadline_seconds=run.start_seconds)]
    if served.signature is not None:
        found.append(SignatureGate())
    if golden is not None:
        tolerance, cosine = TOLERANCES[served.precision]
        cases = len(GoldenFile.model_validate_json(golden).cases)
        found.append(GoldenGate(digest=sha256_digest(golden), cases=cases, tolerance=tolerance, cosine=cosine))
    return [*found, MemoryGate(), SoakGate()]
