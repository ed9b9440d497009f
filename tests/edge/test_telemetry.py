"""From counters to samples, as sentences; then the sampler on a spool and on a real HTTP server."""

from __future__ import annotations

import http.server
import json
import threading
import time
from datetime import UTC, datetime

import pytest

from wherry.errors import InferenceError, MalformedMessage, StoreError
from wherry.messages import LATENCY_EDGES_US, HostSample, ReleaseRef
from wherry_agent.counters import NOTHING, Counters, change, read_counters, slot_sample
from wherry_agent.observed import ActiveSlot
from wherry_agent.spool import Spool
from wherry_agent.telemetry import MAX_STATS_BYTES, Sampler, StatsReader

NOW = datetime(2030, 1, 1, tzinfo=UTC)
BINS = len(LATENCY_EDGES_US) + 1


def counters(requests=0, failures=0, slow=0, memory=None, instance=""):
    latency = (requests - slow, slow) + (0,) * (BINS - 2)
    return Counters(requests, failures, latency, requests * 100, memory, instance)


def slot(name="main", version="1", url="http://127.0.0.1:1"):
    digest = "sha256:" + (version * 64)[:64]
    return ActiveSlot(name, ReleaseRef(model="m", version=version, counter=int(version), digest=digest), url)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(NOTHING, counters(5, 1), counters(5, 1), id="the first reading counts from zero"),
        pytest.param(counters(5), counters(8, slow=1), counters(3, slow=1), id="growth is the difference"),
        pytest.param(counters(5), counters(5), counters(0), id="no requests is no change"),
        pytest.param(counters(9), counters(2), counters(2), id="a fallen count is a new process"),
        pytest.param(counters(5, 3), counters(6, 0), counters(6, 0), id="fallen failures are a new process too"),
        pytest.param(counters(5, slow=5), counters(6), counters(6), id="so is a fallen histogram bin"),
        pytest.param(
            counters(5, instance="a"),
            counters(9, instance="b"),
            counters(9, instance="b"),
            id="a new process may have overtaken the old one",
        ),
        pytest.param(
            counters(5, instance="a"),
            counters(9, instance="a"),
            counters(4, instance="a"),
            id="the same process goes on",
        ),
        pytest.param(
            counters(5), counters(9, instance="b"), counters(4, instance="b"), id="an older agent knew no instance"
        ),
        pytest.param(counters(5, memory=7), counters(6, memory=8), counters(1, memory=8), id="memory is a level"),
    ],
)
def test_change_between_two_readings(before, after, expected):
    assert change(before, after) == expected


def test_an_idle_window_carries_no_histogram():
    assert slot_sample(slot(), 15, counters(0)).latency == []
    assert sum(slot_sample(slot(), 15, counters(3)).latency) == 3


def document(requests=3, failures=1, model="m", **ours):
    stats = {"success": {"count": requests, "ns": 1}, "fail": {"count": failures, "ns": 1}}
    return {"model_stats": [{"name": model, "inference_stats": stats, "wherry": ours}]}


def test_a_statistics_document_is_read():
    latency = [3] + [0] * (BINS - 1)
    read = read_counters(document(latency=latency, latency_sum_us=9, memory_bytes=5, instance="a"), "m")
    assert read == Counters(3, 1, tuple(latency), 9, 5, "a")
    assert read_counters(document(), "m") == Counters(3, 1, NOTHING.latency)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param([], id="a list"),
        pytest.param({}, id="no models"),
        pytest.param(document(model="other"), id="another model"),
        pytest.param(document(requests="many"), id="words for numbers"),
        pytest.param(document(requests=-1), id="negative"),
        pytest.param(document(latency=[1, 2]), id="too few bins"),
        pytest.param({"model_stats": [{"name": "m", "inference_stats": None}]}, id="nothing inside"),
    ],
)
def test_an_unreadable_document_is_malformed(broken):
    with pytest.raises(MalformedMessage):
        read_counters(broken, "m")


class World:
    """What the sampler sees, set by the test."""

    def __init__(self, folder):
        self.folder = folder
        self.seconds = 0.0
        self.slots = [slot()]
        self.counters = {}
        self.host_fails = False
        self.begin()

    def begin(self):
        self.spool = Spool(self.folder / "spool.db", "dev-1")
        self.sampler = Sampler(
            lambda: self.slots, self._read, self._host, self.spool, lambda: NOW, lambda: self.seconds
        )

    def restart_agent(self):
        self.spool.close()
        self.begin()

    def _read(self, which):
        if which.base_url not in self.counters:
            raise InferenceError(f"statistics of {which.slot}", "no answer")
        return self.counters[which.base_url]

    def _host(self):
        if self.host_fails:
            raise StoreError("folder", "its filesystem cannot be examined")
        return HostSample(
            cpu_percent=1, memory_used_bytes=1, memory_total_bytes=1, disk_used_bytes=1, disk_total_bytes=1
        )

    def after(self, seconds, **now):
        self.seconds += seconds
        self.counters.update({slot().base_url: counters(**now)} if now else {})
        self.sampler.sample()
        return self

    def take(self, kind="slot"):
        batch = self.spool.batch(NOW)
        if batch is None:
            return []
        self.spool.ack(batch.stream, batch.records[-1].sequence)
        return [entry.record for entry in batch.records if entry.record.type == kind]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.spool.close()


def test_each_sample_holds_what_happened_since_the_one_before(world):
    world.after(15, requests=3).after(15, requests=10, failures=2)
    assert [(record.requests, record.failures, record.seconds) for record in world.take()] == [(3, 0, 15), (7, 2, 15)]


def test_a_model_that_nobody_asks_is_reported_rarely_and_its_window_goes_on(world):
    world.after(15, requests=1)
    for _ in range(25):
        world.after(15)
    assert [(record.requests, record.seconds) for record in world.take()] == [(1, 15), (0, 300)]


def test_a_restart_of_the_agent_neither_repeats_nor_forgets(world):
    world.after(15, requests=100)
    world.restart_agent()
    world.after(15, requests=130)
    assert [record.requests for record in world.take()] == [100, 30]


def test_a_model_that_cannot_be_read_is_named_and_the_others_are_sampled(world):
    other = slot("second", url="http://127.0.0.1:2")
    world.slots = [other, slot()]
    with pytest.raises(InferenceError, match="statistics of second"):
        world.after(15, requests=4)
    assert [record.slot for record in world.take()] == ["main"]


def test_what_a_leaving_model_answers_while_it_drains_is_counted(world):
    old, new = slot(), slot(version="2", url="http://127.0.0.1:2")
    world.after(15, requests=5)
    world.slots = [new]
    world.counters[new.base_url] = counters(0)
    world.take()
    world.sampler.farewell()
    world.counters[old.base_url] = counters(9)
    found = []
    until = time.monotonic() + 20
    while not found and time.monotonic() < until:
        found = [record.requests for record in world.take() if record.version == "1"]
        time.sleep(0.02)
    assert found == [4], "counted after the last sample before it was told to stop"
    del world.counters[old.base_url]
    for thread in threading.enumerate():
        if thread.name == "farewell":
            thread.join(20)
            assert not thread.is_alive(), "it has left: nobody asks it any more"


def test_a_model_that_has_just_left_is_read_once_more(world):
    old, new = slot(), slot(version="2", url="http://127.0.0.1:2")
    world.after(15, requests=5)
    world.slots = [new]
    world.counters[new.base_url] = counters(1)
    world.counters[old.base_url] = counters(9)
    world.after(15)
    del world.counters[old.base_url]
    world.after(15)
    assert [(record.version, record.requests) for record in world.take()] == [("1", 5), ("1", 4), ("2", 1)]


def test_a_model_that_drains_is_read_for_as_long_as_it_answers(world):
    old, new = slot(), slot(version="2", url="http://127.0.0.1:2")
    world.after(15, requests=5)
    world.slots = [new]
    world.counters[new.base_url] = counters(0)
    for total in (7, 9):
        world.counters[old.base_url] = counters(total)
        world.after(15)
    del world.counters[old.base_url]
    world.after(15)
    assert sum(record.requests for record in world.take() if record.version == "1") == 9


def test_a_rollback_to_a_process_that_ran_on_counts_nothing_twice(world):
    world.after(15, requests=5)
    world.slots = [slot(version="2", url="http://127.0.0.1:2")]
    world.counters["http://127.0.0.1:2"] = counters(0)
    world.after(15)
    world.slots = [slot()]
    world.after(15, requests=8)
    assert sum(record.requests for record in world.take() if record.version == "1") == 8


def test_the_device_is_sampled_once_a_minute_also_when_models_are_not_readable(world):
    for _ in range(8):
        with pytest.raises(InferenceError):
            world.after(15)
    assert len(world.take("host")) == 2


def test_a_device_that_cannot_be_sampled_does_not_stop_the_models(world):
    world.host_fails = True
    with pytest.raises(StoreError):
        world.after(15, requests=2)
    assert [record.requests for record in world.take()] == [2]


@pytest.fixture
def model_server():
    """An HTTP server that answers with what the test gave."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.paths.append(self.path)
            status, body = self.server.answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.paths = []
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_reader_asks_the_model_server(model_server):
    at = slot(url=f"http://127.0.0.1:{model_server.server_port}")
    model_server.answer = (200, json.dumps(document()).encode())
    assert StatsReader()(at).requests == 3
    assert model_server.paths == ["/v2/models/m/stats"]


@pytest.mark.parametrize(
    ("status", "body"), [(404, b"{}"), (200, b"<html>"), (200, b"[]"), (200, b" " * (MAX_STATS_BYTES + 10))]
)
def test_the_reader_refuses_bad_answers_in_words(model_server, status, body):
    at = slot(url=f"http://127.0.0.1:{model_server.server_port}")
    model_server.answer = (status, body)
    with pytest.raises((InferenceError, MalformedMessage)):
        StatsReader()(at)


def test_the_reader_says_when_nobody_answers():
    with pytest.raises(InferenceError, match="cannot be read"):
        StatsReader(timeout=0.5)(slot())
