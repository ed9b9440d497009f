"""Verifies what the engine has of an image, and mends a damaged copy: it goes, and is fetched again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from wherry.errors import AdmissionError, Tampered, WherryError
from wherry.messages import GateResult
from wherry_agent.assignment import TrustedImage
from wherry_agent.entry import container_name
from wherry_agent.events import Damaged, Done, Failed, News, Outcome
from wherry_agent.ports import Cancel, Engine, Fetcher, Host
from wherry_agent.steps import FallBack, Verify

_log = logging.getLogger(__name__)
_MARGIN_BYTES = 64_000_000
Recheck = Callable[[str, TrustedImage], GateResult | None]
TakeOver = Callable[[FallBack, Cancel], Outcome]
"""Brings a release up, through its gates, and turns callers to it."""


class Mender:
    """Does `Verify` steps, in the worker's thread.

    Args:
        device: its id.
        engine: has the images.
        fetcher: fetches them again.
        host: says how much disk is free.
        recheck: asks the golden cases of what serves.
        take_over: lets the release before stand in.
    """

    def __init__(
        self, device: str, engine: Engine, fetcher: Fetcher, host: Host, recheck: Recheck, take_over: TakeOver
    ) -> None:
        self._device = device
        self._engine = engine
        self._fetcher = fetcher
        self._host = host
        self._recheck = recheck
        self._take_over = take_over
        self._damaged: dict[str, Tampered] = {}
        self._in_vain: set[str] = set()

    def run(self, step: Verify, cancel: Cancel, tell: Callable[[News], None]) -> Outcome:
        """Verify; what is damaged is mended if it can be fetched now. A known-good that cannot goes on serving.

        Raises:
            WherryError: it cannot be told, or not be mended now.
            StepCancelled: asked to give way.
        """
        name = container_name(self._device, step.slot, step.image)
        golden = self._recheck(name, step.image) if step.serves else None
        if not step.fetches and not self._engine.has_image(step.image):
            return Failed(_later(Tampered(f"release {step.image.image.label()}", "its copy was damaged")), "world")
        damage = self._look(step.image, cancel)
        if damage is None:
            return Done()
        _log.error("slot %s: %s", step.slot, damage)
        tell(Damaged(step, damage))
        if step.serves:
            stuck = self._kept(step, damage, golden, cancel) or self._stand_in(step, damage, cancel)
            if stuck:
                return stuck
        self._engine.stop(name, step.image.image.run.drain_seconds)
        self._engine.remove(name)
        self._engine.remove_image(step.image)
        self._damaged.pop(step.image.digest, None)
        again = self._look(step.image, cancel) if step.fetches else damage
        if again is None:
            _log.warning("slot %s: release %s was fetched again and verified", step.slot, step.image.image.label())
            return Done()
        if step.serves:
            self._in_vain.add(step.image.digest)
        return Failed(_shared(again) if step.fetches else _later(again), "world")

    def _kept(self, step: Verify, damage: Tampered, golden: GateResult | None, cancel: Cancel) -> Failed | None:
        """Why a damaged known-good is left as it is: to be without it would be worse; None when it can be mended."""
        if step.image.digest in self._in_vain:
            return Failed(_serves_on(_shared(damage), golden), "world")
        if step.stands_in is None and golden is not None and golden.ok:
            fix = "Roll another release out: it takes over, then this one is fetched again by itself"
            return Failed(_serves_on(damage, golden, "nothing could serve while it is fetched again", fix), "world")
        if not self._fetcher.offered(step.image, cancel):
            fix = "Connect the device to its registry: then it is fetched again by itself"
            return Failed(_serves_on(damage, golden, "its registry does not offer it now", fix), "world")
        return None

    def _look(self, image: TrustedImage, cancel: Cancel) -> Tampered | None:
        """What is wrong with the engine's copy; an absent one is fetched. Damage is found once, not at every try."""
        try:
            there = self._engine.has_image(image)
            if there and image.digest in self._damaged:
                return self._damaged[image.digest]
            if there:
                self._room(image)
                self._engine.verify_image(image, cancel)
        except Tampered as error:
            return self._damaged.setdefault(image.digest, error)
        if not there:
            self._damaged.pop(image.digest, None)
            self._fetcher.fetch(image, cancel, lambda *_: None)
            return self._look(image, cancel)
        return None

    def _room(self, image: TrustedImage) -> None:
        """The engine lays the whole image out on its disk to save it: never where that fills it."""
        need, free = image.image.unpacked_bytes + _MARGIN_BYTES, self._host.disk_free_bytes()
        if free < need:
            reason = f"needs {need / 1e6:.0f} MB of disk for a moment, {free / 1e6:.0f} MB are free"
            raise AdmissionError(f"verification of release {image.image.label()}", reason)

    def _stand_in(self, step: Verify, damage: WherryError, cancel: Cancel) -> Failed | None:
        """The release before serves meanwhile; why it cannot, if it is there and cannot."""
        if step.stands_in is None:
            return None
        why = GateResult(kind="verify", ok=False, detail=damage.reason, seconds=0.0)
        outcome = self._take_over(FallBack(step.slot, step.stands_in, step.slot_port, step.image, why), cancel)
        return outcome if isinstance(outcome, Failed) else None


def _serves_on(damage: Tampered, golden: GateResult | None, why: str = "", fix: str | None = None) -> Tampered:
    if golden is None:
        answers = "nobody can tell whether it answers rightly"
    elif golden.ok:
        answers = "its golden cases pass"
    else:
        answers = f"its golden cases fail ({golden.detail})"
    reason = f"{damage.reason}; it goes on serving, {answers}" + (f"; {why}" if why else "")
    return Tampered(damage.thing, reason, fix or damage.fix)


def _later(damage: Tampered) -> Tampered:
    """The copy is gone: what the known-good shares with it is fetched anew only if nothing else has it."""
    reason = f"{damage.reason}; it was removed and is fetched again once the release that serves is verified"
    return Tampered(damage.thing, reason, "Nothing to do")


def _shared(damage: Tampered) -> Tampered:
    reason = f"{damage.reason}, again after it was fetched: another image on this device shares what is damaged"
    return Tampered(damage.thing, reason, "Remove images of others on the device: `docker image prune --all`")
