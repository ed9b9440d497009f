"""`wherry telemetry …`: what devices measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from wherry.api.telemetry import HostTelemetry, SlotTelemetry, TelemetrySummary
from wherry_cli.complete import complete_devices, complete_models
from wherry_cli.looking import now_utc
from wherry_cli.output import Json, Output, table
from wherry_cli.session import connected
from wherry_cli.words import latency, parse_span, share

app = typer.Typer(help="What devices measured.", no_args_is_help=True)


@app.command()
def show(
    device: Annotated[
        str | None, typer.Option("--device", help="Only this device.", autocompletion=complete_devices)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Only this model.", autocompletion=complete_models)
    ] = None,
    since: Annotated[str, typer.Option("--since", metavar="SPAN", help="How far back: 90s, 15m, 1h, 7d.")] = "1h",
    as_json: Json = False,
) -> None:
    """Show requests, failures and latency per device, slot and version, and each device's newest host sample."""
    start = (now_utc() - parse_span(since)).isoformat()
    with connected() as client:
        summary = client.telemetry(device, model, start)
    Output(as_json).result(summary, lambda: telemetry_page(summary, since))


def telemetry_page(summary: TelemetrySummary, since: str) -> RenderableType:
    """Inference, hosts, and how complete the record is."""
    columns = ("device", "slot", "release", ">requests", ">failures", ">mean", ">p50", ">p95", ">p99")
    inference = table(columns, [_slot_row(slot) for slot in summary.slots], f"No inference in the last {since}.")
    hosts = table(
        ("device", ">cpu", "memory", "disk", "temperatures", "hardware"),
        [_host_row(host) for host in summary.hosts],
        "No host samples.",
    )
    return Group(
        Text(f"Inference, last {since}", style="bold"), inference, Text(), Text("Hosts", style="bold"), hosts, Text(),
        _completeness(summary),
    )  # fmt: skip


def _slot_row(slot: SlotTelemetry) -> tuple[RenderableType, ...]:
    return (
        Text(slot.device, style="bold"),
        slot.slot,
        f"{slot.model} {slot.version}",
        f"{slot.requests:,}",
        Text(f"{slot.failures:,}", style="bold red" if slot.failures else ""),
        latency(slot.mean_us),
        latency(slot.p50_us),
        latency(slot.p95_us),
        latency(slot.p99_us),
    )


def _host_row(host: HostTelemetry) -> tuple[RenderableType, ...]:
    heat = ", ".join(f"{name} {degrees:.0f} °C" for name, degrees in sorted(host.temperatures.items()))
    return (
        Text(host.device, style="bold"),
        f"{host.cpu_percent:.0f} %",
        share(host.memory_used_bytes, host.memory_total_bytes),
        share(host.disk_used_bytes, host.disk_total_bytes),
        heat or "-",
        Text("\n".join(_hardware(host)) or "-", style="red" if host.throttled else ""),
    )


def _hardware(host: HostTelemetry) -> Iterator[str]:
    """What only some boards tell."""
    if host.throttled:
        yield f"slowed by {', '.join(host.throttled)}"
    if host.throttled_since_boot:
        yield f"slowed since boot by {', '.join(host.throttled_since_boot)}"
    if host.gpu_percent is not None:
        yield f"GPU {host.gpu_percent:.0f} %"
    yield from (f"{rail} {watts:.1f} W" for rail, watts in host.watts.items())
    yield from (f"{name} {used:.0f} % worn" for name, used in sorted(host.wear_percent.items()))


def _completeness(summary: TelemetrySummary) -> Text:
    received = sum(summary.received.values())
    lost = {kind: count for kind, count in summary.dropped.items() if count}
    if not lost:
        return Text(f"{received:,} records received, none dropped.", style="dim")
    detail = ", ".join(f"{count:,} {kind}" for kind, count in sorted(lost.items()))
    return Text(f"{received:,} records received; devices had to drop {detail}.", style="yellow")
