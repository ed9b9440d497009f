"""Telemetry of single devices by the minute becomes telemetry by the hour when it is older: growth is bounded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import Session

from wherry_server.domain.histogram import merge
from wherry_server.domain.steps import HOUR, MINUTES_KEPT
from wherry_server.services.context import Context
from wherry_server.services.usage import bounded, floor
from wherry_server.store.schema import Device, SlotUsage

HOURS_BACK = 24
"""Hours looked at: more than one, for a server that was off and for devices that sent late."""
PAGE = 200
_HOUR = timedelta(hours=1)


def compact_old(context: Context) -> int:
    """Add up what is older than two days to hours, a page of devices in a unit of work; rows that went."""
    end = floor(context.clock() - MINUTES_KEPT, HOUR)
    return sum(_compact_hour(context, end - number * _HOUR) for number in range(1, HOURS_BACK + 1))


def _compact_hour(context: Context, hour: datetime) -> int:
    with context.store.read() as session:
        if session.scalar(select(SlotUsage.device).where(*_within(hour)).limit(1)) is None:
            return 0
    gone, after = 0, ""
    while True:
        with context.store.write() as session:
            devices = list(session.scalars(select(Device.id).where(Device.id > after).order_by(Device.id).limit(PAGE)))
            if not devices:
                return gone
            gone += _compact_devices(session, devices, hour)
        after = devices[-1]


def _within(hour: datetime) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Rows of an hour that are to become part of the row at its beginning."""
    return SlotUsage.bucket > hour, SlotUsage.bucket < hour + _HOUR


def _compact_devices(session: Session, devices: Sequence[str], hour: datetime) -> int:
    ours = SlotUsage.device.in_(devices)
    whole = select(SlotUsage).where(ours, SlotUsage.bucket >= hour, SlotUsage.bucket < hour + _HOUR)
    groups: dict[tuple[str, str, str, int], list[SlotUsage]] = {}
    for row in session.scalars(whole.order_by(SlotUsage.device, SlotUsage.bucket).with_for_update()):
        groups.setdefault((row.device, row.slot, row.model, row.counter), []).append(row)
    for rows in groups.values():
        _gather(session, rows, hour)
    session.flush()
    gone = delete(SlotUsage).where(ours, *_within(hour)).returning(SlotUsage.device)
    return len(session.execute(gone.execution_options(synchronize_session=False)).all())


def _gather(session: Session, rows: Sequence[SlotUsage], hour: datetime) -> None:
    """Have the row at the beginning of the hour hold what all of them do."""
    if rows[0].bucket == hour:
        whole, rest = rows[0], rows[1:]
    else:
        whole, rest = _empty_copy(rows[0], hour), rows
        session.add(whole)
    latency = json.loads(whole.latency)
    for row in rest:
        whole.first, whole.last = min(whole.first, row.first), max(whole.last, row.last)
        whole.requests = bounded(whole.requests + row.requests)
        whole.failures = bounded(whole.failures + row.failures)
        whole.latency_sum_us = bounded(whole.latency_sum_us + row.latency_sum_us)
        whole.memory_bytes = row.memory_bytes
        latency = merge(latency, json.loads(row.latency))
    whole.latency = json.dumps(latency)


def _empty_copy(row: SlotUsage, hour: datetime) -> SlotUsage:
    return SlotUsage(
        device=row.device,
        bucket=hour,
        slot=row.slot,
        model=row.model,
        counter=row.counter,
        version=row.version,
        first=row.first,
        last=row.last,
        requests=0,
        failures=0,
        latency="[]",
        latency_sum_us=0,
    )
