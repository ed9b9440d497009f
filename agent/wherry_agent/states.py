"""The life of a deployment, as one table: (phase, move) -> phase. What is not in it does not happen.

A move is a step being begun, or a verdict on one that ended. ARCHITECTURE.md's diagram is drawn by
`draw()` from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from wherry.errors import PhaseError
from wherry.messages import FINAL_PHASES, PHASES, Phase

Move = Literal[
    "admit", "refuse", "fetch", "stage", "start", "probe", "switch", "soak", "commit", "committed",
    "fail", "roll_back", "reject", "retry", "supersede", "withdrawn", "reboot", "remove",
    "fall_back",
]  # fmt: skip

_TRIAL: tuple[Phase, ...] = ("staging", "starting", "probing", "switching", "soaking", "committing")
"""Phases in which a candidate container exists and is not yet known-good."""

PHASE_TABLE: Mapping[tuple[Phase | None, Move], Phase] = {
    (None, "admit"): "admitted",
    (None, "refuse"): "refused",
    ("refused", "admit"): "admitted",
    ("refused", "refuse"): "refused",
    ("admitted", "fetch"): "fetching",
    ("admitted", "supersede"): "removed",
    ("fetching", "fetch"): "fetching",
    ("fetching", "retry"): "fetching",
    ("fetching", "refuse"): "refused",
    ("fetching", "supersede"): "removed",
    ("fetching", "stage"): "staging",
    ("staging", "stage"): "staging",
    ("staging", "start"): "starting",
    ("starting", "start"): "starting",
    ("starting", "probe"): "probing",
    ("probing", "probe"): "probing",
    ("probing", "switch"): "switching",
    ("switching", "switch"): "switching",
    ("switching", "soak"): "soaking",
    ("soaking", "soak"): "soaking",
    ("soaking", "commit"): "committing",
    ("committing", "commit"): "committing",
    ("committing", "committed"): "committed",
    **{(phase, "fail"): "rolling_back" for phase in _TRIAL},
    # A release that was to go together with it failed.
    ("admitted", "fail"): "rolling_back",
    ("fetching", "fail"): "rolling_back",
    **{(phase, "supersede"): "rolling_back" for phase in _TRIAL if phase != "committing"},
    # After a reboot containers and routes are what the engine brought back: go through the gates again.
    **{(phase, "reboot"): "staging" for phase in _TRIAL},
    ("rolling_back", "roll_back"): "rolling_back",
    ("rolling_back", "reject"): "rejected",
    ("rolling_back", "retry"): "admitted",
    ("rolling_back", "withdrawn"): "removed",
    ("committed", "remove"): "removed",
    # Its golden cases fail later, and the release before has taken its place.
    ("committed", "fall_back"): "rejected",
    ("rejected", "remove"): "removed",
    ("refused", "remove"): "removed",
    ("removed", "remove"): "removed",
}


def allows(phase: Phase | None, move: Move) -> bool:
    """Whether the table has an entry."""
    return (phase, move) in PHASE_TABLE


def next_phase(phase: Phase | None, move: Move) -> Phase:
    """The phase that a move leads to; None is "no deployment yet".

    Raises:
        PhaseError: the table has no such entry.
    """
    try:
        return PHASE_TABLE[phase, move]
    except KeyError:
        raise PhaseError("deployment", f"in phase {phase or 'none'} it cannot {move.replace('_', ' ')}") from None


def is_final(phase: Phase) -> bool:
    """Whether a deployment in this phase has ended."""
    return phase in FINAL_PHASES


def draw() -> str:
    """The table as a mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    order = {phase: index for index, phase in enumerate(PHASES)}
    edges: dict[tuple[str, str], list[str]] = {}
    for (phase, move), target in PHASE_TABLE.items():
        edges.setdefault((phase or "[*]", target), []).append(move)
    for (source, to), moves in sorted(edges.items(), key=lambda edge: tuple(order.get(name, -1) for name in edge[0])):
        lines.append(f"    {source} --> {to}: {', '.join(moves)}")
    lines += [f"    {phase} --> [*]" for phase in PHASES if phase in FINAL_PHASES]
    return "\n".join(lines) + "\n"
