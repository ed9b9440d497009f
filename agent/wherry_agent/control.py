"""The control loop: one inbox, one thread, one writer of deployment state."""

from __future__ import annotations

import logging
import queue

from wherry_agent.events import Event, Stop, Tick
from wherry_agent.reconciler import Reconciler
from wherry_agent.service_manager import ServiceManager

_log = logging.getLogger(__name__)
_BLIND_SECONDS = 0.5


class Inbox:
    """Where every thread puts events. `put` may be called from anywhere, a signal handler included."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def put(self, event: Event) -> None:
        """Add an event; never blocks."""
        self._queue.put(event)

    def get(self, seconds: float) -> Event:
        """The next event; a Tick when none comes in time, so that a silent schedule does not stop the agent."""
        try:
            return self._queue.get(timeout=seconds)
        except queue.Empty:
            return Tick()


def run(inbox: Inbox, reconciler: Reconciler, manager: ServiceManager, patience_seconds: float) -> None:
    """Handle events until a Stop. What serves when it begins goes on serving when it ends."""
    reconciler.start()
    event: Event = Tick()
    manager.ready()
    while not isinstance(event, Stop):
        try:
            reconciler.handle(event)
        except Exception:
            _log.exception("a turn failed unexpectedly; the loop goes on")
        manager.alive(reconciler.summary)
        event = inbox.get(_BLIND_SECONDS if reconciler.blind else patience_seconds)
    manager.stopping()
    reconciler.stop()
