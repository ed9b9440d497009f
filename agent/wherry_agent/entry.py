"""What the journal knows, as frozen values: known-good, previous, the deployment under way, rejections, marks.

Only what the world cannot tell again. `wherry_agent.progress` says how it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from wherry.messages import GateResult, Phase, Problem, ReleaseRef
from wherry_agent.assignment import Marks, TrustedImage
from wherry_agent.states import is_final
from wherry_agent.steps import Mode

Verdict = Literal["reject", "retry", "supersede"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient the agent is.

    Attributes:
        backoff_base_seconds, backoff_max_seconds: waits double from one to the other.
        unclear_attempts: failures whose cause is unclear before the release is blamed.
        tampered_attempts: downloads that are not what was signed before the deployment is refused for now.
        reserve_mb: memory to stay free beside a candidate in overlap mode.
    """

    backoff_base_seconds: float = 2.0
    backoff_max_seconds: float = 600.0
    unclear_attempts: int = 3
    tampered_attempts: int = 3
    reserve_mb: int = 64

    def wait(self, attempts: int) -> timedelta:
        """How long to wait after that many attempts failed."""
        seconds = self.backoff_base_seconds * 2 ** min(max(attempts - 1, 0), 30)
        return timedelta(seconds=min(seconds, self.backoff_max_seconds))

    def due(self, at: datetime | None, now: datetime) -> bool:
        """Whether a wait is over. One that is further off than any wait was made by another clock: over."""
        return at is None or at <= now or at - now > timedelta(seconds=2 * self.backoff_max_seconds)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One attempt of this device at one release.

    Attributes:
        phases: (phase, when) in order, bounded.
        mode: how the candidate gets its place, decided when it is first started.
        attempts: steps that failed since the last success; unclear: those whose cause is unclear.
        retry_at: nothing is tried before.
        verdict: why it is being rolled back.
        finished: kind of the last step of this phase that succeeded. Not journaled: after a crash the step is done
            again, which does no harm.
        fetched_bytes, total_bytes: of the download. What was fetched is not journaled.
        gate, deadline: what is asking the candidate now, and when it ends at the latest. Not journaled.
        group: names of all slots that move in this attempt together or not at all; empty when it is alone.
        culprit: the slot of its group for whose failure this one went back, or waits; empty when it is its own.
    """

    id: str
    image: TrustedImage
    sequence: int
    phase: Phase
    started: datetime
    updated: datetime
    previous: ReleaseRef | None = None
    phases: tuple[tuple[str, datetime], ...] = ()
    mode: Mode | None = None
    attempts: int = 0
    unclear: int = 0
    retry_at: datetime | None = None
    verdict: Verdict | None = None
    gates: tuple[GateResult, ...] = ()
    problem: Problem | None = None
    finished: str | None = None
    fetched_bytes: int = 0
    total_bytes: int = 0
    gate: str | None = None
    deadline: datetime | None = None
    group: tuple[str, ...] = ()
    culprit: str = ""

    @property
    def active(self) -> bool:
        """Whether it still has steps to take."""
        return not is_final(self.phase)

    @property
    def holds_route(self) -> bool:
        """Whether the slot's stable port is turned to its candidate."""
        return self.phase in ("soaking", "committing") or (self.phase == "switching" and self.finished == "Switch")

    @property
    def turned(self) -> datetime | None:
        """When the slot's stable port was turned to its candidate, in the present try."""
        for phase, at in reversed(self.phases):
            if phase == "soaking":
                return at
            if phase in ("admitted", "staging"):
                break
        return None


@dataclass(frozen=True, slots=True)
class SlotEntry:
    """One slot.

    Attributes:
        port: its stable port, for ever.
        known_good: the release last committed; previous: the one before, kept for rollback.
        deployment: the current or last attempt.
        litter: images that may be removed.
        since: when the known-good began to answer at the stable port.
    """

    slot: str
    port: int
    known_good: TrustedImage | None = None
    previous: TrustedImage | None = None
    deployment: Deployment | None = None
    litter: tuple[TrustedImage, ...] = ()
    since: datetime | None = None

    @property
    def trial(self) -> Deployment | None:
        """The deployment, while it is under way."""
        return self.deployment if self.deployment and self.deployment.active else None


@dataclass(frozen=True, slots=True)
class Rejection:
    """A digest that failed on this device, and why."""

    digest: str
    slot: str
    problem: Problem
    at: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """All that the journal holds.

    Attributes:
        stream: random, made with the journal; starts: how often the agent was started on it.
        deployments: attempts so far, for their ids.
        payload: the accepted assignment's bytes.
        ended: the boot that the agent was told to end in; empty while it runs.
        unverified: digests of images that are not trusted before they are verified.
    """

    device: str
    stream: str = ""
    starts: int = 0
    boot_id: str = ""
    deployments: int = 0
    payload: bytes | None = None
    marks: Marks = field(default_factory=Marks)
    slots: Mapping[str, SlotEntry] = field(default_factory=dict)
    rejected: Mapping[str, Rejection] = field(default_factory=dict)
    ended: str = ""
    unverified: frozenset[str] = frozenset()

    def needed_digests(self) -> frozenset[str]:
        """Images that must stay on the device."""
        found = set()
        for slot in self.slots.values():
            trial = slot.trial.image if slot.trial else None
            found |= {image.digest for image in (slot.known_good, slot.previous, trial) if image}
        return frozenset(found)


def same(one: TrustedImage | None, other: TrustedImage | None) -> bool:
    """Whether two are the same release image (None is no image)."""
    if one is None or other is None:
        return one is other
    return (one.path, one.digest) == (other.path, other.digest)


def withdrawn(image: TrustedImage, marks: Marks) -> bool:
    """Whether the owner said that it must not run, not even as a rollback."""
    least = marks.min_counters.get(f"{image.image.model}/{image.image.profile}", 0)
    return image.digest in marks.revoked or image.image.counter < least


def container_name(device: str, slot: str, image: TrustedImage) -> str:
    """The name of the container that runs an image in a slot. No two releases share one."""
    return f"wherry.{device}.{slot}.{image.image.model}.{image.image.counter}"
