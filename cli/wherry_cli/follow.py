"""Watching a rollout on a terminal (a live table) or in a log (a line for each event)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from wherry.api import RolloutView
from wherry.errors import ServerError
from wherry_cli import watch
from wherry_cli.client import ServerClient
from wherry_cli.output import Output, remarks, table
from wherry_cli.words import parse_span

LOOK_SECONDS = 0.5
PATIENCE = timedelta(seconds=60)
"""How long a server may be out of reach before watching ends with its error."""
INTERRUPTED = 130

Watch = Annotated[bool, typer.Option("--watch", metavar="", help="Show the progress until every device has ended.")]
Timeout = Annotated[
    str | None,
    typer.Option("--timeout", metavar="SPAN", help="Stop watching after this time (90s, 15m); the rollout goes on."),
]


def now_utc() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def rollout_table(view: RolloutView, now: datetime, limit: int = sys.maxsize) -> RenderableType:
    """Title, one row a device with its reasons below the table, summary; at most `limit` devices."""
    shown, hidden = watch.pick(watch.rows(view, now), limit)
    cells = [
        (
            Text(row.device, style="bold"),
            Text(row.state.replace("_", " "), style=watch.STATE_STYLES.get(row.state, "cyan")),
            row.download,
            _gates(row.gates),
            row.elapsed,
        )
        for row in shown
    ]
    reasons = [(row.device, row.reason) for row in shown if row.reason]
    body = table(("device", "state", "download", "gates", ">time"), cells, "No device was selected.")
    parts: list[RenderableType] = [Text(watch.title(view), style="bold"), Text(), body]
    if hidden:
        parts.append(Text(f"… and {hidden} more", style="dim"))
    if reasons:
        parts.append(remarks(reasons))
    style = watch.STATE_STYLES.get(view.state, "cyan")
    return Group(*parts, Text(), Text(watch.summary(view), style=style))


def _gates(gates: tuple[tuple[str, bool], ...]) -> Text:
    shown = Text()
    for name, passed in gates:
        shown.append(f"{name} {'✓' if passed else '✗'} ", style="green" if passed else "bold red")
    shown.rstrip()
    return shown


class _TableScreen:
    """Draws the whole table again and again in the same place."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, view: RolloutView) -> None:
        # A reason takes two lines more often than not; what does not fit the screen would flicker.
        limit = max(self._live.console.height // 3, 5)
        self._live.update(rollout_table(view, now_utc(), limit), refresh=True)

    def trouble(self, error: ServerError) -> None:
        text = Text(f"{error.thing} {error.reason}; trying again", style="yellow")
        self._live.update(text, refresh=True)


class _LineScreen:
    """Prints a line when something happened."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last: RolloutView | None = None
        self._told: str = ""

    def show(self, view: RolloutView) -> None:
        for line in watch.news(self._last, view):
            self._say(f"{now_utc():%H:%M:%S}  {line}")
        self._last, self._told = view, ""

    def trouble(self, error: ServerError) -> None:
        if error.reason != self._told:
            self._say(f"{now_utc():%H:%M:%S}  {error.thing} {error.reason}; trying again")
        self._told = error.reason


def _as_it_is(view: RolloutView) -> Any:
    return view


def follow(
    client: ServerClient,
    first: RolloutView,
    out: Output,
    timeout: str | None = None,
    wrap: Callable[[RolloutView], Any] = _as_it_is,
) -> None:
    """Watch a rollout to its end, print the result and leave with an exit code that says how it went.

    Args:
        client: the server.
        first: the rollout as it was started.
        out: where to.
        timeout: a time span after which watching ends.
        wrap: makes the JSON result of the rollout as it ended.

    Raises:
        typer.Exit: code 1 when a device failed or the time was up, 130 after Ctrl-C; nothing when all went well.
        ServerError: the server was out of reach for longer than PATIENCE.
    """
    deadline = now_utc() + parse_span(timeout) if timeout else None
    live = out.console.is_terminal and not out.as_json
    display = Live(console=out.console, auto_refresh=False) if live else None
    screen: _TableScreen | _LineScreen = _TableScreen(display) if display else _LineScreen(_line_printer(out))
    frame: AbstractContextManager[object] = display or nullcontext()
    last = [first]
    try:
        with frame:
            settled = _look_until_settled(client, last, screen, deadline)
    except KeyboardInterrupt:
        _leave(last[0], out, wrap, "You stopped watching")
        raise typer.Exit(INTERRUPTED) from None
    if not settled:
        _leave(last[0], out, wrap, "The time to watch is up")
        raise typer.Exit(1)
    out.result(wrap(last[0]), lambda: None if live else Text(watch.summary(last[0])))
    if not watch.succeeded(last[0]):
        raise typer.Exit(1)


def _line_printer(out: Output) -> Callable[[str], None]:
    # With --json, standard output belongs to the result; the story still goes to standard error.
    if out.as_json:
        return out.note
    return lambda line: out.console.print(line, markup=False, soft_wrap=True)


def _look_until_settled(
    client: ServerClient, last: list[RolloutView], screen: _TableScreen | _LineScreen, deadline: datetime | None
) -> bool:
    lost_since: datetime | None = None
    while True:
        try:
            last[0] = client.rollout(last[0].id)
        except ServerError as error:
            lost_since = lost_since or now_utc()
            if now_utc() - lost_since > PATIENCE:
                raise
            screen.trouble(error)
        else:
            lost_since = None
            screen.show(last[0])
            if watch.is_settled(last[0]):
                return True
        if deadline and now_utc() >= deadline:
            return False
        time.sleep(LOOK_SECONDS)


def _leave(view: RolloutView, out: Output, wrap: Callable[[RolloutView], Any], why: str) -> None:
    out.result(wrap(view), lambda: None)
    out.note(
        f"{why}; rollout {view.id} goes on. See it again with `wherry rollout watch {view.id}`, "
        f"stop it with `wherry rollout abort {view.id}`."
    )
