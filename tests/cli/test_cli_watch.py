"""What an operator reads while a rollout runs, as sentences."""

from __future__ import annotations

from datetime import timedelta

import pytest
from rich.console import Console

from wherry_cli import watch
from wherry_cli.news import changes, news
from wherry_cli.rollout_view import RolloutTable


@pytest.fixture
def golden_failed(make):
    gates = [
        make.gate("ready", True, "answered 200"),
        make.gate("golden", False, "output label differs by 0.7, allowed is 0.001"),
    ]
    problem = make.problem(
        code="deployment.gate", thing="vision 2", reason="the golden gate refused it", fix="Correct the model"
    )
    phases = ["admitted", "fetching", "probing", "rolling_back", "rejected"]
    return make.deployment("edge-2", phases, gates=gates, problem=problem, fetched_bytes=10, total_bytes=10)


@pytest.fixture
def mixed(make, golden_failed):
    fetching = make.deployment("edge-3", ["admitted", "fetching"], fetched_bytes=1_200_000, total_bytes=3_400_000)
    good = make.deployment(
        "edge-1",
        ["admitted", "fetching", "probing", "committed"],
        gates=[make.gate("ready", True, "answered 200"), make.gate("golden", True, "worst error 2e-05 of 0.001")],
        fetched_bytes=3_400_000,
        total_bytes=3_400_000,
    )
    misfit = make.problem(code="fit", thing="vision 2", reason="has no image for profile jetson-nano", fix="Package it")
    return make.rollout(
        3,
        "vision",
        "2",
        targets=[
            make.target("edge-1", "committed", good),
            make.target("edge-2", "rejected", golden_failed),
            make.target("edge-3", "running", fetching),
            make.target("edge-4", "pending"),
            make.target("nano-1", "misfit", problem=misfit),
        ],
    )


def test_each_device_is_one_row(make, mixed):
    shown = {row.device: row for row in watch.rows(mixed, make.started + timedelta(seconds=75), {"edge-3": 1_100_000})}
    assert (shown["edge-1"].phase, shown["edge-1"].reason) == ("committed", "")
    assert shown["edge-1"].elapsed == pytest.approx(3.2)  # of the device's own clock, not until now
    assert shown["edge-1"].gates == (("ready", True), ("golden", True))
    assert shown["edge-2"].reason == "vision 2: the golden gate refused it. Correct the model."
    assert (shown["edge-3"].phase, shown["edge-3"].fetched, shown["edge-3"].total) == ("fetching", 1_200_000, 3_400_000)
    assert (shown["edge-3"].elapsed, shown["edge-3"].left) == (75, 2)
    assert (shown["edge-4"].phase, shown["edge-4"].elapsed) == ("pending", None)
    assert shown["nano-1"].reason == "vision 2 has no image for profile jetson-nano. Package it."


def test_trouble_is_on_top_then_what_moves_then_what_waits(make, mixed):
    order = [row.device for row in watch.rows(mixed, make.started)]
    assert order == ["edge-2", "nano-1", "edge-3", "edge-4", "edge-1"]


def test_a_clock_behind_shows_no_negative_time(make, mixed):
    early = make.started - timedelta(hours=1)
    probing = make.deployment("edge-9", ["probing"], deadline=early - timedelta(seconds=1), gate="golden")
    mixed.targets.append(make.target("edge-9", "running", probing))
    shown = {row.device: row for row in watch.rows(mixed, early)}
    assert shown["edge-3"].elapsed == 0
    assert (shown["edge-9"].left, shown["edge-9"].asking) == (0, "golden")


def test_seconds_left_come_from_the_deadline_where_nothing_is_fetched(make):
    probing = make.deployment("edge-9", ["probing"], deadline=make.started + timedelta(seconds=30))
    view = make.rollout(3, "vision", "2", targets=[make.target("edge-9", "running", probing)])
    assert watch.rows(view, make.started + timedelta(seconds=12))[0].left == 18


def test_the_rate_is_of_the_last_changes_and_falls_while_nothing_comes(make):
    rates, told = watch.Rates(), []
    for second, fetched in ((0, 0), (1, 100), (2, 300), (3, 300)):
        report = make.deployment("edge-1", ["fetching"], fetched_bytes=fetched, total_bytes=1000)
        view = make.rollout(3, "vision", "2", targets=[make.target("edge-1", "running", report)])
        told.append(rates.see(view, make.started + timedelta(seconds=second)))
    assert told == [{}, {"edge-1": 100}, {"edge-1": 150}, {"edge-1": 100}]
    assert rates.see(make.rollout(3, "vision", "2", targets=[]), make.started) == {}


def test_a_device_that_is_away_is_shown_as_such(make):
    away = make.target("edge-1", "assigned")
    here = make.target("edge-2", "assigned").model_copy(update={"online": True})
    shown = watch.rows(make.rollout(3, "vision", "2", targets=[away, here]), make.started)
    assert [row.offline for row in shown] == [True, False]


def test_summary_counts_in_words(mixed):
    assert watch.title(mixed) == "Rollout 3: vision 2 to slot main of all devices"
    assert watch.summary(mixed) == "running: 1 of 5 devices committed, 1 running, 1 pending, 1 rejected, 1 misfit"


def test_summary_of_a_listed_rollout_uses_its_counts(make):
    assert watch.summary(make.rollout(1, "vision", "2", counts={"committed": 1})) == "running: 1 of 1 device committed"
    assert watch.summary(make.rollout(1, "vision", "2")) == "running: its devices have left the fleet"


@pytest.mark.parametrize(
    ("states", "rollout", "settled", "good"),
    [
        (["committed", "running"], "running", False, True),
        (["committed", "committed"], "running", True, True),
        (["committed", "superseded"], "completed", True, True),
        (["committed", "rejected"], "completed", True, False),
        (["refused"], "running", True, False),
        (["misfit"], "running", True, False),
        (["pending"], "aborted", True, False),
        (["pending"], "failed", True, False),
        (["pending"], "paused", False, True),
        ([], "completed", True, False),
    ],
)
def test_when_watching_ends_and_how(make, states, rollout, settled, good):
    targets = [make.target(f"edge-{number}", state) for number, state in enumerate(states)]
    view = make.rollout(1, "vision", "2", rollout, targets=targets)
    assert (watch.is_settled(view), watch.succeeded(view)) == (settled, good)


def test_the_log_tells_each_event_once(make, golden_failed):
    def view(state, report=None, rollout="running"):
        return make.rollout(3, "vision", "2", rollout, targets=[make.target("edge-2", state, report)])

    early = make.deployment("edge-2", ["admitted", "fetching"], total_bytes=3_400_000)
    looks = [
        view("pending"),
        view("assigned"),
        view("running", early),
        view("running", early),
        view("running", early, "paused"),
        view("rejected", golden_failed, "completed"),
    ]
    told = [news(before, after) for before, after in zip([None, *looks], looks, strict=False)]
    assert told == [
        ["Rollout 3: vision 2 to slot main of all devices", "edge-2: pending"],
        ["edge-2: assigned"],
        ["edge-2: admitted", "edge-2: fetching 3.4 MB"],
        [],
        ["rollout is paused"],
        [
            "edge-2: probing",
            "edge-2: gate ready passed: answered 200 (0.4 s)",
            "edge-2: gate golden FAILED: output label differs by 0.7, allowed is 0.001 (0.4 s)",
            "edge-2: rolling back",
            "edge-2: rejected: vision 2: the golden gate refused it. Correct the model.",
        ],
    ]


def test_gates_are_told_before_the_phase_that_waited_for_them(make):
    phases = ["admitted", "starting", "probing", "switching", "soaking"]
    gates = [make.gate("ready", True, "answered 200"), make.gate("golden", True, "same")]

    def a(count, seen):
        return [make.deployment("edge-1", phases[:count], gates=seen)]

    def told(before, after):
        views = [
            make.rollout(3, "vision", "2", targets=[make.target("edge-1", "running", *of)]) for of in (before, after)
        ]
        return [line.removeprefix("edge-1: ").partition(":")[0] for line in news(*views)]

    assert told(a(2, []), a(5, gates)) == [
        "probing", "gate ready passed", "gate golden passed", "switching", "soaking",
    ]  # fmt: skip
    phases += ["committing"]
    soak = [*gates, make.gate("soak", True, "no crash")]
    assert told(a(5, gates), a(6, soak)) == ["gate soak passed", "committing"]


def test_a_new_attempt_starts_its_story_again(make):
    first = make.deployment("edge-1", ["admitted", "fetching", "rejected"])
    second = make.deployment("edge-1", ["admitted"]).model_copy(update={"id": "edge-1-2"})
    before = make.rollout(3, "vision", "2", targets=[make.target("edge-1", "rejected", first)])
    after = make.rollout(3, "vision", "2", targets=[make.target("edge-1", "running", second)])
    assert news(before, after) == ["edge-1: admitted"]


def test_programs_get_what_changed(make):
    def view(state, fetched, rollout="running"):
        report = make.deployment("edge-2", ["fetching"], fetched_bytes=fetched)
        targets = [make.target("edge-1", "pending"), make.target("edge-2", state, report)]
        return make.rollout(3, "vision", "2", rollout, targets=targets)

    first = changes(None, view("running", 1))
    assert [(item["event"], item.get("device")) for item in first] == [
        ("rollout", None), ("device", "edge-1"), ("device", "edge-2"),
    ]  # fmt: skip
    [moved] = changes(view("running", 1), view("running", 2))
    assert (moved["device"], moved["deployment"]["fetched_bytes"]) == ("edge-2", 2)
    assert changes(view("running", 2), view("running", 2)) == []
    [paused] = changes(view("running", 2), view("running", 2, "paused"))
    assert (paused["event"], paused["state"]) == ("rollout", "paused")


def test_on_a_small_screen_trouble_leaves_room_for_what_moves(make):
    problem = make.problem(code="fit", thing="vision 2", reason="does not fit", fix="Package it")
    bad = [make.target(f"bad-{number}", "misfit", problem=problem) for number in range(9)]
    busy = [make.target(f"busy-{number}", "running", make.deployment("b", ["fetching"])) for number in range(9)]
    found = watch.rows(make.rollout(3, "vision", "2", targets=[*busy, *bad]), make.started)
    shown, hidden = watch.pick(found, 5)
    assert [row.device for row in shown] == ["bad-0", "bad-1", "bad-2", "busy-0", "busy-1"]
    assert watch.rest(hidden) == "… and 13 more: 7 running, 6 misfit"
    assert watch.pick(found, 18) == (found, [])
    assert watch.reasons(found) == [("bad-0 and 8 more", "vision 2 does not fit. Package it.")]


def drawn(table, width, height=None):
    console = Console(width=width, height=height or 60, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 10), (20, 5)])
def test_the_table_keeps_to_the_terminal(make, width, height):
    problem = make.problem(code="fit", thing="vision 2", reason="does not fit " + "x " * 100, fix="Package it")
    targets = [make.target(f"bad-{number}", "misfit", problem=problem) for number in range(900)]
    targets += [make.target(f"edge-{number}", "pending") for number in range(900)]
    shown = drawn(RolloutTable(make.rollout(3, "vision", "2", targets=targets), make.started, height=height), width)
    if width >= 80:
        assert len(shown.splitlines()) <= height
        assert "of 1,800 devices" in shown
        assert "bad-0" in shown


SNAPSHOT = """\
Rollout 3: vision 2 to slot main of all devices

DEVICE  PHASE            DOWNLOAD                         GATES             TIME   LEFT
edge-2  rejected         10 B                             ✓ ✗ golden       3.2 s
nano-1  misfit
edge-3  fetching         ━━────── 1.2 of 3.4 MB 1.1 MB/s              1 min 15 s  ~ 2 s
edge-4  pending offline
edge-1  committed        3.4 MB                           ✓✓               3.2 s
  !  edge-2  vision 2: the golden gate refused it. Correct the model.
  !  nano-1  vision 2 has no image for profile jetson-nano. Package it.

━━━━━━━━━━━━──────── running: 1 of 5 devices committed, 1 running, 1 pending, 1 rejected, 1 misfit
"""


def test_the_table_as_it_stands_on_the_terminal(make, mixed):
    mixed.targets[2].online = True
    table = RolloutTable(mixed, make.started + timedelta(seconds=75), {"edge-3": 1_100_000})
    assert drawn(table, 100) == SNAPSHOT
