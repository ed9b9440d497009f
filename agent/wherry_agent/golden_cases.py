"""The golden cases of an image: read from its container, checked against the signature, asked, timed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from wherry.errors import ContractError, InferenceError, NotFound
from wherry.golden import compare
from wherry.identity import sha256_digest
from wherry.messages import GateResult
from wherry.release import MODELS_FOLDER, GoldenCase, GoldenFile, GoldenGate, fraction
from wherry.tensors import tensor_from_golden
from wherry_agent import gates
from wherry_agent.assignment import TrustedImage
from wherry_agent.ports import Cancel, Engine, Prober


class UnusableError(Exception):
    """The golden cases cannot be used; the text says why."""


class GoldenCases:
    """Asks golden cases.

    Args:
        engine: reads them from containers.
        prober: asks them.
        limit: most bytes of a golden.json.
    """

    def __init__(self, engine: Engine, prober: Prober, limit: int) -> None:
        self._engine = engine
        self._prober = prober
        self._limit = limit

    def read(self, name: str, image: TrustedImage) -> list[GoldenCase]:
        """The image's golden cases, if they are the ones that the owner signed; none where it signed none.

        Raises:
            UnusableError: they are not.
            EngineError: the engine does not answer.
        """
        gate = golden_gate(image)
        if gate is None:
            return []
        path = f"{MODELS_FOLDER}/{image.image.model}/golden.json"
        try:
            body = self._engine.read_file(name, path, self._limit)
            if sha256_digest(body) != gate.digest:
                raise UnusableError("golden.json in the image is not the one that the owner signed")
            cases = GoldenFile.model_validate_json(body).cases
        except (NotFound, ValidationError, ContractError) as error:
            raise UnusableError(f"golden.json in the image is not usable: {error}") from error
        if len(cases) != gate.cases:
            raise UnusableError(f"golden.json holds {len(cases)} cases, the release says {gate.cases}")
        return cases

    def ask(
        self, base_url: str, image: TrustedImage, gate: GoldenGate, cases: Sequence[GoldenCase], cancel: Cancel
    ) -> GateResult:
        """Ask all of them.

        Raises:
            InferenceError: one is not answered.
            StepCancelled: asked to give way.
        """
        began = time.monotonic()
        deadline = began + gate.deadline_seconds
        found = []
        for case in cases:
            cancel.check()
            left = max(deadline - time.monotonic(), 0.2)
            outputs, _ = self._prober.infer(base_url, image.image.model, case, left)
            expected = [tensor_from_golden(item) for item in case.outputs]
            found.append(
                compare(expected, outputs, fraction(gate.tolerance), fraction(gate.cosine), gate.argmax == "equal")
            )  # fmt: skip
        return gates.golden(gate, [case.name for case in cases], found, time.monotonic() - began)

    def recheck(self, name: str, image: TrustedImage) -> GateResult | None:
        """Those of what serves, again; None when they cannot be asked now, which proves nothing.

        A wrong answer counts when it is given twice. Models that keep state are left alone.

        Raises:
            EngineError: the engine does not answer.
        """
        gate, container = golden_gate(image), self._engine.inspect(name)
        if gate is None or container is None or container.state != "running":
            return None
        url, cancel = f"http://127.0.0.1:{container.port}", Cancel()
        try:
            if keeps_state(self._prober.metadata(url, image.image.model, gate.deadline_seconds)):
                return None
            cases = self.read(name, image)
            result = self.ask(url, image, gate, cases, cancel)
            return result if result.ok else self.ask(url, image, gate, cases, cancel)
        except (InferenceError, UnusableError):
            return None

    def time(
        self, urls: Sequence[str], model: str, cases: Sequence[GoldenCase], count: int, seconds: float, cancel: Cancel
    ) -> list[list[float]]:
        """Seconds that each server takes for the same cases, asked in turn, so that a busy device slows all alike.

        The first round warms up and is not counted. When the time is up, what was measured is returned.

        Args:
            urls: the candidate first; the others are left out from where they do not answer.
            model: its name.
            cases: what to ask, again and again.
            count: requests each.
            seconds: most that it may take.
            cancel: asks to give way.

        Raises:
            InferenceError: the first does not answer.
            StepCancelled: asked to give way.
        """
        deadline = time.monotonic() + seconds
        found: list[list[float]] = [[] for _ in urls]
        silent: set[str] = set()
        for turn in range(count + 1):
            for url, times in zip(urls, found, strict=True):
                cancel.check()
                left = deadline - time.monotonic()
                if left <= 0:
                    return [times if url not in silent else [] for url, times in zip(urls, found, strict=True)]
                if url in silent:
                    continue
                try:
                    taken = self._prober.infer(url, model, cases[turn % len(cases)], left)[1]
                except InferenceError:
                    if url == urls[0]:
                        raise
                    silent.add(url)
                    continue
                if turn:
                    times.append(taken)
        return [times if url not in silent else [] for url, times in zip(urls, found, strict=True)]


def golden_gate(image: TrustedImage) -> GoldenGate | None:
    """The gate that signs the image's golden cases."""
    return next((gate for gate in image.image.gates if isinstance(gate, GoldenGate)), None)


def keeps_state(metadata: Mapping[str, Any]) -> bool:
    """Whether a model's answers depend on the requests before, so that asking it disturbs its callers."""
    parameters = metadata.get("parameters")
    return isinstance(parameters, dict) and bool(parameters.get("keeps_state"))
