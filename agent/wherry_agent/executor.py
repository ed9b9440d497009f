"""Steps become calls of ports. Every step looks before it acts, and says what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from wherry.agent_release import AGENT_SLOT
from wherry.errors import (
    AdmissionError,
    EngineError,
    RouteError,
    TrustError,
    WherryError,
)
from wherry_agent import steps
from wherry_agent.assignment import TrustedImage
from wherry_agent.events import Blame, Cancelled, Done, Failed, GateAsked, News, Outcome, StepProgress
from wherry_agent.maker import Maker, Settings
from wherry_agent.mending import Mender
from wherry_agent.observed import Container, Target
from wherry_agent.ports import Cancel, Engine, Fetcher, Host, Progress, Route, StepCancelled
from wherry_agent.trial import Examiner, Verdict

_log = logging.getLogger(__name__)
_STRAY_DRAIN_SECONDS = 5


class OwnSlot(Protocol):
    """Does the steps of the slot that holds the agent itself (see `self_update.SelfUpdate`)."""

    def run(self, step: steps.Step, cancel: Cancel, progress: Progress) -> Outcome:
        """Do a step, or raise what went wrong."""


class Executor:
    """Runs one step at a time, in the worker's thread."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        fetcher: Fetcher,
        route: Route,
        examiner: Examiner,
        host: Host,
        before_stop: Callable[[], None] = lambda: None,
        own: OwnSlot | None = None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._fetcher = fetcher
        self._route = route
        self._examiner = examiner
        self._host = host
        self._before_stop = before_stop
        self._own = own
        self._maker = Maker(settings, engine, fetcher, route, host)
        self._mender = Mender(settings.device, engine, fetcher, host, examiner.recheck, self._fall_back)

    def run(self, step: steps.Step, cancel: Cancel, tell: Callable[[News], None]) -> Outcome:
        """Do a step. Never raises: whatever goes wrong is an outcome."""

        def progress(done: int, total: int) -> None:
            tell(StepProgress(step, done, total))

        try:
            if step.slot == AGENT_SLOT and self._own is not None:
                return self._own.run(step, cancel, progress)
            if isinstance(step, steps.Fetch):
                self._fetcher.fetch(step.image, cancel, progress)
                return Done()
            if isinstance(step, steps.Probe | steps.Soak):
                return self._examine(step, cancel, tell)
            if isinstance(step, steps.FallBack):
                return self._fall_back(step, cancel)
            if isinstance(step, steps.Verify):
                return self._mender.run(step, cancel, tell)
            _ACTIONS[type(step)](self, step)
        except StepCancelled:
            return Cancelled()
        except WherryError as error:
            return Failed(error, self._blame(step, error))
        except Exception as error:  # the loop must live on, whatever an adapter let through
            _log.exception("step %s of slot %s failed unexpectedly", step.kind, step.slot)
            wrapped = EngineError(f"step {step.kind} of slot {step.slot}", f"failed unexpectedly ({error!r})")
            return Failed(wrapped, "unclear")
        return Done()

    def _blame(self, step: steps.Step, error: WherryError) -> Blame:
        """Whose fault a failure is, when no gate gave a verdict."""
        if isinstance(error, TrustError) and not isinstance(step, steps.Fetch | steps.Verify):
            return "release"
        if isinstance(step, steps.Start) and isinstance(error, EngineError) and self._engine_answers():
            return "unclear"
        return "world"

    def _engine_answers(self) -> bool:
        try:
            self._engine.observe()
        except EngineError:
            return False
        return True

    def _name(self, slot: str, image: TrustedImage) -> str:
        return self._maker.name(slot, image)

    def _examine(
        self, step: steps.Probe | steps.Soak, cancel: Cancel, tell: Callable[[News], None]
    ) -> Outcome:  # fmt: skip
        name = self._name(step.slot, step.image)
        look = self._examiner.probe if isinstance(step, steps.Probe) else self._examiner.soak
        beside = self._name(step.slot, step.beside) if step.beside else None
        verdict: Verdict = look(
            name, step.image, cancel, lambda gate, seconds: tell(GateAsked(step, gate, seconds)), beside
        )  # fmt: skip
        if verdict.failure is None:
            return Done(verdict.gates)
        return Failed(verdict.failure, verdict.blame, verdict.gates)

    def _fall_back(self, step: steps.FallBack, cancel: Cancel) -> Outcome:
        """Bring the release before up, beside what serves or, where memory does not hold both, in its place."""
        turns = (step, *step.partners)
        need = sum(turn.image.image.run.memory_mb for turn in turns if not self._runs(turn.slot, turn.image))
        free = self._host.memory_available_mb() - self._settings.reserve_mb
        if need <= max(free, 0) or not any(self._runs(turn.slot, turn.rejected) for turn in turns):
            return self._take_over(step, cancel)
        if step.partners or not self._route.hold(step.slot_port, step.rejected):
            reason = (
                f"needs {need} MB of memory beside what serves, {max(free, 0)} MB are free, and callers cannot wait"
            )
            fix = "Free memory on the device; it tries again by itself"
            raise AdmissionError(f"release {step.image.image.label()}", reason, fix)
        outcome: Outcome | None = None
        try:
            self._end(step.slot, step.rejected)
            outcome = self._take_over(step, cancel)
        finally:
            if not isinstance(outcome, Done):  # what does not do well is better than nothing
                self._end(step.slot, step.image)
                self._maker.revive(steps.EnsureServing(step.slot, step.rejected, step.slot_port))
                port = self._port(self._name(step.slot, step.rejected))
                self._ensure_route(steps.EnsureRoute(step.slot, step.rejected, step.slot_port, port))
        return outcome

    def _runs(self, slot: str, image: TrustedImage) -> bool:
        container = self._engine.inspect(self._name(slot, image))
        return container is not None and container.running

    def _take_over(self, step: steps.FallBack, cancel: Cancel) -> Outcome:
        """Bring the release before up and through its gates; only then callers are turned to it."""
        turns = {}
        for turn in (step, *step.partners):
            self._maker.revive(steps.EnsureServing(turn.slot, turn.image, turn.slot_port))
            name = self._name(turn.slot, turn.image)
            verdict = self._examiner.probe(name, turn.image, cancel, lambda *_: None)
            if verdict.failure is not None:
                return Failed(verdict.failure, "world", verdict.gates)
            turns[turn.slot_port] = Target(self._port(name), turn.image)
        self._turn(turns)
        return Done()

    def _stage(self, step: steps.Stage) -> None:
        self._maker.create(step.slot, step.image, step.slot_port)

    def _start(self, step: steps.Start) -> None:
        name = self._name(step.slot, step.image)
        # To load a model takes all of a processor; callers of the one that serves are not to notice.
        self._engine.processor_share(name, "small" if step.mode == "overlap" else "full")
        self._engine.start(name)

    def _retire(self, step: steps.Retire) -> None:
        # Callers wait until the candidate, or this one again, has its gates behind it.
        self._route.hold(step.slot_port, step.image)
        # Its restart policy stays: after a power cut in the middle it must come back.
        self._end(step.slot, step.image)

    def _end(self, slot: str, image: TrustedImage) -> None:
        self._stop(self._engine.inspect(self._name(slot, image)), image.image.run.drain_seconds)

    def _stop(self, container: Container | None, seconds: int) -> None:
        """End a container that no new caller reaches, once what is under way to it by the route has its answers."""
        self._say_farewell()
        if container is not None:
            if container.running:
                self._route.drain(container.port, seconds)
            self._engine.stop(container.name, seconds)

    def _switch(self, step: steps.Switch) -> None:
        turns = {}
        for turn in (step, *step.partners):
            name = self._name(turn.slot, turn.image)
            self._engine.restart_policy(name, "unless-stopped")
            self._engine.processor_share(name, "full")
            turns[turn.slot_port] = Target(self._port(name), turn.image)
        self._turn(turns)

    def _port(self, name: str) -> int:
        container = self._engine.inspect(name)
        if container is None or not container.running:
            raise EngineError(f"container {name}", "does not run")
        return container.port

    def _turn(self, targets: Mapping[int, Target]) -> None:
        """Turn stable ports to containers, all together."""
        self._route.turn(targets)
        found = self._route.read()
        for stable, target in targets.items():
            if found.get(stable) != target.port:
                words = f"is turned to {found.get(stable)} after being turned to {target.port}"
                raise RouteError(f"port {stable}", words)

    def _commit(self, step: steps.Commit) -> None:
        self._port(self._name(step.slot, step.image))

    def _prune(self, step: steps.Prune) -> None:
        self._discard(step.containers, step.images)
        ports = {container.port for container in self._engine.observe().values()}
        # Somebody removed what they led to, and nothing takes its place.
        if lost := [stable for stable, port in self._route.read().items() if port not in ports]:
            self._route.drop(lost)

    def _withdraw(self, step: steps.Withdraw) -> None:
        self._discard(step.containers, ())

    def _stand_down(self, step: steps.StandDown) -> None:
        name = self._name(step.slot, step.image)
        self._engine.restart_policy(name, "no")
        self._end(step.slot, step.image)

    def _say_farewell(self) -> None:
        """Let telemetry read the last counters of a model that is about to stop."""
        try:
            self._before_stop()
        except WherryError as error:
            _log.info("last sample before a stop: %s", error)

    def _discard(self, containers: tuple[str, ...], images: tuple[TrustedImage, ...]) -> None:
        for name in containers:
            container = self._engine.inspect(name)
            if container is not None:
                self._leave(container)
                if container.running:
                    self._stop(container, _STRAY_DRAIN_SECONDS)
                self._engine.remove(name)
        for image in images:
            self._engine.remove_image(image)

    def _roll_back(self, step: steps.Rollback) -> None:
        name = self._name(step.slot, step.candidate)
        if step.back is None:
            self._route.drop([step.slot_port])  # nobody waits for what does not come back
        container = self._engine.inspect(name)
        if container is None:
            return
        back = self._engine.inspect(self._name(step.slot, step.back)) if step.back else None
        if step.back and back and back.running:
            self._turn({step.slot_port: Target(back.port, step.back)})
        else:
            self._leave(container)
        if container.running:
            self._engine.restart_policy(name, "no")
            self._stop(container, min(step.candidate.image.run.drain_seconds, 2))
        self._engine.remove(name)

    def _leave(self, container: Container) -> None:
        """No route leads to a container that is about to go."""
        if stable := [stable for stable, port in self._route.read().items() if port == container.port]:
            self._route.drop(stable)

    def _remove(self, step: steps.Remove) -> None:
        self._route.drop([step.slot_port])
        self._say_farewell()
        for name in step.containers:
            self._engine.stop(name, step.drain_seconds)
            self._engine.remove(name)

    def _revive(self, step: steps.EnsureServing) -> None:
        self._maker.revive(step)

    def _ensure_route(self, step: steps.EnsureRoute) -> None:
        turns = (step, *step.partners)
        for turn in turns:
            self._await_answers(turn)
        self._turn({turn.slot_port: Target(turn.port, turn.image) for turn in turns})
        for turn in turns:
            with suppress(EngineError):  # they are served, if slowly: what was taken over from a lost journal
                self._engine.processor_share(self._name(turn.slot, turn.image), "full")

    def _await_answers(self, step: steps.EnsureRoute) -> None:
        """Who waits, or has something else to answer meanwhile, is not turned to a container that only begins."""
        if self._route.held(step.slot_port) or step.slot_port in self._route.read():
            name = self._name(step.slot, step.image)
            verdict = self._examiner.answers(name, step.image, Cancel())
            if verdict.failure is not None:  # nothing better is there: it may come to itself before its callers
                _log.warning("slot %s: %s", step.slot, verdict.failure)


_ACTIONS: Mapping[type, Callable[[Executor, Any], None]] = {
    steps.Stage: Executor._stage,
    steps.Start: Executor._start,
    steps.Retire: Executor._retire,
    steps.Switch: Executor._switch,
    steps.Commit: Executor._commit,
    steps.Prune: Executor._prune,
    steps.Withdraw: Executor._withdraw,
    steps.Rollback: Executor._roll_back,
    steps.Remove: Executor._remove,
    steps.StandDown: Executor._stand_down,
    steps.EnsureServing: Executor._revive,
    steps.EnsureRoute: Executor._ensure_route,
}
