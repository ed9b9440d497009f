"""A rollout as a table: the same for `show`, `watch` and `push --watch`."""

from __future__ import annotations

from datetime import datetime

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from wherry.api.rollouts import RolloutView
from wherry_cli import watch
from wherry_cli.output import bar, remarks, table
from wherry_cli.words import duration, part_of, rate_text, size

_WIDE = 100
"""Columns from which on there is room for the rate of a download."""

_REASON_SHARE = 8
"""A bounded table tells one reason for so many lines of height; devices with the same one share it."""


class RolloutTable:
    """Title, one row a device, reasons, summary; as many devices as fit the height.

    Args:
        view: the rollout.
        now: the time.
        rates: bytes a second of the downloads, by device.
        height: lines to keep to; None shows every device.
        note: a last line, about the watching itself.
    """

    def __init__(
        self,
        view: RolloutView,
        now: datetime,
        rates: dict[str, float] | None = None,
        height: int | None = None,
        note: str = "",
    ) -> None:
        self._view = view
        self._rows = watch.rows(view, now, rates)
        self._height = height
        self._note = note

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it with fewer devices until it fits."""
        count = len(self._rows) if self._height is None else min(len(self._rows), self._height)
        shown = self._page(count, options.max_width)
        while self._height is not None and count:
            over = len(console.render_lines(shown, options.update(height=None), pad=False)) - self._height
            if over <= 0:
                break
            count = max(count - max(over // 2, 1), 0)
            shown = self._page(count, options.max_width)
        yield shown

    def _page(self, count: int, width: int) -> RenderableType:
        shown, hidden = watch.pick(self._rows, count)
        columns = ("device", "phase", "download", "gates", ">time", ">left")
        body = table(columns, [_cells(row, width) for row in shown], "" if hidden else "Its devices left the fleet.")
        parts: list[RenderableType] = [Text(watch.title(self._view), style="bold"), Text(), body]
        if hidden:
            parts.append(Text(watch.rest(hidden), style="dim"))
        reasons = watch.reasons(self._rows)
        told = reasons if self._height is None else reasons[: max(self._height // _REASON_SHARE, 1)]
        if told:
            parts.append(remarks(told))
        if len(told) < len(reasons):
            more = f"… and {len(reasons) - len(told)} more reasons: `wherry rollout show {self._view.id}`"
            parts.append(Text(f"  {more}", style="dim"))
        parts += [Text(), _summary(self._view)]
        if self._note:
            parts.append(Text(self._note, style="yellow"))
        return Group(*parts)


def _summary(view: RolloutView) -> RenderableType:
    counts = watch.count_targets(view)
    style = watch.STATE_STYLES.get(view.state, "cyan")
    total = sum(counts.values())
    ended = sum(counts[state] for state in watch.FINAL_TARGETS)
    text = Text(watch.summary(view), style=style)
    return Text.assemble(bar(ended, total, 20), " ", text) if total > 1 and view.state == "running" else text


def _cells(row: watch.Row, width: int) -> tuple[RenderableType, ...]:
    return (
        Text(row.device, style="bold"),
        _phase(row),
        _download(row, width),
        _gates(row),
        "" if row.elapsed is None else duration(row.elapsed),
        _left(row),
    )


def _phase(row: watch.Row) -> Text:
    text = Text(row.phase.replace("_", " "), style=watch.STATE_STYLES.get(row.phase, "cyan"))
    return Text.assemble(text, (" offline", "yellow")) if row.offline else text


def _download(row: watch.Row, width: int) -> Text:
    if row.fetched >= row.total or row.state in watch.FINAL_TARGETS:
        return Text(size(row.total or row.fetched), style="dim") if row.fetched else Text()
    if not row.fetched and row.phase != "fetching":
        return Text()
    shown = Text.assemble(bar(row.fetched, row.total, 8), f" {part_of(row.fetched, row.total)}")
    return Text.assemble(shown, f" {rate_text(row.rate)}") if row.rate and width >= _WIDE else shown


def _gates(row: watch.Row) -> Text:
    """A tick for each gate that passed; the one that failed and the one that asks now by name."""
    parts = [Text("✓" * sum(passed for _, passed in row.gates), style="green")]
    parts += [Text(f"✗ {name}", style="bold red") for name, passed in row.gates if not passed]
    if row.asking:
        parts.append(Text(f"{row.asking} …", style="cyan"))
    return Text(" ").join(part for part in parts if part)


def _left(row: watch.Row) -> str:
    """`~` for an estimate, `≤` for a deadline."""
    if row.left is None:
        return ""
    sign = "~" if row.phase == "fetching" and row.rate else "≤"
    return f"{sign} {duration(round(row.left)) if row.left >= 60 else f'{row.left:.0f} s'}"
