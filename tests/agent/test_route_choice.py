"""By which way, what haproxy is told, and when callers wait: decisions, told as sentences."""

from __future__ import annotations

import pytest
from agent_fakes import Device, make_image

from wherry.messages import LATENCY_EDGES_US
from wherry.release import HttpGate, RunSpec, SoakGate, TcpGate
from wherry_agent.route.chooser import choose, drains
from wherry_agent.route.haproxy_config import (
    Answers,
    Bounds,
    Led,
    map_value,
    read_answers,
    read_map,
    read_open,
    render,
    render_map,
    servers_of,
    structure,
    targets_of,
    turn,
)

OURS = make_image(1).image
WEB = make_image(2, runtime="custom", gates=[HttpGate(deadline_seconds=1, path="/up")], run=RunSpec()).image
DRAINING_WEB = WEB.model_copy(update={"run": RunSpec(drains=True)})
SOCKETS = make_image(3, runtime="custom", gates=[TcpGate(deadline_seconds=1)], run=RunSpec()).image
MUTE = make_image(4, runtime="custom", gates=[], run=RunSpec()).image


@pytest.mark.parametrize(
    ("image", "setting", "lacks", "way", "poor"),
    [
        (OURS, "auto", "", "kernel", False),
        (OURS, "haproxy", "", "haproxy", False),
        (OURS, "haproxy", "is not installed", "kernel", False),
        (WEB, "auto", "", "haproxy", False),
        (WEB, "auto", "is not installed", "kernel", True),
        (WEB, "kernel", "", "kernel", True),
        (DRAINING_WEB, "auto", "", "kernel", False),
        (SOCKETS, "auto", "", "kernel", True),
        (SOCKETS, "haproxy", "", "kernel", True),
        (MUTE, "auto", "", "kernel", True),
    ],
)
def test_the_way_is_the_one_that_the_image_needs_and_the_device_has(image, setting, lacks, way, poor):
    choice = choose(image, setting, lacks)
    assert (choice.way, choice.poor) == (way, poor)
    assert choice.why


def test_what_the_owner_signed_of_draining_wins():
    assert drains(OURS)
    assert not drains(WEB)
    assert not drains(OURS.model_copy(update={"run": RunSpec(drains=False)}))


def test_an_older_release_keeps_its_signed_bytes():
    assert "drains" not in OURS.to_custom()["run"]


def test_each_slot_is_listened_for_on_every_address_and_bounded():
    text = render([8500, 8501], ("127.0.0.1", "192.168.1.7"), Bounds(5, 100, 7), "haproxy", "haproxy")
    for line in (
        "bind 127.0.0.1:8500 transparent",
        "bind 192.168.1.7:8500 transparent",
        "bind 192.168.1.7:8501 transparent",
        "http-request lua.lead 8501 5",
        "maxconn 100",
        "maxconn 50",
        "server b 0.0.0.0:0 maxconn 7",
        "user haproxy",
    ):
        assert f"    {line}\n" in text
    assert "    log " not in text, "nothing may fill a disk"
    assert "user " not in render([8500], ("127.0.0.1",))


def test_only_what_must_be_loaded_anew_changes_a_configurations_name():
    name = structure([8500, 8501], ("127.0.0.1",), Bounds())
    assert name == structure([8501, 8500], ("127.0.0.1",), Bounds())
    others = [
        structure([8500], ("127.0.0.1",), Bounds()),
        structure([8500, 8501], ("127.0.0.1", "10.0.0.1"), Bounds()),
        structure([8500, 8501], ("127.0.0.1",), Bounds(hold_seconds=1)),
    ]
    assert len({name, *others}) == 4


def test_a_slot_changes_sides_with_every_turn_so_that_what_is_under_way_is_told_apart():
    led = turn({}, {8500: 18501})
    assert targets_of(led) == {8500: 18501}
    assert turn(led, {8500: 18501}) == led
    first, second = led[8500].side, turn(led, {8500: 18502})[8500].side
    assert {first, second} == {"a", "b"}
    held = turn(led, {8500: None})
    assert targets_of(held) == {8500: None}
    assert servers_of(held, 18501) == {("slot-8500", first), ("slot-8500", f"{first}-h2")}, "still known"
    after = turn(held, {8500: 18502})
    assert ("slot-8500", second) in servers_of(after, 18502)
    assert ("slot-8500", first) in servers_of(after, 18501)
    assert not servers_of(after, 18502) & servers_of(after, 18501)
    back = turn(held, {8500: 18501})
    assert targets_of(back) == {8500: 18501}
    assert turn(led, {}) == {}


def test_the_map_is_read_back_as_it_was_written_and_what_is_not_ours_is_left_out():
    led = {8500: Led("a", 18501, 18502), 8501: Led("b", 0, 18503)}
    assert read_map(render_map(led)) == led
    assert map_value(led[8501]) == "b:0,a:18503"
    assert read_map("0x55d0c1 8500 a:18501,b:18502\n0x55d0c2 8501 b:0,a:18503\n\n") == led
    assert read_map("somebody was here\n8500 c:1\n\x00") == {}


def test_requests_that_wait_in_a_queue_are_under_way_too():
    text = "# pxname,svname,qcur,scur\nslot-8500,a,2,3\nslot-8500,b,0,1\nslot-8501,a,7,7\n"
    assert read_open(text, {("slot-8500", "a")}) == 5
    assert read_open("", {("slot-8500", "a")}) == 0


def test_counters_are_those_of_the_port_and_begin_with_nothing():
    bins = ",".join("1" if index < 2 else "0" for index in range(len(LATENCY_EDGES_US) + 1))
    found = read_answers(f"18502 9 9 9 {bins}\n18501 2 1 250 {bins}\n", 18501, "haproxy-7")
    assert (found.requests, found.failures, found.latency_sum_us, sum(found.latency)) == (2, 1, 250, 2)
    assert read_answers("", 18501, "haproxy-7") == Answers("haproxy-7")


# -- callers wait, on a pretended device ------------------------------------------------------------------


def tight(device: Device, *versions: str) -> None:
    """Memory does not hold two versions."""
    for sequence, version in enumerate(versions, 1):
        device.assign(sequence, main=version)
        device.world.available_mb = 20


def words(device: Device) -> list[str]:
    """What happened to routes and containers, in order."""
    return [what.replace("wherry.cam-1.main.vision.", "") for what in device.world.history]


def test_without_memory_for_two_callers_wait_from_before_the_old_one_stops_until_the_new_one_passed(device):
    tight(device, "1", "2")
    assert device.serves() == "2"
    assert device.world.waiting == set()
    happened = words(device)
    waits = happened.index("routes {}, [8500] wait")
    stopped = happened.index("{'state': 'exited', 'exit_code': 0} 1")
    started = happened.index("{'state': 'running'} 2")
    turned = next(index for index, what in enumerate(happened) if what.startswith("routes {8500:") and index > waits)
    assert waits < stopped < started < turned
    assert device.world.drained, "what was under way had its answers first"
    assert device.world.violations == []


def test_callers_that_wait_for_a_candidate_that_fails_get_the_known_good_again(device):
    device.release("4", "wrong")
    tight(device, "1", "4")
    assert device.state.slots[0].deployment.phase == "rejected"
    assert device.serves() == "1"
    assert device.world.waiting == set()
    assert device.world.violations == []


def test_an_agent_that_dies_while_callers_wait_lets_them_go_on(device):
    device.hold_at = "Probe"
    tight(device, "1")
    device.worker.finish()
    device.hold_at = None
    device.pump()
    device.world.available_mb = 20
    device.hold_at = "Start"
    device.assign(2, main="2")
    assert device.world.waiting == {8500}
    device.hold_at = None
    device.boot()
    device.tick(times=3)
    assert device.serves() == "2"
    assert device.world.waiting == set()


def test_with_memory_for_two_nobody_waits(device):
    device.assign(1, main="1")
    device.assign(2, main="2")
    assert device.serves() == "2"
    assert not any("wait" in what for what in device.world.history)


def test_where_callers_cannot_wait_the_swap_goes_on_all_the_same(device):
    device.world.can_wait, device.world.hold_allowed = False, True
    tight(device, "1", "2")
    assert device.serves() == "2"


def test_the_report_says_by_which_way_callers_come(device):
    device.assign(1, main="1")
    assert device.state.slots[0].route == "kernel"


def counted(requests: int, failures: int) -> dict:
    return Answers("haproxy-1", requests, failures, 1000 * requests).document("vision")


@pytest.mark.parametrize(("failures", "phase"), [(90, "rejected"), (0, "committed")])
def test_the_soak_of_an_image_that_counts_nothing_goes_by_what_haproxy_counted(device, failures, phase):
    gates = [HttpGate(deadline_seconds=1, path="/up"), SoakGate(seconds=1)]
    for number in (5, 6):
        device.release(str(number), "custom", runtime="custom", gates=gates)
    device.assign(1, main="5")
    readings = iter([counted(10, 0), counted(10, 0), counted(110, failures)])
    last = counted(110, failures)

    class Counted(dict):
        def get(self, port, default=None):
            return next(readings, last)

    device.world.counted = Counted()
    device.assign(2, main="6")
    assert device.state.slots[0].deployment.phase == phase
