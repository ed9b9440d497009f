"""`wherry top`: the fleet at a glance, again and again."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from rich.live import Live

from wherry.api.devices import DeviceView
from wherry.api.rollouts import RolloutView
from wherry.api.telemetry import FleetView, HostTelemetry
from wherry_cli.client import ServerClient
from wherry_cli.follow import trouble_text
from wherry_cli.looking import looks, now_utc
from wherry_cli.output import Json, Output, print_line, to_data
from wherry_cli.session import connected
from wherry_cli.top_view import TopPage

SHOWN = 5
_TROUBLED = 100
"""Devices in trouble that are asked for, of each kind."""
_HOST_WINDOW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Glance:
    """What one look saw.

    Attributes:
        troubled: devices that need somebody, by id.
        more_trouble: there are more of them than were asked for.
        busiest: some devices with the most load.
    """

    at: datetime
    fleet: FleetView
    troubled: list[DeviceView]
    more_trouble: bool
    rollouts: list[RolloutView]
    busiest: list[HostTelemetry]


def look_at_fleet(client: ServerClient) -> Glance:
    """Ask for everything that the screen shows."""
    now = now_utc()
    found: dict[str, DeviceView] = {}
    more = False
    for state in ("problem", "drifting", "offline"):
        views = client.some_devices(state, _TROUBLED)
        more = more or len(views) == _TROUBLED
        found = {view.id: view for view in views} | found
    hosts = client.telemetry(None, None, (now - _HOST_WINDOW).isoformat()).hosts
    return Glance(
        at=now,
        fleet=client.fleet(),
        troubled=[found[name] for name in sorted(found)],
        more_trouble=more,
        rollouts=client.rollouts(SHOWN),
        busiest=busiest(hosts, SHOWN),
    )


def busiest(hosts: list[HostTelemetry], count: int) -> list[HostTelemetry]:
    """The hottest and the busiest devices: those nearest to what their hardware can bear, and first those beyond it."""

    def load(host: HostTelemetry) -> float:
        heat = max(host.temperatures.values(), default=0.0)
        memory = 100 * host.memory_used_bytes / max(host.memory_total_bytes, 1)
        return max(host.cpu_percent, heat, memory)

    return sorted(hosts, key=lambda host: (not host.throttled, -load(host), host.device))[:count]


def top(
    once: Annotated[bool, typer.Option("--once", metavar="", help="Show it once and end.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", help="Rest between two looks.", min=0.2, max=3600)
    ] = 2.0,
    as_json: Json = False,
) -> None:
    """The fleet at a glance: how many are how, what each version does, who needs somebody. Ctrl-C ends it."""
    out = Output(as_json)
    with connected() as client:
        if once or not (out.live or as_json):
            glance = look_at_fleet(client)
            out.result(document(glance), lambda: TopPage(glance, None))
            return
        try:
            _again_and_again(client, out, interval)
        except KeyboardInterrupt:
            return


def document(glance: Glance) -> Any:
    """A look as JSON data."""
    values = {field.name: getattr(glance, field.name) for field in fields(glance)}
    return to_data({**values, "at": glance.at.isoformat()})


def _again_and_again(client: ServerClient, out: Output, interval: float) -> None:
    live = Live(console=out.console, screen=True, auto_refresh=False, vertical_overflow="crop") if out.live else None
    last: Glance | None = None
    with live or nullcontext():
        for look in looks(lambda: look_at_fleet(client), interval, timedelta(days=36500)):
            last = look.seen or last
            if live and last:
                note = trouble_text(look.trouble) if look.trouble else ""
                live.update(TopPage(last, live.console.height, note), refresh=True)
            elif not live:
                print_line({"error": look.trouble.as_dict()} if look.trouble else document(last) if last else {})
