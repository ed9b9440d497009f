"""Health gates as the owner signs them: what a candidate must pass on a device. Part of `wherry.release`.

Fields that are 0 or "0" ask nothing. A kind that this program does not know is kept as it is (`UnknownGate`), so that
whoever reads a newer release can refuse it in words: a gate is never skipped silently.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from wherry.identity import Digest

DecimalText = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}(\.[0-9]{1,9})?$")]
_Percent = Annotated[int, Field(ge=0, le=100)]
_Milliseconds = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class ReadyGate(_Model):
    """The container runs and `GET /v2/models/M/ready` answers 200 in time."""

    kind: Literal["ready"] = "ready"
    deadline_seconds: int = Field(default=60, ge=1, le=3600)


class SignatureGate(_Model):
    """The model's metadata names the inputs, outputs and execution provider that the release declares."""

    kind: Literal["signature"] = "signature"
    deadline_seconds: int = Field(default=10, ge=1, le=600)


class GoldenGate(_Model):
    """The golden cases in the image give their recorded outputs, within a tolerance.

    They are asked again after the switch: at the end of the soak, ten seconds and a minute later, and then now and
    then for as long as the release serves.

    Attributes:
        digest: sha256 of the image's golden.json, so that the cases are named by the signature directly.
        tolerance: largest allowed |observed - expected| / max |expected|.
        cosine: smallest allowed cosine similarity.
        argmax: "equal" compares the last axis' argmax unless the golden margin is < 2 x tolerance; "ignore" does not.
    """

    kind: Literal["golden"] = "golden"
    deadline_seconds: int = Field(default=60, ge=1, le=3600)
    digest: Digest
    cases: int = Field(ge=1)
    tolerance: DecimalText = "0.001"
    cosine: DecimalText = "0.999"
    argmax: Literal["equal", "ignore"] = "equal"


class LatencyGate(_Model):
    """The golden cases are answered fast enough: absolutely, and beside the version that serves on this device.

    Attributes:
        p50_ms, p95_ms: bounds on the median and the 95th percentile.
        factor: both may be at most so many times those of the version that serves, asked in turn with the same
            inputs; not asked where none serves or it takes other inputs.
        floor_ms: differences up to this do not matter.
    """

    kind: Literal["latency"] = "latency"
    deadline_seconds: int = Field(default=60, ge=1, le=3600)
    p50_ms: _Milliseconds = 0
    p95_ms: _Milliseconds = 0
    factor: DecimalText = "0"
    floor_ms: _Milliseconds = 5


class MemoryGate(_Model):
    """After the golden cases the container holds no more memory than this (file cache does not count).

    Attributes:
        percent: of the container's memory limit.
        ceiling_mb: MiB.
    """

    kind: Literal["memory"] = "memory"
    deadline_seconds: int = Field(default=10, ge=1, le=600)
    percent: _Percent = 90
    ceiling_mb: int = Field(default=0, ge=0)


class TemperatureGate(_Model):
    """No sensor of the device is warmer than this after the candidate worked."""

    kind: Literal["temperature"] = "temperature"
    deadline_seconds: int = Field(default=10, ge=1, le=600)
    ceiling_celsius: int = Field(default=85, ge=1, le=150)


class HttpGate(_Model):
    """`GET path` answers the status: for images that do not speak the Open Inference Protocol."""

    kind: Literal["http"] = "http"
    deadline_seconds: int = Field(default=60, ge=1, le=3600)
    path: str = "/"
    status: int = Field(default=200, ge=100, le=599)


class TcpGate(_Model):
    """The port takes a connection and keeps it: for images that speak no HTTP."""

    kind: Literal["tcp"] = "tcp"
    deadline_seconds: int = Field(default=60, ge=1, le=3600)


class _ReplayGate(_Model):
    """The candidate is asked what callers of this device asked the version that serves; its answers are compared.

    A release with such a gate consents that its model server keeps the last `requests` requests and its answers in
    memory while it serves: bounded in count and bytes, never on disk, read by the agent of the device only.

    Attributes:
        requests: at most so many.
        least: fewer than these prove nothing, and the gate passes with these words.
        agreement_percent: of the answers must agree.
        by: what it means to agree: "values" within the tolerance, or the same top "class" on the last axis.
        tolerance: as of golden cases; by class, what is closer together than twice this is undecided.
        error_percent: of the requests may fail.
        factor, floor_ms: as of the latency gate, over these requests.
    """

    requests: int = Field(default=50, ge=1, le=1000)
    least: int = Field(default=5, ge=1, le=1000)
    agreement_percent: _Percent = 95
    by: Literal["values", "class"] = "values"
    tolerance: DecimalText = "0.05"
    error_percent: _Percent = 0
    factor: DecimalText = "0"
    floor_ms: _Milliseconds = 5


class RehearsalGate(_ReplayGate):
    """The last requests that the version that serves answered are replayed before the candidate gets traffic."""

    kind: Literal["rehearsal"] = "rehearsal"
    deadline_seconds: int = Field(default=120, ge=1, le=3600)


class ShadowGate(_ReplayGate):
    """For a while before the switch the candidate is asked a sample of what callers ask meanwhile.

    Attributes:
        seconds: how long.
    """

    kind: Literal["shadow"] = "shadow"
    deadline_seconds: int = Field(default=300, ge=1, le=3600)
    seconds: int = Field(default=10, ge=1, le=3000)


class SoakGate(_Model):
    """After the switch: crashes, error rate and latency of real traffic, beside those of the version before.

    Attributes:
        seconds: how long; 0 leaves it to the device.
        least: fewer requests than these are not judged by rate and latency.
        error_percent: percentage points by which the share of failed requests may grow.
        factor, floor_ms: the mean latency may be so many times that of the version before; small differences do
            not matter.
    """

    kind: Literal["soak"] = "soak"
    deadline_seconds: int = Field(default=60, ge=1, le=3600)
    seconds: int = Field(default=0, ge=0, le=3600)
    least: int = Field(default=50, ge=1)
    error_percent: _Percent = 5
    factor: DecimalText = "3"
    floor_ms: _Milliseconds = 100


class UnknownGate(BaseModel):
    """A gate of a newer release, kept as it was signed. Whoever must ask it refuses the release."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str


_Known = (
    ReadyGate
    | SignatureGate
    | GoldenGate
    | LatencyGate
    | MemoryGate
    | TemperatureGate
    | HttpGate
    | TcpGate
    | RehearsalGate
    | ShadowGate
    | SoakGate
)
GATES: dict[str, type[BaseModel]] = {gate.model_fields["kind"].default: gate for gate in get_args(_Known)}
"""The gates this program knows, by kind."""


def _tag(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if kind in GATES else "unknown"


Gate = Annotated[
    Annotated[ReadyGate, Tag("ready")]
    | Annotated[SignatureGate, Tag("signature")]
    | Annotated[GoldenGate, Tag("golden")]
    | Annotated[LatencyGate, Tag("latency")]
    | Annotated[MemoryGate, Tag("memory")]
    | Annotated[TemperatureGate, Tag("temperature")]
    | Annotated[HttpGate, Tag("http")]
    | Annotated[TcpGate, Tag("tcp")]
    | Annotated[RehearsalGate, Tag("rehearsal")]
    | Annotated[ShadowGate, Tag("shadow")]
    | Annotated[SoakGate, Tag("soak")]
    | Annotated[UnknownGate, Tag("unknown")],
    Discriminator(_tag),
]


def recorded_requests(gates: list[Gate]) -> int:
    """How many of its latest requests the release consents to keep in memory while it serves; 0 for none."""
    return max((gate.requests for gate in gates if isinstance(gate, RehearsalGate | ShadowGate)), default=0)
