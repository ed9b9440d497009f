"""Room for the next release: what the device may give up for it. Pure.

Images that nothing needs go first. Then releases that are kept for a rollback: where the known-good serves, the next
commit would put it in their place anyway. What serves, is known-good, on trial or wanted stays.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime

from wherry_agent.assignment import TrustedImage
from wherry_agent.entry import Entry, Limits, SlotEntry, container_name
from wherry_agent.observed import Observed


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Slots no longer keep the release before their known-good; its image makes room for the next one."""

    slots: tuple[str, ...]


def gave_up(entry: Entry, fact: GaveUp, _now: datetime, _limits: Limits) -> Entry:
    """The entry after that."""
    slots = dict(entry.slots)
    for name in fact.slots:
        slot = slots[name]
        if slot.previous is not None:
            slots[name] = replace(slot, previous=None, litter=(*slot.litter, slot.previous))
    return replace(entry, slots=slots)


def to_give_up(entry: Entry, observed: Observed, wanted: Collection[TrustedImage]) -> list[SlotEntry]:
    """Slots whose release before the known-good may go, the one of what is wanted first."""
    digests = {image.digest for image in wanted}
    found = [slot for slot in entry.slots.values() if _spares(slot, entry, observed) and _alone(slot, entry, digests)]
    models = {image.image.model for image in wanted}
    return sorted(
        found, key=lambda slot: (bool(slot.known_good and slot.known_good.image.model not in models), slot.slot)
    )


def _spares(slot: SlotEntry, entry: Entry, observed: Observed) -> bool:
    """Whether the known-good serves and the release before it does not."""
    if slot.previous is None or slot.known_good is None:
        return False
    names = (container_name(entry.device, slot.slot, image) for image in (slot.known_good, slot.previous))
    good, before = (observed.containers.get(name) for name in names)
    serves = good is not None and good.running and observed.routes.get(slot.port) == good.port
    return serves and not (before and before.running)


def _alone(slot: SlotEntry, entry: Entry, wanted: Collection[str]) -> bool:
    """Whether nothing else on the device needs the image of the release before."""
    others = replace(entry, slots={**entry.slots, slot.slot: replace(slot, previous=None)})
    return slot.previous is not None and slot.previous.digest not in {*others.needed_digests(), *wanted}


def frees(image: TrustedImage) -> int:
    """About how many bytes come free with an image: versions of a model share every layer but the model's own."""
    layers = image.image.layers
    total = sum(layers.values())
    if "model" not in layers or not total:
        return image.image.unpacked_bytes
    return image.image.unpacked_bytes * layers["model"] // total
