"""What the operator sees: tables on a terminal, JSON with `--json`, one clear sentence for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from wherry.errors import WherryError
from wherry_cli.words import clause

Json = Annotated[bool, typer.Option("--json", metavar="", help="Print the result as JSON on standard output.")]
"""The option that every command has."""
Human = Callable[[], RenderableType | None]
PLAIN_WIDTH = 160
"""Columns when the output goes to a file or a pipe: nobody wants folded lines in a log."""


def make_console(*, stderr: bool = False) -> Console:
    """A console that folds to the terminal, and that stays wide where there is none."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    return console


def to_data(value: Any) -> Any:
    """Pydantic models, lists and dictionaries of them, as JSON data."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, dict):
        return {key: to_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_data(item) for item in value]
    return value


class Output:
    """Prints results; notes about the progress go to standard error, so that results can be piped.

    Args:
        as_json: one JSON document on standard output instead of tables.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = make_console()
        self.errors = make_console(stderr=True)

    def result(self, value: Any, human: Human) -> None:
        """Print a command's result: `value` as JSON, or what `human` returns (None: nothing)."""
        if self.as_json:
            print_json(value)
            return
        shown = human()
        if shown is not None:
            self.console.print(shown)

    @property
    def live(self) -> bool:
        """Whether a screen can be drawn again and again in its place."""
        return self.console.is_terminal and not self.console.is_dumb_terminal and not self.as_json

    def gap(self) -> None:
        """An empty line between two results for people."""
        if not self.as_json:
            self.console.print()

    def note(self, text: str | Text) -> None:
        """Say what is going on."""
        self.errors.print(Text(text, style="dim") if isinstance(text, str) else text)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(to_data(value), indent=2, ensure_ascii=False) + "\n")


def print_line(value: Any) -> None:
    """One line of a stream of JSON documents, for programs that read while it grows."""
    sys.stdout.write(json.dumps(to_data(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_error(error: WherryError, as_json: bool) -> None:
    """Show an error: what, why, what to do, and the code that `wherry explain` knows."""
    if as_json:
        print_line({"error": error.as_dict()})  # one line, so that it may also end a stream
        return
    make_console(stderr=True).print(error_text(error), soft_wrap=True)


def error_text(error: WherryError) -> Text:
    """The three lines of an error."""
    return Text.assemble(
        ("Error: ", "bold red"),
        _sentence(clause(error.thing, error.reason)),
        "\n",
        ("  Next: ", "bold"),
        _sentence(error.fix),
        "\n",
        (f"  Code: {error.code} (wherry explain {error.code})", "dim"),
    )


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def table(columns: Sequence[str], rows: Sequence[Sequence[RenderableType]], empty: str) -> RenderableType:
    """A plain table without a frame; `empty` is said when there are no rows.

    A column's name may begin with `>`, which puts it to the right, or `!`, which keeps it from being folded.
    """
    if not rows:
        return Text(empty, style="dim")
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        justify: Literal["left", "right"] = "right" if name.startswith(">") else "left"
        shown.add_column(name.lstrip(">!").upper(), justify=justify, overflow="fold", no_wrap=name.startswith("!"))
    for row in rows:
        shown.add_row(*row)
    return shown


def fields(pairs: Sequence[tuple[str, RenderableType]]) -> Table:
    """Name and value, one a line."""
    shown = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in pairs:
        shown.add_row(name, value)
    return shown


def remarks(pairs: Sequence[tuple[str, str]]) -> RenderableType:
    """What went wrong where, below a table: one line each, folded under itself."""
    shown = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(2):
        shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for name, text in pairs:
        shown.add_row(Text("  !", style="bold red"), Text(name, style="bold"), Text(text))
    return shown


def bar(done: int, total: int, width: int) -> Text:
    """How much of something is done; readable without colour too."""
    full = min(width * done // total, width) if total else 0
    return Text.assemble(("━" * full, "cyan"), ("─" * (width - full), "dim"))


def indented(shown: RenderableType) -> RenderableType:
    """Two columns to the right."""
    return Padding(shown, (0, 0, 0, 2))
