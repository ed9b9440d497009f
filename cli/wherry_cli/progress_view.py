"""Packaging's progress: bars on a terminal, one line a finished step elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from wherry_cli.output import Output
from wherry_cli.packaging.progress import Progress as Step
from wherry_cli.words import size


class ProgressView:
    """Shows steps as they are reported; use it as a context manager and hand out `report`.

    Everything goes to standard error, so that results can be piped.
    """

    def __init__(self, out: Output) -> None:
        self._out = out
        self._tasks: dict[str, TaskID] = {}
        self._told: set[tuple[str, str]] = set()
        self._ended: set[str] = set()
        self._bars: Progress | None = None
        if out.errors.is_terminal and not out.as_json:
            columns = (
                SpinnerColumn(finished_text="[green]✓[/]"),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[amount]}", style="dim", markup=False),
            )
            self._bars = Progress(*columns, console=out.errors)

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last picture on the terminal."""
        if self._bars:
            self._bars.stop()

    def report(self, step: Step) -> None:
        """Take in one report of a step."""
        if self._bars:
            self._draw(self._bars, step)
        elif step.stage not in self._ended:
            self._tell(step)

    def _tell(self, step: Step) -> None:
        """A line for each new note, and one for the end."""
        if is_finished(step):
            self._ended.add(step.stage)
        elif not step.note or (step.stage, step.note) in self._told:
            return
        self._told.add((step.stage, step.note))
        self._out.note(line_text(step))

    def _draw(self, bars: Progress, step: Step) -> None:
        if step.stage not in self._tasks:
            self._tasks[step.stage] = bars.add_task(step.stage, total=None, amount="")
        task = self._tasks[step.stage]
        bars.update(task, total=step.total or None, completed=step.done, amount=amount_text(step))


def is_finished(step: Step) -> bool:
    """Whether this report is a step's last."""
    return 0 < step.total <= step.done


def amount_text(step: Step) -> str:
    """How far it is: the note if there is one, bytes where bytes move."""
    if step.note:
        return step.note
    if step.total > 1:
        return f"{size(step.done)} of {size(step.total)}"
    return size(step.done) if step.done > 1 else ""


def line_text(step: Step) -> str:
    """`base layer for linux/arm64: in the registry already`."""
    return f"{step.stage}: {step.note or _whole(step)}"


def _whole(step: Step) -> str:
    return size(step.total) if step.total > 1 else "done"
