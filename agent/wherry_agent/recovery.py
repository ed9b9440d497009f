"""A lost journal, made again from what the containers' labels say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from wherry_agent.entry import Entry, SlotEntry, withdrawn
from wherry_agent.observed import Container


def rebuild(entry: Entry, containers: Iterable[Container], routes: Mapping[int, int]) -> Entry:
    """An entry whose known-goods are the containers that serve.

    In each slot the one that the stable port is turned to, else a running one that would survive a reboot, else
    any running one, else the last one that did; the highest other counter below it is kept as previous. Counters
    of what is found become high-water marks; the sequence is lost and the next assignment sets it. What the owner
    withdrew is never taken over.

    Args:
        entry: a fresh entry; its marks hold what the owner withdrew.
        containers: this device's, inspected (restart policy and signed image are known).
        routes: what the kernel shows.
    """
    slots: dict[str, list[Container]] = {}
    for container in containers:
        if container.image is not None and container.slot and container.slot_port:
            slots.setdefault(container.slot, []).append(container)
    rebuilt, counters = dict(entry.slots), dict(entry.marks.counters)
    for name, found in slots.items():
        gone = tuple(c.image for c in found if c.image and withdrawn(c.image, entry.marks))
        kept = [container for container in found if container.image not in gone]
        best = max(kept, key=lambda container: _rank(container, routes), default=None)
        older = max((container for container in kept if container is not best), key=_counter, default=None)
        rebuilt[name] = SlotEntry(
            name,
            (best or found[0]).slot_port,
            known_good=best.image if best else None,
            previous=older.image if older else None,
            litter=gone,
        )
        if best and best.image:
            key = f"{best.image.image.model}/{best.image.image.profile}"
            counters[key] = max(counters.get(key, 0), best.image.image.counter)
    return replace(entry, slots=rebuilt, marks=replace(entry.marks, counters=counters))


def _rank(container: Container, routes: Mapping[int, int]) -> tuple[bool, bool, bool, int]:
    return (
        container.running and routes.get(container.slot_port) == container.port,
        container.restart == "unless-stopped",
        container.running,
        # Among equals the older one: the newer may have been a candidate.
        -_counter(container),
    )


def _counter(container: Container) -> int:
    return container.image.image.counter if container.image else 0
