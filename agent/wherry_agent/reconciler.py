"""Observe, plan, journal, act, report: one turn for every event. Only the control loop's thread comes here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from wherry.errors import ContractError, IdentityError, ServerError, StoreError, WherryError
from wherry.messages import DeploymentEvent, PollNow, Problem, Retry, StateReport
from wherry.profile import DeviceProfile, HostFacts
from wherry_agent import events, progress, steps
from wherry_agent.admission import admit
from wherry_agent.assignment import Assignment, TrustedImage
from wherry_agent.entry import Entry, Limits
from wherry_agent.journal import Journal
from wherry_agent.planner import assign_ports, plan, to_admit, to_supersede
from wherry_agent.ports import (
    ActiveSlot,
    AssignmentSource,
    Clock,
    Engine,
    Host,
    Link,
    Observed,
    Prober,
    Recorder,
    Room,
    Route,
    TrustPort,
)
from wherry_agent.progress import problem_of
from wherry_agent.recovery import rebuild
from wherry_agent.reporter import View, active_slots, deployment_report, serving, state_report

_log = logging.getLogger(__name__)
_REPORTS_PER_START = 1_000_000


class StepWorker(Protocol):
    """Does one step at a time (see `worker.Worker`)."""

    @property
    def step(self) -> steps.Step | None:
        """The one under way."""

    def submit(self, step: steps.Step) -> None:
        """Begin a step."""

    def cancel(self) -> None:
        """Ask it to give way."""

    def settle(self) -> None:
        """Its outcome was taken in."""


class Background(Protocol):
    """Does questions to the network off the loop (see `worker.Aide`)."""

    def submit(self, name: str, job: Callable[[], None]) -> None:
        """Do it soon; of one name only the newest waits."""


@dataclass(frozen=True, slots=True)
class World:
    """The ports that a turn uses."""

    engine: Engine
    route: Route
    host: Host
    prober: Prober
    trust: TrustPort
    source: AssignmentSource
    link: Link
    recorder: Recorder
    clock: Clock
    put: Callable[[events.Event], None]


@dataclass(frozen=True, slots=True)
class Policy:
    """What a turn needs of the configuration.

    Attributes:
        profile_name: the device's profile; `profile` is its data, None when this agent does not ship it.
        fixed_ports, base_port: stable ports of slots.
        route_check_seconds: how often the packet filter is read back when nothing happens.
        report_seconds: how often an unchanged state is reported again.
        unready_restarts: unanswered health checks in a row before a running known-good is started anew.
    """

    profile_name: str
    profile: DeviceProfile | None = None
    facts: HostFacts | None = None
    limits: Limits = field(default_factory=Limits)
    fixed_ports: Mapping[str, int] = field(default_factory=dict)
    base_port: int = 8500
    watermark_bytes: int = 0
    route_check_seconds: float = 30.0
    report_seconds: float = 300.0
    unready_restarts: int = 6


class Reconciler:
    """Turns events into steps and reports. `handle` is the body of the control loop."""

    def __init__(
        self,
        journal: Journal,
        world: World,
        policy: Policy,
        worker: StepWorker,
        aide: Background,
        publish: Callable[[StateReport], None],
    ) -> None:
        self._journal = journal
        self._world = world
        self._policy = policy
        self._worker = worker
        self._aide = aide
        self._publish = publish
        self._desired: Assignment | None = None
        self._observed = Observed()
        self._routes_read: datetime | None = None
        self._recover = journal.fresh or journal.rebuilt is not None
        self._verifying = False
        self._waiting: bytes | None = None
        self._troubles: dict[str, Problem] = {}
        self._waits: dict[tuple[str, str], tuple[int, datetime]] = {}
        self._unready: dict[str, int] = {}
        self._healthy: dict[str, bool] = {}
        self._recorded: dict[str, tuple[str, str]] = {}
        self._reported: tuple[StateReport, datetime] | None = None
        self._number = 0

    @property
    def entry(self) -> Entry:
        """What the journal holds."""
        return self._journal.entry

    def active_slots(self) -> list[ActiveSlot]:
        """The slots that serve now; for telemetry, from any thread."""
        return active_slots(self._journal.entry, self._observed)

    def start(self) -> None:
        """Before the first event: note the boot, take the accepted assignment from local files."""
        now = self._world.clock()
        entry = self.entry
        self._recorded = {
            name: (slot.deployment.id, slot.deployment.phase) for name, slot in entry.slots.items() if slot.deployment
        }  # fmt: skip
        try:
            self._journal.apply(progress.Booted(self._world.host.boot_id()), now)
        except StoreError as error:
            self._trouble("journal", error)
        self._number = self.entry.starts * _REPORTS_PER_START
        if entry.payload is not None:
            try:
                self._desired = self._world.trust.stored(entry.payload, entry.marks, now)
            except WherryError as error:
                _log.warning("the accepted assignment cannot be read back; what serves goes on serving: %s", error)
                self._trouble("assignment", error)

    def handle(self, event: events.Event) -> None:
        """One turn. Never raises a WherryError: what cannot be done is reported and tried again."""
        now = self._world.clock()
        try:
            self._take_in(event, now)
            if not isinstance(event, events.StepProgress):
                self._reconcile(now, fresh=isinstance(event, events.StepFinished))
        except StoreError as error:
            self._trouble("journal", error)
        except WherryError as error:
            _log.warning("turn of %s: %s", type(event).__name__, error)
            self._trouble("loop", error)
        else:
            self._clear("journal", "loop")
        self._report(now, force=isinstance(event, events.LinkChanged) and event.connected)

    # -- events ------------------------------------------------------------------------------------------

    def _take_in(self, event: events.Event, now: datetime) -> None:
        match event:
            case events.AssignmentReceived():
                self._received(event.payload)
            case events.AssignmentVerified():
                self._verified(event, now)
            case events.AssignmentRefused():
                self._not_accepted(event)
            case events.CommandReceived():
                self._command(event.command, now)
            case events.StepFinished():
                self._finished(event, now)
            case events.StepProgress():
                self._journal.apply(event, now)
            case events.HealthChecked():
                self._health(event)
            case events.Tick():
                self._ask_health()
                self._verify_next()
            case _:
                pass

    def _received(self, payload: bytes) -> None:
        if payload == self.entry.payload and self._desired is not None:
            self._clear("assignment")
            return
        self._waiting = payload
        self._verify_next()

    def _verify_next(self) -> None:
        """Have the newest payload verified; one at a time, so that marks never fall."""
        payload = self._waiting
        if payload is None or self._verifying:
            return
        self._verifying, self._waiting = True, None
        marks, trust, clock, put = self.entry.marks, self._world.trust, self._world.clock, self._world.put
        again = payload == self.entry.payload
        serving = {name: slot.known_good.digest for name, slot in self.entry.slots.items() if slot.known_good}

        def job() -> None:
            try:
                if again:
                    put(events.AssignmentVerified(payload, trust.stored(payload, marks, clock()), marks))
                else:
                    put(events.AssignmentVerified(payload, *trust.verify(payload, marks, clock(), serving=serving)))
            except WherryError as error:
                put(events.AssignmentRefused(payload, error))
            except Exception as error:
                _log.exception("verification failed unexpectedly")
                put(events.AssignmentRefused(payload, ContractError("assignment", f"cannot be checked ({error!r})")))

        self._aide.submit("verify", job)

    def _verified(self, event: events.AssignmentVerified, now: datetime) -> None:
        self._verifying = False
        ports = assign_ports(
            self.entry, event.assignment.slots, self._policy.fixed_ports, self._policy.base_port
        )  # fmt: skip
        self._journal.apply(progress.Accepted(event.payload, event.marks, ports), now)
        self._desired = event.assignment
        self._clear("assignment")
        _log.info("assignment %d accepted: %s", event.assignment.sequence, _words(event.assignment))
        self._verify_next()

    def _not_accepted(self, event: events.AssignmentRefused) -> None:
        if event.payload is not None:
            self._verifying = False
        _log.warning("assignment not accepted: %s", event.error)
        self._trouble("assignment", event.error)
        passing = isinstance(event.error, ServerError | StoreError | IdentityError)
        if passing and event.payload is not None and self._waiting is None:
            self._waiting = event.payload  # the next tick tries again

    def _command(self, command: PollNow | Retry, now: datetime) -> None:
        if isinstance(command, Retry):
            _log.info("operator clears the rejection of %s", command.digest)
            self._journal.apply(progress.Cleared(command.digest), now)
            self._waits = {key: wait for key, wait in self._waits.items() if key[0] != command.slot}
            return
        source, put = self._world.source, self._world.put

        def job() -> None:
            try:
                payload = source.fetch_assignment()
            except WherryError as error:
                put(events.AssignmentRefused(None, error))
            else:
                if payload is not None:
                    put(events.AssignmentReceived(payload, "https"))

        self._aide.submit("poll", job)

    def _finished(self, event: events.StepFinished, now: datetime) -> None:
        self._worker.settle()
        step, outcome = event.step, event.outcome
        key, name = (step.slot, step.kind), f"{step.slot}/{step.kind}"
        if isinstance(outcome, events.Failed):
            _log.warning("slot %s: %s failed (%s): %s", step.slot, step.kind, outcome.blame, outcome.error)
            attempts = self._waits.get(key, (0, now))[0] + 1
            self._waits[key] = (attempts, now + self._policy.limits.wait(attempts))
            if outcome.blame != "release":
                self._trouble(name, outcome.error)
        elif isinstance(outcome, events.Done):
            _log.info("slot %s: %s done", step.slot, step.kind)
            self._waits.pop(key, None)
            self._clear(name)
        self._journal.apply(event, now)

    # -- observe, plan, act ------------------------------------------------------------------------------

    def _reconcile(self, now: datetime, fresh: bool) -> None:
        if not self._observe(now, fresh):
            return
        if self._recover:
            self._rebuild()
        if self._worker.step is None:
            self._open_and_close(now)
        entry, limits = self.entry, self._policy.limits
        planned = [*self._revivals(), *plan(self._desired, self._observed, entry, now, limits)]
        ready = [step for step in planned if self._may(step, now)]
        if self._worker.step is not None:
            self._give_way(self._worker.step, ready)
        elif ready:
            self._journal.begin(ready[0], now)
            _log.info("slot %s: %s", ready[0].slot, ready[0].kind)
            self._worker.submit(ready[0])

    def _observe(self, now: datetime, fresh: bool) -> bool:
        """Look at the engine, and now and then at the packet filter."""
        read = self._routes_read
        due = fresh or read is None or abs(now - read) > timedelta(seconds=self._policy.route_check_seconds)
        try:
            containers = self._world.engine.observe()
        except WherryError as error:
            self._trouble("engine", error)
            self._observed = Observed({}, self._observed.routes, self._observed.memory_available_mb)
            return False
        self._clear("engine")
        routes = self._observed.routes
        try:
            if due:
                routes, self._routes_read = self._world.route.read(), now
                self._clear("route")
        except WherryError as error:
            self._trouble("route", error)
        self._observed = Observed(containers, routes, self._world.host.memory_available_mb())
        return True

    def _rebuild(self) -> None:
        """A lost or new journal takes over what the engine runs for this device."""
        found = [self._world.engine.inspect(name) for name in self._observed.containers]
        entry = rebuild(self.entry, [container for container in found if container], self._observed.routes)
        if entry.slots != self.entry.slots:
            why = self._journal.rebuilt or "it was empty"
            _log.error("journal rebuilt from containers, because %s; known-good: %s", why, sorted(entry.slots))
        self._journal.keep(entry)
        if self._journal.rebuilt:
            self._trouble(
                "rebuilt", StoreError("journal", f"was rebuilt from running containers: {self._journal.rebuilt}")
            )
        self._recover = False

    def _open_and_close(self, now: datetime) -> None:
        """Deployments that must give way do, and wanted releases meet admission."""
        for slot, by in to_supersede(self._desired, self.entry):
            self._journal.apply(progress.Superseded(slot.slot, by), now)
            self._record(now)  # its successor may take its place in this very turn
        for slot, image in to_admit(self._desired, self.entry, now, self._policy.limits):
            problem = self._admission(image)
            if problem is None:
                self._journal.apply(progress.Admitted(slot.slot, image), now)
            else:
                _log.warning("slot %s: refused: %s", slot.slot, problem)
                self._journal.apply(progress.Refused(slot.slot, image, problem_of(problem)), now)

    def _admission(self, image: TrustedImage) -> WherryError | None:
        host, entry, policy = self._world.host, self.entry, self._policy
        try:
            room = Room(host.disk_free_bytes(), host.memory_total_mb(), self._world.engine.has_image(image))
        except WherryError as error:
            return error
        return admit(
            image, policy.profile, policy.facts, room, entry.rejected, entry.marks.revoked, policy.watermark_bytes
        )  # fmt: skip

    def _may(self, step: steps.Step, now: datetime) -> bool:
        """Whether a step's own wait is over. Steps of a deployment wait by the journal instead."""
        if step.move is not None and not isinstance(step, steps.Remove):
            return True
        wait = self._waits.get((step.slot, step.kind))
        return wait is None or self._policy.limits.due(wait[1], now)

    def _give_way(self, running: steps.Step, ready: list[steps.Step]) -> None:
        """A newer wish cancels the running step; a slot that is down cancels a download."""
        unwanted = any(slot.slot == running.slot for slot, _ in to_supersede(self._desired, self.entry))
        pressing = isinstance(running, steps.Fetch) and any(step.urgent for step in ready)
        if running.interruptible and (unwanted or pressing):
            self._worker.cancel()

    # -- health ------------------------------------------------------------------------------------------

    def _ask_health(self) -> None:
        targets = []
        for name, slot in self.entry.slots.items():
            active = serving(self.entry, self._observed, slot)
            if active:
                targets.append((name, active[1].name, active[1].port, active[0].image.model))
            else:
                self._healthy.pop(name, None)
        if not targets:
            return
        prober, put = self._world.prober, self._world.put

        def job() -> None:
            for slot, container, port, model in targets:
                put(events.HealthChecked(slot, container, prober.ready(f"http://127.0.0.1:{port}", model, 2.0)))

        self._aide.submit("health", job)

    def _health(self, event: events.HealthChecked) -> None:
        self._healthy[event.slot] = event.ok
        self._unready[event.slot] = 0 if event.ok else self._unready.get(event.slot, 0) + 1

    def _revivals(self) -> list[steps.Step]:
        """Known-goods that run but have not answered for a while are started anew."""
        found: list[steps.Step] = []
        for name, slot in sorted(self.entry.slots.items()):
            if slot.known_good and not slot.trial and self._unready.get(name, 0) >= self._policy.unready_restarts:
                self._unready[name] = 0
                found.append(steps.EnsureServing(name, slot.known_good, slot.port, restart=True))
        return found

    # -- report ------------------------------------------------------------------------------------------

    def _trouble(self, name: str, error: WherryError) -> None:
        self._troubles[name] = problem_of(error)

    def _clear(self, *names: str) -> None:
        for name in names:
            self._troubles.pop(name, None)

    def _report(self, now: datetime, force: bool) -> None:
        self._record(now)
        problem = next(iter(self._troubles.values()), None)
        view = View(self.entry, self._desired, self._observed, self._healthy, problem)
        report = state_report(view, self._policy.profile_name, self._number + 1, now)
        if self._reported and not force and not self._worth_sending(report, now):
            return
        self._number += 1
        self._reported = (report, now)
        self._publish(report)
        self._world.link.report(report)

    def _worth_sending(self, report: StateReport, now: datetime) -> bool:
        last, at = self._reported  # type: ignore[misc]
        volatile = {"number": last.number, "at": last.at}
        old = abs(now - at) > timedelta(seconds=self._policy.report_seconds)
        return old or report.model_copy(update=volatile) != last

    def _record(self, now: datetime) -> None:
        """Every phase that a deployment enters goes to the spool."""
        for name, slot in self.entry.slots.items():
            deployment = slot.deployment
            if deployment is None or self._recorded.get(name) == (deployment.id, deployment.phase):
                continue
            self._recorded[name] = (deployment.id, deployment.phase)
            try:
                self._world.recorder.append(DeploymentEvent(deployment=deployment_report(deployment, name)), now)
            except WherryError as error:
                self._trouble("spool", error)


def _words(assignment: Assignment) -> str:
    return ", ".join(f"{slot}={image.image.label()}" for slot, image in sorted(assignment.slots.items())) or "no slots"
