"""The device as decisions see it: containers, routes, room. Frozen values; what asks for them is in `ports`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from wherry.messages import ReleaseRef, UpdateLock
from wherry_agent.assignment import TrustedImage
from wherry_agent.own_version import Running

ContainerState = Literal["created", "running", "restarting", "paused", "exited", "dead", "removing"]
RestartPolicy = Literal["no", "unless-stopped"]
Share = Literal["full", "small"]
Way = Literal["kernel", "haproxy"]
"""How callers of a slot's stable port reach a container: by a redirect of the kernel, or through a proxy."""


@dataclass(frozen=True, slots=True)
class Container:
    """One of this device's containers, as the engine shows it.

    Attributes:
        image: the signed image it was made from, read back from its labels; None if they are not readable.
        port: loopback port it is published on.
        slot_port: the slot's stable port when it was made.
        restart: its restart policy, where it was asked for.
        exit_code, oom_killed: of an exited container, where it was asked for.
        restarts: how often the engine brought it back by itself, where it was asked for.
        token: by which its model server knows this agent, where it was asked for.
        young: whether its process may have begun within the last minute.
        share: of a busy processor, where it was asked for.
    """

    name: str
    slot: str
    digest: str
    state: ContainerState
    port: int
    slot_port: int
    image: TrustedImage | None = None
    restart: str | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    restarts: int = 0
    token: str = field(default="", repr=False)
    young: bool = True
    share: Share = "full"

    @property
    def running(self) -> bool:
        """Whether its process runs, or the engine is bringing it back."""
        return self.state in ("running", "restarting")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request that a model server answered, and its answer.

    Attributes:
        form: "tensors", or a "picture" file.
        request, request_header: the body as it came, and where its JSON ends.
        outputs: tensors of the answer.
    """

    number: int
    form: str
    request: bytes
    request_header: int | None
    outputs: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Observed:
    """The world as it is now.

    Attributes:
        containers: this device's, by name.
        routes: slot's stable port to the port it is turned to.
        ways: by which way.
        memory_available_mb: free for a second container.
        lock: an application holds off swaps.
        agent: which agent runs.
    """

    containers: Mapping[str, Container] = field(default_factory=dict)
    routes: Mapping[int, int] = field(default_factory=dict)
    ways: Mapping[int, Way] = field(default_factory=dict, kw_only=True)
    memory_available_mb: int = 0
    lock: UpdateLock | None = None
    agent: Running = field(default_factory=Running)


@dataclass(frozen=True, slots=True)
class Room:
    """What admission looks at.

    Attributes:
        disk_free_bytes: on the engine's filesystem.
        memory_total_mb: installed.
        image_present: the image is on the device already.
        inodes_free: on the engine's filesystem; None where it makes them as needed.
    """

    disk_free_bytes: int
    memory_total_mb: int
    image_present: bool
    inodes_free: int | None = None


@dataclass(frozen=True, slots=True)
class ActiveSlot:
    """A slot that serves now, for telemetry.

    Attributes:
        base_url: the container's own address.
        counts: whether its model server counts what it answers; else the route may.
    """

    slot: str
    release: ReleaseRef
    base_url: str
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Target:
    """What a stable port is turned to: the loopback port of a container, and the image in it."""

    port: int
    image: TrustedImage
