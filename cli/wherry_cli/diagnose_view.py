"""What a device found when it examined itself, on the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from wherry.api.devices import DiagnoseAnswer
from wherry_cli.output import fields, indented, table
from wherry_cli.words import printable

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "bold yellow"), "error": ("✗", "bold red")}
_RANK = {"error": 0, "warning": 1, "ok": 2}


def diagnose_page(device: str, answer: DiagnoseAnswer) -> RenderableType:
    """The checks, those with something to mend first, each with how to mend it below."""
    cells = []
    for check in sorted(answer.checks, key=lambda check: _RANK[check.level]):
        found = Text(printable(check.detail))
        if check.fix:
            found.append(f"\n→ {printable(check.fix)}", style=_SIGNS[check.level][1])
        cells.append((Text(*_SIGNS[check.level]), Text(printable(check.name), style="bold"), found))
    parts = [table(("", "check", "found"), cells, "The device checked nothing."), Text(), _verdict(device, answer)]
    if answer.facts:
        pairs = [(printable(name), Text(printable(value))) for name, value in sorted(answer.facts.items())]
        parts = [Text("Facts", style="bold"), indented(fields(pairs)), Text(), *parts]
    return Group(*parts)


def _verdict(device: str, answer: DiagnoseAnswer) -> Text:
    levels = [check.level for check in answer.checks]
    errors, warnings = levels.count("error"), levels.count("warning")
    if errors:
        return Text(f"{device}: {errors} of {len(levels)} checks failed, {warnings} warnings.", style="bold red")
    if warnings:
        return Text(f"{device} works; {warnings} of {len(levels)} checks warn.", style="yellow")
    return Text(f"{device}: all {len(levels)} checks are fine.", style="green")
