"""Telemetry over time: steps, sums over all devices, percentiles of sums, swaps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from wherry.api.telemetry import TelemetrySeries
from wherry.messages import (
    LATENCY_EDGES_US,
    DeploymentEvent,
    DropNotice,
    HostSample,
    SlotSample,
    TelemetryBatch,
    TelemetryRecord,
)
from wherry_server.domain.histogram import merge, percentile
from wherry_server.domain.steps import LADDER, choose_steps
from wherry_server.services import compaction, telemetry
from wherry_server.store.schema import Image, ModelUsage, RecordTotal, SlotUsage
from wherry_server.store.telemetry_views import telemetry_summary

BINS = len(LATENCY_EDGES_US) + 1


def at_bin(bin_, count):
    counts = [0] * BINS
    counts[bin_] = count
    return counts


def sample(version="1", requests=10, failures=0, bin_=8, memory=None, slot="main", counter=1):
    return SlotSample(
        slot=slot, model="vision", version=version, counter=counter, seconds=10, requests=requests, failures=failures,
        latency=at_bin(bin_, requests), latency_sum_us=requests * 1000, memory_bytes=memory,
    )  # fmt: skip


def host(cpu, heat):
    return HostSample(
        cpu_percent=cpu, memory_used_bytes=1, memory_total_bytes=4, disk_used_bytes=1, disk_total_bytes=2,
        temperatures={"cpu": heat, "gpu": heat - 5},
    )  # fmt: skip


class Sender:
    """Devices that send records in order."""

    def __init__(self, context, clock):
        self.context, self.clock, self.sequences = context, clock, {}

    def send(self, device, *records, ago=0.0):
        number = self.sequences.get(device, -1)
        made = []
        for record in records:
            number += 1
            made.append(TelemetryRecord(sequence=number, at=self.clock() - timedelta(minutes=ago), record=record))
        self.sequences[device] = number
        assert telemetry.ingest(self.context, TelemetryBatch(device=device, stream="s", records=made)) is not None


@pytest.fixture
def sender(context, clock, make_device):
    make_device("dev-1").enrol()
    make_device("dev-2").enrol()
    with context.store.write() as session:
        for version in ("1", "2"):
            session.add(
                Image(
                    path=version, model="vision", version=version, profile="p", counter=int(version), digest="",
                    manifest_bytes=1, image="{}", published=clock(), listed=False,
                )
            )  # fmt: skip
    return Sender(context, clock)


def series(api, **query):
    reply = api.get("/v1/telemetry/series", params=query)
    assert reply.status_code == 200, reply.text
    return TelemetrySeries.model_validate(reply.json())


TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))


@settings(deadline=None)
@given(TIMES, st.timedeltas(timedelta(seconds=1), timedelta(days=4000)), st.integers(2, 400))
def test_steps_cover_the_window_evenly_and_are_not_too_many(since, length, points):
    steps = choose_steps(since, since + length, points)
    assert 1 <= steps.count <= points
    assert steps.first <= since
    assert steps.last >= since + length
    assert steps.last - timedelta(seconds=steps.seconds) < since + length
    assert {later - earlier for earlier, later in zip(steps.times, steps.times[1:], strict=False)} <= {steps.seconds}
    assert steps.seconds % 60 == 0 == steps.times[0] % steps.seconds
    assert steps.seconds % steps.grain == 0
    begin, end = int(since.timestamp()), int((since + length).timestamp())
    shorter = [size for size in LADDER if size < steps.seconds]
    assert all(-(-end // size) - begin // size > points for size in shorter)


def test_percentiles_come_from_the_sum_of_all_devices(api, sender):
    sender.send("dev-1", sample(requests=90, bin_=6, memory=100), ago=5)
    sender.send("dev-2", sample(requests=10, bin_=20, memory=300, failures=2), ago=5)
    found = series(api, model="vision", points=59)
    assert (found.step, len(found.times)) == (120, 30)
    (version,) = found.versions
    index = next(index for index, count in enumerate(version.requests) if count)
    assert version.requests[index] == sum(version.requests) == 100
    assert sum(version.failures) == 2
    merged = merge(at_bin(6, 90), at_bin(20, 10))
    assert (version.p50_us[index], version.p95_us[index]) == (percentile(merged, 0.5), percentile(merged, 0.95))
    assert version.memory_bytes[index] == 200
    assert version.p50_us.count(None) == len(found.times) - 1
    assert found.host is None


def test_one_devices_series_is_its_own_with_its_host(api, sender):
    sender.send("dev-1", sample(requests=7), host(40, 61), ago=12)
    sender.send("dev-2", sample(requests=9), host(90, 80), ago=12)
    found = series(api, device="dev-1", points=59)
    assert sum(found.versions[0].requests) == 7
    assert found.host is not None
    assert {value for value in found.host.cpu_percent if value is not None} == {40.0}
    assert max(value for value in found.host.temperature if value is not None) == 61.0
    assert {value for value in found.host.memory_percent if value is not None} == {25.0}
    covered = [time for time, value in zip(found.times, found.host.cpu_percent, strict=True) if value is not None]
    assert covered[-1] - covered[0] in (240, 360)  # a sample stands for its five minutes


def test_versions_slots_and_windows_are_told_apart(api, sender, clock):
    sender.send("dev-1", sample("1", requests=5), ago=50)
    sender.send("dev-1", sample("2", requests=3, counter=2), ago=10)
    sender.send("dev-1", sample("2", requests=1, counter=2, slot="side"), ago=10)
    assert [(one.version, sum(one.requests)) for one in series(api).versions] == [("1", 5), ("2", 4)]
    assert [(one.version, sum(one.requests)) for one in series(api, slot="main").versions] == [("1", 5), ("2", 3)]
    assert [(one.version, sum(one.requests)) for one in series(api, slot="side", device="dev-1").versions] == [("2", 1)]
    since = (clock() - timedelta(minutes=20)).isoformat()
    assert [one.version for one in series(api, since=since).versions] == ["2"]
    assert series(api, until=(clock() - timedelta(minutes=20)).isoformat()).versions[0].version == "1"
    assert series(api, model="speech").versions == []


def test_long_windows_read_sums_over_ten_minutes_and_lose_nothing(context, api, sender, clock):
    for ago in (30 * 60, 20 * 60, 61, 1):
        sender.send("dev-1", sample(requests=2), ago=ago)
    since = (clock() - timedelta(hours=40)).isoformat()
    long = series(api, since=since, points=250)
    assert long.step == 600
    assert sum(long.versions[0].requests) == 8
    telemetry.forget_old(context)
    clock.pass_time(hours=24)
    telemetry.forget_old(context)
    with context.store.read() as session:
        oldest = session.scalar(select(func.min(ModelUsage.bucket)).where(ModelUsage.step == 60))
    assert oldest >= clock() - timedelta(hours=48)
    # The minutes are gone, so a window that begins among them has no shorter step than ten of them.
    old = series(api, since=(clock() - timedelta(hours=55)).isoformat(),
                 until=(clock() - timedelta(hours=53)).isoformat(), points=400)  # fmt: skip
    assert old.step == 600
    assert sum(old.versions[0].requests) == 2


def test_a_devices_minutes_become_hours_when_they_are_old(context, api, sender, clock):
    for device, version, ago in (
        ("dev-1", "1", 49 * 60), ("dev-1", "1", 49 * 60 - 7), ("dev-1", "2", 49 * 60 - 9), ("dev-2", "1", 49 * 60),
        ("dev-1", "1", 50 * 60), ("dev-1", "1", 3), ("dev-1", "1", 2),
    ):  # fmt: skip
        sender.send(device, sample(version, 4, 1, 8 + ago % 5, memory=ago, counter=int(version)), ago=ago)
    since = clock() - timedelta(hours=60)

    def told():
        with context.store.read() as session:
            summary = telemetry_summary(session, since)
            return [slot.model_dump() for slot in summary.slots]

    def rows():
        with context.store.read() as session:
            return session.scalar(select(func.count()).select_from(SlotUsage))

    clock.pass_time(minutes=1)
    before, count = told(), rows()
    assert compaction.compact_old(context) == 2
    assert told() == before
    assert rows() == count - 1
    assert compaction.compact_old(context) == 0
    clock.pass_time(hours=48)
    assert compaction.compact_old(context) == 2
    assert told() == before


def test_swaps_are_committed_deployments_of_the_window(context, api, device, sender, clock, owner):
    first, second = owner.release("1"), owner.release("2")
    for release, phase, id_ in ((first, "committed", "a"), (second, "rejected", "b"), (second, "committed", "c")):
        sender.send("dev-1", DeploymentEvent(deployment=device.deployment(release, phase, id_=id_)))
        clock.pass_time(minutes=3)
    times = [int(clock().timestamp()) - 540, int(clock().timestamp()) - 180]
    assert series(api).swaps == [(times[0], "vision 1"), (times[1], "vision 2")]
    assert series(api, device="dev-1", slot="side").swaps == []
    assert series(api, device="dev-2").swaps == []
    assert series(api, model="vision", since=(clock() - timedelta(minutes=4)).isoformat()).swaps == [
        (times[1], "vision 2")
    ]


def test_totals_for_ever_outlive_what_is_forgotten(context, api, sender, clock):
    sender.send("dev-1", sample(requests=5), sample(requests=6))
    clock.pass_time(days=20)
    telemetry.forget_old(context)
    sender.send("dev-1", sample(requests=1))
    with context.store.read() as session:
        (total,) = session.scalars(select(ModelUsage).where(ModelUsage.step == 0))
        assert (total.requests, total.latency_sum_us) == (12, 12_000)
        assert session.get(RecordTotal, "slot").received == 3


def test_a_device_cannot_make_the_sums_of_the_fleet_grow(context, api, sender):
    sender.send("dev-1", *(sample(f"9.{number}") for number in range(50)), ago=5)
    sender.send("dev-1", *(sample(slot=f"s{number}") for number in range(20)), ago=5)
    drops = [{f"type{number}": 2} for number in range(30)]
    sender.send("dev-1", *(DropNotice(dropped=dropped) for dropped in [*drops, {"slot": 1}]))
    with context.store.read() as session:
        assert {row.version for row in session.scalars(select(ModelUsage))} == {"1"}
        (total,) = session.scalars(select(ModelUsage).where(ModelUsage.step == 0))
        assert (total.slot, total.requests) == ("", 200)
        dropped = {row.type: row.dropped for row in session.scalars(select(RecordTotal))}
    assert dropped == {"slot": 1, "drop": 0, "other": 60}
    assert sum(sum(one.requests) for one in series(api, device="dev-1").versions) == 10 * 70


def test_wrong_windows_are_refused_in_words(api, clock):
    now = clock().isoformat()
    for query, thing in (
        ({"since": now, "until": now}, "parameter since"),
        ({"since": "2001-01-01T00:00:00Z", "until": now}, "parameter since"),
        ({"until": "0001-01-01T00:00:00Z"}, "parameter since or until"),
        ({"points": 1}, "field query.points"),
        ({"points": 401}, "field query.points"),
    ):
        reply = api.get("/v1/telemetry/series", params=query)
        assert (reply.status_code, reply.json()["error"]["thing"]) == (422, thing), query
