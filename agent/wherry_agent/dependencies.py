"""Slots that releases need beside their own: may it be tried, must it wait, who may be emptied. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wherry.errors import AdmissionError, Conflict, WherryError
from wherry.slot_needs import circle, in_order, needed_by
from wherry_agent.assignment import Assignment, TrustedImage
from wherry_agent.entry import Entry, SlotEntry
from wherry_agent.together import Wish


def serving_order(entry: Entry) -> list[str]:
    """Slots, each after those that its known-good needs: so they come back to life after a boot."""
    return in_order({name: _needs(slot.known_good) for name, slot in entry.slots.items()})


def unmet_needs(
    wishes: Iterable[Wish], desired: Assignment | None, entry: Entry
) -> tuple[str, WherryError] | None:  # fmt: skip
    """The slot whose release may not be tried for the other slots that it needs, and why; None when all may."""
    found = ((slot.slot, refusal(slot, image, desired, entry)) for slot, image in wishes)
    return next(((name, error) for name, error in found if error), None)


def refusal(slot: SlotEntry, image: TrustedImage, desired: Assignment | None, entry: Entry) -> WherryError | None:
    """Why a release may not be tried for the other slots that it needs; None when it may, or may wait for them."""
    thing = f"release {image.image.label()}"
    wanted = {name: _needs(other) for name, other in (desired.slots if desired else {}).items()}
    way = circle(wanted | {slot.slot: _needs(image)}, slot.slot)
    if way:
        reason = f"slots need each other: {' needs '.join(way)}"
        return AdmissionError(thing, reason, "Package one of them without --needs-slot, under a new version")
    moving = next((group for group in desired.together if slot.slot in group), frozenset()) if desired else frozenset()
    for needed in _needs(image):
        other = entry.slots.get(needed)
        if other is not None and other.known_good is not None:
            continue
        if needed not in wanted:
            reason = f"needs slot {needed}, which is empty on this device"
        elif needed in moving:
            reason = f"needs slot {needed}, which serves nothing yet, so they cannot begin together"
        else:
            continue
        return AdmissionError(thing, reason, f"Roll a release out to slot {needed} first")
    return None


def waiting(entry: Entry, healthy: Mapping[str, bool]) -> dict[str, WherryError]:
    """Slots on trial whose candidate is not started yet because a slot that it needs does not serve, with words.

    A slot of its own group is not waited for: what goes together with it may be what makes that one serve again.
    """
    found: dict[str, WherryError] = {}
    for name, slot in sorted(entry.slots.items()):
        trial = slot.trial
        if trial is None or trial.phase not in ("admitted", "fetching", "staging"):
            continue
        for needed in _needs(trial.image):
            if needed not in trial.group and not healthy.get(needed, False):
                thing, reason = f"release {trial.image.image.label()}", f"waits for slot {needed}, which does not serve"
                fix = f"It goes on by itself when slot {needed} serves; look at what holds that up"
                found[name] = AdmissionError(thing, reason, fix)
                break
    return found


def kept(entry: Entry, desired: Assignment | None) -> dict[str, WherryError | None]:
    """Slots that are to be emptied and are not while another one needs them; with words unless that one goes first."""
    if desired is None:
        return {}
    needs: dict[str, list[str]] = {}
    for name, slot in entry.slots.items():
        trial = slot.trial.image if slot.trial else None
        needs[name] = [*_needs(slot.known_good), *_needs(trial)]
    found: dict[str, WherryError | None] = {}
    for name, slot in sorted(entry.slots.items()):
        others = needed_by(needs, name) if slot.known_good and name not in desired.slots else []
        staying = [other for other in others if other in desired.slots]
        if staying:
            reason = f"is not emptied: slot {staying[0]} needs it"
            found[name] = Conflict(f"slot {name}", reason, f"Empty slot {staying[0]} first")
        elif others:
            found[name] = None
    return found


def _needs(image: TrustedImage | None) -> list[str]:
    return image.image.needs.slots if image else []
