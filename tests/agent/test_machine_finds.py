"""What the state machine found, as sentences."""

from __future__ import annotations

from wherry.messages import PollNow
from wherry_agent.events import Cancelled, CommandReceived, StepFinished


def test_a_release_rejected_in_one_slot_is_not_started_in_another(device):
    device.release("4", "wrong")
    device.assign(1, aux="4", main="4")
    started = [what for what in device.world.history if what.startswith("{'state': 'running'}")]
    assert len(started) == 1
    second = device.state.slots[1].deployment
    assert (second.phase, second.problem.reason[:19]) == ("refused", "failed here before:")


def test_a_withdrawn_release_leaves_the_disk_although_it_is_still_wanted(device):
    device.assign(1, main="1")
    device.world.hold_allowed = True
    device.trust.withdrawn = frozenset({device.catalogue["1"].digest})
    device.server.assignment = device.journal.entry.payload
    device.put(CommandReceived(PollNow()))
    device.tick()
    assert (device.world.containers, device.world.images) == ({}, {})


def test_a_route_that_outlived_its_container_never_leads_to_another_slots(device):
    device.hold_at = "Commit"
    device.assign(1, aux="1")
    device.world.containers.pop(device.name(device.catalogue["1"], "aux"))
    device.hold_at = None
    device.worker.finish()
    device.assign(2, aux="1", main="2")
    assert device.serves("main") == "2"
    port = device.world.containers[device.name(device.catalogue["2"], "main")].port
    assert [stable for stable, to in device.world.routes.items() if to == port] == [8501]


def test_a_new_release_says_at_once_that_its_partner_is_refused(device):
    device.release("4", memory_mb=9000)
    device.assign(1, together=[("aux", "main")], aux="4", main="1")
    device.assign(2, together=[("aux", "main")], aux="4", main="2")
    last = device.state.slots[1].deployment
    assert (last.release.version, last.phase) == ("2", "refused")
    assert "goes together with slot aux, which is refused" in last.problem.reason


def test_nobody_waits_for_a_release_that_was_withdrawn_while_it_gave_way(device):
    device.assign(1, main="1")
    device.world.available_mb, device.world.hold_allowed = 10, True
    device.hold_at = "Start"
    device.assign(2, main="2")
    assert device.world.waiting == {8500}
    device.trust.withdrawn = frozenset({device.catalogue["1"].digest, device.catalogue["2"].digest})
    device.server.assignment = device.journal.entry.payload
    device.put(CommandReceived(PollNow()))
    device.hold_at = None
    device.put(StepFinished(device.worker.step, Cancelled()))
    device.tick(700, times=3)
    assert device.state.slots[0].serving is None
    assert device.world.waiting == set()


def test_the_release_before_a_withdrawn_known_good_serves_again(device):
    device.assign(1, main="1")
    device.assign(2, main="2")
    device.world.hold_allowed = True
    device.world.registry = "down"
    device.trust.withdrawn = frozenset({device.catalogue["2"].digest})
    device.server.assignment = device.journal.entry.payload
    device.put(CommandReceived(PollNow()))
    slot = device.state.slots[0]
    assert (device.serves(), slot.known_good.version, slot.deployment.problem.code) == ("1", "1", "trust.revoked")
    assert device.name(device.catalogue["2"]) not in device.world.containers
    history = device.world.history
    assert history.index(f"remove {device.name(device.catalogue['2'])}") < len(history) - 1


def test_a_route_whose_container_somebody_removed_goes_with_the_withdrawn_release(device):
    device.assign(1, main="1")
    device.world.engine_down = device.world.hold_allowed = True
    device.world.containers.clear()
    device.trust.withdrawn = frozenset({device.catalogue["1"].digest})
    device.server.assignment = device.journal.entry.payload
    device.put(CommandReceived(PollNow()))
    device.world.engine_down = False
    device.tick(31, times=2)
    assert (device.world.images, device.world.routes) == ({}, {})
