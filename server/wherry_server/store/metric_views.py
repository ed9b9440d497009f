"""The fleet in numbers that a monitoring system reads; nothing by device, so that their number stays bounded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session

from wherry_server.domain.histogram import merge
from wherry_server.store.schema import (
    FIRST,
    Device,
    Image,
    ModelUsage,
    Outbox,
    RecordTotal,
    RepositoryState,
    RolloutRow,
    RolloutTarget,
    ServingSlot,
)

MAX_VERSIONS = 200
"""Versions shown: those that serve, then those with the most requests."""
_FOREVER = 0


@dataclass(frozen=True, slots=True)
class ProfileCounts:
    """Devices of one profile; all but `revoked` are not revoked."""

    online: int
    offline: int
    revoked: int
    drifting: int
    problems: int
    locked: int


@dataclass(slots=True)
class VersionTotals:
    """A version's sums since the server began to count, and on how many devices it serves."""

    serving: int = 0
    requests: int = 0
    failures: int = 0
    latency: list[int] | None = None
    latency_sum_us: int = 0


@dataclass(frozen=True, slots=True)
class FleetMetrics:
    """What a scrape shows of the database.

    Attributes:
        rollouts: by state.
        targets: devices of rollouts that run or are paused, by state.
        records: type to (received, dropped).
        expires: role to when its metadata ends.
    """

    profiles: dict[str, ProfileCounts]
    rollouts: dict[str, int]
    targets: dict[str, int]
    versions: dict[tuple[str, str], VersionTotals]
    records: dict[str, tuple[int, int]]
    outbox: int
    outbox_oldest: datetime | None
    expires: dict[str, datetime]


def fleet_metrics(session: Session) -> FleetMetrics:
    """Read everything; a handful of queries however large the fleet is."""
    outbox = session.execute(select(func.count(), func.min(Outbox.created)).select_from(Outbox)).one()
    return FleetMetrics(
        profiles=_profiles(session),
        rollouts=_count(session, select(RolloutRow.state, func.count()).group_by(RolloutRow.state)),
        targets=_count(
            session,
            select(RolloutTarget.state, func.count())
            .join(RolloutRow, RolloutRow.id == RolloutTarget.rollout)
            .where(RolloutRow.state.in_(("running", "paused")), FIRST)
            .group_by(RolloutTarget.state),
        ),
        versions=_versions(session),
        records={row.type: (row.received, row.dropped) for row in session.scalars(select(RecordTotal))},
        outbox=outbox[0],
        outbox_oldest=outbox[1],
        expires=_expires(session),
    )


def _count(session: Session, query: Any) -> dict[str, int]:
    return dict(session.execute(query).all())


def _profiles(session: Session) -> dict[str, ProfileCounts]:
    active = Device.revoked.is_(None)

    def count(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.sum(case((condition, 1), else_=0))

    query = select(
        Device.profile,
        count(active & Device.online),
        count(active & ~Device.online),
        count(~active),
        count(active & (Device.drifting > 0)),
        count(active & Device.problem.is_not(None)),
        count(active & Device.lock.is_not(None)),
    ).group_by(Device.profile)
    return {row[0]: ProfileCounts(*(int(number) for number in row[1:])) for row in session.execute(query)}


def _versions(session: Session) -> dict[tuple[str, str], VersionTotals]:
    found: dict[tuple[str, str], VersionTotals] = {}
    serving = select(ServingSlot.model, ServingSlot.version, func.count(ServingSlot.device.distinct()))
    # Only what the owner signed: a device cannot make series with names of its own.
    signed = select(Image.path).where(Image.model == ServingSlot.model, Image.version == ServingSlot.version)
    serving = serving.where(signed.exists()).group_by(ServingSlot.model, ServingSlot.version)
    for model, version, devices in session.execute(serving):
        found[model, version] = VersionTotals(serving=devices)
    for row in session.scalars(select(ModelUsage).where(ModelUsage.step == _FOREVER)):
        totals = found.setdefault((row.model, row.version), VersionTotals())
        totals.requests += row.requests
        totals.failures += row.failures
        totals.latency_sum_us += row.latency_sum_us
        totals.latency = merge(totals.latency or [], json.loads(row.latency))
    chosen = sorted(found, key=lambda key: (-found[key].serving, -found[key].requests, key))[:MAX_VERSIONS]
    return {key: found[key] for key in sorted(chosen)}


def _expires(session: Session) -> dict[str, datetime]:
    text = session.scalar(select(RepositoryState.expires))
    return {role: datetime.fromisoformat(when) for role, when in json.loads(text or "{}").items()}
