"""What the sweep keeps of an earlier run, which requests may fail, and where the hooked agent dies."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from faults import hooked, results, sweep  # noqa: E402

HERE = results.Code("abc1234", "0123456789ab")


def a_row(**changes):
    row = sweep.Row("1 something", "Crash", "by hand", commit=HERE.commit, code=HERE.digest)
    return row.document() | changes


def a_load(*failed_at, wrong_at=()):
    answers = [SimpleNamespace(at=at, seconds=0.1, kept=True, problem="status 500: no") for at in failed_at]
    answers += [SimpleNamespace(at=at, seconds=0.1, kept=True, problem="wrong answer 3.0") for at in wrong_at]
    return SimpleNamespace(answers=answers, sent=100, longest_gap=lambda: 0.25)


def a_run(**fault):
    one = sweep.Fault("Engine", 1, "something", lambda _: None, "by hand", "good", **fault)
    return sweep.Run(SimpleNamespace(), SimpleNamespace(), one, 1.0)


@pytest.mark.parametrize(
    ("changes", "scale", "fits"),
    [
        ({}, 1.0, True),
        ({"code": "other"}, 1.0, False),
        ({"scale": 0.02}, 1.0, False),
        ({"scale": 0.02}, 0.01, True),
        ({"commit": "of a docs page"}, 1.0, True),
    ],
)
def test_a_resumed_sweep_keeps_rows_of_the_same_code_and_of_no_smaller_scale(changes, scale, fits):
    row = a_row(**changes)
    kept, old = results.still_true([row], HERE, scale)
    assert (kept, old) == (([row], []) if fits else ([], [row]))


def test_rows_are_read_back_and_what_is_no_result_is_nothing(tmp_path):
    path = tmp_path / "build" / "faults.json"
    assert results.read(path) == []
    results.write(path, [a_row()])
    assert results.read(path) == [a_row()]
    path.write_text('{"faults": [1]}')
    assert results.read(path) == []


def test_the_code_is_told_by_its_contents(tmp_path, monkeypatch):
    for name in results._TAKES_PART:
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    program = tmp_path / "agent" / "program.py"
    program.write_text("one")
    first = results.Code.here()
    (tmp_path / "agent" / "page.md").write_text("a page")
    assert results.Code.here() == first
    program.write_text("two")
    assert results.Code.here().digest != first.digest
    assert first.commit == "unknown", "there is no repository here"


def test_the_table_tells_what_failed_what_was_not_done_and_that_rows_are_of_different_code():
    text = results.table(
        [
            a_row(),
            a_row(name="2 other", ok=False, outcome="nothing answers", scale=0.1),
            a_row(name="3 third", ok=False, not_done="no disk", outcome="no disk", commit="fff0000"),
            a_row(name="4 fourth", allowed="up to 9 s", failed_requests=7, failed_by_fault=7),
        ]
    )
    assert "FAILED: nothing answers" in text
    assert "NOT DONE: no disk" in text
    assert "4 faults: 2 ok, 1 failed, 1 not done here" in text
    assert "DIFFERENT CODE" in text
    assert "1 of the faults were scaled down" in text
    assert "4 fourth: up to 9 s" in text


def test_a_request_that_nobody_could_answer_may_fail_for_a_while_and_any_other_may_not():
    run = a_run(excuse="the engine is dead", seconds=5)
    run.hit()
    now = time.monotonic()
    run.count(a_load(now, now + 4))
    assert run.row.ok
    assert (run.row.failed_requests, run.row.failed_by_fault) == (2, 2)
    run.count(a_load(now + 6))
    assert not run.row.ok
    assert (run.row.failed_requests, run.row.failed_by_fault) == (3, 2)


def test_a_fault_that_lasts_is_excused_until_it_is_over():
    now = time.monotonic()
    for lasts in (False, True):
        run = a_run(excuse="the engine is dead", seconds=5)
        run.hit()
        run._hurts[-1] = [now - 60, now - 60]
        if lasts:
            run.over()
        run.count(a_load(now - 30, now + 4))
        assert run.row.ok == lasts


def test_without_an_excuse_no_request_may_fail_and_a_wrong_answer_never_may():
    run = a_run()
    run.hit()
    run.count(a_load(time.monotonic()))
    assert not run.row.ok
    wrong = a_run(excuse="the engine is dead", seconds=5)
    wrong.hit()
    wrong.count(a_load(wrong_at=(time.monotonic(),)))
    assert (wrong.row.ok, wrong.row.wrong_answers, wrong.row.failed_requests) == (False, 1, 0)


def test_what_a_machine_cannot_do_is_neither_ok_nor_a_failure():
    def inject(_: sweep.Run) -> None:
        raise sweep.NotHereError("there is no such controller")

    one = sweep.Fault("Crash", 8, "something", inject, "by hand", "good", apart=True)
    device = SimpleNamespace(kill=lambda: None, engine=SimpleNamespace(trouble=lambda _: None))
    row = sweep.perform(SimpleNamespace(), device, one, 1.0)
    assert (row.ok, row.not_done, row.outcome) == (False, *["there is no such controller"] * 2)
    assert row.problems == []


class DiedError(Exception):
    """Instead of SIGKILL."""


def died_at(tmp_path, monkeypatch, **env):
    """The key of the point at which a short life ends; None when it does not."""

    def killed(*_: object) -> None:
        raise DiedError

    log = tmp_path / "points"
    points = hooked.Points({"WHERRY_FAULT_LOG": str(log), **env})
    monkeypatch.setattr(hooked.os, "kill", killed)
    try:
        for points.phase in ("boot", "staging"):
            for call in (*["a"] * 5, "b"):
                points.passes(call)
    except DiedError:
        return log.read_text().splitlines()[-1]
    finally:
        points.close()
    return None


def test_the_hooked_agent_dies_at_a_number_a_key_or_the_first_point_at_which_none_died(tmp_path, monkeypatch):
    assert died_at(tmp_path, monkeypatch) is None
    assert died_at(tmp_path, monkeypatch, WHERRY_FAULT_POINT="6") == "boot | b | 1"
    assert died_at(tmp_path, monkeypatch, WHERRY_FAULT_AT="staging | a | 2") == "staging | a | 2"
    deaths = tmp_path / "deaths"
    deaths.write_text("")
    found = []
    while (key := died_at(tmp_path, monkeypatch, WHERRY_FAULT_DEATHS=str(deaths))) is not None:
        found.append(key)
        deaths.write_text("\n".join(found))
    assert found == [
        f"{phase} | {call}" for phase in ("boot", "staging") for call in (*(f"a | {n}" for n in (1, 2, 3, 4)), "b | 1")
    ]


def test_a_share_of_the_points_is_the_same_one_every_time(tmp_path, monkeypatch):
    deaths = tmp_path / "deaths"
    deaths.write_text("")
    env = {"WHERRY_FAULT_DEATHS": str(deaths), "WHERRY_FAULT_SHARE": "0.4"}
    first = died_at(tmp_path, monkeypatch, **env)
    assert first is not None
    assert died_at(tmp_path, monkeypatch, **env) == first
    assert died_at(tmp_path, monkeypatch, **env | {"WHERRY_FAULT_SHARE": "0"}) is None


def test_the_file_has_the_form_that_was_agreed(tmp_path):
    path = tmp_path / "faults.json"
    results.write(path, [a_row()])
    (row,) = json.loads(path.read_text())["faults"]
    assert {"name", "ok", "injections", "kill_points", "failed_requests", "wrong_answers"} <= row.keys()
