"""What the agent can do, as frozen values. Every step is idempotent: doing it twice is doing it once.

A plan is a list of steps; the executor turns each into calls of ports. A step that belongs to a
deployment names the `move` of the phase table that beginning it makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from wherry.messages import GateResult
from wherry_agent.assignment import TrustedImage

Mode = Literal["overlap", "replace"]


@dataclass(frozen=True, slots=True)
class Step:
    """Base of all steps.

    Attributes:
        slot: the slot it works on.
        move: the phase-table event that beginning it makes, or None outside a deployment.
        interruptible: whether a newer desired state may cancel it half way.
        urgent: whether a running download must give way: it restores service, or ends what must not run.
    """

    slot: str

    move: ClassVar[str | None] = None
    interruptible: ClassVar[bool] = False
    urgent: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        """Its name, as logs show it."""
        return type(self).__name__


@dataclass(frozen=True, slots=True)
class Fetch(Step):
    """Bring the image to the engine and verify what arrived."""

    image: TrustedImage

    move = "fetch"
    interruptible = True


@dataclass(frozen=True, slots=True)
class Stage(Step):
    """Create the candidate's container, not running."""

    image: TrustedImage
    slot_port: int

    move = "stage"


@dataclass(frozen=True, slots=True)
class Retire(Step):
    """Drain and stop a container, keep it: before the candidate starts where memory does not hold both.

    Callers of the slot's stable port wait from here to the switch, where the route can let them.
    """

    image: TrustedImage
    slot_port: int

    move = "start"


@dataclass(frozen=True, slots=True)
class Start(Step):
    """Start the candidate's container."""

    image: TrustedImage
    mode: Mode

    move = "start"


@dataclass(frozen=True, slots=True)
class Probe(Step):
    """Pass the candidate through the gates that the release declares.

    Attributes:
        beside: what serves meanwhile, to compare with.
    """

    image: TrustedImage
    beside: TrustedImage | None = None

    move = "probe"
    interruptible = True


@dataclass(frozen=True, slots=True)
class Switch(Step):
    """Turn the slot's stable port to the candidate.

    Attributes:
        partners: of slots that go together with it: all ports turn in one transaction.
    """

    image: TrustedImage
    slot_port: int
    partners: tuple[Switch, ...] = ()

    move = "switch"


@dataclass(frozen=True, slots=True)
class Soak(Step):
    """Watch the candidate answer real callers for a while; the old one still runs.

    Attributes:
        beside: the old one, to compare with.
    """

    image: TrustedImage
    beside: TrustedImage | None = None

    move = "soak"
    interruptible = True


@dataclass(frozen=True, slots=True)
class Commit(Step):
    """See that the candidate still runs; the journal then makes it known-good."""

    image: TrustedImage

    move = "commit"


@dataclass(frozen=True, slots=True)
class Prune(Step):
    """Remove containers and images that no release of the slot needs any more."""

    containers: tuple[str, ...]
    images: tuple[TrustedImage, ...]


@dataclass(frozen=True, slots=True)
class Withdraw(Step):
    """Remove containers of releases that the owner withdrew; no download holds it up."""

    containers: tuple[str, ...]

    urgent = True


@dataclass(frozen=True, slots=True)
class Rollback(Step):
    """Turn the slot's port to what should answer, if it runs, and remove the candidate. No network needed.

    Attributes:
        back: what should answer.
    """

    candidate: TrustedImage
    slot_port: int = 0
    back: TrustedImage | None = None

    move = "roll_back"


@dataclass(frozen=True, slots=True)
class Remove(Step):
    """Empty a slot: route away, containers drained and removed."""

    slot_port: int
    containers: tuple[str, ...]
    drain_seconds: int

    move = "remove"


@dataclass(frozen=True, slots=True)
class StandDown(Step):
    """Drain and stop the release before the known-good; its container is kept for rollback."""

    image: TrustedImage


@dataclass(frozen=True, slots=True)
class FallBack(Step):
    """Put the release before back in the place of a committed one that does not do well now. No network needed.

    Attributes:
        image: the release before; it passes its gates first, while the other goes on answering.
        rejected: the committed one.
        why: what was found: its golden cases, crashes or traffic.
        partners: of slots that were committed together with it: they go back with it, and are not to blame.
    """

    image: TrustedImage
    slot_port: int
    rejected: TrustedImage
    why: GateResult
    partners: tuple[FallBack, ...] = ()

    urgent = True


@dataclass(frozen=True, slots=True)
class GoBack(Step):
    """Leave the agent's place to another version of it: its owner withdrew the one that runs.

    Attributes:
        image: what runs.
        back_to: what is to run; None for the agent that was installed.
    """

    image: TrustedImage
    back_to: TrustedImage | None = None

    urgent = True


@dataclass(frozen=True, slots=True)
class Verify(Step):
    """See that the engine's copy of an image is what was signed; a damaged one goes and is fetched again.

    Attributes:
        serves: it is the known-good, which serves meanwhile.
        stands_in: the release before, verified, to serve while the known-good is fetched again.
        fetches: whether a damaged copy is fetched again at once. The known-good may share the damaged layers: while it
            is in doubt, another copy would keep them on the disk.
    """

    image: TrustedImage
    slot_port: int
    serves: bool = False
    stands_in: TrustedImage | None = None
    fetches: bool = True

    interruptible = True


@dataclass(frozen=True, slots=True)
class EnsureServing(Step):
    """Bring a dead release back to life; `restart` also when it runs but does not answer."""

    image: TrustedImage
    slot_port: int
    restart: bool = False

    urgent = True


@dataclass(frozen=True, slots=True)
class EnsureRoute(Step):
    """Turn the slot's stable port to the container that should serve.

    Attributes:
        partners: of slots that went ahead together with it: all ports go back in one transaction.
    """

    image: TrustedImage
    slot_port: int
    port: int
    partners: tuple[EnsureRoute, ...] = ()

    urgent = True
