"""A candidate on trial: measures what the release's gates ask for and lets `gates` conclude."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from wherry.errors import ContractError, EngineError, GateFailed, InferenceError, NotFound, WherryError
from wherry.golden import compare
from wherry.identity import sha256_digest
from wherry.messages import GateResult
from wherry.release import (
    MODELS_FOLDER,
    GoldenCase,
    GoldenFile,
    GoldenGate,
    HttpGate,
    LatencyGate,
    ReadyGate,
    SignatureGate,
    fraction,
)
from wherry.tensors import tensor_from_golden
from wherry_agent import gates
from wherry_agent.assignment import TrustedImage
from wherry_agent.events import Blame
from wherry_agent.ports import Cancel, Container, Engine, Prober

T = TypeVar("T")
Asks = Callable[[str, float], None]
"""Told which gate begins to ask, and after how many seconds it ends at the latest."""
_KILLED_FROM_OUTSIDE = (137, 143)


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
        golden_limit: most bytes of a golden.json.
        latency_requests: fewest requests that a latency gate times.
    """

    soak_seconds: float = 0.5
    poll_seconds: float = 0.1
    answer_seconds: float = 2.0
    alive_seconds: float = 2.0
    golden_limit: int = 64 * 1_048_576
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
    cancel: Cancel
    cases: list[GoldenCase]
    latencies: list[float]


class Examiner:
    """Puts a running candidate through its gates."""

    def __init__(self, engine: Engine, prober: Prober, patience: Patience) -> None:
        self._engine = engine
        self._prober = prober
        self._patience = patience

    def probe(self, name: str, image: TrustedImage, cancel: Cancel, asks: Asks) -> Verdict:
        """All gates of the release, in order, up to the first that fails.

        Raises:
            EngineError: the engine cannot be asked about the candidate.
            StepCancelled: asked to give way.
        """
        declared = list(image.image.gates)
        first: list[object] = []
        if not any(isinstance(gate, ReadyGate | HttpGate) for gate in declared):
            custom = image.image.runtime == "custom"
            first = [_StillRuns() if custom else ReadyGate(deadline_seconds=image.image.run.start_seconds)]
        return self._through(self._begin(name, image, cancel), [*first, *declared], asks)

    def soak(self, name: str, image: TrustedImage, cancel: Cancel, asks: Asks) -> Verdict:
        """Watch the candidate for a while, then ask its golden cases once more.

        Raises:
            EngineError, StepCancelled: as `probe`.
        """
        trial = self._begin(name, image, cancel)
        began = time.monotonic()
        asks("soak", self._patience.soak_seconds)
        asked = [gate for gate in image.image.gates if isinstance(gate, ReadyGate | HttpGate)]
        once = [gate.model_copy(update={"deadline_seconds": 1}) for gate in asked]
        while time.monotonic() - began < self._patience.soak_seconds:
            verdict = self._through(trial, once)
            if verdict.failure:
                return verdict
            cancel.wait(min(1.0, self._patience.soak_seconds))
            cancel.check()
        last = [*once, *(gate for gate in image.image.gates if isinstance(gate, GoldenGate))]
        verdict = self._through(trial, last)
        seconds = time.monotonic() - began
        if verdict.failure:
            return verdict
        soaked = GateResult(
            kind="soak", ok=True, detail=f"healthy for {seconds:.1f} s of real traffic", seconds=seconds
        )
        return Verdict((*verdict.gates, soaked))

    def _begin(self, name: str, image: TrustedImage, cancel: Cancel) -> _Trial:
        container = self._engine.inspect(name)
        if container is None:
            raise EngineError(f"container {name}", "is gone")
        return _Trial(name, image, f"http://127.0.0.1:{container.port}", cancel, [], [])

    def _through(self, trial: _Trial, declared: Sequence[object], asks: Asks | None = None) -> Verdict:
        passed: list[GateResult] = []
        for gate in declared:
            trial.cancel.check()
            if asks:
                asks(_kind(gate), float(getattr(gate, "deadline_seconds", self._patience.alive_seconds)))
            began = time.monotonic()
            try:
                self._must_run(trial)
                passed.append(self._ask(trial, gate, began))
            except _Exited as exited:
                return self._ended(trial, gate, exited.container, began, passed)
            except InferenceError as error:
                passed.append(gates.unanswered(_kind(gate), error.reason, time.monotonic() - began))
                ended = self._engine.inspect(trial.name)
                if ended is None or not ended.running:
                    return self._ended(trial, gate, ended, began, passed[:-1])
            if not passed[-1].ok:
                return Verdict(tuple(passed), _failure(trial.image, passed[-1]))
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
        return Verdict((*passed, result), _failure(trial.image, result), "unclear" if outside else "release")

    def _ask(self, trial: _Trial, gate: object, began: float) -> GateResult:
        match gate:
            case ReadyGate():
                return self._ready(trial, gate)
            case HttpGate():
                return self._http(trial, gate)
            case _StillRuns():
                trial.cancel.wait(self._patience.alive_seconds)
                self._must_run(trial)
                return gates.alive(time.monotonic() - began)
            case SignatureGate():
                image = trial.image.image
                document = self._prober.metadata(trial.base_url, image.model, gate.deadline_seconds)
                return gates.signature(image.signature, image.provider, document, time.monotonic() - began)
            case GoldenGate():
                return self._golden(trial, gate)
            case LatencyGate():
                return self._latency(trial, gate)
            case _:
                return gates.unanswered(_kind(gate), "this agent does not know this gate", 0.0)

    def _until(self, trial: _Trial, deadline_seconds: float, ask: Callable[[float], T], good: Callable[[T], bool]) -> T:
        """Ask again and again until the answer is good or the deadline has passed; the last answer."""
        deadline = time.monotonic() + deadline_seconds
        pause = self._patience.poll_seconds
        while True:
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

    def _golden(self, trial: _Trial, gate: GoldenGate) -> GateResult:
        began = time.monotonic()
        try:
            cases = self._cases(trial, gate)
        except _UnusableError as error:
            return gates.golden_unusable(str(error), time.monotonic() - began)
        deadline = began + gate.deadline_seconds
        found = []
        for case in cases:
            trial.cancel.check()
            outputs, seconds = self._prober.infer(
                trial.base_url, trial.image.image.model, case, max(deadline - time.monotonic(), 0.2)
            )  # fmt: skip
            trial.latencies.append(seconds)
            expected = [tensor_from_golden(item) for item in case.outputs]
            found.append(
                compare(expected, outputs, fraction(gate.tolerance), fraction(gate.cosine), gate.argmax == "equal")
            )  # fmt: skip
        return gates.golden(gate, [case.name for case in cases], found, time.monotonic() - began)

    def _cases(self, trial: _Trial, gate: GoldenGate) -> list[GoldenCase]:
        """The image's golden cases, if they are the ones that the owner signed."""
        if trial.cases:
            return trial.cases
        path = f"{MODELS_FOLDER}/{trial.image.image.model}/golden.json"
        try:
            body = self._engine.read_file(trial.name, path, self._patience.golden_limit)
            if sha256_digest(body) != gate.digest:
                raise _UnusableError("golden.json in the image is not the one that the owner signed")
            cases = GoldenFile.model_validate_json(body).cases
        except (NotFound, ValidationError, ContractError) as error:
            raise _UnusableError(f"golden.json in the image is not usable: {error}") from error
        if len(cases) != gate.cases:
            raise _UnusableError(f"golden.json holds {len(cases)} cases, the release says {gate.cases}")
        trial.cases = cases
        return cases

    def _latency(self, trial: _Trial, gate: LatencyGate) -> GateResult:
        """Time the golden cases, again if the golden gate timed too few."""
        began = time.monotonic()
        signed = next((other for other in trial.image.image.gates if isinstance(other, GoldenGate)), None)
        try:
            cases = self._cases(trial, signed) if signed else []
        except _UnusableError as error:
            return gates.unanswered("latency", str(error), time.monotonic() - began)
        latencies: list[float] = []
        deadline = began + gate.deadline_seconds
        while cases and len(latencies) < max(self._patience.latency_requests, len(cases)):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            trial.cancel.check()
            case = cases[len(latencies) % len(cases)]
            latencies.append(self._prober.infer(trial.base_url, trial.image.image.model, case, left)[1])
        return gates.latency(gate, latencies, time.monotonic() - began)


class _UnusableError(Exception):
    """The golden cases cannot be used; the text says why."""


def _kind(gate: object) -> str:
    return str(getattr(gate, "kind", "unknown"))


def _failure(image: TrustedImage, result: GateResult) -> GateFailed:
    return GateFailed(f"release {image.image.label()}", f"{result.kind} gate: {result.detail}")
