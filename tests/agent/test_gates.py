"""The gates that compare with limits and with the version that serves: sentences, and what becomes of a release."""

from __future__ import annotations

import pytest
from agent_fakes import SIGNATURE, make_image

from wherry.golden import Comparison
from wherry.release import (
    GoldenGate,
    LatencyGate,
    MemoryGate,
    RehearsalGate,
    ShadowGate,
    Signature,
    SoakGate,
    TcpGate,
    TemperatureGate,
    TensorSpec,
    UnknownGate,
)
from wherry_agent import gates
from wherry_agent.admission import differences
from wherry_agent.gates import Replayed, Traffic

MIB = 1 << 20
ALIKE, OTHER = Comparison(True, 0.0, 1.0, 0.0, "fine"), Comparison(False, 1.0, 0.0, 20.0, "Output 'y' is off by 1")


def spec(name, shape=(-1, 2), datatype="FP32"):
    return TensorSpec(name=name, datatype=datatype, shape=list(shape))


# -- latency


def test_a_candidate_much_slower_than_the_version_that_serves_is_too_slow():
    gate = LatencyGate(factor="1.5", floor_ms=5)
    found = gates.latency(gate, [0.04] * 20, [0.02] * 20, 1.0)
    assert not found.ok
    assert found.detail.startswith(
        "p50 40.0 ms is more than 1.5 times the 20.0 ms of the version that serves; p95 40.0"
    )
    assert (found.numbers["p50_ms"], found.numbers["running_p50_ms"], found.numbers["factor"]) == (40.0, 20.0, 1.5)


def test_small_differences_do_not_matter_and_equal_ones_pass():
    gate = LatencyGate(factor="1.5", floor_ms=5)
    assert gates.latency(gate, [0.0055] * 20, [0.001] * 20, 1.0).ok
    assert not gates.latency(gate, [0.0065] * 20, [0.001] * 20, 1.0).ok
    assert gates.latency(gate, [0.03] * 20, [0.02] * 20, 1.0).ok


def test_where_nothing_serves_the_comparison_is_left_out_and_said_so():
    found = gates.latency(LatencyGate(factor="1.5"), [0.04] * 20, [], 1.0, "no other version serves")
    assert (found.ok, found.detail) == (True, "p50 40.0 ms, p95 40.0 ms of 20 requests, no other version serves")


def test_median_and_95th_have_bounds_of_their_own():
    gate = LatencyGate(p50_ms=10, p95_ms=100)
    assert gates.latency(gate, [0.009] * 11 + [0.09] * 9, [], 1.0).ok
    found = gates.latency(gate, [0.009] * 9 + [0.02] * 11, [], 1.0)
    assert (found.ok, found.detail.partition(";")[0]) == (False, "p50 20.0 ms is above the bound of 10 ms")


# -- memory, heat, tcp


def test_memory_is_held_against_a_share_of_the_limit_and_a_ceiling():
    assert gates.memory(MemoryGate(percent=90), 89 * MIB, 100, 0.1).ok
    found = gates.memory(MemoryGate(percent=90), 91 * MIB, 100, 0.1)
    assert (found.ok, found.detail) == (False, "uses 91 MB of its limit of 100 MB, 90 MB are allowed")
    assert found.numbers == {"used_mb": 91.0, "bound_mb": 90.0, "limit_mb": 100.0}
    assert not gates.memory(MemoryGate(percent=90, ceiling_mb=50), 51 * MIB, 100, 0.1).ok
    assert gates.memory(MemoryGate(), None, 100, 0.1).ok


def test_the_warmest_sensor_is_held_against_the_ceiling():
    gate = TemperatureGate(ceiling_celsius=80)
    assert gates.temperature(gate, {"cpu": 80.0, "gpu": 70.0}, 0.1).ok
    found = gates.temperature(gate, {"cpu": 70.0, "gpu": 80.5}, 0.1)
    assert (found.ok, found.detail) == (False, "gpu at 80.5 °C, more than 80 °C")
    assert gates.temperature(gate, {}, 0.1).detail == "this device has no temperature sensor to read"


def test_a_port_that_takes_no_connection_fails():
    assert gates.tcp(True, 0.1).ok
    assert gates.tcp(False, 3.0).detail == "the port took no connection in 3.0 s"


# -- rehearsal


def test_too_few_recorded_requests_prove_nothing_and_pass_with_these_words():
    found = gates.replayed(RehearsalGate(least=5), [Replayed(OTHER)] * 4, 0.1)
    assert (found.ok, found.detail) == (True, "too few requests to rehearse: only 4 of at least 5")
    none = gates.replayed(RehearsalGate(least=5), [], 0.1, "no other version serves")
    assert none.detail == "too few requests to rehearse: none of at least 5: no other version serves"


def test_answers_that_disagree_too_often_are_refused_with_an_example():
    gate = RehearsalGate(agreement_percent=90)
    assert gates.replayed(gate, [Replayed(ALIKE)] * 9 + [Replayed(OTHER)], 0.1).ok
    found = gates.replayed(gate, [Replayed(ALIKE)] * 8 + [Replayed(OTHER)] * 2, 0.1)
    assert not found.ok
    assert found.detail == (
        "8 of 10 answers agree with the version that serves, at least 90 % must: Output 'y' is off by 1"
    )
    assert (found.numbers["agreement_percent"], found.numbers["requests"]) == (80.0, 10.0)


def test_requests_that_fail_are_counted_apart_from_those_that_disagree():
    gate = ShadowGate(error_percent=10)
    assert gates.replayed(gate, [Replayed(ALIKE)] * 9 + [Replayed(None, "status 500")], 0.1).ok
    found = gates.replayed(gate, [Replayed(ALIKE)] * 8 + [Replayed(None, "status 500")] * 2, 0.1)
    assert (found.kind, found.ok, found.detail) == ("shadow", False, "2 of 10 requests failed: status 500")


def test_a_rehearsal_compares_pace_where_the_owner_wants_it():
    slow = [Replayed(ALIKE, "", 0.2, 0.02)] * 10
    assert gates.replayed(RehearsalGate(), slow, 0.1).ok
    found = gates.replayed(RehearsalGate(factor="2"), slow, 0.1)
    assert not found.ok
    assert found.numbers["running_p95_ms"] == 20.0


# -- soak


def test_a_candidate_that_fails_more_than_the_version_before_does_not_stay():
    gate = SoakGate(error_percent=5, least=20)
    assert gates.soak(gate, Traffic(900, 100, 5.0), Traffic(86, 14, 5.0), 0, 0.5).ok
    found = gates.soak(gate, Traffic(900, 100, 5.0), Traffic(84, 16, 5.0), 0, 0.5)
    assert (found.ok, found.detail) == (False, "16 of 100 requests failed (16.0 %, before 10.0 %)")
    assert not gates.soak(gate, None, Traffic(90, 10, 5.0), 0, 0.5).ok


def test_a_few_requests_are_not_judged_but_a_crash_is():
    assert gates.soak(SoakGate(least=20), Traffic(900, 0, 5.0), Traffic(0, 19, 0.0), 0, 0.5).ok
    found = gates.soak(SoakGate(), None, None, 2, 0.5)
    assert (found.ok, found.detail) == (False, "the container was started again 2 times")


def test_real_traffic_must_not_become_much_slower():
    gate = SoakGate(least=20, factor="3", floor_ms=100)
    assert gates.soak(gate, Traffic(100, 0, 10.0), Traffic(100, 0, 109.0), 0, 0.5).ok
    found = gates.soak(gate, Traffic(100, 0, 50.0), Traffic(100, 0, 151.0), 0, 0.5)
    assert (found.ok, found.detail) == (False, "answers take 151.0 ms, more than 3 times the 50.0 ms before")


# -- breaking changes


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([spec("x")], [spec("y")], []),
        ([spec("x")], [spec("y"), spec("z")], []),
        ([spec("x"), spec("w")], [spec("y")], ["input 'w' is new"]),
        ([], [spec("y")], ["input 'x' is gone"]),
        ([spec("x", (-1, 3))], [spec("y")], ["input 'x' is FP32[-1, 3], was FP32[-1, 2]"]),
        ([spec("x", (-1, -1))], [spec("y")], []),
        ([spec("x")], [spec("y", (-1, -1))], ["output 'y' is FP32[-1, -1], was FP32[-1, 2]"]),
        ([spec("x")], [spec("y", datatype="FP16")], ["output 'y' is FP16[-1, 2], was FP32[-1, 2]"]),
    ],
)
def test_what_callers_would_not_find_is_named(inputs, outputs, words):
    assert differences(SIGNATURE, Signature(inputs=inputs, outputs=outputs)) == words


def test_another_signature_is_refused_before_a_fetch_unless_the_owner_says_it_breaks(device):
    device.assign(1, main="1")
    other = Signature(inputs=[spec("x", (-1, 3))], outputs=SIGNATURE.outputs)
    device.release("4", "other_signature", signature=other)
    device.assign(2, main="4")
    slot = device.state.slots[0]
    assert (slot.deployment.phase, slot.serving.version) == ("refused", "1")
    assert "breaks callers of version 1: input 'x' is FP32[-1, 3], was FP32[-1, 2]" in slot.deployment.problem.reason
    assert "fetch 4" not in device.world.history
    device.release("5", "other_signature", signature=other, breaking=True)
    device.assign(3, main="5")
    assert device.state.slots[0].serving.version == "5"


def test_a_gate_that_this_agent_does_not_know_is_refused_in_words(device):
    device.release("4", gates=[*make_image(4).image.gates, UnknownGate(kind="voodoo")])
    device.assign(1, main="4", other="1")
    slots = {slot.slot: slot for slot in device.state.slots}
    assert slots["main"].deployment.phase == "refused"
    assert "asks for gates that this agent" in slots["main"].deployment.problem.reason
    assert "'voodoo'" in slots["main"].deployment.problem.reason
    assert slots["other"].serving.version == "1", "the other slots go on"


# -- on a pretended device


def with_gate(device, key, behaviour, *more):
    return device.release(key, behaviour, gates=[*make_image(int(key)).image.gates, *more])


@pytest.mark.parametrize(
    ("behaviour", "gate", "words"),
    [
        ("slow", LatencyGate(factor="1.5"), "latency gate: p50 500.0 ms is more than 1.5 times the 4.0 ms"),
        ("fat", MemoryGate(), "memory gate: uses 99 MB of its limit of 100 MB"),
        ("good", TemperatureGate(ceiling_celsius=60), "temperature gate: cpu at 61.0 °C, more than 60 °C"),
        ("estranged", RehearsalGate(), "rehearsal gate: 0 of 8 answers agree with the version that serves"),
        ("estranged", RehearsalGate(by="class"), "row 0 names class 0 instead of 1"),
        ("silent", RehearsalGate(), "rehearsal gate: 8 of 8 requests failed"),
        ("slow", RehearsalGate(factor="2"), "rehearsal gate: p50 500.0 ms is more than 2 times the 4.0 ms"),
        ("good", TcpGate(deadline_seconds=1), "tcp gate: the port took no connection"),
    ],
)
def test_a_release_that_a_deeper_gate_refuses_never_serves(device, behaviour, gate, words):
    device.assign(1, main="1")
    device.world.asked, device.world.temperatures = 8, {"cpu": 61.0}
    device.world.tokens = True
    with_gate(device, "4", behaviour, gate)
    device.assign(2, main="4")
    deployment = device.state.slots[0].deployment
    assert (deployment.phase, device.serves()) == ("rejected", "1")
    assert words in deployment.problem.reason
    assert device.world.violations == []


def test_a_release_that_passes_all_of_them_serves_with_their_numbers(device):
    device.assign(1, main="1")
    device.world.asked, device.world.temperatures, device.world.tokens = 8, {"cpu": 50.0}, True
    all_of_them = (MemoryGate(), TemperatureGate(), LatencyGate(factor="1.5"), RehearsalGate(factor="2"), SoakGate())
    with_gate(device, "4", "good", *all_of_them)
    device.assign(2, main="4")
    assert device.serves() == "4"
    found = {gate.kind: gate for gate in device.state.slots[0].deployment.gates}
    assert list(found) == ["ready", "signature", "golden", "memory", "temperature", "latency", "rehearsal", "soak"]
    assert found["rehearsal"].numbers["agreement_percent"] == 100.0
    assert found["latency"].numbers["running_p50_ms"] == 4.0


def test_a_first_release_has_nothing_to_be_compared_with_and_is_not_refused_for_it(device):
    with_gate(device, "4", "good", LatencyGate(factor="1.5"), RehearsalGate(), ShadowGate())
    device.assign(1, main="4")
    found = {gate.kind: gate.detail for gate in device.state.slots[0].deployment.gates}
    assert device.serves() == "4"
    assert "no other version serves" in found["latency"]
    assert "no other version serves" in found["rehearsal"]
    assert "no other version serves" in found["shadow"]


def test_a_version_whose_server_keeps_no_requests_is_named_as_the_reason(device):
    device.assign(1, main="1")
    with_gate(device, "4", "good", RehearsalGate())
    device.assign(2, main="4")
    found = {gate.kind: gate.detail for gate in device.state.slots[0].deployment.gates}
    assert "its release does not let its server keep requests" in found["rehearsal"]


# -- after the commit


def committed_twice(device):
    device.assign(1, main="1")
    device.assign(2, main="2")
    assert device.serves() == "2"
    return device.name(device.catalogue["2"])


def running(device, since):
    """Which versions began or ended, in order."""
    lines = [line for line in device.world.history[since:] if "running" in line or "exited" in line]
    return [("starts " if "running" in line else "ends ") + line.rpartition(".")[2] for line in lines]


def goes_wrong_where_memory_holds_one(device, can_wait):
    name = committed_twice(device)
    device.tick(5, times=1)
    device.world.behaviours[name] = "wrong"
    device.world.available_mb, device.world.can_wait = 120, can_wait
    return len(device.world.history)


def test_where_memory_does_not_hold_both_the_one_before_takes_the_place_while_callers_wait(device):
    since = goes_wrong_where_memory_holds_one(device, can_wait=True)
    device.tick(5, times=4)
    assert device.serves() == "1"
    assert running(device, since)[:2] == ["ends 2", "starts 1"]
    assert device.world.violations == []


def test_where_memory_does_not_hold_both_and_callers_cannot_wait_the_one_before_stays_away_and_says_so(device):
    since = goes_wrong_where_memory_holds_one(device, can_wait=False)
    device.tick(5, times=4)
    assert device.state.slots[0].serving.version == "2"
    assert running(device, since) == []
    words = "needs 100 MB of memory beside what serves, 56 MB are free, and callers cannot wait"
    assert words in device.state.problem.reason
    device.world.available_mb = 1000
    device.tick(600)
    assert device.serves() == "1"


def test_what_was_stopped_for_one_that_does_not_pass_its_gates_serves_again(device):
    name = committed_twice(device)
    device.world.behaviours[device.name(device.catalogue["1"])] = "wrong"
    device.world.behaviours[name] = "wrong"
    device.world.available_mb, device.world.can_wait = 120, True
    since = len(device.world.history)
    device.tick(5, times=3)
    assert device.state.slots[0].serving.version == "2"
    assert running(device, since)[:4] == ["ends 2", "starts 1", "ends 1", "starts 2"]
    assert device.world.waiting == set()


def test_a_committed_version_that_answers_wrongly_later_gives_way_to_the_one_before(device):
    name = committed_twice(device)
    device.tick(5, times=1)
    device.world.behaviours[name] = "wrong"
    device.world.hold_allowed = True
    device.world.registry = "down"
    device.tick(5, times=4)
    assert device.serves() == "1"
    slot = device.state.slots[0]
    assert (slot.serving.version, slot.known_good.version) == ("1", "1")
    assert slot.deployment.phase == "rejected"
    assert "golden gate, after it was committed: 1 of 1 golden cases answered wrongly" in slot.deployment.problem.reason
    assert not slot.deployment.gates[-1].ok
    assert device.state.rejected == [device.catalogue["2"].digest]
    assert name not in device.world.containers
    assert device.state.problem is None
    device.tick(60, times=5)
    assert device.serves() == "1", "it is not tried again by itself"


def test_the_later_check_comes_at_ten_seconds_at_sixty_and_then_now_and_then(device):
    name = committed_twice(device)
    asked = []
    real = device.reconciler._later._recheck
    device.reconciler._later._recheck = lambda *who: (asked.append((device.now, who[0])), real(*who))[1]
    start = device.now
    device.tick(1, times=1000)
    seconds = [round((at - start).total_seconds()) for at, who in asked if who == name]
    assert seconds == [11, 61, 961]


def test_without_a_version_before_it_goes_on_serving_and_says_so_loudly(device):
    device.assign(1, main="1")
    name = device.name(device.catalogue["1"])
    device.world.behaviours[name] = "wrong"
    device.world.hold_allowed = True
    device.tick(5, times=5)
    assert device.state.slots[0].serving.version == "1"
    assert device.state.problem.code == "deployment.gate"
    assert "there is no release before it to go back to" in device.state.problem.reason
    device.world.behaviours[name] = "good"
    device.tick(900, times=2)
    assert device.state.problem is None


def test_a_version_before_that_fails_too_does_not_take_over(device):
    name = committed_twice(device)
    old = device.name(device.catalogue["1"])
    device.world.hold_allowed = True
    device.world.behaviours |= {name: "wrong", old: "wrong"}
    device.tick(5, times=6)
    slot = device.state.slots[0]
    assert (slot.serving.version, slot.known_good.version) == ("2", "2")
    assert device.state.problem is not None
    assert device.world.containers[old].state == "exited"


def test_an_application_that_holds_off_swaps_is_not_overruled(device):
    from datetime import timedelta

    from wherry.messages import UpdateLock

    name = committed_twice(device)
    device.world.hold_allowed = True
    device.lock.held = UpdateLock(holder="robot", expires=device.now + timedelta(minutes=2))
    device.world.behaviours[name] = "wrong"
    device.tick(5, times=6)
    assert device.state.slots[0].serving.version == "2"
    device.tick(120, times=2)
    assert device.serves() == "1"


def test_a_release_without_golden_cases_is_not_asked_again(device):
    gates_left = [gate for gate in make_image(4).image.gates if not isinstance(gate, GoldenGate)]
    device.release("4", gates=gates_left)
    device.assign(1, main="4")
    device.world.behaviours[device.name(device.catalogue["4"])] = "wrong"
    device.world.hold_allowed = True
    device.tick(10, times=20)
    assert device.state.problem is None
