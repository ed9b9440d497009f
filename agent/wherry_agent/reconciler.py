"""Observe, plan, journal, act, report: one turn for every event. Only the control loop's thread comes here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial

from wherry.agent_release import AGENT_SLOT
from wherry.errors import ServerError, StoreError, WherryError
from wherry.messages import PollNow, Retry, StateReport
from wherry_agent import events, progress, steps
from wherry_agent.agent_slot import noticed
from wherry_agent.assignment import Assignment, TrustedImage
from wherry_agent.dependencies import kept, unmet_needs, waiting
from wherry_agent.entrance import Entrance
from wherry_agent.entry import Entry, container_name
from wherry_agent.intake import Background, Intake, tells_news
from wherry_agent.journal import Journal
from wherry_agent.long_soak import look
from wherry_agent.observed import ActiveSlot, Observed
from wherry_agent.outbox import Outbox
from wherry_agent.planner import assign_ports, plan
from wherry_agent.recheck import LaterChecks
from wherry_agent.reporter import active_slots
from wherry_agent.sight import Sight
from wherry_agent.takeover import take_over
from wherry_agent.together import left_behind
from wherry_agent.verification import verified_first
from wherry_agent.watch import Watch
from wherry_agent.wishes import admitted, refused, to_admit, to_supersede
from wherry_agent.world import Policy, StepWorker, World

_log = logging.getLogger(__name__)
_GIVEN_UP_AFTER = 3


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
        self._intake = Intake(world.trust, world.source, aide, world.put, world.clock)
        self._entrance = Entrance(world, policy)
        self._watch = Watch(world.prober, aide, world.put, policy.unready_restarts, policy.tick_seconds)
        look_at = partial(look, world.engine, world.prober, world.route)
        self._later = LaterChecks(world.recheck, look_at, aide, world.put, policy.golden_seconds)
        facts = policy.facts.by_name() if policy.facts else {}
        self._outbox = Outbox(world.link, world.recorder, publish, policy.profile_name, policy.report_seconds, facts)
        self._desired: Assignment | None = None
        self._sight = Sight(world, self._outbox, policy.route_check_seconds)
        self._recover = journal.fresh or journal.rebuilt is not None
        self._waits: dict[tuple[str, ...], tuple[int, datetime]] = {}

    @property
    def blind(self) -> bool:
        """Whether the engine did not answer when it was last looked at; after a boot it soon does."""
        return self._sight.blind

    @property
    def _observed(self) -> Observed:
        return self._sight.observed

    @property
    def entry(self) -> Entry:
        """What the journal holds."""
        return self._journal.entry

    def active_slots(self) -> list[ActiveSlot]:
        """The slots that serve now; for telemetry, from any thread."""
        return active_slots(self._journal.entry, self._observed)

    @property
    def summary(self) -> str:
        """How the device is, in one line."""
        serving, slots = len({slot.slot for slot in self.active_slots()}), len(self.entry.slots)
        trials = [f"{name} {slot.trial.phase}" for name, slot in sorted(self.entry.slots.items()) if slot.trial]
        lock = self._observed.lock
        held = [f"swaps held off by {lock.holder}"] if lock else []
        return "; ".join([f"{serving} of {slots} slots serve", *trials, *held])

    def start(self) -> None:
        """Before the first event: note the boot, take the accepted assignment from local files."""
        now, before = self._world.clock(), self.entry
        try:
            self._journal.apply(progress.Booted(self._world.host.boot_id()), now)
        except StoreError as error:
            self._outbox.trouble("journal", error)
        self._outbox.start(before, self.entry)
        if before.payload is None:
            return
        try:
            self._desired = self._world.trust.stored(before.payload, before.marks, now)
        except WherryError as error:
            _log.warning("the accepted assignment cannot be read back; what serves goes on serving: %s", error)
            self._outbox.trouble("assignment", error)

    def stop(self) -> None:
        """After the last event: note that the agent was told to end."""
        try:
            self._journal.apply(progress.Ended(), self._world.clock())
        except StoreError as error:
            _log.warning("after the next boot images are verified: %s", error)

    def handle(self, event: events.Event) -> None:
        """One turn. Never raises a WherryError: what cannot be done is reported and tried again."""
        now = self._world.clock()
        try:
            self._take_in(event, now)
            if not isinstance(event, events.News):
                self._reconcile(now, fresh=isinstance(event, events.StepFinished))
        except StoreError as error:
            _log.error("%s", error)
            self._outbox.trouble("journal", error)
        except WherryError as error:
            _log.warning("turn of %s: %s", type(event).__name__, error)
            self._outbox.trouble("loop", error)
        else:
            self._outbox.clear("journal", "loop")
        connected = isinstance(event, events.LinkChanged) and event.connected
        self._outbox.report(self.entry, self._desired, self._observed, self._watch.healthy, now, force=connected)

    # -- events ------------------------------------------------------------------------------------------

    def _take_in(self, event: events.Event, now: datetime) -> None:
        match event:
            case events.AssignmentReceived():
                self._received(event)
            case events.AssignmentVerified():
                self._verified(event, now)
            case events.AssignmentRefused():
                self._refused(event)
            case events.CommandReceived():
                self._command(event.command, now)
            case events.StepFinished():
                self._finished(event, now)
            case events.StepProgress() | events.GateAsked() | events.Damaged():
                self._told(event, now)
            case events.HealthChecked():
                self._watch.take(event, self.entry, self._observed)
            case events.GoldenRechecked() | events.Looked():
                self._judged(event, now)
            case events.Tick():
                self._watch.ask(self.entry, self._observed)
                self._later.ask(self.entry, self._observed, now)
                self._intake.advance(self.entry)
            case _:
                pass

    def _told(self, event: events.News, now: datetime) -> None:
        if isinstance(event, events.Damaged):
            self._outbox.trouble(_trouble(event.step), event.error)
            return
        self._journal.apply(event, now)

    def _received(self, event: events.AssignmentReceived) -> None:
        if event.payload != self.entry.payload or self._desired is None:
            self._intake.offer(event.payload, self.entry)
            return
        self._outbox.clear("assignment")
        if event.source == "https":
            self._intake.refresh(self._desired, self.entry)

    def _verified(self, event: events.AssignmentVerified, now: datetime) -> None:
        self._intake.verified()
        if event.payload != self.entry.payload or tells_news(self.entry.marks, event.marks):
            try:
                self._accept(event, now)
            except StoreError:
                self._intake.offer(event.payload, self.entry)
                raise
            _log.info("assignment %d accepted: %s", event.assignment.sequence, _words(event.assignment))
        self._desired = event.assignment
        self._outbox.clear("assignment")
        self._intake.advance(self.entry)

    def _accept(self, event: events.AssignmentVerified, now: datetime) -> None:
        """Marks, assignment and ports of new slots go to the journal before anything acts on them."""
        policy = self._policy
        ports = assign_ports(self.entry, event.assignment.slots, policy.fixed_ports, policy.base_port)
        self._journal.apply(progress.Accepted(event.payload, event.marks, ports), now)

    def _refused(self, event: events.AssignmentRefused) -> None:
        self._intake.refused(event)
        _log.warning("assignment not accepted: %s", event.error)
        known = event.payload is None or event.payload == self.entry.payload
        if not (known and isinstance(event.error, ServerError)):  # to be offline is no trouble while nothing is new
            self._outbox.trouble("assignment", event.error, event.sequence)

    def _command(self, command: PollNow | Retry, now: datetime) -> None:
        if isinstance(command, PollNow):
            self._intake.poll()
            return
        _log.info("operator clears the rejection of %s", command.digest)
        self._journal.apply(progress.Cleared(command.digest), now)
        self._waits = {key: wait for key, wait in self._waits.items() if key[0] != command.slot}

    def _finished(self, event: events.StepFinished, now: datetime) -> None:
        self._worker.settle()
        step, outcome = event.step, event.outcome
        key, name, doubted = _key(step), _trouble(step), self.entry.unverified
        if isinstance(outcome, events.Failed):
            _log.warning("slot %s: %s failed (%s): %s", step.slot, step.kind, outcome.blame, outcome.error)
            attempts = self._waits.get(key, (0, now))[0] + 1
            self._waits[key] = (attempts, now + self._policy.limits.wait(attempts))
            if isinstance(step, steps.FallBack):
                self._later.stuck(step, outcome.error)
                self._say_later(step.slot)
            elif outcome.blame != "release":
                self._outbox.trouble(name, outcome.error)
        elif isinstance(outcome, events.Done):
            _log.info("slot %s: %s done", step.slot, step.kind)
            self._waits.pop(key, None)
            self._outbox.clear(name)
        if isinstance(step, steps.EnsureServing) and step.restart:
            self._watch.revived(container_name(self.entry.device, step.slot, step.image))
        if isinstance(step, steps.Verify):
            self._watch.unknown(container_name(self.entry.device, step.slot, step.image))
        self._journal.apply(event, now)
        if isinstance(step, steps.FallBack) and isinstance(outcome, events.Done):
            self._say_later(step.slot)
        self._outbox.clear(*(f"Verify/{digest}" for digest in doubted - self.entry.unverified))

    def _judged(self, event: events.GoldenRechecked | events.Looked, now: datetime) -> None:
        if self._later.take(event, self.entry, now):
            self._say_later(event.slot)

    def _say_later(self, name: str) -> None:
        """What is wrong with a slot's committed release, or that nothing is any more."""
        slot = self.entry.slots.get(name)
        problem = self._later.problem(slot, self.entry) if slot else None
        if problem is None:
            self._outbox.clear(f"{name}/later")
            return
        _log.error("slot %s: %s", name, problem)
        self._outbox.trouble(f"{name}/later", problem)

    # -- observe, plan, act ------------------------------------------------------------------------------

    def _reconcile(self, now: datetime, fresh: bool) -> None:
        if not self._sight.look(now, fresh):
            return
        if self._recover:
            take_over(self._journal, self._world, self._observed, self._outbox)
            self._recover = False
        if self._worker.step is None:
            self._open_and_close(now)
        planned = self._plan(now)
        repairs = (*self._later.fallbacks(self.entry, self._observed), *self._watch.revivals(self.entry))
        wanted = verified_first((*repairs, *planned), self.entry, self._watch.settled(self.entry))
        ready = [step for step in wanted if self._may(step, now)]
        if self._worker.step is not None:
            self._give_way(self._worker.step, ready)
        elif ready:
            self._journal.begin(ready[0], now)
            _log.info("slot %s: %s", ready[0].slot, ready[0].kind)
            self._worker.submit(ready[0])

    def _plan(self, now: datetime) -> list[steps.Step]:
        waits, keeps = waiting(self.entry, self._watch.healthy), kept(self.entry, self._desired)
        words = left_behind(self.entry) | waits | keeps
        self._outbox.say({f"{name}/needs": words.get(name) for name in self.entry.slots})
        limits, broken = self._policy.limits, self._broken()
        return plan(self._desired, self._observed, self.entry, now, limits, broken, waits, keeps)

    def _open_and_close(self, now: datetime) -> None:
        """Deployments that must give way do, and wanted releases meet admission."""
        other = noticed(self.entry, self._observed.agent)
        if other is not None:
            self._journal.apply(other, now)
        for slot, by in to_supersede(self._desired, self.entry):
            self._journal.apply(progress.Superseded(slot.slot, by), now)
            self._outbox.record(self.entry, now)  # its successor may take its place in this very turn
        for wishes in to_admit(self._desired, self.entry, now, self._policy.limits):
            unmet = unmet_needs(wishes, self._desired, self.entry)
            refusal = unmet or self._entrance.ask(wishes, self.entry)
            if refusal is None:
                self._journal.apply(admitted(wishes), now)
            elif not unmet and (given := self._entrance.make_room(wishes, self.entry, self._observed, self._idle(now))):
                _log.info("slot %s: images go to make room: %s", *refusal)
                self._journal.apply(given, now)  # asked again when they have gone
            else:
                _log.warning("slot %s: refused: %s", *refusal)
                self._journal.apply(refused(wishes, self.entry, *refusal), now)

    def _idle(self, now: datetime) -> list[TrustedImage]:
        """Images that are about to go."""
        prunes = [step for step in self._plan(now) if isinstance(step, steps.Prune) and self._may(step, now)]
        return [image for step in prunes for image in step.images]

    def _may(self, step: steps.Step, now: datetime) -> bool:
        """Whether a step's own wait is over. Steps of a deployment wait by the journal instead."""
        if step.move is not None and not isinstance(step, steps.Remove):
            return True
        wait = self._waits.get(_key(step))
        return wait is None or self._policy.limits.due(wait[1], now)

    def _broken(self) -> frozenset[str]:
        """Slots whose known-good cannot be brought back to life."""
        failed = {
            name
            for name, slot in self.entry.slots.items()
            if slot.known_good and self._attempts(name, slot.known_good) >= _GIVEN_UP_AFTER
        }
        return self._watch.broken(self.entry, self._observed) | failed

    def _attempts(self, slot: str, image: TrustedImage) -> int:
        """How often in a row a release could not be brought back to life."""
        return self._waits.get((slot, "EnsureServing", image.digest), (0, None))[0]

    def _give_way(self, running: steps.Step, ready: list[steps.Step]) -> None:
        """A newer wish cancels the running step; a slot that is down cancels a download."""
        unwanted = any(slot.slot == running.slot for slot, _ in to_supersede(self._desired, self.entry))
        patient = isinstance(running, steps.Fetch | steps.Verify) or running.slot == AGENT_SLOT
        # What is being mended is missed in its own slot, for as long as that takes.
        mended = running.slot if isinstance(running, steps.Verify) else None
        pressing = patient and any(step.urgent and step.slot != mended for step in ready)
        if running.interruptible and (unwanted or pressing):
            self._worker.cancel()


def _key(step: steps.Step) -> tuple[str, ...]:
    """Under what a step's failures are counted."""
    subject = step.image.digest if isinstance(step, steps.EnsureServing | steps.Verify) else ""
    return (step.slot, step.kind, subject)


def _trouble(step: steps.Step) -> str:
    """Under what its failure is reported until it succeeds."""
    return f"Verify/{step.image.digest}" if isinstance(step, steps.Verify) else f"{step.slot}/{step.kind}"


def _words(assignment: Assignment) -> str:
    return ", ".join(f"{slot}={image.image.label()}" for slot, image in sorted(assignment.slots.items())) or "no slots"
