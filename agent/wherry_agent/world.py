"""What one turn of the control loop is given: the ports it uses and the policy it follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from wherry.messages import GateResult
from wherry.profile import DeviceProfile, HostFacts
from wherry_agent import events, steps
from wherry_agent.assignment import TrustedImage
from wherry_agent.entry import Limits
from wherry_agent.own_version import Running
from wherry_agent.ports import (
    AssignmentSource,
    Clock,
    Engine,
    Host,
    Link,
    LockReader,
    Prober,
    Recorder,
    Route,
    TrustPort,
)

Recheck = Callable[[str, TrustedImage], GateResult | None]
"""The golden cases of a serving container, asked again (see `golden_cases.GoldenCases.recheck`)."""


class StepWorker(Protocol):
    """Does one step at a time (see `worker.Worker`)."""

    @property
    def step(self) -> steps.Step | None:
        """The one under way."""

    def submit(self, step: steps.Step) -> None:
        """Begin a step."""

    def cancel(self) -> None:
        """Ask it to give way."""

    def settle(self) -> None:
        """Its outcome was taken in."""


@dataclass(frozen=True, slots=True)
class World:
    """The ports that a turn uses."""

    engine: Engine
    route: Route
    host: Host
    prober: Prober
    trust: TrustPort
    source: AssignmentSource
    link: Link
    recorder: Recorder
    lock: LockReader
    clock: Clock
    put: Callable[[events.Event], None]
    recheck: Recheck
    own_version: Callable[[], Running] = Running


@dataclass(frozen=True, slots=True)
class Policy:
    """What a turn needs of the configuration.

    Attributes:
        profile_name: the device's profile; `profile` is its data, None when this agent does not ship it.
        fixed_ports, base_port: stable ports of slots.
        route_check_seconds: how often the packet filter is read back when nothing happens.
        report_seconds: how often an unchanged state is reported again.
        unready_restarts: unanswered health checks in a row before a running known-good is started anew.
        tick_seconds: from check to check.
        golden_seconds: how often the golden cases of what serves are asked again.
    """

    profile_name: str
    profile: DeviceProfile | None = None
    facts: HostFacts | None = None
    limits: Limits = field(default_factory=Limits)
    fixed_ports: Mapping[str, int] = field(default_factory=dict)
    base_port: int = 8500
    watermark_bytes: int = 0
    route_check_seconds: float = 30.0
    report_seconds: float = 300.0
    unready_restarts: int = 6
    tick_seconds: float = 5.0
    golden_seconds: float = 900.0
