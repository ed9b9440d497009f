"""Watching a rollout: a live table on a terminal, a line for each event in a log, JSON lines for programs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from typing import Annotated, Any, Protocol

import typer
from rich.live import Live
from rich.text import Text

from wherry.api.rollouts import RolloutView
from wherry.errors import WherryError
from wherry_cli import watch
from wherry_cli.client import ServerClient
from wherry_cli.looking import looks, now_utc
from wherry_cli.news import changes, news
from wherry_cli.output import Output, print_line, to_data
from wherry_cli.rollout_view import RolloutTable
from wherry_cli.words import clause, parse_span

LOOK_SECONDS = 0.5
INTERRUPTED = 130

Watch = Annotated[bool, typer.Option("--watch", metavar="", help="Show the progress until every device has ended.")]
Timeout = Annotated[
    str | None,
    typer.Option("--timeout", metavar="SPAN", help="Stop watching after this time (90s, 15m); the rollout goes on."),
]


class _Screen(Protocol):
    """Where the progress is shown."""

    def show(self, view: RolloutView) -> None:
        """The rollout as it is now."""

    def trouble(self, error: WherryError) -> None:
        """It could not be asked for just now."""


class _TableScreen:
    """Draws the whole table again and again in the same place."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._rates = watch.Rates()
        self._last: RolloutView | None = None

    def show(self, view: RolloutView) -> None:
        self._last = view
        self._draw(view, "")

    def trouble(self, error: WherryError) -> None:
        if self._last:
            self._draw(self._last, trouble_text(error))

    def _draw(self, view: RolloutView, note: str) -> None:
        now = now_utc()
        height = max(self._live.console.height - 1, 8)
        self._live.update(RolloutTable(view, now, self._rates.see(view, now), height, note), refresh=True)


class _LineScreen:
    """Prints a line when something happened."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._last: RolloutView | None = None
        self._told = ""

    def show(self, view: RolloutView) -> None:
        for line in news(self._last, view):
            self._say(line)
        self._last, self._told = view, ""

    def trouble(self, error: WherryError) -> None:
        if error.reason != self._told:
            self._say(trouble_text(error))
        self._told = error.reason

    def _say(self, line: str) -> None:
        self._out.console.print(f"{now_utc():%H:%M:%S}  {line}", markup=False, soft_wrap=True)


class _JsonScreen:
    """Prints a JSON document a line for everything that changed."""

    def __init__(self) -> None:
        self._last: RolloutView | None = None
        self._told = ""

    def show(self, view: RolloutView) -> None:
        for change in changes(self._last, view):
            self._say(change)
        self._last, self._told = view, ""

    def trouble(self, error: WherryError) -> None:
        if error.reason != self._told:
            self._say({"event": "trouble", **error.as_dict()})
        self._told = error.reason

    def _say(self, change: dict[str, Any]) -> None:
        print_line({"at": now_utc().isoformat(), **change})


def trouble_text(error: WherryError) -> str:
    """That something cannot be asked for just now."""
    return f"{clause(error.thing, error.reason)}; trying again"


def _as_it_is(view: RolloutView) -> Any:
    return view


def follow(
    client: ServerClient,
    first: RolloutView,
    out: Output,
    timeout: str | None = None,
    wrap: Callable[[RolloutView], Any] = _as_it_is,
) -> None:
    """Watch a rollout to its end and leave with an exit code that says how it went.

    With `--json`, each line is a document with an `event`: `rollout`, `device`, `trouble`, and `end` as the last.

    Args:
        client: the server.
        first: the rollout as it was started.
        out: where to.
        timeout: a time span after which watching ends.
        wrap: makes the content of the last JSON line of the rollout as it ended.

    Raises:
        typer.Exit: code 1 when a device failed or the time was up, 130 after Ctrl-C; nothing when all went well.
        ServerError: the server was out of reach for longer than anybody waits.
    """
    deadline = now_utc() + parse_span(timeout) if timeout else None
    display = Live(console=out.console, auto_refresh=False, vertical_overflow="crop") if out.live else None
    screen: _Screen = _TableScreen(display) if display else _JsonScreen() if out.as_json else _LineScreen(out)
    last = [first]
    left = ""
    try:
        with display or nullcontext():
            settled = _look_until_settled(client, last, screen, deadline)
    except KeyboardInterrupt:
        settled, left, code = False, "You stopped watching", INTERRUPTED
    else:
        code = 0 if settled and watch.succeeded(last[0]) else 1
        left = "" if settled else "The time to watch is up"
    if out.as_json:
        print_line({"event": "end", "ok": code == 0, "settled": settled, **to_data(wrap(last[0]))})
    elif settled and not display:
        out.console.print(Text(watch.summary(last[0])))
    if left:
        out.note(_goes_on(left, last[0].id))
    if code:
        raise typer.Exit(code)


def _look_until_settled(
    client: ServerClient, last: list[RolloutView], screen: _Screen, deadline: datetime | None
) -> bool:
    for look in looks(lambda: client.rollout(last[0].id), LOOK_SECONDS, known=True):
        if look.trouble:
            screen.trouble(look.trouble)
        elif look.seen:
            last[0] = look.seen
            screen.show(look.seen)
            if watch.is_settled(look.seen):
                return True
        if deadline and now_utc() >= deadline:
            return False
    raise AssertionError("unreachable")


def _goes_on(why: str, number: int) -> str:
    return (
        f"{why}; rollout {number} goes on. See it again with `wherry rollout watch {number}`, "
        f"stop it with `wherry rollout abort {number}`."
    )
