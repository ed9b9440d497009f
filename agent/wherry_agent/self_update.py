"""What the steps of a deployment mean in the agent's own slot. Every step looks before it acts, as all others do.

The agent that runs brings the next one to disk, tells the supervisor to try it, and ends. The next one finds the
deployment in the journal under its own digest, proves itself and stays; or it gives up, and the one before runs again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from wherry.agent_release import AGENT_FOLDER
from wherry.errors import DeploymentError, FitError, GateFailed, NotFound
from wherry.messages import GateResult
from wherry_agent import steps
from wherry_agent.assignment import TrustedImage
from wherry_agent.entry import container_name
from wherry_agent.events import Cancelled, Done, Failed, Outcome
from wherry_agent.own_version import Running
from wherry_agent.ports import Cancel, Engine, Fetcher, Progress

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
_MARGIN_SECONDS = 15.0
"""What the supervisor adds: the agent itself is to give up first, since it can say why."""


class Versions(Protocol):
    """The agent's versions on disk (see `version_store.VersionStore`). Methods raise StoreError."""

    def read(self) -> Running:
        """Which agent runs here."""

    def has(self, digest: str) -> bool:
        """Whether a version's files are here."""

    def unpack(self, digest: str, trees: Iterable[Iterator[bytes]], limit: int) -> None:
        """Take a version's files in."""

    def order(self, digest: str, seconds: float, before: str) -> None:
        """Have the supervisor try a version when this agent has ended."""

    def before(self) -> str:
        """What worked before this agent was started on trial."""

    def confirm(self) -> None:
        """This agent stays."""

    def go_back(self, digest: str | None) -> None:
        """Have the supervisor start another version."""

    def give_up(self) -> None:
        """Have the supervisor start what ran before the trial."""

    def remove(self, digest: str, for_good: bool = False) -> None:
        """Remove a version's files, unless it runs or may have to run; for good: not even the supervisor goes back."""


class SelfUpdate:
    """Does the steps of the agent's own slot, in the worker's thread.

    Args:
        device: its id.
        engine: holds the image that a version comes in; nothing of it is ever run there.
        fetcher: brings the image to the engine.
        versions: the agent's versions on disk.
        parts: folders of the image that this device needs.
        works: names of what works now: the link, slots that serve.
        leave: end this agent; called when the supervisor knows what comes next.
        soak_seconds: how long a new agent watches itself.
    """

    def __init__(
        self,
        device: str,
        engine: Engine,
        fetcher: Fetcher,
        versions: Versions,
        parts: tuple[str, ...],
        works: Callable[[], frozenset[str]],
        leave: Callable[[], None],
        soak_seconds: float = 10.0,
    ) -> None:
        self._device = device
        self._engine = engine
        self._fetcher = fetcher
        self._versions = versions
        self._parts = parts
        self._works = works
        self._leave = leave
        self._soak_seconds = soak_seconds
        self._fetched = ""

    def run(self, step: steps.Step, cancel: Cancel, progress: Progress) -> Outcome:
        """Do a step.

        Raises:
            WherryError: it failed.
            StepCancelled: asked to give way.
        """
        if isinstance(step, steps.Fetch):
            return self._fetch(step, cancel, progress)
        if isinstance(step, steps.Probe):
            return self._prove("agent", step.image, cancel, 0.0, step.image.image.run.start_seconds)
        if isinstance(step, steps.Soak):
            return self._prove("soak", step.image, cancel, self._soak_seconds, self._soak_seconds)
        action = _ACTIONS.get(type(step))
        return action(self, step) if action else Done()

    def _fetch(self, step: steps.Fetch, cancel: Cancel, progress: Progress) -> Outcome:
        """What the engine still has of an earlier attempt may not have survived a power cut: it is fetched anew."""
        if not self._versions.has(step.image.digest):
            self._discard(step.slot, step.image)
            self._fetcher.fetch(step.image, cancel, progress)
            self._fetched = step.image.digest
        return Done()

    def _discard(self, slot: str, image: TrustedImage) -> None:
        self._engine.remove(container_name(self._device, slot, image))
        self._engine.remove_image(image)

    def _stage(self, step: steps.Stage) -> Outcome:
        image = step.image
        if self._versions.has(image.digest):
            return Done()
        if image.digest != self._fetched:
            raise DeploymentError(f"release {image.image.label()}", "was fetched before this agent started: once more")
        name = container_name(self._device, step.slot, image)
        self._engine.remove(name)
        self._engine.create(name, step.slot, image, 0, 0)
        trees = (self._engine.read_tree(name, f"{AGENT_FOLDER}/{part}") for part in self._parts)
        try:
            self._versions.unpack(image.digest, trees, image.image.unpacked_bytes)
        except NotFound as error:
            return Failed(FitError(f"release {image.image.label()}", f"{error.thing} does not exist"), "release")
        self._discard(step.slot, image)
        return Done()

    def _start(self, step: steps.Start) -> Outcome:
        """Tell the supervisor, and end; nothing to do for the agent that was started so."""
        if self._runs(step.image):
            return Done()
        run = step.image.image.run
        if not self._versions.has(step.image.digest):
            raise DeploymentError(f"release {step.image.image.label()}", "its files are not on the device (any more)")
        works = " ".join(sorted(self._works()))
        seconds = run.start_seconds + self._soak_seconds + _MARGIN_SECONDS
        self._versions.order(step.image.digest, seconds, works)
        return self._gone(f"leaving for {step.image.image.label()}")

    def _prove(self, kind: str, image: TrustedImage, cancel: Cancel, at_least: float, at_most: float) -> Outcome:
        """All that worked before works with this agent, too. That it gets here proves journal, engine and loop."""
        began, before = time.monotonic(), frozenset(self._versions.before().split())
        while True:
            missing = sorted(before - self._works())
            seconds = time.monotonic() - began
            if seconds >= at_least and (not missing or seconds >= at_most):
                break
            if cancel.wait(_LOOK_SECONDS):
                return Cancelled()
        words = f"works as before: {', '.join(sorted(before))}" if before else "nothing worked before, either"
        if missing:
            words = f"worked before and does not within {at_most:.0f} s: {', '.join(missing)}"
        result = GateResult(kind=kind, ok=not missing, detail=words, seconds=round(seconds, 3))
        if missing:
            # The broker may have gone down in this very minute: three times that would be odd.
            return Failed(GateFailed(f"release {image.image.label()}", words), "unclear", (result,))
        return Done((result,))

    def _commit(self, _step: steps.Commit) -> Outcome:
        self._versions.confirm()
        return Done()

    def _roll_back(self, step: steps.Rollback) -> Outcome:
        if self._runs(step.candidate):
            self._versions.give_up()
            return self._gone(f"{step.candidate.image.label()} gives up; the agent before takes over")
        self._discard(step.slot, step.candidate)  # the next release would take over its layers, sound or not
        self._versions.remove(step.candidate.digest)
        return Done()

    def _prune(self, step: steps.Prune) -> Outcome:
        for name in step.containers:
            self._engine.remove(name)
        for image in step.images:
            self._engine.remove_image(image)
            self._versions.remove(image.digest, for_good=True)
        return Done()

    def _remove(self, step: steps.Remove) -> Outcome:
        for name in step.containers:
            self._engine.remove(name)
        self._versions.go_back(None)
        if self._versions.read().digest:
            return self._gone("the slot is to be empty; the installed agent takes over")
        return Done()

    def _go_back(self, step: steps.GoBack) -> Outcome:
        self._versions.go_back(step.back_to.digest if step.back_to else None)
        return self._gone(f"the owner withdrew {step.image.image.label()}; another agent takes over")

    def _runs(self, image: TrustedImage) -> bool:
        return self._versions.read().digest == image.digest

    def _gone(self, words: str) -> Outcome:
        """What comes of the step the next agent will see."""
        _log.info("%s", words)
        self._leave()
        return Cancelled()


_ACTIONS: Mapping[type, Callable[[SelfUpdate, Any], Outcome]] = {
    steps.Stage: SelfUpdate._stage,
    steps.Start: SelfUpdate._start,
    steps.Commit: SelfUpdate._commit,
    steps.Rollback: SelfUpdate._roll_back,
    steps.Prune: SelfUpdate._prune,
    steps.Remove: SelfUpdate._remove,
    steps.GoBack: SelfUpdate._go_back,
}
