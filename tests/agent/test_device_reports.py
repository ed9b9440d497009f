"""What a device says of itself besides versions: since when, which gate, until when, on what hardware."""

from __future__ import annotations

from datetime import timedelta

import pytest
from agent_fakes import START, Device, make_image

from wherry.errors import NotFound, StoreError
from wherry.profile import HostFacts
from wherry_agent import progress, state_folder, steps
from wherry_agent.entry import Limits
from wherry_agent.events import GateAsked
from wherry_agent.journal import Journal


def slot(device):
    return device.state.slots[0]


def test_the_release_that_serves_says_since_when(device):
    device.assign(1, main="1")
    first = slot(device).since
    assert first is not None
    assert START <= first <= device.now
    device.tick(60)
    assert slot(device).since == first
    device.assign(2, main="2")
    assert slot(device).since == device.now
    device.boot()
    assert slot(device).since == device.now, "a restart of the agent changes nothing"


def test_after_a_rollback_from_the_route_it_serves_since_the_rollback(device):
    device.assign(1, main="1")
    device.hold_at = "Soak"
    device.assign(2, main="2")
    turned = device.now
    assert (slot(device).serving.version, slot(device).since) == ("2", turned)
    device.tick(60)
    name = device.name(device.catalogue["2"])
    device.world.behaviours[name] = "wrong"
    device.hold_at = None
    device.worker.finish()
    device.pump()
    assert (slot(device).serving.version, slot(device).since) == ("1", device.now)
    assert device.now > turned


def test_a_candidate_that_never_had_the_route_changes_no_since(device):
    device.assign(1, main="1")
    before = slot(device).since
    device.release("4", "wrong")
    device.tick(60)
    device.assign(2, main="4")
    assert (slot(device).deployment.phase, slot(device).since) == ("rejected", before)


def test_reports_name_the_gate_that_asks_and_its_deadline(device):
    device.assign(1, main="1")
    asked = [report.slots[0].deployment for report in device.server.reports if report.slots]
    gates = [(found.phase, found.gate) for found in asked if found and found.gate]
    assert gates == [("probing", "ready"), ("probing", "signature"), ("probing", "golden"), ("soaking", "soak")]
    ready = next(found for found in asked if found.gate == "ready")
    assert ready.deadline == START + timedelta(seconds=1)
    assert (slot(device).deployment.gate, slot(device).deployment.deadline) == (None, None)


def test_the_gate_that_asks_is_not_worth_a_write_to_flash(tmp_path):
    journal = Journal(tmp_path / "journal.db", "cam-1", Limits())
    image = make_image(1)
    journal.apply(progress.Accepted(b"x", journal.entry.marks, {"main": 8500}), START)
    journal.apply(progress.Admitted("main", image), START)
    before = (tmp_path / "journal.db-wal").stat().st_size
    journal.apply(GateAsked(steps.Probe("main", image), "ready", 30), START)
    assert journal.entry.slots["main"].deployment.gate == "ready"
    assert (tmp_path / "journal.db-wal").stat().st_size == before
    journal.close()


def test_the_hardware_is_reported_by_name(tmp_path):
    device = Device(tmp_path, facts=HostFacts(architecture="aarch64", memory_mb=7620, l4t_release="36.3"))
    assert device.state.facts == {"architecture": "aarch64", "memory_mb": "7620", "l4t_release": "36.3"}


def test_a_device_that_rests_sends_nothing(device):
    device.assign(1, main="1")
    device.tick()
    sent = len(device.server.reports)
    device.tick(times=20)
    assert len(device.server.reports) == sent


def test_a_status_that_could_not_be_written_is_written_when_there_is_room(device):
    written, full = [], True

    def status(report):
        if full:
            raise StoreError("status in /x/status.json", "cannot be written (No space left on device)")
        written.append(report)

    device.reconciler._outbox._publish = status
    device.assign(1, main="1")
    device.tick(1)
    assert device.state.problem.reason == "cannot be written (No space left on device)"
    full = False
    device.tick(1, times=2)
    assert written[-1].slots[0].deployment.phase == "committed"
    assert written[-1].problem is None
    count = len(written)
    device.tick(1, times=5)
    assert len(written) == count


def test_a_status_file_appears_when_its_folder_can_be_written(device, tmp_path):
    device.assign(1, main="1")
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "status.new").mkdir()
    write = state_folder.write_status(folder)
    with pytest.raises(StoreError, match="cannot be written"):
        write(device.state)
    with pytest.raises(NotFound):
        state_folder.read_status(folder)
    (folder / "status.new").rmdir()
    write(device.state)
    assert state_folder.read_status(folder) == device.state
