"""Every message on the MQTT channel, as pydantic models. docs/asyncapi.yaml is generated from them.

Unknown fields are tolerated (a newer sender adds fields), unknown schema versions are refused.
The signed assignment itself (topic `assign`) is TUF metadata, see docs/decisions/0002-tuf.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from wherry.envelope import MESSAGE_SCHEMA as MESSAGE_SCHEMA
from wherry.envelope import Instant
from wherry.envelope import Message as _Message
from wherry.envelope import Model as _Model
from wherry.envelope import Problem as Problem
from wherry.errors import MalformedMessage, UnsupportedSchema
from wherry.identity import DeviceId, Digest, ModelName, ModelVersion, ProfileName, SlotName
from wherry.questions import DiagnoseReply, DiagnoseRequest, LogsReply, LogsRequest
from wherry.schemas import load_json

PHASES = (
    "admitted", "fetching", "staging", "starting", "probing", "switching", "soaking", "committing",
    "committed", "rolling_back", "rejected", "refused", "removed",
)  # fmt: skip
Phase = Literal[
    "admitted", "fetching", "staging", "starting", "probing", "switching", "soaking", "committing",
    "committed", "rolling_back", "rejected", "refused", "removed",
]  # fmt: skip
"""Phases of a deployment as reported. The last of a deployment is one of FINAL_PHASES.

`rejected`: a gate or a step failed, the digest is remembered and the known-good serves on.
`refused`: nothing was fetched: the assignment did not pass trust, fit or admission.
"""
FINAL_PHASES = frozenset({"committed", "rejected", "refused", "removed"})


class ReleaseRef(_Model):
    """Which release: enough to name it and to compare it."""

    model: ModelName
    version: ModelVersion
    counter: int
    digest: Digest


class GateResult(_Model):
    """What a health gate found, with its numbers.

    Attributes:
        numbers: measured values by name, for example {"worst_error": 2e-5, "tolerance": 1e-3}.
    """

    kind: str
    ok: bool
    detail: str
    seconds: float
    numbers: dict[str, float] = {}


class DeploymentReport(_Model):
    """One device's attempt at one release, as it stands.

    Attributes:
        id: unique per device; the same in every report of the attempt.
        sequence: sequence of the assignment that asked for it.
        phases: (phase, when it began) in order.
        fetched_bytes / total_bytes: download progress.
        gate: kind of the health gate that is asking now.
        deadline: when that gate ends at the latest: a soak well, any other as failed.
        together: the other slots that move in this attempt too, or none does.
        culprit: the one of them for whose failure this one went back, or is not tried.
    """

    id: str
    slot: SlotName
    release: ReleaseRef
    previous: ReleaseRef | None = None
    sequence: int
    phase: Phase
    started: Instant
    updated: Instant
    phases: list[tuple[str, Instant]] = []
    fetched_bytes: int = 0
    total_bytes: int = 0
    mode: Literal["overlap", "replace"] | None = None
    gates: list[GateResult] = []
    gate: str | None = None
    deadline: Instant | None = None
    problem: Problem | None = None
    together: list[SlotName] = []
    culprit: SlotName | None = None


class UpdateLock(_Model):
    """An application on the device holds off swaps until it lets go or the lock expires.

    Attributes:
        holder: who holds it, as it called itself.
        reason: why, in the holder's words.
    """

    holder: str
    reason: str = ""
    expires: Instant


class SlotReport(_Model):
    """One slot as it is on the device.

    Attributes:
        port: the stable local port where applications find the model.
        route: how callers reach it by that port: "kernel" (a redirect) or "haproxy"; empty when it leads nowhere.
        serving: the release that answers now, or None.
        since: when `serving` began to answer here.
        known_good: the last one committed.
    """

    slot: SlotName
    port: int
    route: str = ""
    serving: ReleaseRef | None = None
    since: Instant | None = None
    known_good: ReleaseRef | None = None
    desired: ReleaseRef | None = None
    healthy: bool = False
    deployment: DeploymentReport | None = None


UNDERSTOOD = ("together", "needs.slots", "agent")
"""What harms at an agent that does not know it. Slots that go together or not at all, and slots that a release needs,
it would ignore; an assignment with a release of the agent it would refuse, for all its slots."""


class StateReport(_Message):
    """Topic up/state, retained: the whole reported state; the newest wins.

    Attributes:
        stream, number: order reports of one agent installation; a lower number is stale.
        sequence: the newest assignment accepted.
        lock: holds off swaps on this device now.
        facts: what hardware and system it is, by name ("device_tree_model", "l4t_release", "cuda", …).
        problem: why the device cannot converge now, if it cannot.
        refused: sequence of the assignment that `problem` is about, when that was refused for good; else 0.
        understands: what of an assignment this agent knows that older ones ignore, see `UNDERSTOOD`.
    """

    type: Literal["state"] = "state"
    device: DeviceId
    profile: ProfileName
    agent_version: str
    stream: str
    number: int
    at: Instant
    boot_id: str
    sequence: int
    slots: list[SlotReport] = []
    rejected: list[Digest] = []
    lock: UpdateLock | None = None
    facts: dict[str, str] = {}
    problem: Problem | None = None
    refused: int = 0
    understands: list[str] = []


class Presence(_Message):
    """Topic up/presence, retained; `online: false` is the device's last will."""

    type: Literal["presence"] = "presence"
    device: DeviceId
    online: bool
    at: Instant | None = None


LATENCY_EDGES_US: tuple[int, ...] = tuple(int(100 * 2 ** (i / 2)) for i in range(40))
"""Upper edges of the latency histogram's bins, microseconds: 100 us to 74 s, two bins an octave.

A histogram has one more bin than edges, the last one unbounded. Fixed, so windows merge by addition.
"""


class SlotSample(_Model):
    """What one slot's release did since the sample before.

    Attributes:
        seconds: length of the window.
        requests / failures: counted in the window; failures are not among requests.
        latency: counts by LATENCY_EDGES_US, one more than edges; of successful requests.
        latency_sum_us: sum of latencies.
        memory_bytes: of the container.
    """

    type: Literal["slot"] = "slot"
    slot: SlotName
    model: ModelName
    version: ModelVersion
    counter: int
    seconds: float
    requests: int = 0
    failures: int = 0
    latency: list[int] = []
    latency_sum_us: int = 0
    memory_bytes: int | None = None


class HostSample(_Model):
    """The device itself. Percentages are 0 to 100; temperatures in degrees Celsius, watts of power by sensor.

    Attributes:
        throttled: why the hardware runs slower than it could now ("under-voltage", "temperature", …); None when it
            cannot tell.
        throttled_since_boot: what slowed it at some time since boot, where the hardware remembers.
        gpu_percent, gpu_memory_used_bytes: of the GPU, where the kernel tells.
        wear_percent: of the flash storage's life, used up, by device.
        agent_written_bytes: to disk in the last 24 hours, or since the agent started, by writer; "all" is their sum
            and what no writer is named for.
    """

    type: Literal["host"] = "host"
    cpu_percent: float
    memory_used_bytes: int
    memory_total_bytes: int
    disk_used_bytes: int
    disk_total_bytes: int
    temperatures: dict[str, float] = {}
    watts: dict[str, float] = {}
    throttled: list[str] | None = None
    throttled_since_boot: list[str] = []
    gpu_percent: float | None = None
    gpu_memory_used_bytes: int | None = None
    wear_percent: dict[str, float] = {}
    agent_rss_bytes: int = 0
    agent_cpu_seconds: float = 0.0
    agent_written_bytes: dict[str, int] = {}


class DeploymentEvent(_Model):
    """A deployment entered a phase; the whole report, so that the server's history is complete."""

    type: Literal["deployment"] = "deployment"
    deployment: DeploymentReport


class DropNotice(_Model):
    """Records the spool had to drop to stay within its budget, by type. Nothing is lost silently."""

    type: Literal["drop"] = "drop"
    dropped: dict[str, int]


Record = Annotated[SlotSample | HostSample | DeploymentEvent | DropNotice, Field(discriminator="type")]


class TelemetryRecord(_Model):
    """A spooled record: numbered once, when it is written."""

    sequence: int
    at: Instant
    record: Record


class TelemetryBatch(_Message):
    """Topic up/telemetry: records in order. The server dedups on (device, stream, sequence).

    The device keeps a batch until the server's `TelemetryAck` names its last sequence: a broker that
    is killed forgets messages it has acknowledged.
    """

    type: Literal["telemetry"] = "telemetry"
    device: DeviceId
    stream: str
    records: list[TelemetryRecord]


class TelemetryAck(_Message):
    """Topic cmd: the server stored everything of a stream up to and including a sequence."""

    type: Literal["telemetry_ack"] = "telemetry_ack"
    stream: str
    sequence: int


class PollNow(_Message):
    """Topic cmd: fetch the assignment over HTTPS now."""

    type: Literal["poll_now"] = "poll_now"


class Retry(_Message):
    """Topic cmd: forget that a digest was rejected; the signed assignment decides what happens next."""

    type: Literal["retry"] = "retry"
    slot: SlotName
    digest: Digest


AnyCommand = TelemetryAck | PollNow | Retry | LogsRequest | DiagnoseRequest
AnyUpMessage = StateReport | Presence | TelemetryBatch | LogsReply | DiagnoseReply
Command = Annotated[AnyCommand, Field(discriminator="type")]
UpMessage = Annotated[AnyUpMessage, Field(discriminator="type")]
_COMMAND: TypeAdapter[AnyCommand] = TypeAdapter(Command)
_UP: TypeAdapter[AnyUpMessage] = TypeAdapter(UpMessage)


def _parse(adapter: TypeAdapter[Any], payload: bytes, name: str) -> Any:
    data = load_json(payload, name)
    if not isinstance(data, dict):
        raise MalformedMessage(name, "is not a JSON object")
    schema = data.get("schema")
    if schema != MESSAGE_SCHEMA or isinstance(schema, bool):
        raise UnsupportedSchema(name, f"has schema version {schema!r}, this program knows {MESSAGE_SCHEMA}")
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "message"
        raise MalformedMessage(name, f"field {where}: {first['msg']}") from error


def parse_command(payload: bytes) -> AnyCommand:
    """Read a message from a device's `cmd` topic.

    Raises:
        MalformedMessage: not JSON, not a known type, or a wrong field.
        UnsupportedSchema: a schema version this program does not know.
    """
    command: AnyCommand = _parse(_COMMAND, payload, "command")
    return command


def parse_up(payload: bytes) -> AnyUpMessage:
    """Read a message from a device's `up/…` topics.

    Raises:
        MalformedMessage: not JSON, not a known type, or a wrong field.
        UnsupportedSchema: a schema version this program does not know.
    """
    message: AnyUpMessage = _parse(_UP, payload, "device message")
    return message
