"""What an operator reads while a rollout runs, as sentences."""

from __future__ import annotations

from datetime import timedelta

import pytest
from rich.console import Console

from wherry_cli import watch
from wherry_cli.follow import rollout_table


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
    shown = {row.device: row for row in watch.rows(mixed, make.started + timedelta(seconds=75))}
    assert shown["edge-1"].state == "committed"
    assert shown["edge-1"].elapsed == "3.2 s"  # of the device's own clock, not until now
    assert shown["edge-1"].gates == (("ready", True), ("golden", True))
    assert shown["edge-1"].reason == ""
    assert shown["edge-2"].reason == "vision 2: the golden gate refused it. Correct the model."
    assert (shown["edge-3"].state, shown["edge-3"].download) == ("fetching", "1.2 MB of 3.4 MB (35 %)")
    assert shown["edge-3"].elapsed == "1 min 15 s"
    assert (shown["edge-4"].state, shown["edge-4"].elapsed) == ("pending", "")
    assert shown["nano-1"].reason == "vision 2 has no image for profile jetson-nano. Package it."


def test_a_clock_behind_shows_no_negative_time(make, mixed):
    row = watch.rows(mixed, make.started - timedelta(hours=1))[2]
    assert row.elapsed == "0.0 s"


def test_summary_counts_in_words(mixed):
    assert watch.title(mixed) == "Rollout 3: vision 2 to slot main of all devices"
    assert watch.summary(mixed) == "running: 1 of 5 devices committed, 1 running, 1 pending, 1 rejected, 1 misfit"


def test_summary_of_a_listed_rollout_uses_its_counts(make):
    assert watch.summary(make.rollout(1, "vision", "2", counts={"committed": 1})) == "running: 1 of 1 device committed"
    assert watch.summary(make.rollout(1, "vision", "2")) == "running: no device was selected"


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
    told = [watch.news(before, after) for before, after in zip([None, *looks], looks, strict=False)]
    assert told == [
        ["Rollout 3: vision 2 to slot main of all devices", "edge-2: pending"],
        ["edge-2: assigned"],
        ["edge-2: admitted", "edge-2: fetching 3.4 MB"],
        [],
        ["rollout is paused"],
        [
            "edge-2: probing",
            "edge-2: rolling back",
            "edge-2: gate ready passed: answered 200 (0.4 s)",
            "edge-2: gate golden FAILED: output label differs by 0.7, allowed is 0.001 (0.4 s)",
            "edge-2: rejected: vision 2: the golden gate refused it. Correct the model.",
        ],
    ]


def test_a_new_attempt_starts_its_story_again(make):
    first = make.deployment("edge-1", ["admitted", "fetching", "rejected"])
    second = make.deployment("edge-1", ["admitted"]).model_copy(update={"id": "edge-1-2"})
    before = make.rollout(3, "vision", "2", targets=[make.target("edge-1", "rejected", first)])
    after = make.rollout(3, "vision", "2", targets=[make.target("edge-1", "running", second)])
    assert watch.news(before, after) == ["edge-1: admitted"]


def test_on_a_small_screen_those_at_work_and_those_that_failed_come_first(make, mixed, golden_failed):
    shown, hidden = watch.pick(watch.rows(mixed, make.started), 3)
    assert ([row.device for row in shown], hidden) == (["edge-2", "edge-3", "nano-1"], 2)
    assert watch.pick(shown, 3) == (shown, 0)


SNAPSHOT = """\
Rollout 3: vision 2 to slot main of all devices

DEVICE  STATE      DOWNLOAD                 GATES                   TIME
edge-1  committed  3.4 MB                   ready ✓ golden ✓       3.2 s
edge-2  rejected   10 B                     ready ✓ golden ✗       3.2 s
edge-3  fetching   1.2 MB of 3.4 MB (35 %)                    1 min 15 s
edge-4  pending
nano-1  misfit
  !  edge-2  vision 2: the golden gate refused it. Correct the model.
  !  nano-1  vision 2 has no image for profile jetson-nano. Package it.

running: 1 of 5 devices committed, 1 running, 1 pending, 1 rejected, 1 misfit
"""


def test_the_table_as_it_stands_on_the_terminal(make, mixed):
    console = Console(width=100, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(rollout_table(mixed, make.started + timedelta(seconds=75)))
    shown = "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
    assert shown == SNAPSHOT
