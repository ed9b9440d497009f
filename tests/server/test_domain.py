"""Twins, selectors, histograms and words: pure functions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.api.rollouts import Selector
from wherry.messages import LATENCY_EDGES_US, ReleaseRef, SlotReport
from wherry_server.dashboard import words
from wherry_server.domain.histogram import BINS, merge, percentile
from wherry_server.domain.selector import Candidate, describe, selects
from wherry_server.domain.twin import drift

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def ref(version):
    return ReleaseRef(model="vision", version=version, counter=1, digest="sha256:" + version * 64)


def slot(name, version):
    return SlotReport(slot=name, port=1, serving=ref(version) if version else None)


@pytest.mark.parametrize(
    ("desired", "reported", "drifting"),
    [
        ({}, [], []),
        ({"main": ref("1")}, [slot("main", "1")], []),
        ({"main": ref("2")}, [slot("main", "1")], ["main"]),
        ({"main": ref("1")}, [], ["main"]),
        ({"main": ref("1")}, [slot("main", None)], ["main"]),
        ({}, [slot("main", "1")], ["main"]),
        ({}, [slot("main", None)], []),
        ({"b": ref("1"), "a": ref("1")}, [slot("c", "1")], ["a", "b", "c"]),
    ],
)
def test_drift_is_where_desired_and_reported_differ(desired, reported, drifting):
    assert drift(desired, reported) == drifting


DEVICE = Candidate("cam-1", "raspberry-pi-5", {"site": "north", "line": "a"})


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ({}, False),
        ({"everything": True}, True),
        ({"ids": ["cam-1", "cam-2"]}, True),
        ({"ids": ["cam-2"]}, False),
        ({"profiles": ["raspberry-pi-5"]}, True),
        ({"labels": {"site": "north"}}, True),
        ({"labels": {"site": "north", "line": "b"}}, False),
        ({"labels": {"missing": ""}}, False),
        ({"ids": ["cam-1"], "profiles": ["jetson-orin"]}, False),
        ({"everything": True, "labels": {"site": "south"}}, False),
    ],
)
def test_a_selector_chooses_when_all_its_conditions_hold(selector, chosen):
    assert selects(Selector(**selector), DEVICE) is chosen


def test_a_selector_in_words():
    assert (
        describe(Selector(ids=["a", "b"], profiles=["p"], labels={"site": "north"})) == "a or b, profile p, site=north"
    )
    assert describe(Selector(everything=True)) == "all devices"


counts = st.lists(st.integers(0, 10**6), min_size=BINS, max_size=BINS)


@given(counts, counts)
def test_histograms_merge_by_addition(one, other):
    assert sum(merge(one, other)) == sum(one) + sum(other)
    assert merge(one, other) == merge(other, one)
    assert merge(one, []) == one


@given(counts, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_percentiles_grow_with_the_fraction(one, low, high):
    low, high = sorted((low, high))
    first, second = percentile(one, low), percentile(one, high)
    assert (first is None) == (second is None) == (sum(one) == 0)
    if first is not None and second is not None:
        assert 0 <= first <= second <= LATENCY_EDGES_US[-1]


def test_a_percentile_lies_in_the_bin_that_holds_it():
    one = [0] * BINS
    one[5] = 100
    assert LATENCY_EDGES_US[4] < (percentile(one, 0.5) or 0) < LATENCY_EDGES_US[5]
    assert percentile([0] * 3, 0.5) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "now"), (2, "now"), (3, "3 s ago"), (61, "1 min ago"), (7200, "2 h ago"), (-5, "now")]
)
def test_ages(seconds, text):
    assert words.age(NOW - timedelta(seconds=seconds), NOW) == text


def test_numbers_in_words():
    assert words.age(None, NOW) == "never"
    assert [words.milliseconds(n) for n in (420, 12_000, 1_300_000)] == ["0.42 ms", "12 ms", "1.3 s"]
    assert [words.size(n) for n in (12, 512_000_000, 7_600_000_000)] == ["12 B", "512 MB", "7.6 GB"]
    assert words.percent(1, 0) == 0
