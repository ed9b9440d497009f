"""Where assignments come in: fetched, verified off the loop, one at a time, the newest first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from wherry.errors import ContractError, IdentityError, ServerError, StoreError, WherryError
from wherry_agent.assignment import Assignment, Marks
from wherry_agent.entry import Entry
from wherry_agent.events import AssignmentReceived, AssignmentRefused, AssignmentVerified, Event
from wherry_agent.ports import AssignmentSource, Clock, TrustPort
from wherry_agent.trust_rules import refused_sequence

_log = logging.getLogger(__name__)


class Background(Protocol):
    """Does questions to the network off the loop (see `worker.Aide`)."""

    def submit(self, name: str, job: Callable[[], None]) -> None:
        """Do it soon; of one name only the newest waits."""


class Intake:
    """Turns bytes into verified assignments. Only the control loop's thread calls it; jobs answer by `put`."""

    def __init__(
        self,
        trust: TrustPort,
        source: AssignmentSource,
        aide: Background,
        put: Callable[[Event], None],
        clock: Clock,
    ) -> None:
        self._trust = trust
        self._source = source
        self._aide = aide
        self._put = put
        self._clock = clock
        self._verifying = False
        self._waiting: bytes | None = None

    def offer(self, payload: bytes, entry: Entry) -> None:
        """Have a payload verified, after the one that is being verified; it replaces one that waits."""
        self._waiting = payload
        self.advance(entry)

    def advance(self, entry: Entry) -> None:
        """Begin to verify what waits. One at a time, with the journal's newest marks, so that they never fall."""
        payload = self._waiting
        if payload is None or self._verifying:
            return
        self._verifying, self._waiting = True, None
        marks, trust, clock = entry.marks, self._trust, self._clock
        serving = {name: slot.known_good.digest for name, slot in entry.slots.items() if slot.known_good}
        accepted_before = payload == entry.payload

        def verify() -> tuple[Assignment, Marks]:
            if accepted_before:
                return trust.stored(payload, marks, clock()), marks
            return trust.verify(payload, marks, clock(), serving=serving)

        self._submit("verify", payload, verify)

    def refresh(self, desired: Assignment, entry: Entry) -> None:
        """Learn what the owner withdrew since the accepted assignment was signed."""
        if self._verifying or self._waiting is not None or entry.payload is None:
            return
        self._verifying = True
        payload, marks, trust, clock = entry.payload, entry.marks, self._trust, self._clock
        self._submit("verify", payload, lambda: (desired, trust.refresh(marks, clock())))

    def _submit(self, name: str, payload: bytes, verify: Callable[[], tuple[Assignment, Marks]]) -> None:
        put = self._put

        def job() -> None:
            try:
                assignment, marks = verify()
            except WherryError as error:
                put(AssignmentRefused(payload, error, refused_sequence(payload, error)))
            except Exception as error:
                _log.exception("verification failed unexpectedly")
                put(AssignmentRefused(payload, ContractError("assignment", f"cannot be checked ({error!r})")))
            else:
                put(AssignmentVerified(payload, assignment, marks))

        self._aide.submit(name, job)

    def poll(self) -> None:
        """Fetch the assignment from the server now."""
        source, put = self._source, self._put

        def job() -> None:
            try:
                payload = source.fetch_assignment()
            except WherryError as error:
                put(AssignmentRefused(None, error))
            else:
                if payload is not None:
                    put(AssignmentReceived(payload, "https"))

        self._aide.submit("poll", job)

    def verified(self) -> None:
        """The outcome was taken in."""
        self._verifying = False

    def refused(self, event: AssignmentRefused) -> None:
        """Try again later what was not refused for good; `advance` does so at the next tick."""
        if event.payload is None:
            return
        self._verifying = False
        if isinstance(event.error, ServerError | StoreError | IdentityError) and self._waiting is None:
            self._waiting = event.payload


def tells_news(old: Marks, new: Marks) -> bool:
    """Whether marks differ in more than the time, which is not worth a write to flash."""
    return replace(new, floor=old.floor) != old
