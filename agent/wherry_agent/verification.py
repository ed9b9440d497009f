"""Which images must be verified before they are trusted: those of before a boot that nobody prepared for. Pure.

The engine's store is not safe against a loss of power, so after one nothing in it is believed. The known-good serves
at once all the same and is verified beside it; everything else is verified before it is started.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from wherry.agent_release import AGENT_SLOT
from wherry_agent.assignment import TrustedImage
from wherry_agent.entry import Entry, SlotEntry, same
from wherry_agent.steps import (
    Commit,
    EnsureServing,
    FallBack,
    Probe,
    Soak,
    Stage,
    Start,
    Step,
    Switch,
    Verify,
)

_USES = Stage | Start | Probe | Switch | Soak | Commit | FallBack | EnsureServing
_BEFORE_USE = ("admitted", "fetching")


def images_kept(entry: Entry) -> frozenset[str]:
    """Digests of all images that the slots have, needed or not. The agent's own is unpacked elsewhere."""
    found: set[str] = set()
    for slot in entry.slots.values():
        if slot.slot != AGENT_SLOT:
            trial = slot.trial.image if slot.trial else None
            found |= {image.digest for image in (slot.known_good, slot.previous, trial, *slot.litter) if image}
    return frozenset(found)


def doubtful(entry: Entry, boot_id: str) -> frozenset[str]:
    """What awaits verification when the agent starts: after a boot whose end the agent did not see coming, all."""
    rebooted = bool(entry.boot_id) and entry.boot_id != boot_id
    if rebooted and entry.ended != entry.boot_id:
        return images_kept(entry)
    return entry.unverified


def carried(before: Entry, after: Entry) -> frozenset[str]:
    """What still awaits verification after a change. What came meanwhile may share layers with what is in doubt."""
    kept = images_kept(after)
    return (after.unverified | (kept - images_kept(before))) & kept


def verified_first(planned: Iterable[Step], entry: Entry, settled: Collection[str]) -> list[Step]:
    """The plan with verification before each step that would trust a doubtful image, and at its end for the rest.

    Args:
        planned: what is to be done.
        entry: the journal.
        settled: slots in which nothing loads that verification would slow down.
    """
    found: list[Step] = []
    waiting: set[str] = set()
    for step in planned:
        slot = entry.slots.get(step.slot)
        if step.move is not None and step.slot in waiting:
            continue
        doubted = _first_doubted(entry, step)
        if slot is None or doubted is None:
            found.append(step)
            continue
        waiting |= {step.slot, *(slot.trial.group if slot.trial else ())}
        found.append(doubted)
    if entry.unverified:
        calm = [slot for name, slot in entry.slots.items() if name in settled]
        found += [step for slot in calm for step in _beside(entry, slot) if step not in found]
    return found


def _first_doubted(entry: Entry, step: Step) -> Verify | None:
    """Verification of the first doubtful image that a step would trust."""
    if not isinstance(step, _USES):
        return None
    turns = (step, *step.partners) if isinstance(step, Switch | FallBack) else (step,)
    for turn in turns:
        slot = entry.slots.get(turn.slot)
        if slot is not None and _doubted(entry, slot, turn.image):
            return Verify(turn.slot, turn.image, slot.port)
    return None


def _doubted(entry: Entry, slot: SlotEntry, image: TrustedImage) -> bool:
    return slot.slot != AGENT_SLOT and image.digest in entry.unverified and not same(image, slot.known_good)


def _beside(entry: Entry, slot: SlotEntry) -> list[Step]:
    """The release before first: it stands in for a known-good whose copy is damaged."""
    good, before = slot.known_good, slot.previous
    if slot.slot == AGENT_SLOT or (slot.trial and slot.trial.phase not in _BEFORE_USE):
        return []
    found: list[Step] = []
    if before and before.digest in entry.unverified:
        fetches = good is None or good.digest not in entry.unverified
        found.append(Verify(slot.slot, before, slot.port, fetches=fetches))
    if good and good.digest in entry.unverified:
        stands_in = before if before and before.digest not in entry.unverified else None
        found.append(Verify(slot.slot, good, slot.port, serves=True, stands_in=stands_in))
    return found
