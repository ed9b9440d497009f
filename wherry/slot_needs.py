"""Slots that releases need beside their own: in what order to serve them, and what makes no sense. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Needs = Mapping[str, Iterable[str]]
"""Slot to the slots that its release needs."""


def in_order(needs: Needs) -> list[str]:
    """The slots, each after those that it needs; otherwise by name. A circle is cut somewhere."""
    found: list[str] = []
    under_way: set[str] = set()

    def visit(slot: str) -> None:
        if slot in under_way or slot not in needs:
            return
        under_way.add(slot)
        for other in sorted(needs[slot]):
            visit(other)
        found.append(slot)

    for slot in sorted(needs):
        visit(slot)
    return found


def circle(needs: Needs, start: str) -> list[str]:
    """The slots on a way from a slot back to itself, itself at both ends; empty when there is none."""
    ways: list[list[str]] = [[start]]
    seen: set[str] = set()
    while ways:
        way = ways.pop(0)
        for other in sorted(needs.get(way[-1], ())):
            if other == start:
                return [*way, start]
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return []


def needed_by(needs: Needs, slot: str) -> list[str]:
    """The other slots whose releases need a slot."""
    return sorted(other for other, needed in needs.items() if other != slot and slot in needed)
