"""What the executor and the control loop ask of the world: Protocols, whose values are in `observed`.

Adapters implement the Protocols and wrap every foreign exception into `wherry.errors`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any, Protocol

from wherry.messages import Record, StateReport, TelemetryBatch, UpdateLock
from wherry.release import GoldenCase
from wherry_agent.assignment import Assignment, Marks, TrustedImage
from wherry_agent.observed import (
    Container,
    Recorded,
    RestartPolicy,
    Share,
    Target,
    Way,
)

Clock = Callable[[], datetime]
"""The time now, aware, UTC."""

Writing = Callable[[str], AbstractContextManager[None]]
"""What a writer writes to disk meanwhile is counted under its name (see `host.flash.FlashMeter`)."""

Progress = Callable[[int, int], None]
"""Called with fetched and total bytes."""


def uncounted(_writer: str) -> AbstractContextManager[None]:
    """Counts nothing."""
    return nullcontext()


class Cancel:
    """Tells a running step to give way. One object a step; waits inside steps go through it."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask the step to give way."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether the step was asked to give way."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, or less when asked to give way; returns `is_set`."""
        return self._event.wait(seconds)

    def check(self) -> None:
        """Raise StepCancelled when asked to give way."""
        if self.is_set:
            raise StepCancelled


class StepCancelled(Exception):
    """A step noticed its `Cancel`."""


class Engine(Protocol):
    """The container engine. All methods raise EngineError; all are idempotent."""

    def observe(self) -> Mapping[str, Container]:
        """This device's containers; cheap, no inspection of each."""

    def inspect(self, name: str) -> Container | None:
        """One of this device's containers with restart policy and exit code; None when absent.

        Raises:
            Conflict: the name belongs to a container that is not ours.
        """

    def has_image(self, image: TrustedImage) -> bool:
        """Whether exactly the signed image is on the device.

        Raises:
            Tampered: something else answers to its name.
        """

    def verify_image(self, image: TrustedImage, cancel: Cancel) -> None:
        """See that what the engine has on disk is what was signed; takes seconds to minutes.

        Raises:
            Tampered: it is not.
            StepCancelled: asked to give way.
        """

    def create(self, name: str, slot: str, image: TrustedImage, port: int, slot_port: int) -> None:
        """Create the container, hardened and not running, unless it exists.

        Raises:
            Conflict: the name belongs to a container that is not ours.
        """

    def start(self, name: str) -> None:
        """Start a container; nothing when it runs."""

    def stop(self, name: str, drain_seconds: int) -> None:
        """SIGTERM, then SIGKILL after the drain and a margin; nothing when absent or stopped."""

    def restart_policy(self, name: str, policy: RestartPolicy) -> None:
        """Change the policy of an existing container."""

    def processor_share(self, name: str, share: Share) -> None:
        """How much of a busy processor a container gets beside others: as much as any other, or an eighth of that."""

    def remove(self, name: str) -> None:
        """Kill and remove a container of ours; nothing when absent."""

    def remove_image(self, image: TrustedImage) -> None:
        """Remove an image unless some container needs it; nothing when absent."""

    def read_file(self, name: str, path: str, limit: int) -> bytes:
        """A file from a container that need not run.

        Raises:
            NotFound: no such file.
        """

    def read_tree(self, name: str, path: str) -> Iterator[bytes]:
        """A folder of a container that need not run, as a tar stream.

        Raises:
            NotFound: no such folder.
        """

    def memory_bytes(self, name: str) -> int | None:
        """Memory that a running container holds and that cannot be taken back; None where the engine does not say."""

    def last_words(self, name: str) -> str:
        """The end of the container's log, one line, for the reason of a failure."""


class Fetcher(Protocol):
    """Brings images to the engine."""

    def fetch(self, image: TrustedImage, cancel: Cancel, progress: Progress) -> None:
        """Make `Engine.has_image` true.

        Raises:
            RegistryError: not reachable, stalled, or past its deadline.
            Tampered: what came is not what was signed.
            StepCancelled: asked to give way.
        """

    def offered(self, image: TrustedImage, cancel: Cancel) -> bool:
        """Whether its registry answers and has the image, so that it could be fetched now.

        Raises:
            StepCancelled: asked to give way.
        """


class Route(Protocol):
    """Slots' stable endpoints. All methods raise RouteError; all are idempotent."""

    def read(self) -> Mapping[int, int]:
        """Stable port to the port that callers reach by it; a port whose callers wait leads to none."""

    def ways(self) -> Mapping[int, Way]:
        """By which way each stable port led when it was last read."""

    def turn(self, targets: Mapping[int, Target]) -> None:
        """Turn stable ports together; others stay. Connections that exist stay where they are, who waits goes on."""

    def hold(self, stable: int, image: TrustedImage) -> bool:
        """Let callers wait until the port is turned again; False, and nothing changed, where they cannot.

        Args:
            stable: the port.
            image: what answered so far.
        """

    def held(self, stable: int) -> bool:
        """Whether callers wait."""

    def drain(self, port: int, seconds: float) -> None:
        """Return when the route itself waits for no answer from a container's port, or after so many seconds."""

    def drop(self, stable: Collection[int]) -> None:
        """Lead these stable ports nowhere."""

    def statistics(self, port: int, model: str) -> Any:
        """A model's statistics document, by what the route let by to a container's port; None where it counts nothing.

        Never raises.
        """


class Prober(Protocol):
    """Asks a model server. All methods raise InferenceError when there is no usable answer in time."""

    def ready(self, base_url: str, model: str, timeout: float) -> bool:
        """One question to `v2/models/M/ready`; False for any answer but 200 and for none at all."""

    def status(self, base_url: str, path: str, timeout: float) -> int | None:
        """Status code of a GET; None when there is no answer."""

    def metadata(self, base_url: str, model: str, timeout: float) -> dict[str, Any]:
        """The model's metadata document."""

    def infer(self, base_url: str, model: str, case: GoldenCase, timeout: float) -> tuple[Sequence[Any], float]:
        """Post a case's inputs in binary form; the output tensors and the seconds it took."""

    def keeps_connection(self, port: int, timeout: float) -> bool:
        """Whether a loopback port takes a connection and does not close it at once."""

    def stats(self, base_url: str, model: str, timeout: float) -> Any:
        """The model's statistics document."""

    def recent(self, base_url: str, token: str, model: str, timeout: float) -> Sequence[int]:
        """Numbers of the latest requests that the server keeps, oldest first; none where it keeps none."""

    def recorded(self, base_url: str, token: str, number: int, timeout: float) -> Recorded | None:
        """One of them; None when it has given way."""

    def replay(self, base_url: str, model: str, recorded: Recorded, timeout: float) -> tuple[Sequence[Any], float]:
        """Ask it again, as it came; the output tensors and the seconds it took."""


class Host(Protocol):
    """The device itself."""

    def boot_id(self) -> str:
        """Changes with every boot of the kernel."""

    def memory_available_mb(self) -> int:
        """Memory that a new process could use."""

    def memory_total_mb(self) -> int:
        """Installed memory."""

    def disk_free_bytes(self) -> int:
        """Free on the filesystem that holds images."""

    def inodes_free(self) -> int | None:
        """Files that it can still hold; None where it makes room for them as needed."""

    def temperatures(self) -> Mapping[str, float]:
        """Degrees Celsius by sensor, as far as there are any."""

    def port_free(self, port: int) -> bool:
        """Whether nothing listens on this loopback port."""


class TrustPort(Protocol):
    """Verifies assignments (see `wherry_agent.trust`)."""

    def verify(
        self,
        payload: bytes,
        marks: Marks,
        now: datetime,
        online: bool = True,
        serving: Mapping[str, str] | None = None,
    ) -> tuple[Assignment, Marks]:
        """Check everything; the caller persists the marks before acting.

        Raises:
            TrustError: refused, nothing changed.
            ServerError: metadata cannot be fetched.
        """

    def refresh(self, marks: Marks, now: datetime) -> Marks:
        """Learn what the owner withdrew since.

        Raises:
            TrustError: refused, nothing changed.
            ServerError: metadata cannot be fetched.
        """

    def withdrawals(self, marks: Marks) -> Marks:
        """What the owner withdrew by local files, without a network; raises as `stored`."""

    def stored(self, payload: bytes, marks: Marks, now: datetime) -> Assignment:
        """Read an accepted assignment again from local files, without a network.

        Raises:
            TrustError: the local files no longer prove it.
        """


class Link(Protocol):
    """The way to the server."""

    def report(self, state: StateReport) -> None:
        """Keep the newest report and send it whenever there is a connection."""

    def send_batch(self, batch: TelemetryBatch) -> bool:
        """Send telemetry; False when not connected."""


class LockReader(Protocol):
    """Where applications leave their update lock."""

    def read(self, now: datetime) -> UpdateLock | None:
        """The lock that holds now. Never raises: what is unreadable holds nothing off."""


class Recorder(Protocol):
    """Where deployment events go to wait for the server."""

    def append(self, record: Record, at: datetime) -> None:
        """Store a record; the oldest give way when the budget is used up."""


class AssignmentSource(Protocol):
    """The server's HTTPS API, for polling."""

    def fetch_assignment(self) -> bytes | None:
        """The current assignment, or None when there is none.

        Raises:
            ServerError: no answer.
        """
