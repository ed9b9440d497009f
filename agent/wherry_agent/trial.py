"""A candidate on trial: measures what the release's gates ask for and lets `gates` conclude."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from wherry.errors import EngineError, GateFailed, InferenceError, MalformedMessage, WherryError
from wherry.messages import GateResult
from wherry.release import (
    GoldenCase,
    GoldenGate,
    HttpGate,
    LatencyGate,
    MemoryGate,
    ReadyGate,
    RehearsalGate,
    ShadowGate,
    SignatureGate,
    SoakGate,
    TcpGate,
    TemperatureGate,
    fraction,
)
from wherry_agent import gates
from wherry_agent.assignment import TrustedImage
from wherry_agent.counters import Counters, change, read_counters
from wherry_agent.events import Blame
from wherry_agent.golden_cases import GoldenCases, UnusableError
from wherry_agent.observed import Container
from wherry_agent.ports import Cancel, Engine, Host, Prober
from wherry_agent.rehearsal import Beside, Rehearsal

T = TypeVar("T")
Asks = Callable[[str, float], None]
"""Told which gate begins to ask, and after how many seconds it ends at the latest."""
_KILLED_FROM_OUTSIDE = (137, 143)
_ASKS_BY_ITSELF = ReadyGate | HttpGate | TcpGate
"""Gates that find out by themselves whether the container is up."""
_LATENCY_ROUNDS = 5
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


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often the examiner looks.

    Attributes:
        soak_seconds: how long a candidate is watched after the switch.
        poll_seconds: pause between questions whether it is ready.
        answer_seconds: most that one such question may take.
        alive_seconds: how long a container that cannot be asked must run.
        latency_requests: fewest requests that a latency gate times.
    """

    soak_seconds: float = 0.5
    poll_seconds: float = 0.1
    answer_seconds: float = 2.0
    alive_seconds: float = 2.0
    latency_requests: int = 20


@dataclass(frozen=True, slots=True)
class _StillRuns:
    """For images that declare no way to ask them: they must not end at once."""

    kind = "alive"


class _Exited(Exception):
    """The candidate's process ended."""

    def __init__(self, container: Container | None) -> None:
        super().__init__(container)
        self.container = container


@dataclass(slots=True)
class _Trial:
    """One examination: the candidate, its address and what was learned on the way."""

    name: str
    image: TrustedImage
    base_url: str
    port: int
    cancel: Cancel
    beside: Beside | None
    cases: list[GoldenCase] | None = None


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
        self._host = host
        self._golden_cases = golden_cases
        self._statistics = statistics
        self._rehearsal = Rehearsal(prober)

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

    def _begin(self, name: str, image: TrustedImage, cancel: Cancel, beside: str | None) -> _Trial:
        container = self._engine.inspect(name)
        if container is None:
            raise EngineError(f"container {name}", "is gone")
        other = self._engine.inspect(beside) if beside else None
        serves = None
        if other and other.image and other.state == "running":
            serves = Beside(other.image, f"http://127.0.0.1:{other.port}", other.token)
        return _Trial(name, image, f"http://127.0.0.1:{container.port}", container.port, cancel, serves)

    def _through(self, trial: _Trial, declared: Sequence[object], asks: Asks | None = None) -> Verdict:
        passed: list[GateResult] = []
        for gate in declared:
            trial.cancel.check()
            if asks:
                asks(_kind(gate), float(getattr(gate, "deadline_seconds", self._patience.alive_seconds)))
            began = time.monotonic()
            try:
                self._must_run(trial)
                if len(passed) == 1:  # it has loaded; it is timed beside what serves, with an equal share
                    self._engine.processor_share(trial.name, "full")
                passed.append(self._ask(trial, gate, began))
            except _Exited as exited:
                return self._ended(trial, gate, exited.container, began, passed)
            except InferenceError as error:
                passed.append(gates.unanswered(_kind(gate), error.reason, time.monotonic() - began))
            if not passed[-1].ok:
                ended = self._engine.inspect(trial.name)
                if ended is None or not ended.running:
                    return self._ended(trial, gate, ended, began, passed[:-1])
                return Verdict(tuple(passed), failure(trial.image, passed[-1]))
        return Verdict(tuple(passed))

    def _must_run(self, trial: _Trial) -> None:
        container = self._engine.inspect(trial.name)
        if container is None or container.state != "running":
            raise _Exited(container)

    def _ended(
        self, trial: _Trial, gate: object, container: Container | None, began: float, passed: list[GateResult]
    ) -> Verdict:  # fmt: skip
        """A candidate that ended by itself is at fault; one that was killed from outside may not be."""
        code = container.exit_code if container else None
        oom = bool(container and container.oom_killed)
        words = self._engine.last_words(trial.name) if container else "it was removed"
        result = gates.exited(_kind(gate), time.monotonic() - began, code, oom, words)
        outside = container is None or (code in _KILLED_FROM_OUTSIDE and not oom)
        return Verdict((*passed, result), failure(trial.image, result), "unclear" if outside else "release")

    def _ask(self, trial: _Trial, gate: object, began: float) -> GateResult:
        match gate:
            case ReadyGate():
                return self._ready(trial, gate)
            case HttpGate():
                return self._http(trial, gate)
            case TcpGate():
                kept = self._until(
                    trial, gate.deadline_seconds, lambda left: self._prober.keeps_connection(trial.port, left), bool
                )  # fmt: skip
                return gates.tcp(kept, time.monotonic() - began)
            case _StillRuns():
                trial.cancel.wait(self._patience.alive_seconds)
                self._must_run(trial)
                return gates.alive(time.monotonic() - began)
            case MemoryGate():
                used = self._engine.memory_bytes(trial.name)
                return gates.memory(gate, used, trial.image.image.run.memory_mb, time.monotonic() - began)
            case TemperatureGate():
                return gates.temperature(gate, self._host.temperatures(), time.monotonic() - began)
            case _:
                return self._ask_model(trial, gate, began)

    def _ask_model(self, trial: _Trial, gate: object, began: float) -> GateResult:
        """Gates that speak the Open Inference Protocol."""
        image = trial.image.image
        match gate:
            case SignatureGate():
                document = self._prober.metadata(trial.base_url, image.model, gate.deadline_seconds)
                return gates.signature(image.signature, image.provider, document, time.monotonic() - began)
            case GoldenGate():
                try:
                    cases = self._cases(trial)
                except UnusableError as error:
                    return gates.golden_unusable(str(error), time.monotonic() - began)
                return self._golden_cases.ask(trial.base_url, trial.image, gate, cases, trial.cancel)
            case LatencyGate():
                return self._latency(trial, gate)
            case RehearsalGate() | ShadowGate():
                return self._rehearsal.judge(gate, trial.image, trial.base_url, trial.beside, trial.cancel)
            case _:
                return gates.unanswered(_kind(gate), "this agent does not know this gate", 0.0)

    def _until(self, trial: _Trial, deadline_seconds: float, ask: Callable[[float], T], good: Callable[[T], bool]) -> T:
        """Ask again and again until the answer is good or the deadline has passed; the last answer.

        From half the time on it loads with a full share of the processor: on a busy device a good release must not
        be rejected for the sake of what serves.
        """
        deadline = time.monotonic() + deadline_seconds
        hurry = deadline - deadline_seconds / 2
        pause = self._patience.poll_seconds
        while True:
            if time.monotonic() >= hurry:
                self._engine.processor_share(trial.name, "full")
                hurry = deadline + 1
            answer = ask(min(self._patience.answer_seconds, max(deadline - time.monotonic(), 0.2)))
            if good(answer) or time.monotonic() >= deadline:
                return answer
            self._must_run(trial)
            trial.cancel.wait(pause)
            trial.cancel.check()
            pause = min(pause * 1.2, 1.0)

    def _ready(self, trial: _Trial, gate: ReadyGate) -> GateResult:
        began = time.monotonic()
        model = trial.image.image.model
        answered = self._until(
            trial, gate.deadline_seconds, lambda left: self._prober.ready(trial.base_url, model, left), bool
        )  # fmt: skip
        words = "" if answered else self._engine.last_words(trial.name)
        return gates.ready(gate, answered, time.monotonic() - began, words)

    def _http(self, trial: _Trial, gate: HttpGate) -> GateResult:
        began = time.monotonic()
        status = self._until(
            trial,
            gate.deadline_seconds,
            lambda left: self._prober.status(trial.base_url, gate.path, left),
            lambda found: found == gate.status,
        )
        return gates.http(gate, status, time.monotonic() - began)

    def _cases(self, trial: _Trial) -> list[GoldenCase]:
        if trial.cases is None:
            trial.cases = self._golden_cases.read(trial.name, trial.image)
        return trial.cases

    def _latency(self, trial: _Trial, gate: LatencyGate) -> GateResult:
        """Time the golden cases; where the owner wants it, in turn with the version that serves."""
        began = time.monotonic()
        try:
            cases = self._cases(trial)
        except UnusableError as error:
            return gates.unanswered("latency", str(error), time.monotonic() - began)
        if not cases:
            return gates.unanswered("latency", "the release has no golden cases to time", time.monotonic() - began)
        why = self._rehearsal.why_not(trial.image, trial.beside) if fraction(gate.factor) else "not asked"
        urls = [trial.base_url, *([trial.beside.base_url] if trial.beside and not why else [])]
        count, model = max(self._patience.latency_requests, len(cases)), trial.image.image.model
        mine: list[float] = []
        theirs: list[float] = []
        for _ in range(_LATENCY_ROUNDS):
            left = began + gate.deadline_seconds - time.monotonic()
            found = [*self._golden_cases.time(urls, model, cases, count, left, trial.cancel), []]
            mine, theirs = mine + found[0], theirs + found[1]
            result = gates.latency(gate, mine, theirs, time.monotonic() - began, why)
            # A moment's noise is not the release's fault: before a no, more is measured.
            if result.ok or time.monotonic() - began > gate.deadline_seconds / 2:
                break
        return result


def _by_itself(image: TrustedImage) -> object:
    """The gate of a release that declares none which finds out by itself whether the container is up."""
    custom = image.image.runtime == "custom"
    return _StillRuns() if custom else ReadyGate(deadline_seconds=image.image.run.start_seconds)


def _traffic(counters: Counters | None) -> gates.Traffic | None:
    return gates.Traffic.of(counters.requests, counters.failures, counters.latency_sum_us) if counters else None


def _kind(gate: object) -> str:
    return str(getattr(gate, "kind", "unknown"))


def failure(image: TrustedImage, result: GateResult) -> GateFailed:
    """Why a release is rejected, and what helps against that."""
    fix = _MORE_MEMORY if gates.KILLED in result.detail or result.kind == "memory" else None
    return GateFailed(f"release {image.image.label()}", f"{result.kind} gate: {result.detail}", fix)
