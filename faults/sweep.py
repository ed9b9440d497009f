"""Faults as a table of functions, and what is counted while one of them happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lab import LabError
from load import Load

from faults import checks
from faults.device import Device
from faults.rig import Rig


@dataclass
class Row:
    """What came of one fault.

    Attributes:
        injections: how often the fault was brought about.
        kill_points: how often the agent was killed at a chosen point.
        checks: invariants that were looked at.
        excuse: why requests may fail under this fault; without one, a failed request fails the fault.
        outcome: in words.
    """

    name: str
    group: str
    means: str
    ok: bool = True
    injections: int = 0
    kill_points: int = 0
    checks: int = 0
    sent: int = 0
    failed_requests: int = 0
    wrong_answers: int = 0
    seconds: float = 0.0
    excuse: str = ""
    outcome: str = ""
    problems: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """For build/faults.json."""
        return asdict(self)


@dataclass(frozen=True)
class Fault:
    """One row of the catalogue, or a part of one.

    Attributes:
        number: of the catalogue's row.
        device: which device it befalls ("good" wants version 2, "wrong" a release that answers wrongly).
        sample: whether the short sample has it.
    """

    group: str
    number: int
    name: str
    inject: Callable[[Run], None]
    means: str
    device: str
    excuse: str
    sample: bool


FAULTS: list[Fault] = []


def fault(
    group: str, number: int, name: str, device: str = "good", excuse: str = "", sample: bool = False
) -> Callable[[Callable[[Run], None]], Callable[[Run], None]]:
    """Put a function into the table; its docstring says by what means it brings the fault about."""

    def add(inject: Callable[[Run], None]) -> Callable[[Run], None]:
        means = " ".join((inject.__doc__ or "").split())
        FAULTS.append(Fault(group, number, name, inject, means, device, excuse, sample))
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
        self.row = Row(f"{one.number} {one.name}", one.group, one.means, excuse=one.excuse)

    # -- counting ----------------------------------------------------------------------------------------

    def hit(self, count: int = 1, kill: bool = False) -> None:
        """The fault was brought about."""
        self.row.injections += count
        self.row.kill_points += count if kill else 0

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
        wrong = [words for words in load.problems if words.startswith("wrong")]
        failed = [words for words in load.problems if not words.startswith("wrong")]
        self.row.sent += load.sent
        self.row.wrong_answers += len(wrong)
        self.row.failed_requests += len(failed)
        if wrong:
            self.problem(f"served: {wrong[0]}")
        if failed and not self.row.excuse:
            self.problem(f"{len(failed)} requests failed, the first: {failed[0]}")

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
        expected: str = "2",
        before: Callable[[], None] = lambda: None,
        keep_image: bool = True,
        seconds: float = 90,
        env: dict[str, str] | None = None,
        argv: list[str] | None = None,
        start: bool = True,
    ) -> Iterator[Device]:
        """A swap from version 1, under load; the block injects. Afterwards the device converges and all is checked.

        Args:
            expected: the version that must serve in the end.
            before: what happens before the agent starts.
            keep_image: whether the wanted image is on the device already.
            seconds: deadline for convergence, from the end of the block.
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
                self.converge(expected, seconds)
                time.sleep(0.3)
        finally:
            device.kill()
            self.rig.heal()
            device.engine.trouble(None)

    def converge(self, expected: str, seconds: float = 90, when: str = "after convergence") -> None:
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


def prove(rig: Rig, device: Device) -> str | None:
    """What the sweep says of a swap by an agent that never commits its journal; None when it does not notice."""

    def swap(run: Run) -> None:
        run.hit()
        device.lost = "commit of journal.db"
        try:
            with run.swap(seconds=20):
                pass
        finally:
            device.lost = ""

    row = perform(rig, device, Fault("Crash", 0, "no journal", swap, "", "good", "", sample=False), 1.0)
    return None if row.ok else row.outcome


def perform(rig: Rig, device: Device, one: Fault, scale: float) -> Row:
    """Inject one fault; what goes wrong in the harness is a failure of the fault, in words."""
    run = Run(rig, device, one, scale)
    began = time.monotonic()
    try:
        one.inject(run)
        if not run.row.injections:
            run.problem("the fault never came about: nothing is proven")
    except Exception as error:  # one broken fault must not hide the others
        run.problem(f"the sweep itself failed: {type(error).__name__}: {error}"[:1500])
    finally:
        device.kill()
        rig.heal()
        device.engine.trouble(None)
    run.row.seconds = round(time.monotonic() - began, 1)
    run.row.outcome = "; ".join(run.row.problems) if run.row.problems else run.row.outcome or "converged, all held"
    return run.row
