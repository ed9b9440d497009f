"""The tables. Documents of the contract (reports, selectors, images) are kept as JSON text in one column."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from wherry_server.store.base import Base as Base


class ApiToken(Base):
    """An operator's token: only its hash."""

    __tablename__ = "api_token"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[datetime]
    revoked: Mapped[datetime | None]


class EnrolToken(Base):
    """A single-use join token: its hash, and the certificate it was turned into."""

    __tablename__ = "enrol_token"
    id: Mapped[int] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    device: Mapped[str] = mapped_column(String(64), index=True)
    profile: Mapped[str | None] = mapped_column(String(64))
    labels: Mapped[str]
    created: Mapped[datetime]
    expires: Mapped[datetime]
    used: Mapped[datetime | None]
    key_sha256: Mapped[str | None] = mapped_column(String(64))
    certificate: Mapped[str | None]
    certificate_expires: Mapped[datetime | None]


class Device(Base):
    """A device and its twin: `sequence` and the desired slots beside what it reported last."""

    __tablename__ = "device"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    profile: Mapped[str] = mapped_column(String(64), index=True)
    labels: Mapped[str]
    agent_version: Mapped[str] = mapped_column(String(64), default="")
    enrolled: Mapped[datetime]
    revoked: Mapped[datetime | None]
    online: Mapped[bool] = mapped_column(default=False, index=True)
    last_seen: Mapped[datetime | None]
    sequence: Mapped[int] = mapped_column(default=0)
    reported_sequence: Mapped[int] = mapped_column(default=0)
    refused: Mapped[int] = mapped_column(default=0)
    report_stream: Mapped[str] = mapped_column(String(100), default="")
    report_number: Mapped[int] = mapped_column(default=-1)
    report_received: Mapped[datetime | None]
    slots: Mapped[str] = mapped_column(default="[]")
    rejected: Mapped[str] = mapped_column(default="[]")
    lock: Mapped[str | None]
    facts: Mapped[str] = mapped_column(default="{}")
    problem: Mapped[str | None]
    understands: Mapped[str] = mapped_column(default="[]")
    drifting: Mapped[int] = mapped_column(default=0, index=True)


_REVOKED = Device.revoked.is_not(None)
# Few are, so leaving them out should cost little.
Index("ix_device_revoked", Device.id, sqlite_where=_REVOKED, postgresql_where=_REVOKED)


class RemovedDevice(Base):
    """A device that is gone: its certificate is denied until it ends; its sequence never falls, should it come back."""

    __tablename__ = "removed_device"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    removed: Mapped[datetime]
    sequence: Mapped[int]
    denied_until: Mapped[datetime]


class DeviceLabel(Base):
    """Labels once more, one a row, so that selecting by label needs no scan."""

    __tablename__ = "device_label"
    __table_args__ = (Index("ix_device_label_name_value", "name", "value"),)
    device: Mapped[str] = mapped_column(ForeignKey("device.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(256))


class ServingSlot(Base):
    """What each slot serves, as reported last: once more, one a row, so that counting a version needs no scan."""

    __tablename__ = "serving_slot"
    # It holds all that counting needs, so that no row is read.
    __table_args__ = (Index("ix_serving_slot_model_version", "model", "version", "profile", "healthy", "device"),)
    device: Mapped[str] = mapped_column(ForeignKey("device.id", ondelete="CASCADE"), primary_key=True)
    slot: Mapped[str] = mapped_column(String(32), primary_key=True)
    model: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(64))
    counter: Mapped[int]
    digest: Mapped[str] = mapped_column(String(80))
    profile: Mapped[str] = mapped_column(String(64))
    healthy: Mapped[bool]
    since: Mapped[datetime]


class DeviceKey(Base):
    """Public keys a device may sign requests with: its current one, and the next while it renews."""

    __tablename__ = "device_key"
    device: Mapped[str] = mapped_column(ForeignKey("device.id", ondelete="CASCADE"), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    pem: Mapped[str]
    issued: Mapped[datetime]
    expires: Mapped[datetime]


class RepositoryFile(Base):
    """TUF metadata by file name."""

    __tablename__ = "repository_file"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    data: Mapped[bytes]
    stored: Mapped[datetime]


class RepositoryState(Base):
    """One row: versions of the metadata that is current."""

    __tablename__ = "repository_state"
    id: Mapped[int] = mapped_column(primary_key=True)
    root: Mapped[int]
    targets: Mapped[int]
    snapshot: Mapped[int]
    timestamp: Mapped[int]
    expires: Mapped[str]


class Image(Base):
    """An image that the owner signed. `listed` is False once newer targets metadata leaves it out."""

    __tablename__ = "image"
    __table_args__ = (
        Index("ix_image_model_version", "model", "version"),
        UniqueConstraint("model", "profile", "counter"),
    )
    path: Mapped[str] = mapped_column(String(200), primary_key=True)
    model: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(64))
    profile: Mapped[str] = mapped_column(String(64))
    counter: Mapped[int]
    digest: Mapped[str] = mapped_column(String(80), index=True)
    manifest_bytes: Mapped[int]
    image: Mapped[str]
    published: Mapped[datetime]
    listed: Mapped[bool] = mapped_column(default=True)


class DesiredSlot(Base):
    """What a slot of a device is to run.

    `together` is the rollout of several releases that said so; `before` what it was to run before that.
    """

    __tablename__ = "desired_slot"
    device: Mapped[str] = mapped_column(ForeignKey("device.id", ondelete="CASCADE"), primary_key=True)
    slot: Mapped[str] = mapped_column(String(32), primary_key=True)
    path: Mapped[str] = mapped_column(ForeignKey("image.path"), index=True)
    together: Mapped[int | None]
    before: Mapped[str | None] = mapped_column(ForeignKey("image.path"))


class AssignmentRow(Base):
    """The current signed assignment of a device."""

    __tablename__ = "assignment"
    device: Mapped[str] = mapped_column(ForeignKey("device.id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int]
    payload: Mapped[bytes]
    signed: Mapped[datetime] = mapped_column(index=True)


class Outbox(Base):
    """Messages that the link has yet to hand to the broker; written with what they tell, in one transaction."""

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(String(64), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    payload: Mapped[bytes]
    created: Mapped[datetime]


class RolloutRow(Base):
    """A rollout. `model`, `version`, `slot` are of its first release; `together` holds all when there are several."""

    __tablename__ = "rollout"
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(64))
    slot: Mapped[str] = mapped_column(String(32))
    together: Mapped[str] = mapped_column(default="[]")
    selector: Mapped[str]
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str] = mapped_column(default="")
    created: Mapped[datetime]
    ended: Mapped[datetime | None]


class RolloutTarget(Base):
    """A slot of a device in a rollout: one row, or one for each release of the rollout.

    `state` is the device's, the same in all its rows; `own` is the slot's. Devices are counted by `position` 0.
    """

    __tablename__ = "rollout_target"
    __table_args__ = (
        Index("ix_rollout_target_rollout_state", "rollout", "state"),
        Index("ix_rollout_target_device_state", "device", "state"),
    )
    rollout: Mapped[int] = mapped_column(ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("device.id", ondelete="CASCADE"), primary_key=True)
    slot: Mapped[str] = mapped_column(String(32), primary_key=True)
    position: Mapped[int] = mapped_column(default=0)
    wave: Mapped[int] = mapped_column(default=0)
    path: Mapped[str | None] = mapped_column(ForeignKey("image.path"))
    digest: Mapped[str] = mapped_column(String(80), default="")
    state: Mapped[str] = mapped_column(String(16))
    own: Mapped[str] = mapped_column(String(16), default="pending")
    sequence: Mapped[int] = mapped_column(default=0)
    assigned: Mapped[datetime | None]
    deployment: Mapped[str | None]
    problem: Mapped[str | None]


FIRST = RolloutTarget.position == 0
"""One row for each device of a rollout."""


class Deployment(Base):
    """History: every deployment that a device told of, as it stood last."""

    __tablename__ = "deployment"
    __table_args__ = (
        Index("ix_deployment_updated", "updated", "device", "id"),
        Index("ix_deployment_device_updated", "device", "updated"),
        Index("ix_deployment_model_updated", "model", "updated"),
    )
    device: Mapped[str] = mapped_column(ForeignKey("device.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    slot: Mapped[str] = mapped_column(String(32), default="")
    model: Mapped[str] = mapped_column(String(64), default="")
    version: Mapped[str] = mapped_column(String(64), default="")
    phase: Mapped[str] = mapped_column(String(16))
    updated: Mapped[datetime]
    report: Mapped[str]


class TelemetryStream(Base):
    """How far a stream of a device is stored: every record up to `sequence`."""

    __tablename__ = "telemetry_stream"
    device: Mapped[str] = mapped_column(ForeignKey("device.id", ondelete="CASCADE"), primary_key=True)
    stream: Mapped[str] = mapped_column(String(100), primary_key=True)
    sequence: Mapped[int]
    updated: Mapped[datetime]


class SlotUsage(Base):
    """Slot samples added up by minute (by hour while nothing is asked), so growth is bounded by time."""

    __tablename__ = "slot_usage"
    __table_args__ = (Index("ix_slot_usage_bucket", "bucket"),)
    device: Mapped[str] = mapped_column(ForeignKey("device.id", ondelete="CASCADE"), primary_key=True)
    bucket: Mapped[datetime] = mapped_column(primary_key=True)
    slot: Mapped[str] = mapped_column(String(32), primary_key=True)
    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    counter: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(String(64))
    first: Mapped[datetime]
    last: Mapped[datetime]
    requests: Mapped[int]
    failures: Mapped[int]
    latency: Mapped[str]
    latency_sum_us: Mapped[int]
    memory_bytes: Mapped[int | None]


class ModelUsage(Base):
    """Slot samples of all devices added up by version: over a minute, over ten, and for ever.

    For ever is step 0, with the bucket 1970 and no slot. A page about the fleet would otherwise read a row for every
    device and minute.
    """

    __tablename__ = "model_usage"
    __table_args__ = (Index("ix_model_usage_model_step_bucket", "model", "step", "bucket"),)
    step: Mapped[int] = mapped_column(primary_key=True)
    bucket: Mapped[datetime] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    slot: Mapped[str] = mapped_column(String(32), primary_key=True)
    counter: Mapped[int]
    requests: Mapped[int]
    failures: Mapped[int]
    latency: Mapped[str]
    latency_sum_us: Mapped[int]
    memory_sum: Mapped[int]
    memory_samples: Mapped[int]


class HostUsage(Base):
    """Host samples: the newest of each bucket."""

    __tablename__ = "host_usage"
    __table_args__ = (Index("ix_host_usage_bucket", "bucket"),)
    device: Mapped[str] = mapped_column(ForeignKey("device.id", ondelete="CASCADE"), primary_key=True)
    bucket: Mapped[datetime] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    sample: Mapped[str]


class RecordCount(Base):
    """Records stored, and records that devices dropped, by type and hour."""

    __tablename__ = "record_count"
    __table_args__ = (Index("ix_record_count_bucket", "bucket"),)
    device: Mapped[str] = mapped_column(ForeignKey("device.id", ondelete="CASCADE"), primary_key=True)
    bucket: Mapped[datetime] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(String(32), primary_key=True)
    received: Mapped[int] = mapped_column(default=0)
    dropped: Mapped[int] = mapped_column(default=0)


class RecordTotal(Base):
    """Records stored and records that devices dropped, by type, for ever: what a counter of the fleet shows."""

    __tablename__ = "record_total"
    type: Mapped[str] = mapped_column(String(32), primary_key=True)
    received: Mapped[int] = mapped_column(default=0)
    dropped: Mapped[int] = mapped_column(default=0)


class Audit(Base):
    """Who did what, and what was refused."""

    __tablename__ = "audit"
    __table_args__ = (
        Index("ix_audit_action_id", "action", "id"),
        Index("ix_audit_thing_id", "thing", "id"),
        Index("ix_audit_actor_id", "actor", "id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(String(100), default="")
    action: Mapped[str] = mapped_column(String(40))
    thing: Mapped[str] = mapped_column(String(200))
    detail: Mapped[str] = mapped_column(default="")
