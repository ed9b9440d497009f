"""How a release answered in a slot between two times: what a deployment's before and after are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from wherry.messages import ReleaseRef
from wherry_server.domain.histogram import merge, percentile
from wherry_server.store.schema import SlotUsage


@dataclass(frozen=True, slots=True)
class Answered:
    """A release in a slot within a window; percentiles are None when nothing was answered."""

    requests: int
    failures: int
    p50_us: int | None
    p95_us: int | None


def answered(
    session: Session, device: str, slot: str, release: ReleaseRef, since: datetime, until: datetime
) -> Answered:
    """Requests to a release between two times. Buckets that a time cuts through count in whole."""
    query = select(SlotUsage.requests, SlotUsage.failures, SlotUsage.latency).where(
        SlotUsage.device == device,
        SlotUsage.slot == slot,
        SlotUsage.model == release.model,
        SlotUsage.counter == release.counter,
        SlotUsage.last >= since,
        SlotUsage.first <= until,
    )
    requests, failures, latency = 0, 0, list[int]()
    for asked, failed, histogram in session.execute(query):
        requests, failures = requests + asked, failures + failed
        latency = merge(latency, json.loads(histogram))
    return Answered(requests, failures, percentile(latency, 0.5), percentile(latency, 0.95))
