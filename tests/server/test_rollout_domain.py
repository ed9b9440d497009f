"""What a rollout does next, as sentences: (rollout, reports, time) -> actions. No database, no clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from wherry.errors import Conflict
from wherry.messages import DeploymentReport, Problem, ReleaseRef, SlotReport
from wherry_server.domain.rollout import (
    Assign,
    DeviceReport,
    Finish,
    Pause,
    Rollout,
    Target,
    Wave,
    change_state,
    follow,
    next_actions,
    one_wave,
    outcome,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
OLD = ReleaseRef(model="vision", version="1", counter=1, digest="sha256:" + "1" * 64)
NEW = ReleaseRef(model="vision", version="2", counter=2, digest="sha256:" + "2" * 64)
TRUST = Problem(code="trust.replayed", thing="assignment", reason="is old", fix="Look")
ENGINE = Problem(code="adapter.engine", thing="engine", reason="is down", fix="Start it")


def a_target(device="a", state="assigned", sequence=3, **fields):
    assigned = NOW if sequence else None
    return Target(device, NEW.digest, state, sequence, assigned, **fields)


def a_rollout(*states, state="running", sizes=None, tolerate=0):
    targets = [a_target(f"d{index}", of, 0 if of == "pending" else 3) for index, of in enumerate(states)]
    names, waves = [target.device for target in targets], []
    for size in sizes or [len(states)]:
        waves.append(Wave(tuple(names[:size]), tolerate))
        names = names[size:]
    return Rollout(state, tuple(waves), {target.device: target for target in targets})


def a_report(phase=None, sequence=3, serving=OLD, release=NEW, deployed=None, **fields):
    deployment = None
    if phase:
        deployment = DeploymentReport(
            id="x", slot="main", release=release, sequence=sequence if deployed is None else deployed,
            phase=phase, started=NOW, updated=NOW,
        )  # fmt: skip
    slot = SlotReport(slot="main", port=1, serving=serving, known_good=serving, deployment=deployment)
    fields.setdefault("received", NOW + timedelta(seconds=1))
    return DeviceReport(sequence=sequence, slot=slot, **fields)


def states(mark):
    return mark.state if mark else None


def marked(target, report, now):
    mark = follow(target, report, now)
    assert mark is not None
    return mark


def test_every_pending_device_of_the_only_wave_is_assigned_at_once():
    assert next_actions(a_rollout("pending", "pending")) == [Assign("d0"), Assign("d1")]


def test_one_wave_holds_all_devices_in_order():
    assert one_wave([a_target("b"), a_target("a")]) == (Wave(("a", "b")),)


def test_nothing_is_left_to_do_while_devices_are_on_their_way():
    assert next_actions(a_rollout("running", "committed")) == []


def test_the_second_wave_waits_for_the_first():
    assert next_actions(a_rollout("running", "pending", "pending", sizes=[1, 2])) == []
    after = a_rollout("committed", "pending", "pending", sizes=[1, 2])
    assert next_actions(after) == [Assign("d1"), Assign("d2")]


def test_a_failed_wave_pauses_the_rollout_before_the_next_opens():
    (pause,) = next_actions(a_rollout("rejected", "pending", sizes=[1, 1]))
    assert pause == Pause("1 of 1 devices of wave 1 failed: d0")


def test_a_tolerated_failure_does_not_stop_the_next_wave():
    assert next_actions(a_rollout("rejected", "pending", sizes=[1, 1], tolerate=1)) == [Assign("d1")]


def test_a_misfit_does_not_hold_anything_up():
    assert next_actions(a_rollout("misfit", "pending", sizes=[1, 1])) == [Assign("d1")]


@pytest.mark.parametrize("state", ["paused", "aborted"])
def test_paused_and_aborted_rollouts_assign_nothing(state):
    assert next_actions(a_rollout("pending", "assigned", state=state)) == []


@pytest.mark.parametrize(
    ("settled", "ended"),
    [
        (["committed", "committed"], "completed"),
        (["committed", "misfit"], "completed"),
        (["committed", "superseded"], "completed"),
        (["committed", "rejected"], "failed"),
        (["refused"], "failed"),
        (["misfit"], "failed"),
        (["superseded", "misfit"], "aborted"),
    ],
)
def test_a_settled_rollout_ends(settled, ended):
    assert next_actions(a_rollout(*settled)) == [Finish(ended)]
    assert outcome(settled) == ended


@pytest.mark.parametrize(
    ("report", "state"),
    [
        (a_report("fetching"), "running"),
        (a_report("rolling_back"), "running"),
        (a_report("committed", serving=NEW), "committed"),
        (a_report("rejected"), "rejected"),
        (a_report("refused"), "refused"),
        (a_report("removed"), "superseded"),
        # It served the release already: no deployment was needed.
        (a_report(serving=NEW), "committed"),
        # Its newest assignment is ours, but it has not begun.
        (a_report(), None),
        # It still stands at the assignment before.
        (a_report("committed", sequence=2), None),
        # It speaks of another release.
        (a_report("probing", release=OLD), None),
        # Begun for the assignment before, and still going on.
        (a_report("probing", deployed=2), "running"),
        # What was rejected before is not tried by itself.
        (a_report("rejected", deployed=2, rejected=frozenset([NEW.digest])), "rejected"),
        (a_report(rejected=frozenset([NEW.digest])), "rejected"),
        # Rejected once, but the operator had it forgotten.
        (a_report("rejected", deployed=2), None),
        # Committed once, then emptied: that is not committed now.
        (a_report("committed", deployed=2, serving=None), None),
        # A fit problem comes with a deployment, although the assignment was not accepted.
        (a_report("refused", sequence=2, deployed=3), "refused"),
    ],
)
def test_what_a_report_says_about_a_target(report, state):
    assert states(follow(a_target(), report, NOW)) == state


@pytest.mark.parametrize("state", ["pending", "misfit", "superseded", "rejected", "committed"])
def test_nobody_listens_to_devices_that_were_not_asked_or_have_ended(state):
    assert follow(a_target(state=state), a_report("committed", serving=NEW), NOW) is None


@pytest.mark.parametrize(
    ("report", "state"),
    [
        # Its disk has room again, so it fetches; and from then on it goes as with any other.
        (a_report("fetching"), "running"),
        (a_report("committed", serving=NEW), "committed"),
        (a_report("rejected"), "rejected"),
        # It was refused an assignment for its clock, and took it once the clock was right.
        (a_report("probing", sequence=3, deployed=3), "running"),
        (a_report(serving=NEW), "committed"),
        # It refuses still, or again, or for another reason: the first cause stays.
        (a_report("refused"), None),
        (a_report(sequence=2, problem=TRUST, refused=3), None),
        (a_report(problem=ENGINE), None),
        # It says nothing of this release, or speaks of another.
        (a_report(), None),
        (a_report("fetching", release=OLD), None),
        # The slot was emptied, or another release took it.
        (a_report("removed"), None),
    ],
)
def test_a_refused_device_that_goes_on_takes_its_target_along(report, state):
    assert states(follow(a_target(state="refused", problem=TRUST), report, NOW)) == state


def test_a_resumed_target_has_no_problem_any_more():
    mark = marked(a_target("d0", "refused"), a_report("fetching"), NOW)
    assert (mark.device, mark.state, mark.problem) == ("d0", "running", None)


def test_a_trust_problem_needs_a_moment_before_it_is_a_refusal():
    report = a_report(sequence=2, problem=TRUST)
    early = marked(a_target(), report, NOW + timedelta(seconds=2))
    assert (early.state, early.problem) == ("assigned", TRUST)
    late = marked(a_target(), report, NOW + timedelta(seconds=6))
    assert (late.state, late.problem) == ("refused", TRUST)


def test_a_trust_problem_from_before_the_assignment_is_not_about_it():
    report = a_report(sequence=2, problem=TRUST, received=NOW - timedelta(seconds=1))
    assert marked(a_target(), report, NOW + timedelta(hours=1)).state == "assigned"


def test_other_problems_are_shown_and_waited_out():
    assert follow(a_target(), a_report(sequence=2, problem=ENGINE), NOW + timedelta(hours=1)) is None
    mark = marked(a_target(), a_report(problem=ENGINE), NOW + timedelta(hours=1))
    assert (mark.state, mark.problem) == ("assigned", ENGINE)


@pytest.mark.parametrize(("refused", "state"), [(3, "refused"), (4, "refused"), (2, None)])
def test_a_device_that_says_which_assignment_it_refused_needs_no_moment(refused, state):
    report = a_report(sequence=2, problem=TRUST, refused=refused, received=NOW - timedelta(seconds=1))
    assert states(follow(a_target(), report, NOW)) == state


def test_the_same_news_twice_is_no_news():
    target = a_target(problem=TRUST)
    assert follow(target, a_report(sequence=2, problem=TRUST), NOW + timedelta(seconds=1)) is None


def test_the_first_cause_stays_whatever_the_device_does_later():
    target = a_target(state="rejected", problem=ENGINE)
    assert follow(target, a_report(rejected=frozenset([NEW.digest])), NOW) is None
    assert follow(target, a_report("committed", serving=NEW), NOW) is None


@pytest.mark.parametrize(
    ("state", "verb", "after"),
    [
        ("running", "pause", "paused"),
        ("paused", "start", "running"),
        ("running", "abort", "aborted"),
        ("failed", "retry", "running"),
    ],
)
def test_an_operators_word_changes_the_state(state, verb, after):
    assert change_state(state, verb) == after


@pytest.mark.parametrize(("state", "verb"), [("aborted", "start"), ("completed", "pause"), ("failed", "abort")])
def test_a_word_that_makes_no_sense_is_refused(state, verb):
    with pytest.raises(Conflict, match=f"cannot {verb}"):
        change_state(state, verb)
