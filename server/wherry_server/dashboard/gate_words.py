"""What a health gate measured, against what bound, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wherry.messages import GateResult
from wherry_server.dashboard import words


@dataclass(frozen=True, slots=True)
class GateRow:
    """What a gate found.

    Attributes:
        asks: what it is for; empty for a kind that this server does not know.
        numbers: what was measured, its value, and its bound or what it is compared with; the last may be empty.
    """

    kind: str
    asks: str
    ok: bool
    detail: str
    took: str
    numbers: list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class _Measure:
    """A number of a gate: how it is called, and which other number of the same gate bounds it."""

    name: str
    title: str
    unit: str = ""
    bound: str = ""
    least: bool = False
    beside: str = ""

    def row(self, numbers: Mapping[str, float]) -> tuple[str, str, str]:
        bounds = []
        if self.bound in numbers:
            bounds.append(f"{'at least' if self.least else 'at most'} {number_words(numbers[self.bound], self.unit)}")
        if self.beside in numbers:
            factor = f", at most {numbers['factor']:g} times that" if "factor" in numbers else ""
            bounds.append(f"version before {number_words(numbers[self.beside], self.unit)}{factor}")
        return self.title, number_words(numbers[self.name], self.unit), "; ".join(bounds)


_PACE = (
    _Measure("p50_ms", "half of the answers within", "ms", "p50_bound_ms", beside="running_p50_ms"),
    _Measure("p95_ms", "95 % of the answers within", "ms", "bound_ms", beside="running_p95_ms"),
)
_REPLAY = (
    _Measure("requests", "requests asked again", bound="least", least=True),
    _Measure("agreement_percent", "answered alike", "%", "least_agreement_percent", least=True),
    _Measure("error_percent", "failed", "%", "most_error_percent"),
    *_PACE,
)
_GATES: dict[str, tuple[str, tuple[_Measure, ...]]] = {
    "ready": ("does it start and say it is ready", (_Measure("seconds", "ready after", "s", "deadline"),)),
    "signature": ("are inputs, outputs and provider as released", ()),
    "golden": (
        "does it answer recorded questions as recorded",
        (
            _Measure("worst_error", "largest difference", bound="tolerance"),
            _Measure("margin", "share of the tolerance in use"),
            _Measure("worst_cosine", "least likeness (cosine, 1 is the same)"),
            _Measure("cases", "cases asked"),
            _Measure("failed", "of them answered wrongly"),
        ),
    ),
    "latency": ("is it quick enough", (*_PACE, _Measure("requests", "requests timed"))),
    "memory": (
        "does it fit its memory",
        (_Measure("used_mb", "in use", "MB", "bound_mb"), _Measure("limit_mb", "limit of the container", "MB")),
    ),
    "temperature": ("is the device cool enough", (_Measure("celsius", "warmest sensor", "°C", "ceiling_celsius"),)),
    "http": ("does a path answer", ()),
    "tcp": ("does its port take connections", ()),
    "rehearsal": ("does it answer this device's last requests as before", _REPLAY),
    "shadow": ("does it answer what callers ask meanwhile alike", _REPLAY),
    "soak": (
        "does it bear real traffic as well as the version before",
        (
            _Measure("seconds", "watched for", "s"),
            _Measure("crashes", "crashes", bound="most_crashes"),
            _Measure("requests", "requests answered", beside="before_requests"),
            _Measure("failures", "failed", beside="before_failures"),
            _Measure("failed_percent", "share that failed", "%", beside="before_failed_percent"),
            _Measure("mean_ms", "mean latency", "ms", beside="before_mean_ms"),
        ),
    ),
}
"""Kind of gate: what it asks, and its numbers in the order of their worth."""


def gate_row(gate: GateResult) -> GateRow:
    """A gate's result as the table shows it; numbers of gates that this server does not know under their own names."""
    asks, measures = _GATES.get(gate.kind, ("", ()))
    shown = [measure for measure in measures if measure.name in gate.numbers]
    told = {"factor"}
    for measure in shown:
        told |= {measure.name, measure.bound, measure.beside}
    others = [_Measure(name, words.phase_words(name)) for name in gate.numbers if name not in told]
    return GateRow(
        kind=words.phase_words(gate.kind),
        asks=asks,
        ok=gate.ok,
        detail=gate.detail,
        took=words.duration(gate.seconds),
        numbers=[measure.row(gate.numbers) for measure in (*shown, *others)],
    )


def number_words(value: float, unit: str = "") -> str:
    """A measured number: few digits, no exponent where people can do without."""
    if value == int(value) and abs(value) < 1e9:
        found = words.number(int(value))
    else:
        found = f"{value:.7f}".rstrip("0") if 1e-6 <= abs(value) < 1e-4 else f"{value:.4g}"
    return f"{found} {unit}" if unit else found
