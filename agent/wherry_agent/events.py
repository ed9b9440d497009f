"""Everything that can reach the control loop's inbox, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from wherry.errors import WherryError
from wherry.messages import GateResult, PollNow, Retry
from wherry_agent.assignment import Assignment, Marks
from wherry_agent.steps import Step

Blame = Literal["release", "world", "unclear"]
"""Whose fault a failed step is: the release (reject it), the world (try again for ever, with backoff), or
unclear (try again a few times, then reject)."""


@dataclass(frozen=True, slots=True)
class AssignmentReceived:
    """Bytes that claim to be a signed assignment. Nothing is verified yet."""

    payload: bytes
    source: Literal["mqtt", "https", "journal"]


@dataclass(frozen=True, slots=True)
class CommandReceived:
    """A command from the server (TelemetryAck goes to the spool directly)."""

    command: PollNow | Retry


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The MQTT link came up or went down."""

    connected: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: look at the world again."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the control loop; containers keep serving."""


@dataclass(frozen=True, slots=True)
class AssignmentVerified:
    """An assignment passed every check of trust. Journal the marks before acting on it."""

    payload: bytes
    assignment: Assignment
    marks: Marks


@dataclass(frozen=True, slots=True)
class AssignmentRefused:
    """An assignment did not pass, or could not be fetched or checked (`error` says which).

    Attributes:
        sequence: which one it was, by its own words, if it was refused for good; else 0.
    """

    payload: bytes | None
    error: WherryError
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A running download moved on."""

    step: Step
    fetched_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class GateAsked:
    """A candidate is being asked by a gate, which ends within `seconds`."""

    step: Step
    gate: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """A step succeeded; `gates` holds what a Probe or Soak measured."""

    gates: tuple[GateResult, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A step failed."""

    error: WherryError
    blame: Blame
    gates: tuple[GateResult, ...] = ()


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A step gave way to something newer or more urgent; it may be begun again."""


Outcome = Done | Failed | Cancelled


@dataclass(frozen=True, slots=True)
class StepFinished:
    """The worker ended a step."""

    step: Step
    outcome: Outcome = field(default_factory=Done)


@dataclass(frozen=True, slots=True)
class HealthChecked:
    """Whether the container that serves a slot answered ready just now."""

    slot: str
    container: str
    ok: bool


@dataclass(frozen=True, slots=True)
class GoldenRechecked:
    """What the golden cases of a serving container gave when asked again."""

    slot: str
    container: str
    result: GateResult


@dataclass(frozen=True, slots=True)
class Looked:
    """How a serving container has fared since its release was committed.

    Attributes:
        restarts: how often the engine brought it back; None when it was not asked.
        words: the container's last, if it was brought back.
        statistics: its model server's document, if it was asked and answered.
    """

    slot: str
    container: str
    restarts: int | None = None
    words: str = ""
    statistics: Any = None


@dataclass(frozen=True, slots=True)
class Damaged:
    """The engine's copy of an image is not what was signed; it is being mended."""

    step: Step
    error: WherryError


News = StepProgress | GateAsked | Damaged
"""What a running step tells of itself."""

Event = (
    AssignmentReceived
    | CommandReceived
    | LinkChanged
    | Tick
    | Stop
    | AssignmentVerified
    | AssignmentRefused
    | StepProgress
    | GateAsked
    | Damaged
    | StepFinished
    | HealthChecked
    | GoldenRechecked
    | Looked
)
