"""A lost or new journal takes over what the engine runs for this device."""

from __future__ import annotations

import logging
from dataclasses import replace

from wherry.errors import StoreError, WherryError
from wherry_agent.assignment import Marks
from wherry_agent.journal import Journal
from wherry_agent.observed import Observed
from wherry_agent.outbox import Outbox
from wherry_agent.recovery import rebuild
from wherry_agent.verification import images_kept
from wherry_agent.world import World

_log = logging.getLogger(__name__)


def take_over(journal: Journal, world: World, observed: Observed, outbox: Outbox) -> None:
    """Make the journal's slots from containers, as `recovery` decides.

    Raises:
        EngineError: the containers cannot be inspected.
        StoreError: the journal cannot be written.
    """
    found = [world.engine.inspect(name) for name in observed.containers]
    known = replace(journal.entry, marks=_withdrawals(journal, world))
    entry = rebuild(known, [container for container in found if container], observed.routes)
    if entry.slots != journal.entry.slots:
        why = journal.rebuilt or "it was empty"
        _log.error("journal rebuilt from containers, because %s; slots: %s", why, ", ".join(sorted(entry.slots)))
    journal.keep(replace(entry, unverified=images_kept(entry)) if journal.rebuilt else entry)
    if journal.rebuilt:
        words = f"was rebuilt from running containers: {journal.rebuilt}"
        outbox.trouble("rebuilt", StoreError("journal", words))


def _withdrawals(journal: Journal, world: World) -> Marks:
    """What the owner withdrew was lost with the journal; release metadata on disk still tells it."""
    try:
        return world.trust.withdrawals(journal.entry.marks)
    except WherryError as error:
        _log.warning("no withdrawals from local files: %s", error)
        return journal.entry.marks
