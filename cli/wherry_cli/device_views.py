"""How devices look on the terminal."""

from __future__ import annotations

from datetime import datetime, timedelta

from rich.console import Group, RenderableType
from rich.text import Text

from wherry.agent_release import AGENT_SLOT
from wherry.api.devices import DeviceView
from wherry.api.rollouts import DeploymentView
from wherry.messages import SlotReport
from wherry_cli.output import fields, indented, remarks, table
from wherry_cli.watch import STATE_STYLES
from wherry_cli.words import ago, duration, labels_text, problem_text, release_name

LONG_SILENCE = timedelta(days=1)
"""From then on people are told how a device leaves the fleet."""


def devices_table(found: list[DeviceView], now: datetime, filtered: bool = False) -> RenderableType:
    """One row a device; problems in full below the table."""
    cells = [
        (
            Text(view.id, style="bold"),
            view.profile,
            presence(view, now),
            running(view),
            wanted(view),
            labels_text(view.labels),
        )
        for view in found
    ]
    empty = "No device is like that." if filtered else "No devices yet. Enrol one with `wherry device token DEVICE`."
    body = table(("device", "profile", "presence", "runs", "desired", "labels"), cells, empty)
    problems = [(view.id, problem_text(view.problem)) for view in found if view.problem]
    return Group(body, remarks(problems)) if problems else body


def presence(view: DeviceView, now: datetime) -> Text:
    """`online`, `offline, seen 3 h ago` or `revoked`."""
    if view.revoked:
        return Text("revoked", style="bold red")
    if view.online:
        return Text("online", style="green")
    return Text(f"offline, seen {ago(view.last_seen, now)}" if view.last_seen else "never seen", style="yellow")


def running(view: DeviceView) -> Text:
    """What each slot serves."""
    lines = [
        Text.assemble(
            f"{slot.slot}: {release_name(slot.serving)}",
            "" if slot.healthy or slot.serving is None else (" unhealthy", "bold red"),
        )
        for slot in view.slots
    ]
    return Text("\n").join(lines) if lines else Text("-")


def wanted(view: DeviceView) -> Text:
    """What the server wants; drift stands out."""
    lines = [
        Text(f"{slot}: {release_name(release)}", style="yellow" if slot in view.drift else "")
        for slot, release in sorted(view.desired.items())
    ]
    lines += [Text(f"{slot}: nothing", style="yellow") for slot in sorted(set(view.drift) - set(view.desired))]
    return Text("\n").join(lines) if lines else Text("-")


def device_page(view: DeviceView, history: list[DeploymentView], now: datetime) -> RenderableType:
    """Everything about one device."""
    pairs: list[tuple[str, RenderableType]] = [
        ("Device", Text(view.id, style="bold")),
        ("Profile", view.profile),
        ("Presence", presence(view, now)),
        ("Labels", labels_text(view.labels) or "-"),
        ("Agent", view.agent_version or "-"),
        ("Enrolled", ago(view.enrolled, now)),
        ("Assignment", f"sequence {view.sequence} signed, {view.reported_sequence} accepted by the device"),
    ]
    if not view.online and not view.revoked and view.last_seen and now - view.last_seen > LONG_SILENCE:
        pairs.append(("", Text(f"Gone for good? wherry device remove {view.id}", style="dim")))
    if view.lock:
        why = f": {view.lock.reason}" if view.lock.reason else ""
        until = view.lock.expires.astimezone().strftime("%Y-%m-%d %H:%M")
        pairs.append(("Swaps", Text(f"held off until {until} by {view.lock.holder}{why}", style="yellow")))
    if view.problem:
        pairs.append(("Problem", Text(problem_text(view.problem), style="red")))
    parts: list[RenderableType] = [fields(pairs), Text(), Text("Slots", style="bold"), indented(_slots(view))]
    parts += [Text(), Text("Last deployments", style="bold"), indented(_history(history, now))]
    return Group(*parts)


def _slots(view: DeviceView) -> RenderableType:
    reported = {slot.slot: slot for slot in view.slots}
    cells = []
    for name in sorted(set(reported) | set(view.desired) | set(view.drift)):
        slot = reported.get(name)
        cells.append(
            (
                name,
                _runs(name, slot),
                _health(slot),
                Text(release_name(view.desired.get(name)), style="yellow" if name in view.drift else ""),
                release_name(slot.known_good) if slot else "-",
                _endpoint(slot),
            )
        )
    return table(("slot", "runs", "health", "desired", "known-good", "endpoint"), cells, "None.")


def _endpoint(slot: SlotReport | None) -> str:
    if slot is None or not slot.port:
        return "-"
    return f"127.0.0.1:{slot.port}" + (f" by {slot.route}" if slot.route else "")


def _runs(name: str, slot: SlotReport | None) -> str:
    if name == AGENT_SLOT and slot and slot.serving is None:
        return "installed agent"
    return release_name(slot.serving) if slot else "-"


def _health(slot: SlotReport | None) -> Text:
    if slot is None or slot.serving is None:
        return Text("-")
    return Text("healthy", style="green") if slot.healthy else Text("unhealthy", style="bold red")


def _history(history: list[DeploymentView], now: datetime) -> RenderableType:
    cells = []
    for item in history:
        deployment = item.deployment
        cells.append(
            (
                ago(deployment.started, now),
                deployment.slot,
                release_name(deployment.release),
                Text(deployment.phase.replace("_", " "), style=STATE_STYLES.get(deployment.phase, "cyan")),
                duration((deployment.updated - deployment.started).total_seconds()),
                problem_text(deployment.problem) if deployment.problem else "",
            )
        )
    return table(("started", "slot", "release", "ended as", ">took", "reason"), cells, "None.")
