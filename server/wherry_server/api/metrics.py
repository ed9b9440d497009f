"""`GET /metrics`: the fleet for Prometheus. The names below are the contract with dashboards and alerts.

Nothing carries a device's id: for single devices there is the dashboard. A scrape needs an operator's token
(`authorization: {credentials_file: …}` in Prometheus' configuration).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from wherry import __version__
from wherry.messages import LATENCY_EDGES_US
from wherry_server.api.auth import ContextDep, NeedsOperator
from wherry_server.services.wire import Wire
from wherry_server.store.metric_views import FleetMetrics, VersionTotals, fleet_metrics

router = APIRouter(tags=["telemetry"], dependencies=[NeedsOperator])
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "wherry_server_info": ("1; the server's version is a label", ("version",)),
    "wherry_devices": ("Devices by profile and state: online, offline or revoked", ("profile", "state")),
    "wherry_devices_drifting": ("Devices that do not serve what the server wants", ("profile",)),
    "wherry_devices_problem": ("Devices that report that they cannot converge", ("profile",)),
    "wherry_devices_locked": ("Devices on which an application holds off swaps", ("profile",)),
    "wherry_devices_serving": ("Devices that serve a version now", ("model", "version")),
    "wherry_rollouts": ("Rollouts by state", ("state",)),
    "wherry_rollout_targets": ("Devices of rollouts that run or are paused, by state", ("state",)),
    "wherry_inference_requests": ("Requests that models answered, as devices told", ("model", "version")),
    "wherry_inference_failures": ("Requests that models failed, as devices told", ("model", "version")),
    "wherry_inference_duration_seconds": ("Latency of answered requests, as devices told", ("model", "version")),
    "wherry_telemetry_records": ("Telemetry records stored, by type", ("type",)),
    "wherry_telemetry_dropped": ("Telemetry records that devices had to drop, by type", ("type",)),
    "wherry_ingest_lag_seconds": ("How long the oldest telemetry that came has waited to be stored", ()),
    "wherry_ingest_waiting": ("Messages of devices that came and are not stored yet", ()),
    "wherry_ingest_refused": ("Telemetry batches refused because too many waited; devices send them again", ()),
    "wherry_broker_connected": ("1 when the server is connected to the broker", ()),
    "wherry_outbox_messages": ("Messages to devices that the broker has not been handed yet", ()),
    "wherry_outbox_oldest_seconds": ("Age of the oldest of them", ()),
    "wherry_metadata_expires_timestamp_seconds": ("When signed metadata ends, Unix time", ("role",)),
}
"""Name to help and labels. Counters get `_total` behind their name, the histogram `_bucket`, `_sum` and `_count`."""
_BUCKETS = tuple(range(1, len(LATENCY_EDGES_US), 2))
"""Edges shown: every other one, which is an octave apart."""


@router.get("/metrics", summary="The fleet for Prometheus", response_class=Response)
def get_metrics(context: ContextDep) -> Response:
    """Text format. Bounded: nothing is shown by device."""
    with context.store.read() as session:
        fleet = fleet_metrics(session)
    registry = CollectorRegistry()
    registry.register(_Scrape(fleet, context.line.wire, context.clock()))
    return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")


class _Scrape(Collector):
    """One scrape; the registry asks it once."""

    def __init__(self, fleet: FleetMetrics, wire: Wire | None, now: datetime) -> None:
        self._fleet = fleet
        self._wire = wire
        self._now = now

    def collect(self) -> Iterator[Metric]:
        yield _gauge("wherry_server_info", {(__version__,): 1})
        yield from self._devices()
        yield _gauge("wherry_rollouts", {(state,): number for state, number in self._fleet.rollouts.items()})
        yield _gauge("wherry_rollout_targets", {(state,): number for state, number in self._fleet.targets.items()})
        yield from self._inference()
        yield from self._channel()

    def _devices(self) -> Iterator[Metric]:
        profiles = self._fleet.profiles.items()
        states = ("online", "offline", "revoked")
        yield _gauge("wherry_devices", {(name, kind): getattr(row, kind) for name, row in profiles for kind in states})
        yield _gauge("wherry_devices_drifting", {(name,): row.drifting for name, row in profiles})
        yield _gauge("wherry_devices_problem", {(name,): row.problems for name, row in profiles})
        yield _gauge("wherry_devices_locked", {(name,): row.locked for name, row in profiles})
        yield _gauge("wherry_devices_serving", {key: row.serving for key, row in self._fleet.versions.items()})

    def _inference(self) -> Iterator[Metric]:
        versions = {key: row for key, row in self._fleet.versions.items() if row.latency is not None}
        yield _counter("wherry_inference_requests", {key: row.requests for key, row in versions.items()})
        yield _counter("wherry_inference_failures", {key: row.failures for key, row in versions.items()})
        text, labels = METRICS["wherry_inference_duration_seconds"]
        histogram = HistogramMetricFamily("wherry_inference_duration_seconds", text, labels=labels)
        for key, row in versions.items():
            histogram.add_metric(key, _buckets(row), row.latency_sum_us / 1e6)
        yield histogram

    def _channel(self) -> Iterator[Metric]:
        records, wire = self._fleet.records, self._wire
        yield _counter("wherry_telemetry_records", {(kind,): counts[0] for kind, counts in records.items()})
        yield _counter("wherry_telemetry_dropped", {(kind,): counts[1] for kind, counts in records.items()})
        yield _gauge("wherry_ingest_lag_seconds", {(): wire.lag_seconds if wire else 0})
        yield _gauge("wherry_ingest_waiting", {(): wire.waiting if wire else 0})
        yield _counter("wherry_ingest_refused", {(): wire.refused if wire else 0})
        yield _gauge("wherry_broker_connected", {(): int(wire is not None and wire.connected)})
        yield _gauge("wherry_outbox_messages", {(): self._fleet.outbox})
        oldest = self._fleet.outbox_oldest
        yield _gauge("wherry_outbox_oldest_seconds", {(): (self._now - oldest).total_seconds() if oldest else 0})
        expires = {(role,): when.timestamp() for role, when in self._fleet.expires.items()}
        yield _gauge("wherry_metadata_expires_timestamp_seconds", expires)


def _gauge(name: str, values: Mapping[Any, float]) -> Metric:
    text, labels = METRICS[name]
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _counter(name: str, values: Mapping[Any, float]) -> Metric:
    text, labels = METRICS[name]
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _buckets(row: VersionTotals) -> list[tuple[str, float]]:
    """Cumulative counts by upper edge, seconds."""
    counts = row.latency or []
    shown = [(str(LATENCY_EDGES_US[edge] / 1e6), float(sum(counts[: edge + 1]))) for edge in _BUCKETS]
    return [*shown, ("+Inf", float(sum(counts)))]
