"""Rollouts: their states in words, what an operator may do, and the pages in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from wherry.api.rollouts import RolloutPart, RolloutTargetView, RolloutView, Selector, TargetPartView
from wherry.identity import sha256_digest
from wherry.messages import DeploymentReport, Problem, ReleaseRef
from wherry_server.dashboard import rollout_rows as rows
from wherry_server.dashboard import words
from wherry_server.services.rollouts import change_rollout

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SOON = NOW + timedelta(seconds=9)
RELEASE = ReleaseRef(model="vision", version="2.0", counter=2, digest=sha256_digest(b"vision 2.0"))


def rollout(state: str, reason: str = "", **counts: int) -> RolloutView:
    return RolloutView(
        id=7, model="vision", version="2.0", slot="main", selector=Selector(labels={"site": "quay"}), state=state,
        reason=reason, created=NOW - timedelta(minutes=3), counts=counts,
    )  # fmt: skip


def deployment(phase: str, **fields: Any) -> DeploymentReport:
    values = {"started": NOW - timedelta(seconds=40), "updated": NOW} | fields
    return DeploymentReport(id="d", slot="main", release=RELEASE, sequence=3, phase=phase, **values)


@pytest.mark.parametrize(
    ("view", "sentence"),
    [
        (rollout("running", committed=1, rejected=1), ""),
        (rollout("completed", committed=2), ""),
        (rollout("completed"), "Its devices have left the fleet."),
        (rollout("failed", committed=8, rejected=1, refused=1), "2 of 10 devices did not take it."),
        (rollout("failed", rejected=1), "Its only device did not take it."),
        (rollout("failed", misfit=1200), "It fits none of the devices (1 200 devices cannot run it)."),
        (rollout("paused", "2 of 5 devices of wave 1 failed", rejected=2), "2 of 5 devices of wave 1 failed."),
        (rollout("paused", pending=4), "An operator paused it. Devices that have their assignment go on;"),
        (rollout("aborted", pending=4), "An operator aborted it."),
        (rollout("aborted", superseded=4), "It ended before every device was served"),
    ],
)
def test_a_rollout_says_why_it_stands_as_it_does(view, sentence):
    assert rows.why(view).replace("\N{NARROW NO-BREAK SPACE}", " ").startswith(sentence)
    assert sentence or rows.why(view) == ""


@pytest.mark.parametrize(
    ("view", "verbs"),
    [
        (rollout("running", pending=1), ["pause", "abort"]),
        (rollout("running", pending=1, rejected=1), ["pause", "retry", "abort"]),
        (rollout("paused", pending=1, rejected=1), ["start", "retry", "abort"]),
        (rollout("failed", rejected=1), ["retry"]),
        (rollout("completed", committed=1), []),
        (rollout("aborted", rejected=1), []),
    ],
)
def test_only_what_an_operator_may_do_is_offered(view, verbs):
    offered = rows.actions(view)
    assert [action.verb for action in offered] == verbs
    assert [action.verb for action in offered if action.warns] == [verb for verb in verbs if verb == "abort"]


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ({"state": "pending"}, ("waits for its turn", None, "", "")),
        ({"state": "assigned", "online": True}, ("has its assignment", None, "", "")),
        ({"state": "assigned"}, ("offline; the assignment waits for it", None, "", "")),
        (
            {"state": "running", "deployment": deployment("fetching", fetched_bytes=30, total_bytes=120)},
            ("fetching", 25, "", ""),
        ),
        (
            {"state": "running", "deployment": deployment("probing", gate="golden", deadline=SOON)},
            ("probing", None, "golden", "9 s left"),
        ),
        (
            {"state": "running", "deployment": deployment("rolling_back", deadline=NOW)},
            ("rolling back", None, "", "time is up"),
        ),
        ({"state": "committed", "deployment": deployment("committed")}, ("took 40 s", None, "", "")),
        ({"state": "superseded"}, ("", None, "", "")),
    ],
)  # fmt: skip
def test_a_device_shows_how_far_it_is(target, shown):
    row = rows.target_row(RolloutTargetView(device="cam-1", **target), NOW)
    assert (row.doing, row.percent, row.gate, row.left) == shown


def test_a_device_that_failed_says_why_and_what_to_do():
    problem = Problem(
        code="gate", thing="release vision 2.0", reason="golden gate: case 3 differs", fix="Mend the model"
    )
    reported = RolloutTargetView(device="cam-1", state="rejected", deployment=deployment("rejected", problem=problem))
    row = rows.target_row(reported, NOW)
    assert (row.reason, row.fix) == ("Release vision 2.0: golden gate: case 3 differs.", "Mend the model.")


def test_a_device_shows_each_slot_of_a_rollout_of_several_releases():
    parts = [
        TargetPartView(slot="cam", state="committed"),
        TargetPartView(slot="text", state="running", deployment=deployment("probing")),
    ]
    row = rows.target_row(RolloutTargetView(device="cam-1", state="running", parts=parts), NOW)
    assert row.slots == [("cam", "committed", "good"), ("text", words.phase_words("probing"), words.tone("running"))]
    view = rollout("running", running=1)
    several = view.model_copy(update={"together": [*view.parts, RolloutPart(model="words", version="3", slot="text")]})
    shown = rows.summary(several, NOW)
    assert shown.label == "vision 2.0 + words 3"
    assert shown.releases == [
        ("vision 2.0", "/releases/vision/2.0", "main"), ("words 3", "/releases/words/3", "text"),
    ]  # fmt: skip


def test_the_same_reason_is_said_once():
    slow = Problem(code="gate", thing="release on cam", reason="too slow", fix="Make it faster")
    views = [RolloutTargetView(device=f"cam-{n}", state="rejected", problem=slow) for n in range(5)]
    views.insert(0, RolloutTargetView(device="cam-9", state="refused"))
    first, second = rows.reasons(views)
    assert (first.count, first.reason, first.devices, first.more) == (
        "5 devices", "Too slow.", ["cam-0", "cam-1", "cam-2"], "and 2 more",
    )  # fmt: skip
    assert (second.count, second.reason, second.fix, second.more) == ("1 device", "It gave no reason.", "", "")


def test_counts_make_a_bar_of_a_hundred_that_says_one_or_many():
    parts = rows.parts({"rejected": 1, "committed": 2, "pending": 1})
    assert [(word, tone, count) for word, tone, count, _ in parts] == [
        ("serve it", "good", "2"), ("waits for its turn", "quiet", "1"), ("rejected it", "bad", "1"),
    ]  # fmt: skip
    assert sum(percent for *_, percent in parts) == pytest.approx(100)


# -- in a browser


def test_the_list_is_filtered_by_state(open_page: Callable[..., Page], shoot: Any) -> None:
    page = open_page("/rollouts")
    shoot(page, "rollouts")
    page.get_by_role("link", name="Failed").click()
    expect(page.locator(".rollouts > li")).to_have_count(1)
    expect(page.locator(".rollouts")).to_contain_text("did not take it.")
    page.get_by_role("link", name="Aborted").click()
    expect(page.get_by_text("No rollout is aborted.")).to_be_visible()


def test_devices_of_a_rollout_are_filtered_searched_and_paged(
    site: Any, open_page: Callable[..., Page], shoot: Any
) -> None:
    failed = site.seeded.rollouts[2]
    page = open_page(f"/rollouts/{failed}")
    shoot(page, "rollout-failed")
    expect(page.get_by_role("region", name="Why devices did not take it")).to_contain_text("Golden case 3 differs")
    devices = page.get_by_role("row").filter(has=page.get_by_role("cell"))
    expect(devices).to_have_count(50)
    page.get_by_role("link", name="Next page").click()
    expect(page.get_by_role("link", name="First page")).to_be_visible()
    page.get_by_role("navigation", name="Show devices by state").get_by_role("link", name="rejected").click()
    expect(devices).to_have_count(5)
    name = devices.first.get_by_role("link").inner_text()
    page.get_by_label("Device id").fill(name[-4:])
    expect(devices).to_have_count(1)
    expect(page).to_have_url(re.compile(r"state=rejected.*search="))
    page.get_by_label("Device id").fill("nobody")
    expect(page.get_by_text("No device of this rollout is rejected.")).to_be_visible()


def test_an_operator_pauses_resumes_and_aborts(
    new_site: Callable[..., Any], open_page: Callable[..., Page], shoot: Any
) -> None:
    site = new_site(devices=20)
    running = site.seeded.rollouts[3]
    page = open_page(f"/rollouts/{running}", at=site, scripts=False)
    state = page.locator(".head .pill")
    page.get_by_role("button", name="Pause").click()
    expect(state).to_have_text("paused")
    expect(page.get_by_text("An operator paused it.")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(state).to_have_text("running")
    page.get_by_text("Abort …").click()
    expect(page.get_by_text("An aborted rollout cannot be started again.")).to_be_visible()
    shoot(page, "rollout-abort")
    page.get_by_role("button", name=f"Abort rollout {running}").click()
    expect(state).to_have_text("aborted")
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)
    page.goto(f"{site.url}/audit?action=rollout.abort")
    expect(page.get_by_role("row").filter(has_text=f"rollout {running}")).to_contain_text("olga")


def test_the_page_follows_by_itself_what_others_do(
    new_site: Callable[..., Any], open_page: Callable[..., Page]
) -> None:
    site = new_site(devices=20)
    running, paused = site.seeded.rollouts[3:5]
    page = open_page(f"/rollouts/{running}", at=site)
    expect(page.locator("#link")).to_have_text("live")
    change_rollout(site.context.acting_as("somebody else"), running, "pause")
    expect(page.locator(".head .pill")).to_have_text("paused")
    page.goto(f"{site.url}/rollouts")
    expect(page.locator("#link")).to_have_text("live")
    change_rollout(site.context.acting_as("somebody else"), paused, "abort")
    expect(page.locator(f"#rollout-{paused} .pill")).to_have_text("aborted")


def test_what_makes_no_sense_is_answered_in_words(site: Any, open_page: Callable[..., Page]) -> None:
    page = open_page("/rollouts/4040404", allow=("404", "409", "422", "403"))
    expect(page.get_by_role("main")).to_contain_text("Rollout 4040404 does not exist.")
    done = site.seeded.rollouts[0]
    ours = {"Origin": site.url, "Sec-Fetch-Site": "same-origin"}
    answers = {
        verb: page.request.post(f"{site.url}/rollouts/{done}/change", form={"verb": verb}, headers=ours)
        for verb in ("pause", "explode")
    }
    assert answers["pause"].status == 409
    assert "cannot pause" in answers["pause"].text()
    assert answers["explode"].status == 422
    elsewhere = {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    refused = page.request.post(f"{site.url}/rollouts/{done}/change", form={"verb": "retry"}, headers=elsewhere)
    assert refused.status == 403


def test_an_empty_server_says_what_to_do_next(new_site: Callable[..., Any], open_page: Callable[..., Page]) -> None:
    site = new_site()
    page = open_page("/rollouts", at=site)
    for path, command in {
        "/rollouts": "wherry push model.onnx",
        "/releases": "wherry keys init",
        "/models": "wherry push model.onnx",
    }.items():
        page.goto(site.url + path)
        expect(page.locator(".empty")).to_contain_text(command)
