"""Telemetry: stored once, added up, bounded in time, whatever is sent."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select

from wherry.errors import MalformedMessage
from wherry.messages import (
    DeploymentEvent,
    DropNotice,
    HostSample,
    Problem,
    SlotSample,
    TelemetryBatch,
    TelemetryRecord,
)
from wherry_server.domain.histogram import BINS
from wherry_server.services import telemetry
from wherry_server.store.schema import HostUsage, RecordCount, SlotUsage


def slot(requests=10, version="1", counter=1, bin_=8, **fields):
    latency = [0] * BINS
    latency[bin_] = requests
    return SlotSample(
        slot="main", model="vision", version=version, counter=counter, seconds=15.0, requests=requests,
        latency=latency, latency_sum_us=requests * 1000, **fields,
    )  # fmt: skip


def host(temperature=50.0):
    return HostSample(
        cpu_percent=12.5, memory_used_bytes=2, memory_total_bytes=4, disk_used_bytes=1, disk_total_bytes=8,
        temperatures={"cpu": temperature}, watts={"VDD_IN": 6.2}, throttled=["temperature"], gpu_percent=48.0,
    )  # fmt: skip


@pytest.fixture
def send(context, device, clock):
    """Sends records numbered from a start; gives the acknowledged sequence."""

    def send_(start, *records, stream="s1", name="dev-1", at=None):
        numbered = [
            TelemetryRecord(sequence=start + index, at=at or clock(), record=record)
            for index, record in enumerate(records)
        ]
        ack = telemetry.ingest(context, TelemetryBatch(device=name, stream=stream, records=numbered))
        return ack.sequence if ack else None

    return send_


def summary(api, **query):
    reply = api.get("/v1/telemetry", params=query)
    assert reply.status_code == 200, reply.text
    return reply.json()


def rows(context, table):
    with context.store.read() as session:
        return session.scalar(select(func.count()).select_from(table))


def test_a_batch_is_stored_and_acknowledged(api, send):
    assert send(1, slot(), host(), DropNotice(dropped={"slot": 3})) == 3
    found = summary(api)
    assert found["received"] == {"slot": 1, "host": 1, "drop": 1}
    assert found["dropped"] == {"slot": 3}
    (usage,) = found["slots"]
    assert (usage["requests"], usage["failures"], usage["mean_us"]) == (10, 0, 1000)
    assert 1131 < usage["p50_us"] < 1600
    assert found["hosts"][0]["temperatures"] == {"cpu": 50.0}
    assert (found["hosts"][0]["watts"], found["hosts"][0]["throttled"]) == ({"VDD_IN": 6.2}, ["temperature"])


def test_a_repeated_batch_changes_nothing_and_is_acknowledged_again(api, send):
    assert send(1, slot(), slot()) == 2
    assert send(1, slot(), slot()) == 2
    assert send(2, slot(), slot()) == 3
    assert send(1, slot()) == 3
    assert summary(api)["slots"][0]["requests"] == 30
    assert summary(api)["received"] == {"slot": 3}


def test_a_gap_is_what_the_device_dropped(api, send):
    assert send(1, slot()) == 1
    assert send(4097, slot()) == 4097
    assert summary(api)["received"] == {"slot": 2}


def test_streams_count_apart(api, send):
    assert send(1, slot(), stream="old") == 1
    assert send(1, slot(), stream="new") == 1
    assert summary(api)["slots"][0]["requests"] == 20


def test_strangers_get_no_acknowledgement(context, api, send):
    assert send(1, slot(), name="nobody") is None
    api.request("DELETE", "/v1/devices/dev-1")
    assert send(1, slot()) is None
    assert rows(context, SlotUsage) == 0


def test_samples_of_one_minute_share_a_row_and_idle_ones_an_hour(context, api, send, clock):
    send(1, *[slot() for _ in range(4)])
    assert rows(context, SlotUsage) == 1
    for minute in range(1, 31):
        clock.pass_time(minutes=1)
        send(10 * minute, slot(requests=0), slot(requests=0), host())
    # The hour began at 12:00, so its row is the one of the first minute.
    assert rows(context, SlotUsage) == 1
    assert rows(context, HostUsage) == 7
    assert rows(context, RecordCount) == 2


def test_versions_are_kept_apart_and_windows_added(api, send, clock):
    send(1, slot(version="1", counter=1))
    clock.pass_time(minutes=5)
    send(2, slot(version="2", counter=2, failures=3), slot(version="2", counter=2, bin_=20))
    found = summary(api)["slots"]
    assert [(row["version"], row["requests"], row["failures"]) for row in found] == [("1", 10, 0), ("2", 20, 3)]
    since = (clock() - timedelta(minutes=1)).isoformat()
    assert [row["version"] for row in summary(api, since=since)["slots"]] == ["2"]
    assert summary(api, model="audio")["slots"] == []
    assert summary(api, device="dev-9")["received"] == {}


def test_deployment_events_become_history(api, send, device, owner):
    release = owner.release("1")
    gate = Problem(code="deployment.gate", thing="golden gate", reason="wrong", fix="Mend it")
    send(
        1,
        DeploymentEvent(deployment=device.deployment(release, "probing")),
        DeploymentEvent(deployment=device.deployment(release, "rejected", problem=gate)),
    )
    (found,) = api.get("/v1/deployments").json()["items"]
    assert (found["deployment"]["phase"], found["deployment"]["problem"]["reason"]) == ("rejected", "wrong")


def test_a_clock_that_cannot_be_right_is_replaced_by_ours(api, send, clock):
    send(1, slot(), at=datetime(1970, 1, 2, tzinfo=clock().tzinfo))
    send(2, slot(), at=clock() + timedelta(days=3650))
    assert summary(api)["slots"][0]["requests"] == 20


def test_old_telemetry_is_forgotten_and_new_is_kept(context, api, send, clock):
    send(1, slot(), host())
    clock.pass_time(days=13)
    send(3, slot())
    clock.pass_time(days=1, hours=1)
    telemetry.forget_old(context)
    assert rows(context, SlotUsage) == 1
    assert rows(context, HostUsage) == 0
    assert send(1, slot()) == 3  # deduplication outlives the records


def test_numbers_out_of_range_are_refused_or_bounded(context, api, send):
    with pytest.raises(MalformedMessage, match="out of range"):
        send(2**60, slot())
    with pytest.raises(MalformedMessage, match="no records"):
        send(1)
    huge = slot().model_copy(
        update={"requests": 2**80, "failures": -5, "latency_sum_us": 2**70, "counter": 2**90, "latency": [1, 2]}
    )
    assert send(1, huge, DropNotice(dropped={"slot": 2**70})) == 2
    (usage,) = summary(api)["slots"]
    assert (usage["requests"], usage["failures"], usage["p50_us"]) == (2**53 - 1, 0, None)


def test_records_out_of_order_are_refused(context, device, clock):
    records = [TelemetryRecord(sequence=number, at=clock(), record=slot()) for number in (2, 1)]
    with pytest.raises(MalformedMessage, match="out of order"):
        telemetry.ingest(context, TelemetryBatch(device="dev-1", stream="s", records=records))
