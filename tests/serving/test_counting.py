"""Counters, the histogram, and the Prometheus text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.messages import LATENCY_EDGES_US
from wherry_serving.metrics import ModelCounters, render
from wherry_serving.stats import ModelStats, Timing, statistics_json


def timing(micros: int) -> Timing:
    return Timing(micros * 1000, 0, 0, 0)


@given(st.lists(st.integers(0, 200_000_000), max_size=30))
def test_every_latency_falls_in_the_bin_below_its_edge(latencies):
    stats = ModelStats()
    for micros in latencies:
        stats.succeeded(timing(micros), 5)
    counters = stats.read()
    assert len(counters.latency) == len(LATENCY_EDGES_US) + 1
    for index, edge in enumerate(LATENCY_EDGES_US):
        assert sum(counters.latency[: index + 1]) == sum(micros <= edge for micros in latencies)
    assert sum(counters.latency) == counters.successes == len(latencies)
    assert counters.latency_sum_us == sum(latencies)


def test_statistics_have_the_protocols_form():
    stats = ModelStats()
    stats.succeeded(Timing(1, 2, 3, 4), 1_700_000_000_000)
    stats.failed(9)
    found = statistics_json("m", "1", stats.read(), 7)
    assert found["last_inference"] == 1_700_000_000_000
    assert found["inference_stats"] == {
        "success": {"count": 1, "ns": 10},
        "fail": {"count": 1, "ns": 9},
        "queue": {"count": 1, "ns": 1},
        "compute_input": {"count": 1, "ns": 2},
        "compute_infer": {"count": 1, "ns": 3},
        "compute_output": {"count": 1, "ns": 4},
    }
    assert found["wherry"]["memory_bytes"] == 7


def test_the_text_is_prometheus():
    stats = ModelStats()
    for micros in (50, 150, 150, 10**9):
        stats.succeeded(timing(micros), 5)
    text = render(
        [ModelCounters("m", "1", stats.read()), ModelCounters("other", "2", ModelStats().read())], 3, 99
    ).decode()
    line = re.compile(r'# (HELP|TYPE) \w+ .+|\w+(\{(\w+="[^"]*",?)+\})? [0-9.e+]+')
    for found in text.splitlines():
        assert line.fullmatch(found), found
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(names) == len(set(names))
    buckets = [int(n) for n in re.findall(r'_bucket\{model="m",version="1",le="[^"]+"\} (\d+)', text)]
    assert len(buckets) == len(LATENCY_EDGES_US) + 1
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-2], buckets[-1]) == (1, 3, 4)
    assert len(set(re.findall(r'model="m",version="1",le="([^"]+)"', text))) == len(buckets)
    assert "\nnv_inference_pending_request_count 3\n" in text
    assert 'wherry_inference_request_duration_seconds_sum{model="m",version="1"} 1000\n' in text


@pytest.mark.parametrize(
    "name",
    [
        "nv_inference_request_success",
        "nv_inference_request_failure",
        "nv_inference_count",
        "nv_inference_exec_count",
        "nv_inference_request_duration_us",
        "nv_inference_compute_infer_duration_us",
    ],
)
def test_tritons_names_are_there(name):
    text = render([ModelCounters("m", "1", ModelStats().read())], 0, 0).decode()
    assert f'\n{name}{{model="m",version="1"}} 0\n' in text
