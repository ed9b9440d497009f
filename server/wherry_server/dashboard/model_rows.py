"""Models as their pages show them: versions in the field and how each of them answers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wherry.api.releases import ReleaseView
from wherry.api.telemetry import TelemetrySeries, VersionSeries
from wherry_server.dashboard import words
from wherry_server.dashboard.charts import VERSION_TONES, Chart, Charts, Line
from wherry_server.dashboard.model_verdict import asked, by_age, rate
from wherry_server.store.model_views import ModelInField, VersionInField

ALARMING = 0.01
"""Part of requests that fail from which on the number is shown as bad."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A number with a bar beside it, drawn against the largest of its column."""

    text: str
    percent: int
    tone: str = "busy"


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of a model, side by side with the others.

    Attributes:
        listed: False for one that is in the field, but that the owner's metadata no longer names.
        waiting: devices that should serve it and do not yet.
    """

    version: str
    stage: str
    published: str
    listed: bool
    devices: Bar
    waiting: str
    profiles: list[tuple[str, str]]
    requests: str
    throughput: Bar
    errors: Bar
    p50: Bar
    p95: Bar


@dataclass(frozen=True, slots=True)
class Part:
    """A version's share of the devices; `x` and `width` are percent, `shade` its place in the order of colours."""

    version: str
    devices: str
    shade: int
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model in the list, and the head of its page."""

    name: str
    newest: str
    versions: str
    devices: str
    parts: list[Part]
    requests: str
    throughput: str
    errors: str
    failing: bool
    p95: str


def version_rows(found: ModelInField, releases: Sequence[ReleaseView], seconds: int) -> list[VersionRow]:
    """Versions of one model, the newest first.

    Args:
        found: where they serve and how they answered in the window.
        releases: of the model.
        seconds: length of the window.
    """
    stages = {view.version: view.stage for view in releases}
    versions = by_age(found.versions)
    most = max((one.devices for one in versions), default=0)
    return [
        VersionRow(
            version=one.version,
            stage=stages.get(one.version, ""),
            published=f"{one.published:%Y-%m-%d %H:%M}" if one.published else "",
            listed=one.version in stages,
            devices=Bar(words.number(one.devices), words.percent(one.devices, most), "good"),
            waiting=words.number(one.desired - one.devices) if one.desired > one.devices else "",
            profiles=[(profile, words.number(count)) for profile, count in sorted(one.profiles.items())],
            requests=words.number(asked(one)) if asked(one) else words.NOTHING,
            throughput=_throughput(one, versions, seconds),
            errors=_errors(one, versions),
            p50=_latency(one.p50_us, versions),
            p95=_latency(one.p95_us, versions),
        )
        for one in versions
    ]


def _throughput(one: VersionInField, everybody: Sequence[VersionInField], seconds: int) -> Bar:
    if not asked(one):
        return Bar(words.NOTHING, 0)
    return Bar(per_second(asked(one), seconds), words.percent(asked(one), max(asked(other) for other in everybody)))


def _errors(one: VersionInField, everybody: Sequence[VersionInField]) -> Bar:
    if not asked(one):
        return Bar(words.NOTHING, 0)
    worst, mine = max(other.error_rate or 0.0 for other in everybody), one.error_rate or 0.0
    return Bar(rate(mine), words.percent(mine, worst), "bad" if mine >= ALARMING else "warn")


def _latency(value: int | None, everybody: Sequence[VersionInField]) -> Bar:
    slowest = max((other.p95_us or 0 for other in everybody), default=0)
    return Bar(words.milliseconds(value), words.percent(value or 0, slowest))


def per_second(count: int, seconds: int) -> str:
    """Throughput: `12 /s`, `0.4 /s`; slower ones by the minute or the hour."""
    value, unit = 0.0, "s"
    for length, unit in ((1, "s"), (60, "min"), (3600, "h")):  # noqa: B007  the last one stays
        value = count * length / seconds
        if value >= 0.1:
            break
    return (words.number(round(value)) if value >= 10 else f"{value:.1f}".removesuffix(".0")) + f" /{unit}"


def model_card(found: ModelInField, seconds: int) -> ModelCard:
    """A model as a whole."""
    versions = by_age(found.versions)
    count = found.requests + found.failures
    released = sum(one.published is not None for one in versions)
    return ModelCard(
        name=found.model,
        newest=versions[0].version if versions else words.NOTHING,
        versions="1 version" if released == 1 else f"{released} versions",
        devices=words.number(found.devices),
        parts=parts([(one.version, one.devices) for one in versions]),
        requests=words.number(count),
        throughput=per_second(count, seconds) if count else words.NOTHING,
        errors=rate(found.failures / count) if count else words.NOTHING,
        failing=count > 0 and found.failures / count >= ALARMING,
        p95=words.milliseconds(found.p95_us),
    )


def parts(counts: Sequence[tuple[str, int]]) -> list[Part]:
    """Versions that serve somewhere, in the order given, with their places on a bar of 100."""
    total, x, found = sum(count for _, count in counts), 0.0, []
    for shade, (version, count) in enumerate(pair for pair in counts if pair[1]):
        width = 100 * count / total
        found.append(Part(version, words.number(count), min(shade, 5), round(x, 3), round(width, 3)))
        x += width
    return found


def model_charts(series: TelemetrySeries) -> Charts:
    """Latency, errors and throughput of the whole fleet over time, a line a version."""
    shown = _compared(series)
    step = max(1, series.step)

    def chart(unit: str, values: Callable[[VersionSeries], list[float | None]]) -> Chart:
        newest_first = zip(reversed(shown), VERSION_TONES, strict=False)
        lines = [Line(label=one.version, tone=tone, values=values(one)) for one, tone in newest_first]
        return Chart(times=series.times, unit=unit, lines=lines)

    return Charts(
        charts={
            "latency": chart("ms", lambda one: [None if us is None else us / 1000 for us in one.p95_us]),
            "errors": chart("%", lambda one: [_percent(*pair) for pair in _asked(one)]),
            # The last step is not over yet: it would look like a fall.
            "throughput": chart(
                "/s", lambda one: [*(sum(pair) / step for pair in _asked(one)[:-1]), *([None] if one.requests else [])]
            ),
        }
    )


def _asked(one: VersionSeries) -> list[tuple[int, int]]:
    return list(zip(one.requests, one.failures, strict=True))


def _compared(series: TelemetrySeries) -> list[VersionSeries]:
    """The newest versions of a series that were asked at all, oldest first."""
    used = [one for one in series.versions if any(one.requests) or any(one.failures)]
    return sorted(used, key=lambda one: one.counter)[-len(VERSION_TONES) :]


def _percent(requests: int, failures: int) -> float | None:
    return 100 * failures / (failures + requests) if failures + requests else None
