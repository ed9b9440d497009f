"""The fleet at a glance, as a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from wherry.api.devices import DeviceView
from wherry.api.telemetry import FleetVersion, FleetView, HostTelemetry
from wherry_cli import watch
from wherry_cli.output import bar, table
from wherry_cli.words import ago, latency, names_text, problem_text, release_name, share

if TYPE_CHECKING:
    from wherry_cli.top import Glance


_TROUBLES = {"in trouble": "bold red", "drifting": "yellow", "offline": "yellow"}
_ORDER = tuple(_TROUBLES)


_ROWS = (
    (20, 8, 5, 5), (12, 6, 4, 4), (8, 4, 3, 3), (6, 3, 2, 2), (4, 2, 2, 2), (4, 2, 2, 0), (4, 1, 1, 0),
    (2, 1, 1, 0), (1, 1, 0, 0),
)  # fmt: skip
"""Versions, troubles, rollouts and busy devices that are shown, from the tallest screen to the lowest."""


class TopPage:
    """The sections of the screen; each gives way to the height, the lower ones more.

    Args:
        glance: what was seen.
        height: lines of the terminal; None for all of it.
        note: a line about the looking itself.
    """

    def __init__(self, glance: Glance, height: int | None, note: str = "") -> None:
        self._glance = glance
        self._height = height
        self._note = note

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it with fewer rows a section until it fits."""
        for rows in _ROWS:
            shown = self._page(*rows)
            lines = console.render_lines(shown, options.update(height=None), pad=False)
            if self._height is None or len(lines) <= self._height:
                break
        yield shown

    def _page(self, versions: int, troubles: int, rollouts: int, hosts: int) -> RenderableType:
        glance = self._glance
        parts: list[RenderableType] = [_counts(glance.fleet)]
        if self._note:
            parts.append(Text(self._note, style="yellow"))
        shown = glance.fleet.versions[:versions]
        parts += _section(f"Serving, 5 minutes to {glance.at.astimezone():%H:%M:%S}", _versions(shown))
        if glance.troubled:
            parts += _section("Needs attention", _troubled(glance, troubles))
        if glance.rollouts and rollouts:
            parts += _section("Newest rollouts", _rollouts(glance, rollouts))
        if glance.busiest and hosts:
            parts += _section("Busiest devices", _hosts(glance.busiest[:hosts]))
        return Group(*parts)


def _section(title: str, body: RenderableType) -> list[RenderableType]:
    return [Text(), Text(title, style="bold underline"), body]


def _counts(fleet: FleetView) -> RenderableType:
    def part(count: int, word: str, style: str) -> Text:
        return Text.assemble(
            (f"{count:,}", f"bold {style}" if count else "dim"), (f" {word}  ", "" if count else "dim")
        )

    line = Text.assemble(
        part(fleet.devices, "device" if fleet.devices == 1 else "devices", ""),
        bar(fleet.online, fleet.devices, 10),
        " ",
        part(fleet.online, "online", "green"),
        part(fleet.devices - fleet.online, "offline", "yellow"),
        part(fleet.drifting, "drifting", "yellow"),
        part(fleet.problems, "problem" if fleet.problems == 1 else "problems", "red"),
    )
    if fleet.locked:
        line.append_text(part(fleet.locked, "locked", "cyan"))
    return line


def _versions(found: list[FleetVersion]) -> RenderableType:
    cells = [
        (
            Text(f"{one.model} {one.version}", style="bold"),
            _of(one.devices, one.desired),
            Text(str(one.devices - one.healthy or "-"), style="bold red" if one.devices > one.healthy else "dim"),
            f"{one.per_second:,.1f}" if one.per_second else "-",
            Text(*_errors(one.error_rate)),
            latency(one.p50_us),
            latency(one.p95_us),
        )
        for one in found
    ]
    columns = ("release", ">devices", ">unhealthy", ">requests/s", ">errors", ">p50", ">p95")
    return table(columns, cells, "No device serves a model yet. Start with `wherry push MODEL`.")


def _of(devices: int, desired: int) -> str:
    """How many serve it, and how many should: `1,520 → 1,640`."""
    return f"{devices:,}" if devices == desired else f"{devices:,} → {desired:,}"


def _errors(rate: float | None) -> tuple[str, str]:
    if rate is None:
        return "-", "dim"
    return f"{100 * rate:.1f} %", "bold red" if rate > 0 else ""


def _troubled(glance: Glance, rows: int) -> RenderableType:
    """What is wrong, each trouble once with the devices that have it."""
    groups: dict[tuple[str, str], list[str]] = {}
    for view in glance.troubled:
        groups.setdefault(_why(view, glance), []).append(view.id)
    found = sorted(groups.items(), key=lambda group: _ORDER.index(group[0][0]))
    cells = [
        (Text(names_text(names), style="bold"), Text(what, style=_TROUBLES[what]), Text(because))
        for (what, because), names in found[:rows]
    ]
    body = table(("device", "is", "because"), cells, "")
    if len(found) <= rows and not glance.more_trouble:
        return body
    hint = "… and more: `wherry device list --state problem` (or drifting, offline)"
    return Group(body, Text(hint, style="dim"))


def _why(view: DeviceView, glance: Glance) -> tuple[str, str]:
    if view.problem:
        return "in trouble", problem_text(view.problem)
    if not view.online:
        return "offline", f"last seen {ago(view.last_seen, glance.at)}"
    serving = {slot.slot: slot for slot in view.slots}
    parts = []
    for name in view.drift:
        slot = serving.get(name)
        phase = f", {slot.deployment.phase.replace('_', ' ')}" if slot and slot.deployment else ""
        runs = release_name(slot.serving if slot else None)
        parts.append(f"{name}: runs {runs}, should run {release_name(view.desired.get(name))}{phase}")
    return "drifting", "; ".join(parts)


def _rollouts(glance: Glance, rows: int) -> RenderableType:
    cells = [
        (
            str(view.id),
            Text(view.label, style="bold"),
            Text(watch.summary(view), style=watch.STATE_STYLES.get(view.state, "cyan")),
            ago(view.created, glance.at),
        )
        for view in glance.rollouts[:rows]
    ]
    return table((">id", "release", "state", "started"), cells, "")


def _hosts(found: list[HostTelemetry]) -> RenderableType:
    """Boards that tell when they slow themselves down have a column for it, if one of them is shown."""
    tells = any(host.throttled is not None for host in found)
    cells = []
    for host in found:
        hottest = max(host.temperatures.values(), default=None)
        cells.append(
            (
                Text(host.device, style="bold"),
                Text(f"{host.cpu_percent:.0f} %", style="bold yellow" if host.cpu_percent >= 90 else ""),
                share(host.memory_used_bytes, host.memory_total_bytes),
                share(host.disk_used_bytes, host.disk_total_bytes),
                "-" if hottest is None else Text(f"{hottest:.0f} °C", style="bold red" if hottest >= 80 else ""),
                *((_slowed(host),) if tells else ()),
            )
        )
    return table(("device", ">cpu", "memory", "disk", ">hottest", *(("slowed",) if tells else ())), cells, "")


def _slowed(host: HostTelemetry) -> Text:
    """Why a board runs slower than it could: now, or earlier since it was booted."""
    if host.throttled:
        return Text(f"by {', '.join(host.throttled)}", style="bold red")
    if host.throttled_since_boot:
        return Text(f"not now; since boot by {', '.join(host.throttled_since_boot)}", style="yellow")
    return Text("no" if host.throttled is not None else "-", style="dim")
