"""What was measured, as a table, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from wherry_cli.costs.measure import Figures
from wherry_cli.output import table

_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table.

    Attributes:
        read: the number, in `unit`.
        more: True when more is better.
    """

    key: str
    title: str
    unit: str
    read: Callable[[Figures], float]
    more: bool = False

    def text(self, figures: Figures) -> str:
        """The number as people read it."""
        value = self.read(figures)
        return f"{value:,.0f} {self.unit}" if value >= 100 else f"{value:.3g} {self.unit}"


MEASURES = (
    Measure("start_seconds", "start to first answer", "s", lambda found: found.start),
    Measure("p50_ms", "inference, p50", "ms", lambda found: found.percentile(0.50) * 1e3),
    Measure("p99_ms", "inference, p99", "ms", lambda found: found.percentile(0.99) * 1e3),
    Measure("throughput", "throughput", "/s", lambda found: found.throughput, more=True),
    Measure("memory_mb", "memory", "MB", lambda found: found.memory_bytes / _MB),
    Measure("disk_mb", "disk", "MB", lambda found: found.disk_bytes / _MB),
    Measure("first_mb", "download, first version", "MB", lambda found: found.first_bytes / _MB),
    Measure("next_mb", "download, next version", "MB", lambda found: found.next_bytes / _MB),
)


def as_data(model: str, found: Sequence[Figures], left_out: str) -> dict[str, Any]:
    """The figures as `--json` prints them; ratios are to the first way."""
    ways = {
        figures.name: {"note": figures.note} | {measure.key: round(measure.read(figures), 4) for measure in MEASURES}
        for figures in found
    }
    ratios = {
        figures.name: {measure.key: round(_ratio(measure, figures, found[0]), 3) for measure in MEASURES}
        for figures in found[1:]
    }
    return {"model": model, "ways": ways, "ratios": ratios, "left_out": left_out}


def _ratio(measure: Measure, figures: Figures, first: Figures) -> float:
    base = measure.read(first)
    return measure.read(figures) / base if base else 0.0


def as_table(found: Sequence[Figures], left_out: str) -> RenderableType:
    """The figures side by side; beside each but the first, how it compares with the first."""
    columns = ["", *(f">{figures.name}" for figures in found)]
    rows = []
    for measure in MEASURES:
        cells: list[RenderableType] = [measure.title]
        for number, figures in enumerate(found):
            beside = "" if number == 0 else f"  {_ratio(measure, figures, found[0]):.2f}x"
            cells.append(Text.assemble(measure.text(figures), (beside, "dim")))
        rows.append(cells)
    notes = [Text(f"{figures.name}: {figures.note}", style="dim") for figures in found]
    if left_out:
        notes.append(Text(f"virtual machine left out: {left_out}", style="yellow"))
    return Group(table(columns, rows, ""), Text(), *notes)


_COLOURS = ("#0f766e", "#2563eb", "#b45309")
_WIDTH, _CELL, _BAR, _LABEL = 880, 420, 18, 118


def as_picture(model: str, found: Sequence[Figures]) -> str:
    """An SVG: one small bar chart a measure, the better end said in words."""
    high = 46 + len(found) * (_BAR + 8)
    rows = (len(MEASURES) + 1) // 2
    height = 80 + rows * high + 20 * len(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" '
        'font-size="13"><rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="24" y="34" font-size="19" font-weight="600" fill="#111827">{escape(model)}: '
        "bare, in a container, in a virtual machine</text>",
    ]
    for number, measure in enumerate(MEASURES):
        x, y = 24 + (number % 2) * (_CELL + 8), 62 + (number // 2) * high
        parts.append(_chart(measure, found, x, y))
    for number, figures in enumerate(found):
        y = 62 + rows * high + 20 * number
        parts.append(f'<text x="24" y="{y}" fill="#4b5563">{escape(figures.name)}: {escape(figures.note)}</text>')
    return "".join([*parts, "</svg>\n"])


def _chart(measure: Measure, found: Sequence[Figures], x: int, y: int) -> str:
    largest = max(measure.read(figures) for figures in found) or 1.0
    better = "more is better" if measure.more else "less is better"
    parts = [
        f'<text x="{x}" y="{y}" font-weight="600" fill="#111827">{escape(measure.title)}'
        f'<tspan font-weight="400" fill="#6b7280"> · {better}</tspan></text>'
    ]
    for number, figures in enumerate(found):
        top = y + 10 + number * (_BAR + 8)
        wide = max(2, round(measure.read(figures) / largest * (_CELL - _LABEL - 100)))
        middle = top + _BAR - 5
        parts.append(
            f'<text x="{x}" y="{middle}" fill="#374151">{escape(figures.name)}</text>'
            f'<rect x="{x + _LABEL}" y="{top}" width="{wide}" height="{_BAR}" rx="3" fill="{_COLOURS[number]}"/>'
            f'<text x="{x + _LABEL + wide + 6}" y="{middle}" fill="#111827">{escape(measure.text(figures))}</text>'
        )
    return "".join(parts)
