"""Devices: tokens, enrolment, twins, and the questions that devices answer themselves."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from wherry.api.base import DEFAULT_SLOT, ApiModel, Page
from wherry.envelope import Instant
from wherry.identity import DeviceId, ProfileName, SlotName
from wherry.messages import Problem, ReleaseRef, SlotReport, UpdateLock
from wherry.questions import Check, LogLine


class TokenRequest(ApiModel):
    """`POST /v1/tokens`: ask for a single-use join token."""

    device: DeviceId
    profile: ProfileName | None = None
    labels: dict[str, str] = {}
    hours: int = Field(default=24, ge=1, le=24 * 30)


class TokenCreated(ApiModel):
    """The secret is shown once; the server keeps its hash."""

    device: DeviceId
    secret: str
    expires: datetime
    server_ca_sha256: str


class EnrolRequest(ApiModel):
    """`POST /v1/enrol`: from the device; the token's secret is the authentication."""

    device: DeviceId
    secret: str
    profile: ProfileName
    agent_version: str
    csr_pem: str


class RenewRequest(ApiModel):
    """`POST /v1/renew`: signed with the device's current key."""

    csr_pem: str


class EnrolReply(ApiModel):
    """What a device needs to connect. `certificate_pem` is the leaf followed by the intermediates."""

    certificate_pem: str
    ca_pem: str
    broker_host: str
    broker_port: int
    expires: datetime


class DeviceView(ApiModel):
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


class DeviceChange(ApiModel):
    """`PATCH /v1/devices/{id}`."""

    labels: dict[str, str]


class DevicePage(Page):
    """`GET /v1/devices?after=&limit=&profile=&label=k=v&online=`."""

    items: list[DeviceView]


class LogsQuestion(ApiModel):
    """`POST /v1/devices/{id}/logs`: waits for the device's answer, some seconds at most."""

    slot: SlotName = DEFAULT_SLOT
    lines: int = Field(default=100, ge=1, le=500)
    since: Instant | None = None


class LogsAnswer(ApiModel):
    """The newest lines of a slot's container, oldest first."""

    lines: list[LogLine]
    truncated: bool = False


class DiagnoseAnswer(ApiModel):
    """`POST /v1/devices/{id}/diagnose`: what `wherry-agent doctor` says there."""

    checks: list[Check]
    facts: dict[str, str] = {}
