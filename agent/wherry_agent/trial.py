"""A candidate on trial: measures what the release's gates ask for and lets `gates` conclude."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.errors import EngineError, GateFailed, InferenceError, MalformedMessage, WherryError
from wherry.messages import GateResult
from wherry.release import (
    GoldenGate,
    HttpGate,
    ReadyGate,
    SoakGate,
    TcpGate,
)
from wherry_agent import gates
from wherry_agent.asking import Asker, Exited, Patience, StillRuns, Trial, kind_of
from wherry_agent.assignment import TrustedImage
from wherry_agent.counters import Counters, change, read_counters
from wherry_agent.events import Blame
from wherry_agent.golden_cases import GoldenCases
from wherry_agent.observed import Container
from wherry_agent.ports import Cancel, Engine, Host, Prober
from wherry_agent.rehearsal import Beside

Asks = Callable[[str, float], None]
"""Told which gate begins to ask, and after how many seconds it ends at the latest."""
_KILLED_FROM_OUTSIDE = (137, 143)
_ASKS_BY_ITSELF = ReadyGate | HttpGate | TcpGate
"""Gates that find out by themselves whether the container is up."""
_MORE_MEMORY = (
    "Package it again with more memory (`wherry package --memory MIB`) or make the model smaller (`--quantize`), "
    "under a new version"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a trial ended: `failure` is None when all gates passed."""

    gates: tuple[GateResult, ...]
    failure: WherryError | None = None
    blame: Blame = "release"


class Examiner:
    """Puts a running candidate through its gates.

    Args:
        engine, prober, host, golden_cases: what is asked.
        patience: how long.
        statistics: what the route counted of a container that does not count itself (see `ports.Route`).
    """

    def __init__(
        self, engine: Engine, prober: Prober, patience: Patience, host: Host, golden_cases: GoldenCases,
        statistics: Callable[[int, str], Any] = lambda *_: None,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._prober = prober
        self._patience = patience
        self._golden_cases = golden_cases
        self._statistics = statistics
        self._asker = Asker(engine, prober, patience, host, golden_cases)

    def probe(
        self, name: str, image: TrustedImage, cancel: Cancel, asks: Asks, beside: str | None = None
    ) -> Verdict:  # fmt: skip
        """All gates of the release, in order, up to the first that fails. The soak comes after the switch.

        Args:
            name: the candidate's container.
            image: what it runs.
            cancel: asks to give way.
            asks: told which gate asks.
            beside: container of the version that serves meanwhile.

        Raises:
            EngineError: the engine cannot be asked about the candidate.
            StepCancelled: asked to give way.
        """
        declared = [gate for gate in image.image.gates if not isinstance(gate, SoakGate)]
        first = [] if any(isinstance(gate, _ASKS_BY_ITSELF) for gate in declared) else [_by_itself(image)]
        return self._through(self._begin(name, image, cancel, beside), [*first, *declared], asks)

    def answers(self, name: str, image: TrustedImage, cancel: Cancel) -> Verdict:
        """Wait until a container is up, by the first gate of its release that finds out by itself.

        Raises:
            EngineError: the engine cannot be asked about it.
        """
        declared = (gate for gate in image.image.gates if isinstance(gate, _ASKS_BY_ITSELF))
        return self._through(self._begin(name, image, cancel, None), [next(declared, _by_itself(image))])

    def soak(
        self, name: str, image: TrustedImage, cancel: Cancel, asks: Asks, beside: str | None = None
    ) -> Verdict:  # fmt: skip
        """Watch the candidate for a while, judge its traffic, then ask its golden cases once more.

        Args, Raises: as `probe`; `beside` is the version before, which still runs.
        """
        trial = self._begin(name, image, cancel, beside)
        gate = gates.soak_gate(image)
        length = gate.seconds or self._patience.soak_seconds
        began, restarts, start = time.monotonic(), self._restarts(name), self._counters(trial.base_url, image)
        usual = self._counters(trial.beside.base_url, trial.beside.image) if trial.beside else None
        asks("soak", length)
        asked = [other for other in image.image.gates if isinstance(other, _ASKS_BY_ITSELF)]
        once = [other.model_copy(update={"deadline_seconds": 1}) for other in asked]
        while time.monotonic() - began < length:
            verdict = self._through(trial, once)
            if verdict.failure:
                return verdict
            cancel.wait(min(1.0, length))
            cancel.check()
        verdict = self._through(
            trial, [*once, *(other for other in image.image.gates if isinstance(other, GoldenGate))]
        )
        if verdict.failure:
            return verdict
        after = self._counters(trial.base_url, image)
        changed = change(start, after) if start and after else None
        crashes, seconds = self._restarts(name) - restarts, time.monotonic() - began
        soaked = gates.soak(gate, _traffic(usual), _traffic(changed), crashes, seconds)
        return Verdict((*verdict.gates, soaked), None if soaked.ok else failure(image, soaked))

    def recheck(self, name: str, image: TrustedImage) -> GateResult | None:
        """Golden cases of what serves (see `GoldenCases.recheck`)."""
        return self._golden_cases.recheck(name, image)

    def _restarts(self, name: str) -> int:
        container = self._engine.inspect(name)
        return container.restarts if container else 0

    def _counters(self, base_url: str, image: TrustedImage) -> Counters | None:
        """What a model server has counted, or the route before it; None where neither counts."""
        model = image.image.model
        try:
            if image.image.runtime == "custom":
                counted = self._statistics(int(base_url.rpartition(":")[2]), model)
                return read_counters(counted, model) if counted else None
            return read_counters(self._prober.stats(base_url, model, self._patience.answer_seconds), model)
        except (InferenceError, MalformedMessage):
            return None

    def _begin(self, name: str, image: TrustedImage, cancel: Cancel, beside: str | None) -> Trial:
        container = self._engine.inspect(name)
        if container is None:
            raise EngineError(f"container {name}", "is gone")
        other = self._engine.inspect(beside) if beside else None
        serves = None
        if other and other.image and other.state == "running":
            serves = Beside(other.image, f"http://127.0.0.1:{other.port}", other.token)
        return Trial(name, image, f"http://127.0.0.1:{container.port}", container.port, cancel, serves)

    def _through(self, trial: Trial, declared: Sequence[object], asks: Asks | None = None) -> Verdict:
        passed: list[GateResult] = []
        for gate in declared:
            trial.cancel.check()
            if asks:
                asks(kind_of(gate), float(getattr(gate, "deadline_seconds", self._patience.alive_seconds)))
            began = time.monotonic()
            try:
                self._asker.must_run(trial)
                if len(passed) == 1:  # it has loaded; it is timed beside what serves, with an equal share
                    self._engine.processor_share(trial.name, "full")
                passed.append(self._asker.ask(trial, gate, began))
            except Exited as exited:
                return self._ended(trial, gate, exited.container, began, passed)
            except InferenceError as error:
                passed.append(gates.unanswered(kind_of(gate), error.reason, time.monotonic() - began))
            if not passed[-1].ok:
                ended = self._engine.inspect(trial.name)
                if ended is None or not ended.running:
                    return self._ended(trial, gate, ended, began, passed[:-1])
                return Verdict(tuple(passed), failure(trial.image, passed[-1]))
        return Verdict(tuple(passed))

    def _ended(
        self, trial: Trial, gate: object, container: Container | None, began: float, passed: list[GateResult]
    ) -> Verdict:  # fmt: skip
        """A candidate that ended by itself is at fault; one that was killed from outside may not be."""
        code = container.exit_code if container else None
        oom = bool(container and container.oom_killed)
        words = self._engine.last_words(trial.name) if container else "it was removed"
        result = gates.exited(kind_of(gate), time.monotonic() - began, code, oom, words)
        outside = container is None or (code in _KILLED_FROM_OUTSIDE and not oom)
        return Verdict((*passed, result), failure(trial.image, result), "unclear" if outside else "release")


def _by_itself(image: TrustedImage) -> object:
    """The gate of a release that declares none which finds out by itself whether the container is up."""
    custom = image.image.runtime == "custom"
    return StillRuns() if custom else ReadyGate(deadline_seconds=image.image.run.start_seconds)


def _traffic(counters: Counters | None) -> gates.Traffic | None:
    return gates.Traffic.of(counters.requests, counters.failures, counters.latency_sum_us) if counters else None


def failure(image: TrustedImage, result: GateResult) -> GateFailed:
    """Why a release is rejected, and what helps against that."""
    fix = _MORE_MEMORY if gates.KILLED in result.detail or result.kind == "memory" else None
    return GateFailed(f"release {image.image.label()}", f"{result.kind} gate: {result.detail}", fix)
