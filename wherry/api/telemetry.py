"""What devices measured, and the fleet at a glance."""

from __future__ import annotations

from datetime import datetime

from wherry.api.base import ApiModel
from wherry.identity import DeviceId, ModelName, ModelVersion, SlotName


class SlotTelemetry(ApiModel):
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


class HostTelemetry(ApiModel):
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
    agent_written_bytes: dict[str, int] = {}


class TelemetrySummary(ApiModel):
    """`GET /v1/telemetry?device=&model=&since=`.

    Attributes:
        received: records stored in the window, by type.
        dropped: records that devices had to drop, by type.
    """

    slots: list[SlotTelemetry]
    hosts: list[HostTelemetry]
    received: dict[str, int]
    dropped: dict[str, int]


class VersionSeries(ApiModel):
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


class HostSeries(ApiModel):
    """One device's own numbers over time; `temperature` is the highest sensor."""

    cpu_percent: list[float | None]
    memory_percent: list[float | None]
    temperature: list[float | None]


class TelemetrySeries(ApiModel):
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


class FleetVersion(ApiModel):
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


class FleetView(ApiModel):
    """`GET /v1/fleet?minutes=`: the fleet at a glance; revoked devices are counted apart."""

    devices: int
    online: int
    drifting: int
    problems: int
    revoked: int = 0
    locked: int = 0
    versions: list[FleetVersion] = []
