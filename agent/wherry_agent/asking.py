"""How each gate of a release is asked: what it measures of a candidate on trial, for `gates` to conclude from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

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
    TcpGate,
    TemperatureGate,
    fraction,
)
from wherry_agent import gates
from wherry_agent.assignment import TrustedImage
from wherry_agent.golden_cases import GoldenCases, UnusableError
from wherry_agent.observed import Container
from wherry_agent.ports import Cancel, Engine, Host, Prober
from wherry_agent.rehearsal import Beside, Rehearsal

T = TypeVar("T")
_LATENCY_ROUNDS = 5


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
class StillRuns:
    """For images that declare no way to ask them: they must not end at once."""

    kind = "alive"


class Exited(Exception):
    """The candidate's process ended."""

    def __init__(self, container: Container | None) -> None:
        super().__init__(container)
        self.container = container


@dataclass(slots=True)
class Trial:
    """One examination: the candidate, its address and what was learned on the way."""

    name: str
    image: TrustedImage
    base_url: str
    port: int
    cancel: Cancel
    beside: Beside | None
    cases: list[GoldenCase] | None = None


class Asker:
    """Asks one gate at a time.

    Args:
        engine, prober, host, golden_cases: what is asked.
        patience: how long.
    """

    def __init__(
        self, engine: Engine, prober: Prober, patience: Patience, host: Host, golden_cases: GoldenCases
    ) -> None:  # fmt: skip
        self._engine = engine
        self._prober = prober
        self._patience = patience
        self._host = host
        self._golden_cases = golden_cases
        self._rehearsal = Rehearsal(prober)

    def ask(self, trial: Trial, gate: object, began: float) -> GateResult:
        """What a gate says of the candidate.

        Raises:
            Exited: its process ended.
            InferenceError: it gave no usable answer.
            StepCancelled: asked to give way.
        """
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
            case StillRuns():
                trial.cancel.wait(self._patience.alive_seconds)
                self.must_run(trial)
                return gates.alive(time.monotonic() - began)
            case MemoryGate():
                used = self._engine.memory_bytes(trial.name)
                return gates.memory(gate, used, trial.image.image.run.memory_mb, time.monotonic() - began)
            case TemperatureGate():
                return gates.temperature(gate, self._host.temperatures(), time.monotonic() - began)
            case _:
                return self._ask_model(trial, gate, began)

    def _ask_model(self, trial: Trial, gate: object, began: float) -> GateResult:
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
                return gates.unanswered(kind_of(gate), "this agent does not know this gate", 0.0)

    def _until(self, trial: Trial, deadline_seconds: float, ask: Callable[[float], T], good: Callable[[T], bool]) -> T:
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
            self.must_run(trial)
            trial.cancel.wait(pause)
            trial.cancel.check()
            pause = min(pause * 1.2, 1.0)

    def _ready(self, trial: Trial, gate: ReadyGate) -> GateResult:
        began = time.monotonic()
        model = trial.image.image.model
        answered = self._until(
            trial, gate.deadline_seconds, lambda left: self._prober.ready(trial.base_url, model, left), bool
        )  # fmt: skip
        words = "" if answered else self._engine.last_words(trial.name)
        return gates.ready(gate, answered, time.monotonic() - began, words)

    def _http(self, trial: Trial, gate: HttpGate) -> GateResult:
        began = time.monotonic()
        status = self._until(
            trial,
            gate.deadline_seconds,
            lambda left: self._prober.status(trial.base_url, gate.path, left),
            lambda found: found == gate.status,
        )
        return gates.http(gate, status, time.monotonic() - began)

    def _cases(self, trial: Trial) -> list[GoldenCase]:
        if trial.cases is None:
            trial.cases = self._golden_cases.read(trial.name, trial.image)
        return trial.cases

    def _latency(self, trial: Trial, gate: LatencyGate) -> GateResult:
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

    def must_run(self, trial: Trial) -> None:
        """Raise Exited unless the candidate runs."""
        container = self._engine.inspect(trial.name)
        if container is None or container.state != "running":
            raise Exited(container)


def kind_of(gate: object) -> str:
    """What reports call the gate."""
    return str(getattr(gate, "kind", "unknown"))
