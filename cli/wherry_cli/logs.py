"""`wherry device logs`: what a slot's container wrote, and what it goes on writing."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

from rich.text import Text

from wherry.api.base import DEFAULT_SLOT
from wherry.api.devices import LogsAnswer, LogsQuestion
from wherry.errors import AdapterError, Conflict, InputError
from wherry.questions import LOG_LINES, LogLine
from wherry_cli.client import ServerClient
from wherry_cli.follow import trouble_text
from wherry_cli.inputs import checked
from wherry_cli.looking import looks, now_utc
from wherry_cli.output import Output, print_json, print_line, to_data
from wherry_cli.words import parse_span, printable

LOOK_SECONDS = 2.0
_TICK = timedelta(microseconds=1)


class Tail:
    """Remembers how far a log was read, so that no line is told twice and none is left out."""

    def __init__(self) -> None:
        self._at: datetime | None = None
        self._there: Counter[str] = Counter()

    @property
    def since(self) -> datetime | None:
        """What to ask for next: again the last instant, at which more may have been written since."""
        return self._at - _TICK if self._at else None

    def fresh(self, lines: list[LogLine]) -> list[LogLine]:
        """The lines of an answer that were not told before, in order."""
        found, again = [], Counter(self._there)
        for line in lines:
            if self._at is not None and line.at < self._at:
                continue
            if line.at == self._at and again[line.text]:
                again[line.text] -= 1
                continue
            found.append(line)
            if line.at != self._at:
                self._at, self._there = line.at, Counter()
            self._there[line.text] += 1
        return found


class _Paper:
    """Where lines are written: text for people, a document a line for programs."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def write(self, lines: list[LogLine]) -> None:
        for line in lines:
            if self._out.as_json:
                print_line(to_data(line))
            else:
                self._out.console.print(line_text(line), soft_wrap=True)


def line_text(line: LogLine) -> Text:
    """`12:00:01.250  2  text`: the local time, the version that wrote it, what it wrote, harmless to the terminal."""
    when = f"{line.at.astimezone():%H:%M:%S}.{line.at.microsecond // 1000:03}"
    version = f"{line.version}  " if line.version else ""
    return Text.assemble((f"{when}  ", "dim"), (version, "cyan"), printable(line.text))


def choose_slot(client: ServerClient, device: str) -> str:
    """The slot that is meant when none is named: `main`, or the only one.

    Raises:
        InputError: there are several and none is called `main`.
    """
    view = client.device(device)
    names = sorted({slot.slot for slot in view.slots} | set(view.desired))
    if DEFAULT_SLOT in names or not names:
        return DEFAULT_SLOT
    if len(names) == 1:
        return names[0]
    raise InputError("slot", f"is not named and {device} has several", f"Name one: {', '.join(names)}")


def show_logs(client: ServerClient, device: str, slot: str, lines: int, since: str | None, out: Output) -> None:
    """Print the newest lines once."""
    answer = client.logs(device, _question(slot, lines, since))
    if out.as_json:
        print_json(answer)
        return
    if not answer.lines:
        out.note(f"{device} has no such lines of slot {slot}.")
    if answer.truncated:
        out.note("Older lines are left out; --lines and --since choose more or others.")
    _Paper(out).write(answer.lines)


def follow_logs(client: ServerClient, device: str, slot: str, lines: int, since: str | None, out: Output) -> None:
    """Print the newest lines, then every new one, until Ctrl-C."""
    tail, paper, told = Tail(), _Paper(out), ""

    def ask() -> LogsAnswer:
        if tail.since is None:
            return client.logs(device, _question(slot, lines, since))
        return client.logs(device, LogsQuestion(slot=slot, lines=LOG_LINES, since=tail.since))

    began = False
    try:
        for look in looks(ask, LOOK_SECONDS, timedelta(days=36500), (AdapterError, Conflict)):
            if look.trouble and look.trouble.reason != told:
                out.note(trouble_text(look.trouble))
            told = look.trouble.reason if look.trouble else ""
            if look.seen:
                if look.seen.truncated and began:
                    out.note("Some lines are missing here: they came faster than they can be fetched.")
                paper.write(tail.fresh(look.seen.lines))
                began = True
    except KeyboardInterrupt:
        out.note("You stopped following; the model serves on.")


def _question(slot: str, lines: int, since: str | None) -> LogsQuestion:
    start = now_utc() - parse_span(since) if since else None
    return checked(LogsQuestion, slot=slot, lines=lines, since=start)
