"""Models: versions compared in words, their rows, and the pages in a browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from wherry.api.releases import ReleaseView
from wherry.api.telemetry import TelemetrySeries, VersionSeries
from wherry_server.dashboard.model_rows import model_card, model_charts, parts, per_second, version_rows
from wherry_server.dashboard.model_verdict import rate, verdict
from wherry_server.store.model_views import ModelInField, VersionInField

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OLD = VersionInField(
    model="vision", version="2.0", devices=10, desired=10, healthy=10, profiles={"pi": 10},
    published=NOW - timedelta(days=2), requests=9_990, failures=10, p50_us=8_000, p95_us=10_000, p99_us=12_000,
    per_second=2.8, error_rate=0.001,
)  # fmt: skip
NEW = replace(OLD, version="2.1", devices=5, desired=7, published=NOW - timedelta(days=1))


@pytest.mark.parametrize(
    ("new", "says", "tone"),
    [
        (replace(NEW, p95_us=11_800), "2.1 answers 18 % slower than 2.0 at p95 (12 ms against 10 ms)", "warn"),
        (replace(NEW, p95_us=24_000), "2.1 answers 2.4 times slower than 2.0", "warn"),
        (replace(NEW, p95_us=7_400), "2.1 answers 26 % faster than 2.0 at p95 (7.40 ms against 10 ms)", "good"),
        (replace(NEW, p95_us=10_300), "2.1 answers as fast as 2.0 at p95", "good"),
        (replace(NEW, failures=900, error_rate=0.083), "fails more often (8.3 % of requests against 0.10 %)", "bad"),
        (replace(NEW, failures=0, error_rate=0.0), "fails less often (0 % of requests against 0.10 %)", "good"),
        (replace(NEW, requests=0, failures=100, error_rate=1.0, p95_us=None), "2.1 answered nothing", "bad"),
        (replace(NEW, requests=12, failures=0), "Too few requests to compare 2.1 with 2.0: 2.1 had 12.", "quiet"),
        (replace(NEW, profiles={"jetson": 5}), "They run on different hardware", "good"),
    ],
)  # fmt: skip
def test_a_newer_version_is_compared_in_words(new, says, tone):
    found = verdict([new, OLD])
    assert says in found.text
    assert found.tone == tone


def test_the_newest_two_that_were_asked_are_compared():
    idle = replace(NEW, version="2.2", published=NOW, requests=0, failures=0)
    unlisted = replace(OLD, version="0.9", published=None)
    assert verdict([unlisted, OLD, NEW, idle]).text.startswith("2.1 answers as fast as 2.0")
    assert verdict([NEW, idle]) is None
    assert verdict([]) is None


@pytest.mark.parametrize(
    ("part", "text"), [(0, "0 %"), (0.00001, "< 0.01 %"), (0.0025, "0.25 %"), (0.03, "3.0 %"), (0.4, "40 %")]
)
def test_an_error_rate_that_is_not_zero_is_never_shown_as_zero(part, text):
    assert rate(part) == text


@pytest.mark.parametrize(
    ("count", "text"), [(36_000, "10 /s"), (1_440, "0.4 /s"), (60, "1 /min"), (3, "3 /h"), (7_200, "2 /s")]
)
def test_throughput_is_told_in_the_unit_that_gives_a_number(count, text):
    assert per_second(count, 3600) == text


def test_versions_stand_side_by_side_with_bars_against_the_largest():
    release = ReleaseView(model="vision", version="2.1", stage="prod", published=NOW, images=[])
    gone = replace(OLD, published=None, p95_us=20_000)
    found = ModelInField("vision", 15, 19_980, 20, 10_000, 5.5, [gone, NEW])
    new, old = version_rows(found, [release], 3600)
    assert (new.version, new.listed, new.devices.text, new.devices.percent, new.waiting) == ("2.1", True, "5", 50, "2")
    assert (old.version, old.listed, old.stage, old.p95.percent, new.p95.percent) == ("2.0", False, "", 100, 50)
    assert new.errors.text == "0.10 %"
    card = model_card(found, 3600)
    assert (card.newest, card.devices, card.versions, card.failing) == ("2.1", "15", "1 version", False)
    assert [(part.version, part.devices, part.x, part.width) for part in card.parts] == [
        ("2.1", "5", 0.0, 33.333),
        ("2.0", "10", 33.333, 66.667),
    ]


def test_a_model_that_serves_nowhere_has_no_parts():
    assert parts([("1", 0)]) == []


def test_charts_show_the_newest_versions_that_were_asked():
    def series(version: str, counter: int, requests: list[int]) -> VersionSeries:
        return VersionSeries(
            model="vision", version=version, counter=counter, requests=requests, failures=[1, 0], p50_us=[None, 900],
            p95_us=[None, 1500],
        )  # fmt: skip

    idle = VersionSeries(
        model="vision", version="9", counter=9, requests=[0, 0], failures=[0, 0], p50_us=[None] * 2, p95_us=[None] * 2
    )  # fmt: skip
    found = model_charts(
        TelemetrySeries(times=[0, 60], step=60, versions=[series("1", 1, [0, 60]), series("2", 2, [3, 0]), idle])
    ).charts
    assert [line.label for line in found["latency"].lines] == ["2", "1"]
    assert found["latency"].lines[1].values == [None, 1.5]
    assert found["errors"].lines[0].values == [25, None]
    assert found["throughput"].lines[1].values == [1 / 60, None]


# -- in a browser


def test_the_list_leads_to_versions_side_by_side(open_page: Callable[..., Page], shoot: Any) -> None:
    page = open_page("/models")
    card = page.get_by_role("listitem").filter(has_text="vision").first
    expect(card).to_contain_text("3 versions")
    shoot(page, "models")
    page.get_by_role("link", name="vision", exact=True).click()
    expect(page.locator(".verdict")).to_contain_text("2.0.0 answers")
    rows = page.locator(".versions tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("2.0.0")
    expect(page.locator(".plot canvas")).to_have_count(3)
    shoot(page, "model")
    page.get_by_role("link", name="Hour").click()
    expect(page.get_by_role("link", name="Hour")).to_have_attribute("aria-current", "true")
    expect(page.get_by_text("numbers of the last hour")).to_be_visible()


def test_numbers_are_there_without_scripts(open_page: Callable[..., Page]) -> None:
    page = open_page("/models/vision?window=nonsense", scripts=False)
    expect(page.locator(".versions tbody tr").first).to_contain_text("ms")
    expect(page.get_by_role("img", name="Latency at p95")).to_contain_text("over the last day")


def test_an_unknown_model_is_a_page_with_a_way_on(open_page: Callable[..., Page]) -> None:
    page = open_page("/models/nothing", allow=("404",))
    expect(page.get_by_role("main")).to_contain_text("Model nothing does not exist.")
    expect(page.get_by_role("main")).to_contain_text("wherry release list")
