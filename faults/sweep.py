"""Faults as a table of functions, and what is counted while one of them happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from lab import LabError
from load import Load

from faults import checks
from faults.device import Device
from faults.rig import Rig

NOT_COMMITTED = "the journal's known-good is 1"
ENGINE_RESTARTS = "the only model is dead until the engine has started it again"
_BEFORE = 1.0
"""A request may have been sent so long before the injection that made it fail."""


class NotHereError(Exception):
    """This machine lacks what a fault is brought about with; the text says what."""


@dataclass
class Row:
    """What came of one fault.

    Attributes:
        ok: it came about, the device converged, and all that was looked at held.
        not_done: why it could not be brought about on this machine; then it is not ok either.
        injections: how often the fault was brought about.
        kill_points: how often the agent was killed at a chosen point.
        checks: invariants that were looked at.
        failed_requests: all of them.
        failed_by_fault: those of them that the fault itself made fail, as `allowed` says; any other fails the row.
        allowed: which requests may fail under this fault, and why; empty for none.
        longest_gap_ms: between two good answers.
        outcome: in words.
        scale, commit, code: how much of the fault was tried, and on what code (see `results.Code`).
    """

    name: str
    group: str
    means: str
    ok: bool = True
    not_done: str = ""
    injections: int = 0
    kill_points: int = 0
    checks: int = 0
    sent: int = 0
    failed_requests: int = 0
    failed_by_fault: int = 0
    wrong_answers: int = 0
    longest_gap_ms: int = 0
    seconds: float = 0.0
    allowed: str = ""
    outcome: str = ""
    problems: list[str] = field(default_factory=list)
    scale: float = 1.0
    commit: str = ""
    code: str = ""

    def document(self) -> dict[str, Any]:
        """For build/faults.json."""
        return asdict(self)


@dataclass(frozen=True)
class Fault:
    """One row of the catalogue, or a part of one.

    Attributes:
        number: of the catalogue's row.
        device: which device it befalls ("good" and "other" want a good release, "wrong" one that answers wrongly).
        excuse: why requests fail under it that nobody could answer; empty when none may.
        seconds: how long after each injection they may.
        apart: it touches its own device only, so that others may have theirs meanwhile.
        sample: whether the short sample has it.
        backup: it needs the server as it was before it was told what the devices are to want.
    """

    group: str
    number: int
    name: str
    inject: Callable[[Run], None]
    means: str
    device: str
    excuse: str = ""
    seconds: float = 0.0
    apart: bool = False
    sample: bool = False
    backup: bool = False

    @property
    def key(self) -> str:
        """Its name in the table."""
        return f"{self.number} {self.name}"

    @property
    def allowed(self) -> str:
        """Which requests may fail, in words."""
        return f"up to {self.seconds:g} s after each injection: {self.excuse}" if self.excuse else ""


FAULTS: list[Fault] = []


def fault(
    group: str, number: int, name: str, device: str = "good", **more: Any
) -> Callable[[Callable[[Run], None]], Callable[[Run], None]]:
    """Put a function into the table; its docstring says by what means it brings the fault about."""

    def add(inject: Callable[[Run], None]) -> Callable[[Run], None]:
        means = " ".join((inject.__doc__ or "").split())
        more.setdefault("apart", group == "Crash")
        FAULTS.append(Fault(group, number, name, inject, means, device, **more))
        return inject

    return add


class Run:
    """One fault being injected.

    Attributes:
        scale: share of the full sweep's points and times, 1 for all.
    """

    def __init__(self, rig: Rig, device: Device, one: Fault, scale: float) -> None:
        self.rig = rig
        self.device = device
        self.scale = scale
        self.row = Row(one.key, one.group, one.means, allowed=one.allowed, scale=scale)
        self._excused_seconds = one.seconds
        self._hurts: list[list[float]] = []

    # -- counting ----------------------------------------------------------------------------------------

    def hit(self, count: int = 1, kill: bool = False, hurts: bool = True) -> None:
        """The fault comes about now; `hurts`: in such a way that requests may fail, if they may at all."""
        self.row.injections += count
        self.row.kill_points += count if kill else 0
        if hurts:
            self._hurts.append([time.monotonic()] * 2)

    def over(self) -> None:
        """What came about last ends now: from here on the device has its time to be well again."""
        self._hurts[-1][1] = time.monotonic()

    def _by_fault(self, at: float) -> bool:
        """Whether a request that was sent then may fail."""
        return any(begin - _BEFORE <= at <= end + self._excused_seconds for begin, end in self._hurts)

    def problem(self, words: str) -> None:
        """Something that must not be."""
        self.row.ok = False
        if words not in self.row.problems:
            self.row.problems.append(words)

    def check(self, found: Iterable[checks.Found], when: str) -> None:
        """Look at invariants."""
        for _, wrong in found:
            self.row.checks += 1
            if wrong:
                self.problem(f"{when}: {wrong}")

    def expect(self, holds: bool, otherwise: str) -> None:
        """One more thing that must hold."""
        self.row.checks += 1
        if not holds:
            self.problem(otherwise)

    def count(self, load: Load) -> None:
        """Take in what the load generator saw."""
        bad = [answer for answer in load.answers if answer.problem]
        wrong = [answer for answer in bad if str(answer.problem).startswith("wrong")]
        failed = [answer for answer in bad if answer not in wrong]
        excused = [answer for answer in failed if self.row.allowed and self._by_fault(answer.at)]
        self.row.sent += load.sent
        self.row.wrong_answers += len(wrong)
        self.row.failed_requests += len(failed)
        self.row.failed_by_fault += len(excused)
        self.row.longest_gap_ms = max(self.row.longest_gap_ms, round(load.longest_gap() * 1000))
        if wrong:
            self.problem(f"served: {wrong[0].problem}")
        if len(failed) > len(excused):
            rest = [answer for answer in failed if answer not in excused]
            times = ", ".join(
                f"{_clock(answer.at)} on a {'kept' if answer.kept else 'new'} connection, answered after "
                f"{answer.seconds:.2f} s"
                for answer in rest[:5]
            )
            self.problem(f"{len(rest)} requests failed, asked at {times}; the first: {rest[0].problem}")

    # -- the usual courses -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def loaded(self) -> Iterator[Load]:
        """Requests all the while."""
        load = self.device.load()
        try:
            with load:
                yield load
        finally:
            self.count(load)

    @contextlib.contextmanager
    def swap(
        self,
        before: Callable[[], None] = lambda: None,
        keep_image: bool = True,
        env: dict[str, str] | None = None,
        argv: list[str] | None = None,
        start: bool = True,
    ) -> Iterator[Device]:
        """A swap from version 1, under load; the block injects. Afterwards the device converges and all is checked.

        Args:
            before: what happens before the agent starts.
            keep_image: whether the wanted image is on the device already.
            env: of the agent.
            argv: another program that is the agent.
            start: whether the agent is started before the block.
        """
        device = self.device
        device.restore(keep_image)
        before()
        try:
            with self.loaded():
                if start:
                    device.start(argv, env)
                yield device
                if not device.alive:
                    device.start(argv, env)
                self.converge(device.goal)
        finally:
            device.kill()
            self.rig.heal()
            device.engine.trouble(None)

    def converge(self, expected: str, seconds: float = 240, when: str = "after convergence") -> None:
        """Wait for convergence and look at everything."""
        try:
            self.device.wait(expected, seconds)
        except LabError as error:
            self.problem(str(error)[:1500])
            return
        self.check(checks.after_convergence(self.device, expected), when)

    def died(self) -> None:
        """The agent is dead: look at what must hold without it."""
        self.check(checks.after_death(self.device), "while dead")


def _clock(at: float) -> str:
    """When a monotonic moment was, as the agent's log has it."""
    return datetime.fromtimestamp(time.time() - time.monotonic() + at, UTC).strftime("%H:%M:%S.%f")[:-3]


def prove(rig: Rig, device: Device) -> str | None:
    """What the sweep says of a swap by an agent that never commits its journal; None when it does not notice."""

    def swap(run: Run) -> None:
        run.hit()
        device.lost = "commit of journal.db"
        try:
            with run.swap():
                pass
        finally:
            device.lost = ""

    row = perform(rig, device, Fault("Crash", 0, "no journal", swap, "", "good"), 1.0)
    return row.outcome if NOT_COMMITTED in row.outcome else None


def perform(rig: Rig, device: Device, one: Fault, scale: float) -> Row:
    """Inject one fault; what goes wrong in the harness is a failure of the fault, in words."""
    run = Run(rig, device, one, scale)
    began = time.monotonic()
    try:
        one.inject(run)
        if not run.row.injections:
            run.problem("the fault never came about: nothing is proven")
    except NotHereError as error:
        run.row.ok, run.row.not_done = False, str(error)
    except Exception as error:  # one broken fault must not hide the others
        run.problem(f"the sweep itself failed: {type(error).__name__}: {error}"[:1500])
    finally:
        device.kill()
        device.engine.trouble(None)
        if not one.apart:
            rig.heal()
            rig.mend()
    run.row.seconds = round(time.monotonic() - began, 1)
    held = run.row.not_done or run.row.outcome or "converged, all held"
    run.row.outcome = "; ".join(run.row.problems) if run.row.problems else held
    return run.row
