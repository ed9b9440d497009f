"""What a recording says about swaps: every failed request is counted, every gap is put where it belongs."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture
def ask(swap_figures: ModuleType):
    """An answer sent at a second, good unless said otherwise."""

    def make(at: float, problem: str | None = None, version: str = "1", seconds: float = 0.01, kept: bool = False):
        return swap_figures.Answer(at, seconds, problem, version, kept)

    return make


@pytest.fixture
def swapped(swap_figures: ModuleType):
    """A recording with one swap between seconds 10 and 14, done at 12."""

    def make(answers):
        return swap_figures.Recording(answers, [swap_figures.Window(10.0, 12.0, 14.0)])

    return make


def test_a_failed_request_is_counted_once_with_its_connection_and_its_place(swap_figures, swapped, ask) -> None:
    answers = [ask(9.0), ask(10.5, "refused", kept=True), ask(10.6, "refused"), ask(13.0), ask(14.0, "reset")]
    figures = swap_figures.swap_figures([swapped(answers)])
    assert (figures["sent"], figures["failed"], figures["swaps"]) == (5, 3, 1)
    assert (figures["failed_kept_connections"], figures["failed_new_connections"]) == (1, 2)
    assert figures["failed_outside_swaps"] == 1
    assert figures["problems"] == {"refused": 2, "reset": 1}
    assert figures["swap_s_median"] == figures["swap_s_worst"] == 2.0


def test_latency_is_told_apart_by_when_a_request_was_sent(swap_figures, swapped, ask) -> None:
    answers = [ask(at / 10, seconds=0.03 if 100 <= at < 140 else 0.01) for at in range(80, 200)]
    figures = swap_figures.swap_figures([swapped(answers)])
    assert (figures["p99_ms"], figures["p99_outside_ms"], figures["p99_ratio"]) == (30.0, 10.0, 3.0)
    assert (figures["p50_ms"], figures["p50_outside_ms"]) == (30.0, 10.0)


def test_a_failed_request_ends_no_gap_and_a_gap_belongs_to_the_swap_that_it_touches(swap_figures, swapped, ask) -> None:
    answers = [ask(5.0), ask(5.5), ask(9.25), ask(11.0, "refused"), ask(12.5), ask(15.5), ask(15.6)]
    figures = swap_figures.swap_figures([swapped(answers)])
    assert figures["gap_ms"] == 3250.0
    assert figures["gap_outside_ms"] == 3750.0


def test_no_gap_spans_two_recordings(swap_figures, swapped, ask) -> None:
    early, late = swapped([ask(11.0), ask(11.5)]), swapped([ask(1011.0), ask(1011.2)])
    assert swap_figures.swap_figures([early, late])["gap_ms"] == 500.0


def test_without_a_good_answer_there_is_no_latency(swap_figures, swapped, ask) -> None:
    figures = swap_figures.swap_figures([swapped([ask(11.0, "refused")])])
    assert figures["p99_ms"] is None
    assert figures["p99_ratio"] is None


def test_a_bad_release_is_over_when_the_last_wrong_answer_is(swap_figures, ask) -> None:
    wrong = f"{swap_figures.WRONG} [5.0, 4.2, 4.6]"
    answers = [
        ask(1.0), ask(2.0, wrong, "bad"), ask(3.0, wrong, "bad"), ask(3.2), ask(3.4, wrong, "bad"), ask(3.5, "refused"),
        ask(3.7), ask(3.8),
    ]  # fmt: skip
    figures = swap_figures.bad_release_figures(answers, begin=1.5, verdict=3.0, bad="bad")
    assert (figures["sent"], figures["wrong"], figures["failed"]) == (8, 3, 1)
    assert figures["verdict_s"] == 1.5
    assert figures["back_ms"] == 710.0
    assert figures["gap_ms"] == 2200.0


def test_a_refused_release_hurt_nobody_and_the_old_version_never_stopped(swap_figures, ask) -> None:
    answers = [ask(at / 100) for at in range(100, 500)]
    figures = swap_figures.bad_release_figures(answers, begin=1.5, verdict=3.0, bad="bad")
    assert (figures["wrong"], figures["failed"]) == (0, 0)
    assert figures["back_ms"] == pytest.approx(0, abs=10.1)


def test_where_the_old_version_never_came_back_it_is_not_said_to_be_back(swap_figures, ask) -> None:
    answers = [ask(1.0), ask(2.0, f"{swap_figures.WRONG} [1.0]", "bad"), ask(4.0, "refused")]
    assert swap_figures.bad_release_figures(answers, begin=1.5, verdict=3.0, bad="bad")["back_ms"] is None
