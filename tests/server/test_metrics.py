"""`/metrics`: parsed with Prometheus' own parser; the right numbers, monotonic counters, nothing by device."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from wherry.messages import LATENCY_EDGES_US
from wherry_server.api.metrics import METRICS
from wherry_server.services import outbox, telemetry
from wherry_server.services.wire import Line
from wherry_server.store.metric_views import MAX_VERSIONS
from wherry_server.store.schema import Image, ModelUsage, ServingSlot

DEVICES = 60


def scrape(api):
    reply = api.get("/metrics")
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(reply.text)}


def values(families, name, **labels):
    return {
        tuple(sample.labels.values()): sample.value
        for sample in families[name].samples
        if labels.items() <= sample.labels.items()
    }


@pytest.fixture
def fleet(context, seed_fleet, clock):
    return seed_fleet(context.store, DEVICES, now=clock(), days=0.1, detailed=2)


def test_every_name_is_documented_and_every_documented_name_is_there(api, fleet):
    families = scrape(api)
    assert families.keys() == METRICS.keys()
    for name, family in families.items():
        text, labels = METRICS[name]
        assert family.documentation == text
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(labels), sample


def test_numbers_are_those_of_the_database(context, api, fleet):
    families = scrape(api)
    assert sum(values(families, "wherry_devices").values()) == DEVICES
    assert sum(values(families, "wherry_devices", state="offline").values()) == 3
    assert sum(values(families, "wherry_devices_serving").values()) == DEVICES
    assert values(families, "wherry_rollouts") == {("completed",): 2, ("failed",): 1, ("paused",): 1, ("running",): 1}
    assert values(families, "wherry_telemetry_records")[("slot",)] == 2880 * DEVICES
    assert values(families, "wherry_telemetry_dropped")[("slot",)] == 36
    with context.store.write() as session:
        outbox.put_assignment(session, "camera-0001", b"{}", context.clock() - timedelta(seconds=30))
    families = scrape(api)
    assert values(families, "wherry_outbox_messages") == {(): 1}
    assert values(families, "wherry_outbox_oldest_seconds") == {(): 30}


def test_histograms_are_cumulative_and_in_seconds(api, fleet):
    samples = scrape(api)["wherry_inference_duration_seconds"].samples
    mine = [one for one in samples if one.labels["model"] == "vision" and one.labels["version"] == "2.0.0"]
    buckets = [(float(one.labels["le"]), one.value) for one in mine if one.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert buckets[0][0] == LATENCY_EDGES_US[1] / 1e6
    count = next(one.value for one in mine if one.name.endswith("_count"))
    assert buckets[-1] == (float("inf"), count)
    total = next(one.value for one in mine if one.name.endswith("_sum"))
    assert total / count == pytest.approx(0.014)


def test_no_device_is_named_and_versions_are_bounded(context, api, fleet, clock):
    with context.store.write() as session:
        for number in range(MAX_VERSIONS + 50):
            session.add(
                ModelUsage(
                    step=0, bucket=clock(), model="many", version=f"v{number}", slot="main", counter=1, latency="[]",
                    requests=number, failures=0, latency_sum_us=0, memory_sum=0, memory_samples=0,
                )
            )  # fmt: skip
    text = api.get("/metrics").text
    assert "camera-0001" not in text
    families = scrape(api)
    shown = values(families, "wherry_inference_requests")
    assert len(shown) == MAX_VERSIONS
    assert ("many", f"v{MAX_VERSIONS + 49}") in shown
    assert ("vision", "2.0.0") in shown  # what serves comes first, however few requests it had
    assert ("many", "v0") not in shown


def test_counters_do_not_fall_when_old_telemetry_is_forgotten(context, api, fleet, clock):
    before = values(scrape(api), "wherry_inference_requests")
    clock.pass_time(days=100)
    telemetry.forget_old(context)
    assert values(scrape(api), "wherry_inference_requests") == before
    assert all(before.values())


def test_the_link_shows_how_it_keeps_up(context, api, make_api):
    wire = SimpleNamespace(connected=True, waiting=7, refused=3, lag_seconds=1.5)
    families = scrape(make_api_with(context, wire, api))
    assert values(families, "wherry_broker_connected") == {(): 1}
    assert values(families, "wherry_ingest_waiting") == {(): 7}
    assert values(families, "wherry_ingest_refused") == {(): 3}
    assert values(families, "wherry_ingest_lag_seconds") == {(): 1.5}


def make_api_with(context, wire, api):
    api.app.state.context = dataclasses.replace(context, line=Line(wire))
    return api


def test_an_empty_server_can_be_scraped_and_strangers_cannot(api):
    families = scrape(api)
    assert values(families, "wherry_broker_connected") == {(): 0}
    assert api.get("/metrics", headers={"Authorization": ""}).status_code == 401


def test_a_label_with_odd_characters_stays_one_label(context, api, fleet):
    odd = 'a"b\\c\nd'
    assert not values(scrape_serving(context, api, odd), "wherry_devices_serving", model=odd)
    with context.store.write() as session:
        session.add(
            Image(
                path="odd", model=odd, version="1", profile="x", counter=1, digest="sha256:0", manifest_bytes=1,
                image="{}", published=context.clock(),
            )
        )  # fmt: skip
    assert values(scrape(api), "wherry_devices_serving", model=odd) == {(odd, "1"): 1}


def scrape_serving(context, api, model):
    """After a device said that it serves a model, whether or not that was ever signed."""
    with context.store.write() as session:
        session.add(
            ServingSlot(
                device="camera-0001", slot="odd", model=model, version="1", counter=1, digest="sha256:0",
                profile="x", healthy=True, since=context.clock(),
            )
        )  # fmt: skip
    return scrape(api)
