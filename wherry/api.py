"""The server's HTTP API as pydantic models: what the CLI, the agent and the server agree on.

Paths are under `/v1`. Operators send `Authorization: Bearer <API token>`; devices sign requests with
their key (see `wherry.device_auth`). Errors are `{"error": {"code", "thing", "reason", "fix"}}`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wherry.agent_release import AGENT_MODEL, AGENT_SLOT
from wherry.envelope import Instant
from wherry.identity import DeviceId, Digest, ModelName, ModelVersion, ProfileName, SlotName
from wherry.messages import DeploymentReport, Problem, ReleaseRef, SlotReport, UpdateLock
from wherry.questions import Check, LogLine

DEFAULT_SLOT = "main"


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class ErrorBody(_Model):
    """Every error response."""

    error: Problem


class OnlineKeys(_Model):
    """`GET /v1/keys`: the server's public keys, as TUF key dictionaries with their key ids."""

    timestamp: dict[str, Any]
    director: dict[str, Any]


class RepositoryUpload(_Model):
    """`POST /v1/repository`: owner-signed TUF metadata, file name to its JSON text.

    Names are `<n>.root.json`, `<n>.targets.json`, `<n>.snapshot.json`. All of them are checked and
    stored, or none.
    """

    files: dict[str, str]


class RepositoryInfo(_Model):
    """`GET /v1/repository`: the versions of the metadata that the server holds; 0 for none."""

    root: int
    targets: int
    snapshot: int
    timestamp: int
    expires: dict[str, datetime] = {}


class TokenRequest(_Model):
    """`POST /v1/tokens`: ask for a single-use join token."""

    device: DeviceId
    profile: ProfileName | None = None
    labels: dict[str, str] = {}
    hours: int = Field(default=24, ge=1, le=24 * 30)


class TokenCreated(_Model):
    """The secret is shown once; the server keeps its hash."""

    device: DeviceId
    secret: str
    expires: datetime
    server_ca_sha256: str


class EnrolRequest(_Model):
    """`POST /v1/enrol`: from the device; the token's secret is the authentication."""

    device: DeviceId
    secret: str
    profile: ProfileName
    agent_version: str
    csr_pem: str


class RenewRequest(_Model):
    """`POST /v1/renew`: signed with the device's current key."""

    csr_pem: str


class EnrolReply(_Model):
    """What a device needs to connect. `certificate_pem` is the leaf followed by the intermediates."""

    certificate_pem: str
    ca_pem: str
    broker_host: str
    broker_port: int
    expires: datetime


class DeviceView(_Model):
    """A device as the server knows it: the twin.

    Attributes:
        desired: slot to release that the server wants; `slots` is what the device reported.
        drift: slots where desired and reported differ.
    """

    id: DeviceId
    profile: ProfileName
    labels: dict[str, str] = {}
    online: bool = False
    revoked: bool = False
    agent_version: str = ""
    enrolled: datetime | None = None
    last_seen: datetime | None = None
    sequence: int = 0
    reported_sequence: int = 0
    desired: dict[str, ReleaseRef] = {}
    slots: list[SlotReport] = []
    drift: list[str] = []
    lock: UpdateLock | None = None
    facts: dict[str, str] = {}
    problem: Problem | None = None


class DeviceChange(_Model):
    """`PATCH /v1/devices/{id}`."""

    labels: dict[str, str]


class ReleaseImageView(_Model):
    """One image of a release."""

    profile: ProfileName
    counter: int
    digest: Digest
    repository: str
    download_bytes: int
    unpacked_bytes: int
    layers: dict[str, int] = {}
    runtime: str
    provider: str = ""
    precision: str
    withdrawn: bool = False


class ReleaseView(_Model):
    """A release: a model's version and its images."""

    model: ModelName
    version: ModelVersion
    stage: str
    published: datetime
    images: list[ReleaseImageView]


class Selector(_Model):
    """Which devices: all conditions given must hold. Empty selects nothing unless `everything`."""

    ids: list[DeviceId] = []
    profiles: list[ProfileName] = []
    labels: dict[str, str] = {}
    everything: bool = False


class RolloutPart(_Model):
    """A release, and the slot that it goes to."""

    model: ModelName
    version: ModelVersion
    slot: SlotName = DEFAULT_SLOT

    @property
    def label(self) -> str:
        """The release as people say it: `vision 2`."""
        return f"{self.model} {self.version}"


class RolloutRequest(_Model):
    """`POST /v1/rollouts`: one release by `model`, `version`, `slot`, or several by `together`.

    Attributes:
        slot: a release of the agent goes into its own slot unless another is named.
        together: releases for different slots of each device, which takes all of them or none.
    """

    model: ModelName | None = None
    version: ModelVersion | None = None
    slot: SlotName = DEFAULT_SLOT
    together: list[RolloutPart] = Field(default=[], max_length=16)
    selector: Selector

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        slots = {part.slot for part in self.together}
        if not self.together and (not self.model or not self.version):
            raise ValueError("a model and its version are needed")
        if self.together and (self.model or self.version or not 1 < len(slots) == len(self.together)):
            raise ValueError("releases that go together are named there alone, two at least, for different slots")
        if AGENT_SLOT in slots or any(part.model == AGENT_MODEL for part in self.together):
            raise ValueError("a release of the agent goes together with no other")
        if self.model == AGENT_MODEL and self.slot == DEFAULT_SLOT:
            self.slot = AGENT_SLOT
        return self

    @property
    def parts(self) -> list[RolloutPart]:
        """The releases with their slots, in the order given."""
        if self.together:
            return self.together
        return [RolloutPart(model=self.model or "", version=self.version or "", slot=self.slot)]


class RolloutPreview(_Model):
    """`POST /v1/rollouts/preview`: what a rollout would do; nothing is changed.

    Attributes:
        devices, fit: that the selector chooses; of these, that can run the release.
        notes: sentences about what may not be meant: another model replaced, a slot made, devices that will refuse.
    """

    devices: int
    fit: int
    notes: list[str] = []


TargetState = Literal["pending", "assigned", "running", "committed", "rejected", "refused", "misfit", "superseded"]
RolloutState = Literal["running", "paused", "aborted", "completed", "failed"]


class TargetPartView(_Model):
    """One slot of a device in a rollout of several releases."""

    slot: SlotName
    state: TargetState
    deployment: DeploymentReport | None = None
    problem: Problem | None = None


class RolloutTargetView(_Model):
    """One device in a rollout.

    Attributes:
        state: of the whole device. deployment, problem: of the slot that tells most.
        parts: each slot, when the rollout has several releases.
    """

    device: DeviceId
    state: TargetState
    online: bool = False
    sequence: int = 0
    deployment: DeploymentReport | None = None
    problem: Problem | None = None
    parts: list[TargetPartView] = []


class RolloutView(_Model):
    """A rollout with its devices.

    Attributes:
        model, version, slot: of the first release; `together` has all of them when there are several.
        counts: the number of devices by state; each is counted once.
        targets: a page of the devices; none in lists of rollouts.
        next: `after` of the page that follows.
    """

    id: int
    model: ModelName
    version: ModelVersion
    slot: SlotName
    together: list[RolloutPart] = []
    selector: Selector
    state: RolloutState
    reason: str = ""
    created: datetime
    ended: datetime | None = None
    counts: dict[str, int] = {}
    targets: list[RolloutTargetView] = []
    next: str | None = None

    @property
    def parts(self) -> list[RolloutPart]:
        """The releases with their slots."""
        return self.together or [RolloutPart(model=self.model, version=self.version, slot=self.slot)]

    @property
    def label(self) -> str:
        """What it brings, as people say it: `vision 2`, `vision 2 + text 3`."""
        return " + ".join(part.label for part in self.parts)


class Page(_Model):
    """Paging of a list: pass `after` = `next` of the page before."""

    next: str | None = None


class DevicePage(Page):
    """`GET /v1/devices?after=&limit=&profile=&label=k=v&online=`."""

    items: list[DeviceView]


class ReleasePage(Page):
    """`GET /v1/releases?after=&limit=&model=`."""

    items: list[ReleaseView]


class RolloutPage(Page):
    """`GET /v1/rollouts?after=&limit=`; newest first, without targets."""

    items: list[RolloutView]


class DeploymentPage(Page):
    """`GET /v1/deployments?device=&after=&limit=`; newest first.

    Attributes:
        unreadable: deployments of this page that are left out, because what is stored of them cannot be read.
    """

    items: list[DeploymentView]
    unreadable: int = 0


class DeploymentView(_Model):
    """A deployment as the server's history has it."""

    device: DeviceId
    deployment: DeploymentReport


class SlotTelemetry(_Model):
    """One device, slot and version over a time window. Latencies in microseconds, from the histogram."""

    device: DeviceId
    slot: SlotName
    model: ModelName
    version: ModelVersion
    counter: int
    first: datetime
    last: datetime
    requests: int
    failures: int
    p50_us: int | None = None
    p95_us: int | None = None
    p99_us: int | None = None
    mean_us: int | None = None


class HostTelemetry(_Model):
    """The newest host sample of a device; see `wherry.messages.HostSample`."""

    device: DeviceId
    at: datetime
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


class TelemetrySummary(_Model):
    """`GET /v1/telemetry?device=&model=&since=`.

    Attributes:
        received: records stored in the window, by type.
        dropped: records that devices had to drop, by type.
    """

    slots: list[SlotTelemetry]
    hosts: list[HostTelemetry]
    received: dict[str, int]
    dropped: dict[str, int]


DeploymentPage.model_rebuild()


class LogsQuestion(_Model):
    """`POST /v1/devices/{id}/logs`: waits for the device's answer, some seconds at most."""

    slot: SlotName = DEFAULT_SLOT
    lines: int = Field(default=100, ge=1, le=500)
    since: Instant | None = None


class LogsAnswer(_Model):
    """The newest lines of a slot's container, oldest first."""

    lines: list[LogLine]
    truncated: bool = False


class DiagnoseAnswer(_Model):
    """`POST /v1/devices/{id}/diagnose`: what `wherry-agent doctor` says there."""

    checks: list[Check]
    facts: dict[str, str] = {}


class AuditEntry(_Model):
    """Who did what, or was refused what.

    Attributes:
        actor: name of the API token, `device ID`, or `server`.
        action: what was done: "rollout.create", "token.create", "login", …
    """

    id: int
    at: datetime
    actor: str = ""
    action: str
    thing: str
    detail: str = ""


class AuditPage(Page):
    """`GET /v1/audit?after=&limit=&action=&thing=`; newest first."""

    items: list[AuditEntry]


class VersionSeries(_Model):
    """One release's numbers over time; every list is as long as the `times` it belongs to.

    Attributes:
        requests, failures: counted in the step. p50_us, p95_us: None where nothing was answered.
        memory_bytes: of the containers, the mean over devices.
    """

    model: ModelName
    version: ModelVersion
    counter: int
    requests: list[int]
    failures: list[int]
    p50_us: list[int | None]
    p95_us: list[int | None]
    memory_bytes: list[int | None] = []


class HostSeries(_Model):
    """One device's own numbers over time; `temperature` is the highest sensor."""

    cpu_percent: list[float | None]
    memory_percent: list[float | None]
    temperature: list[float | None]


class TelemetrySeries(_Model):
    """`GET /v1/telemetry/series?device=&model=&slot=&since=&until=&points=`.

    Attributes:
        times: beginning of each step, Unix seconds; evenly spaced.
        step: seconds.
        host: of one device, when one was asked for.
        swaps: instants (Unix seconds) at which a release was committed in the window, with its label.
    """

    times: list[int]
    step: int
    versions: list[VersionSeries]
    host: HostSeries | None = None
    swaps: list[tuple[int, str]] = []


class FleetVersion(_Model):
    """A version that some device serves or should serve. Numbers are of the window.

    Attributes:
        devices, healthy: that serve it now; of these, whose gates and probes are content.
        desired: that should serve it.
        per_second: answered requests. error_rate: part of requests that failed; None without requests.
    """

    model: ModelName
    version: ModelVersion
    devices: int
    healthy: int
    desired: int
    per_second: float
    error_rate: float | None = None
    p50_us: int | None = None
    p95_us: int | None = None


class FleetView(_Model):
    """`GET /v1/fleet?minutes=`: the fleet at a glance; revoked devices are counted apart."""

    devices: int
    online: int
    drifting: int
    problems: int
    revoked: int = 0
    locked: int = 0
    versions: list[FleetVersion] = []


class ApiTokenView(_Model):
    """An operator's API token, without its secret."""

    name: str
    created: datetime
    revoked: datetime | None = None


class ApiTokenList(_Model):
    """`GET /v1/api-tokens`."""

    items: list[ApiTokenView]
