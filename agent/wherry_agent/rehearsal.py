"""Rehearsal and shadow: the candidate is asked what callers of this device asked the version that serves.

That version's server keeps its latest requests in memory (see `wherry_serving.recent`); the agent reads them over
loopback, one at a time, and asks them again. Shadowing reads on for a while and asks what is new: the copy is made
after the reply, nobody waits for the candidate, and what comes too fast is left out. So callers notice nothing, and
there is no second path for requests inside the model server. Nothing is stored and nothing leaves the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.errors import InferenceError
from wherry.golden import Comparison, compare, same_classes
from wherry.messages import GateResult
from wherry.release import RehearsalGate, ShadowGate, fraction
from wherry_agent import gates
from wherry_agent.admission import differences
from wherry_agent.assignment import TrustedImage
from wherry_agent.golden_cases import keeps_state
from wherry_agent.ports import Cancel, Prober

_SAMPLE = 16
"""Requests that a shadowed candidate is asked in one go; older ones that came meanwhile are left out."""
_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Beside:
    """The version that serves while a candidate is tried: its signed image, address, and token of its server."""

    image: TrustedImage
    base_url: str
    token: str


class Rehearsal:
    """Asks a candidate what callers asked."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober

    def why_not(self, image: TrustedImage, beside: Beside | None) -> str:
        """Why the version that serves cannot be compared with; empty when it can."""
        if beside is None:
            return "no other version serves"
        old, new = beside.image.image.signature, image.image.signature
        if beside.image.image.model != image.image.model or old is None or new is None or differences(old, new):
            return "the version that serves takes other inputs or gives other outputs"
        try:
            metadata = self._prober.metadata(beside.base_url, image.image.model, _ANSWER_SECONDS)
        except InferenceError:
            return "the version that serves does not answer"
        if keeps_state(metadata):
            return "the model keeps state from one request to the next"
        return ""

    def judge(
        self,
        gate: RehearsalGate | ShadowGate,
        image: TrustedImage,
        base_url: str,
        beside: Beside | None,
        cancel: Cancel,
    ) -> GateResult:
        """Ask what was asked lately (rehearsal) or what is asked for a while (shadow), and compare.

        Raises:
            StepCancelled: asked to give way.
        """
        began = time.monotonic()
        why = self.why_not(image, beside)
        if why or beside is None:
            return gates.replayed(gate, [], time.monotonic() - began, why)
        numbers = self._coming(gate, beside, cancel) if isinstance(gate, ShadowGate) else self._lately(gate, beside)
        found: list[gates.Replayed] = []
        deadline = began + gate.deadline_seconds
        try:
            for number in numbers:
                left = deadline - time.monotonic()
                if left <= 0 or len(found) >= gate.requests:
                    break
                cancel.check()
                again = self._again(gate, number, base_url, beside, left)
                found += [again] if again else []
        except InferenceError as error:  # by the version that serves: no fault of the candidate
            why = f"the version that serves stopped telling ({error.reason})"
        why = why or ("" if beside.token else "its release does not let its server keep requests")
        return gates.replayed(gate, found, time.monotonic() - began, why)

    def _lately(self, gate: RehearsalGate, beside: Beside) -> Sequence[int]:
        return self._recent(beside)[-gate.requests :]

    def _coming(self, gate: ShadowGate, beside: Beside, cancel: Cancel) -> Iterator[int]:
        """Numbers of requests that are answered from now on."""
        until, seen = time.monotonic() + gate.seconds, max(self._recent(beside), default=0)
        while beside.token and time.monotonic() < until:
            cancel.wait(min(_POLL_SECONDS, gate.seconds))
            cancel.check()
            fresh = [number for number in self._recent(beside) if number > seen][-_SAMPLE:]
            seen = max(fresh, default=seen)
            yield from fresh

    def _recent(self, beside: Beside) -> Sequence[int]:
        return self._prober.recent(beside.base_url, beside.token, beside.image.image.model, _ANSWER_SECONDS)

    def _again(
        self, gate: RehearsalGate | ShadowGate, number: int, base_url: str, beside: Beside, left: float
    ) -> gates.Replayed | None:  # fmt: skip
        recorded = self._prober.recorded(beside.base_url, beside.token, number, _ANSWER_SECONDS)
        if recorded is None:
            return None
        model = beside.image.image.model

        def ask(url: str) -> tuple[Sequence[Any], float]:
            return self._prober.replay(url, model, recorded, left)

        theirs = ask(beside.base_url)[1] if fraction(gate.factor) else None
        try:
            outputs, seconds = ask(base_url)
        except InferenceError as error:
            return gates.Replayed(None, error.reason)
        return gates.Replayed(_comparison(gate)(recorded.outputs, outputs), "", seconds, theirs)


def _comparison(gate: RehearsalGate | ShadowGate) -> Callable[[Sequence[Any], Sequence[Any]], Comparison]:
    tolerance = fraction(gate.tolerance)
    if gate.by == "class":
        return lambda before, now: same_classes(before, now, tolerance)
    return lambda before, now: compare(before, now, tolerance, -1.0, argmax=False)
