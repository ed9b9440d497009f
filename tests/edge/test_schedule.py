"""Recurring work goes on: past failures, past slow runs, past a clock that is set."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from wherry.errors import ServerError
from wherry_agent.schedule import Schedule


@pytest.fixture
def schedule():
    made = Schedule()
    yield made
    made.stop()


def test_jobs_recur(schedule, wait_until):
    runs = []
    schedule.every(0.02, "tick", lambda: runs.append(1), soon=True)
    schedule.start()
    wait_until(lambda: len(runs) >= 3, "three runs")


def test_a_failing_job_is_counted_said_once_and_tried_again(schedule, wait_until, caplog):
    def fail():
        raise ServerError("server https://x", "cannot be reached")

    def defect():
        raise RuntimeError("a defect")

    schedule.every(0.02, "poll", fail, soon=True)
    schedule.every(0.02, "sample", defect, soon=True)
    schedule.start()
    wait_until(lambda: schedule.failures["poll"] >= 3 and schedule.failures["sample"] >= 3, "three failures each")
    schedule.stop()
    assert caplog.text.count("poll: server https://x: cannot be reached") == 1
    assert "a defect" in caplog.text


def test_a_slow_job_is_not_started_twice_and_does_not_hold_up_others(schedule, wait_until, caplog):
    running, overlaps, others = threading.Lock(), [], []
    release = threading.Event()

    def slow():
        if not running.acquire(blocking=False):
            overlaps.append(1)
            return
        release.wait(20)
        running.release()

    schedule.every(0.02, "slow", slow, soon=True)
    schedule.every(0.02, "quick", lambda: others.append(1), soon=True)
    schedule.start()
    wait_until(lambda: len(others) >= 5, "the quick job runs meanwhile")
    release.set()
    assert not overlaps
    assert caplog.text == ""


@pytest.mark.parametrize("jump", [-86_400 * 365, 86_400 * 365])
def test_work_goes_on_when_the_clock_is_set(jump, wait_until):
    """APScheduler plans by the wall clock: set back by a year it would rest for a year."""
    shift, runs = [0.0], []
    schedule = Schedule(wall=lambda: 1e9 + shift[0], steady=lambda: 0.0)
    schedule.every(0.02, "tick", lambda: runs.append(1), soon=True)
    schedule.start()
    try:
        wait_until(lambda: runs, "the first run")
        scheduler = schedule._scheduler
        scheduler.get_job("tick").modify(next_run_time=datetime.now(UTC) + timedelta(days=365))
        before = len(runs)
        shift[0] = jump
        scheduler.wakeup()
        wait_until(lambda: len(runs) > before + 2, "it goes on")
    finally:
        schedule.stop()


def test_stop_without_start_is_nothing(schedule):
    schedule.stop()
