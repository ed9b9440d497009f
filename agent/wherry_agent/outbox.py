"""What the agent says: the reported state when it changed, every phase of a deployment, and what troubles it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from wherry.errors import StoreError, WherryError
from wherry.messages import DeploymentEvent, Problem, StateReport
from wherry_agent.assignment import Assignment
from wherry_agent.endings import problem_of
from wherry_agent.entry import Entry
from wherry_agent.observed import Observed
from wherry_agent.ports import Link, Recorder
from wherry_agent.reporter import View, deployment_report, state_report

_REPORTS_PER_START = 1_000_000
_ASSIGNMENT = "assignment"


class Outbox:
    """Sends reports and records. Only the control loop's thread calls it.

    Args:
        link: gets reports.
        recorder: gets deployment events.
        publish: gets every report that is sent, for `wherry-agent status`; gets it again if it raises StoreError.
        profile: the device profile's name.
        seconds: how often an unchanged state is reported again.
        facts: what hardware and system it is, by name.
    """

    def __init__(
        self,
        link: Link,
        recorder: Recorder,
        publish: Callable[[StateReport], None],
        profile: str,
        seconds: float,
        facts: Mapping[str, str],
    ) -> None:
        self._link = link
        self._recorder = recorder
        self._publish = publish
        self._profile = profile
        self._facts = facts
        self._every = timedelta(seconds=seconds)
        self._troubles: dict[str, Problem] = {}
        self._refused = 0
        self._recorded: dict[str, tuple[str, str]] = {}
        self._last: tuple[StateReport, datetime] | None = None
        self._number = 0

    def start(self, before: Entry, entry: Entry) -> None:
        """Number reports upwards over restarts; what was recorded in an earlier life is not recorded again."""
        self._number = entry.starts * _REPORTS_PER_START
        for name, slot in before.slots.items():
            if slot.deployment:
                self._recorded[name] = (slot.deployment.id, slot.deployment.phase)

    def trouble(self, name: str, error: WherryError, refused: int = 0) -> None:
        """Something cannot be done now; `name` is under what it is cleared again.

        Args:
            name: of what.
            error: why.
            refused: sequence of the assignment that this refuses for good.
        """
        self._troubles[name] = problem_of(error)
        if name == _ASSIGNMENT:
            self._refused = refused

    def say(self, troubles: Mapping[str, WherryError | None]) -> None:
        """What can, and what cannot, be done now, by name."""
        for name, error in troubles.items():
            if error is None:
                self.clear(name)
            else:
                self.trouble(name, error)

    def clear(self, *names: str) -> None:
        """It can be done again."""
        for name in names:
            self._troubles.pop(name, None)
        if _ASSIGNMENT in names:
            self._refused = 0

    def record(self, entry: Entry, now: datetime) -> None:
        """Every phase that a deployment enters goes to the spool."""
        for name, slot in entry.slots.items():
            deployment = slot.deployment
            if deployment is None or self._recorded.get(name) == (deployment.id, deployment.phase):
                continue
            self._recorded[name] = (deployment.id, deployment.phase)
            try:
                self._recorder.append(DeploymentEvent(deployment=deployment_report(deployment, name)), now)
            except WherryError as error:
                self.trouble("spool", error)

    def report(
        self,
        entry: Entry,
        desired: Assignment | None,
        observed: Observed,
        healthy: Mapping[str, bool],
        now: datetime,
        force: bool,
    ) -> None:
        """Send the state if it changed, is old, or `force`."""
        self.record(entry, now)
        first = next(iter(self._troubles.values()), None)
        problem = self._troubles[_ASSIGNMENT] if self._refused else first
        view = View(entry, desired, observed, healthy, problem, self._facts, self._refused)
        report = state_report(view, self._profile, self._number + 1, now)
        if not force and not self._worth_sending(report, now):
            return
        self._number += 1
        self._last = (report, now)
        self._link.report(report)
        try:
            self._publish(report)
        except StoreError as error:  # a full disk costs the file, not the service; it is written when there is room
            self.trouble("status", error)
            self._last = None
        else:
            self.clear("status")

    def _worth_sending(self, report: StateReport, now: datetime) -> bool:
        if self._last is None:
            return True
        last, at = self._last
        same = report.model_copy(update={"number": last.number, "at": last.at}) == last
        return not same or abs(now - at) > self._every
