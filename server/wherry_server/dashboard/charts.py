"""Series of telemetry as static/charts.js draws them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from wherry.api.telemetry import HostSeries, TelemetrySeries, VersionSeries

LineTone = Literal["accent", "good", "warn", "bad", "busy", "quiet"]
VERSION_TONES: tuple[LineTone, ...] = ("accent", "warn", "busy", "good", "quiet")

_UNSURE = 3
"""How many of the newest steps may lack what devices have not sent yet."""


class Line(BaseModel):
    """One line; a value is None where nothing was measured."""

    label: str
    tone: LineTone
    values: list[float | None]


class Chart(BaseModel):
    """Lines over the same times.

    Attributes:
        times: Unix seconds.
        marks: (Unix seconds, words) of instants worth a vertical line.
    """

    times: list[int]
    unit: str
    lines: list[Line]
    marks: list[tuple[int, str]] = []


class Charts(BaseModel):
    """What one address answers: charts by name."""

    charts: dict[str, Chart]


def slot_charts(series: TelemetrySeries) -> dict[str, Chart]:
    """Requests, failures, p50 and p95 by version, with marks at swaps."""
    times, marks = series.times, series.swaps
    several = len(series.versions) > 1
    requests, failures, latency = [], [], []
    for version, tone in zip(series.versions, VERSION_TONES * len(series.versions), strict=False):
        name = f"{version.model} {version.version}"
        served = served_steps(version, series)
        requests.append(Line(label=name, tone=tone, values=_within(served, _per_second(version.requests, series.step))))
        failures.append(Line(label=name, tone=tone, values=_within(served, version.failures)))
        latency.append(Line(label=f"{name} p95", tone=tone, values=_milliseconds(version.p95_us)))
        p50_tone: LineTone = "quiet" if not several else tone
        latency.append(Line(label=f"{name} p50", tone=p50_tone, values=_milliseconds(version.p50_us)))
    return {
        "requests": Chart(times=times, unit="/s", lines=requests, marks=marks),
        "failures": Chart(times=times, unit="", lines=failures, marks=marks),
        "latency": Chart(times=times, unit="ms", lines=latency, marks=marks),
    }


def host_charts(series: TelemetrySeries) -> dict[str, Chart]:
    """CPU and memory, and temperature, of one device."""
    host = series.host or HostSeries(cpu_percent=[], memory_percent=[], temperature=[])
    times, marks = series.times, series.swaps
    load = [
        Line(label="CPU", tone="accent", values=host.cpu_percent),
        Line(label="memory", tone="busy", values=host.memory_percent),
    ]
    warmth = [Line(label="hottest sensor", tone="warn", values=host.temperature)]
    return {
        "load": Chart(times=times, unit="%", lines=load, marks=marks),
        "temperature": Chart(times=times, unit="°C", lines=warmth, marks=marks),
    }


def served_steps(version: VersionSeries, series: TelemetrySeries) -> range:
    """The steps from its first request on; to the last one when another version was asked later.

    The newest steps are unfinished or still on their way, so nothing in them is no zero either.
    """

    def asked(found: VersionSeries) -> list[int]:
        counts = zip(found.requests, found.failures, strict=True)
        return [step for step, (answered, failed) in enumerate(counts) if answered or failed]

    steps = asked(version)
    if not steps:
        return range(0)
    latest = max(max(asked(other), default=0) for other in series.versions)
    over = steps[-1] < latest or steps[-1] >= len(series.times) - _UNSURE
    return range(steps[0], steps[-1] + 1 if over else len(series.times))


def _within(steps: range, values: Sequence[float | None]) -> list[float | None]:
    """Nothing outside of some steps: a zero there would look like an outage."""
    return [value if step in steps else None for step, value in enumerate(values)]


def _per_second(counts: Sequence[int], step: int) -> list[float | None]:
    return [round(count / max(1, step), 3) for count in counts]


def _milliseconds(values: Sequence[int | None]) -> list[float | None]:
    return [None if value is None else round(value / 1000, 3) for value in values]
