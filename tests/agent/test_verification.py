"""After a boot that nobody prepared for, images are verified before they are trusted; what serves goes on serving."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace

import pytest
from agent_fakes import Device

from wherry.errors import Tampered
from wherry_agent.ports import Cancel, StepCancelled
from wherry_agent.saved_image import NotAnArchive, missing
from wherry_agent.verification import carried


def committed(device: Device, *versions: str) -> None:
    for sequence, version in enumerate(versions, 1):
        device.assign(sequence, main=version)
    assert device.serves() == versions[-1]


def restart(device: Device, clean: bool) -> None:
    """The device boots again, after a power cut or a clean end."""
    if clean:
        device.reconciler.stop()
    device.journal.close()
    device.world.power_cut()
    device.boot()
    device.tick(1)


def damage(device: Device, *versions: str) -> None:
    device.world.damaged |= {device.catalogue[version].digest for version in versions}


def go_on(device: Device) -> None:
    """Let the step that is held end, and hold no other."""
    device.hold_at = device.worker.hold_at = None
    device.worker.finish()
    device.pump()


def test_after_a_clean_end_nothing_is_doubted(device):
    committed(device, "1", "2")
    restart(device, clean=True)
    assert device.serves() == "2"
    assert device.world.verified == []


def test_an_agent_that_starts_again_doubts_nothing(device):
    committed(device, "1", "2")
    device.journal.close()
    device.boot()
    assert device.world.verified == []


def test_after_a_power_cut_the_known_good_serves_at_once_and_all_images_are_verified(device):
    committed(device, "1", "2")
    device.hold_at = "Verify"
    restart(device, clean=False)
    assert device.serves() == "2"
    assert device.worker.step.image.image.version == "1"
    assert len(device.journal.entry.unverified) == 2
    device.worker.finish()
    device.pump()
    device.worker.finish()
    device.pump()
    assert device.world.verified == ["1", "2"]
    assert device.journal.entry.unverified == frozenset()
    assert device.world.violations == []


def test_what_loads_after_a_boot_is_not_slowed_down_by_verification(device):
    committed(device, "1", "2")
    name = device.name(device.catalogue["2"])
    device.world.behaviours[name] = "hung"
    device.world.hold_allowed = True
    restart(device, clean=False)
    device.tick(1, times=3)
    assert device.world.verified == []
    device.world.behaviours[name] = "good"
    device.tick(1)
    assert device.world.verified == ["1", "2"]


def test_a_known_good_that_never_answers_again_is_verified_all_the_same(device):
    committed(device, "1")
    device.world.behaviours[device.name(device.catalogue["1"])] = "dead"
    device.world.hold_allowed = True
    damage(device, "1")
    restart(device, clean=False)
    device.tick(5, times=20)
    assert device.serves() == "1"
    assert device.world.damaged == set()


def test_a_mark_of_an_end_is_used_up_by_the_next_start(device):
    committed(device, "1", "2")
    device.reconciler.stop()
    device.journal.close()
    device.boot()
    restart(device, clean=False)
    assert device.world.verified == ["1", "2"]


def test_a_second_power_cut_changes_nothing(device):
    committed(device, "1", "2")
    device.hold_at = "Verify"
    restart(device, clean=False)
    device.worker.finish()
    device.pump()
    restart(device, clean=True)
    go_on(device)
    assert device.world.verified == ["1", "2"], "what was verified stays so, the rest is not forgotten"


def test_a_journal_that_was_lost_with_the_power_doubts_what_it_takes_over(device):
    committed(device, "1", "2")
    device.journal.close()
    (device.folder / "journal.db").write_bytes(b"\0" * 4096)
    device.world.power_cut()
    device.boot()
    device.tick(1)
    assert device.serves() == "2"
    assert device.world.verified == ["1", "2"]


def test_a_damaged_release_before_is_fetched_again(device):
    committed(device, "1", "2")
    damage(device, "1")
    restart(device, clean=False)
    device.tick(5, times=2)
    assert device.serves() == "2"
    assert device.world.damaged == set()
    assert device.world.history.count("fetch 1") == 2
    assert device.state.problem is None
    assert device.world.violations == []


def test_while_a_damaged_known_good_is_fetched_again_the_release_before_serves(device):
    committed(device, "1", "2")
    damage(device, "2")
    restart(device, clean=False)
    good = [line for line in device.world.history if line.startswith("fetch 2")]
    assert len(good) == 2
    device.tick(5, times=3)
    assert device.serves() == "2"
    assert device.world.violations == [], "nobody noticed"
    assert device.state.slots[0].known_good.version == "2"
    assert device.state.rejected == []
    assert device.state.problem is None
    assert device.world.containers[device.name(device.catalogue["1"])].state == "exited"


def test_without_its_registry_a_damaged_known_good_serves_on_and_says_so(device):
    committed(device, "1", "2")
    damage(device, "2")
    device.world.registry = "down"
    restart(device, clean=False)
    assert device.serves() == "2"
    problem = device.state.problem
    assert problem.code == "trust.tampered"
    assert (
        "disk is damaged; it goes on serving, its golden cases pass; its registry does not offer it" in problem.reason
    )
    device.tick(60, times=30)
    assert device.world.verified == ["1", "2"], "it is not read again and again"
    assert device.world.violations == []
    device.world.registry = "good"
    device.tick(600, times=3)
    assert device.world.verified == ["1", "2", "2"]
    assert device.serves() == "2"
    assert device.world.violations == []
    assert device.state.problem is None


def test_what_has_no_release_before_is_replaced_at_the_price_of_a_gap(device):
    committed(device, "1")
    damage(device, "1")
    device.world.behaviours[device.name(device.catalogue["1"])] = "wrong"
    device.world.hold_allowed = True
    restart(device, clean=False)
    device.tick(5, times=2)
    assert device.serves() == "1"
    assert device.world.damaged == set()
    assert device.state.problem is None


def test_what_has_no_release_before_and_answers_rightly_is_not_stopped_for_a_download(device):
    committed(device, "1")
    damage(device, "1")
    restart(device, clean=False)
    device.tick(600, times=3)
    assert device.serves() == "1"
    assert device.world.violations == []
    assert "its golden cases pass; nothing could serve while it is fetched again" in device.state.problem.reason
    device.assign(2, main="2")
    device.tick(600, times=3)
    assert device.world.damaged == set()
    assert (device.serves(), device.state.problem) == ("2", None)


def test_damage_that_all_versions_share_is_mended_since_no_copy_keeps_it(device):
    committed(device, "1", "2")
    damage(device, "1", "2")
    device.world.layers_kept = True
    device.world.behaviours[device.name(device.catalogue["2"])] = "wrong"
    device.world.hold_allowed = True
    restart(device, clean=False)
    device.tick(600, times=3)
    assert device.world.damaged == set()
    device.world.behaviours[device.name(device.catalogue["2"])] = "good"
    device.tick(600)
    assert device.serves() == "2"


def test_a_known_good_that_was_fetched_in_vain_is_not_stopped_again(device):
    committed(device, "1")
    damage(device, "1")
    device.world.shared |= device.world.damaged
    device.world.behaviours[device.name(device.catalogue["1"])] = "wrong"
    device.world.hold_allowed = True
    restart(device, clean=False)
    device.tick(600, times=3)
    stops = len(device.world.history)
    device.tick(600, times=5)
    assert device.serves() == "1"
    assert [line for line in device.world.history[stops:] if "removed" in line or "exited" in line] == []
    assert "it goes on serving" in device.state.problem.reason


def test_a_damaged_release_before_is_not_gone_back_to(device):
    committed(device, "1", "2")
    damage(device, "1")
    device.world.registry = "down"
    device.hold_at = "Verify"
    restart(device, clean=False)
    device.world.behaviours[device.name(device.catalogue["2"])] = "wrong"
    device.world.hold_allowed = True
    go_on(device)
    device.tick(5, times=6)
    assert device.state.slots[0].serving.version == "2"
    assert device.name(device.catalogue["1"]) not in device.world.containers
    device.world.registry = "good"
    device.tick(600, times=3)
    assert device.serves() == "1", "fetched again and verified, it may take over"


def test_a_candidate_in_flight_is_verified_before_it_starts_again(device):
    device.release("4")
    committed(device, "1")
    device.hold_at = "Probe"
    device.assign(2, main="4")
    damage(device, "4")
    device.hold_at = None
    restart(device, clean=False)
    device.tick(5)
    starts = [line for line in device.world.history if "running" in line and line.endswith(".4")]
    assert device.world.verified[0] == "4"
    assert device.world.history.index("fetch 4", device.world.history.index("power cut")) > 0
    assert len(starts) == 2
    assert device.serves() == "4"
    assert device.world.violations == []


def test_what_comes_while_anything_is_in_doubt_shares_the_doubt(device):
    committed(device, "1", "2")
    device.hold_at = "Verify"
    restart(device, clean=False)
    device.assign(3, main="3")
    go_on(device)
    assert device.serves() == "3"
    assert "3" in device.world.verified
    device.tick(1, times=2)
    assert device.journal.entry.unverified == frozenset()


def test_what_has_left_the_device_is_no_longer_in_doubt(device):
    committed(device, "1")
    digest = device.catalogue["1"].digest
    doubted = replace(device.journal.entry, unverified=frozenset({digest, "sha256:gone"}))
    assert carried(doubted, doubted) == {digest}


def test_damage_that_comes_back_with_every_fetch_is_explained(device):
    committed(device, "1", "2")
    damage(device, "1")
    device.world.shared |= device.world.damaged
    restart(device, clean=False)
    device.tick(5, times=2)
    assert (
        "again after it was fetched: another image on this device shares what is damaged" in device.state.problem.reason
    )
    assert device.serves() == "2"
    device.world.shared.clear()
    device.tick(600, times=2)
    assert device.state.problem is None


def test_a_disk_too_full_to_verify_on_is_said_in_numbers_and_nothing_is_trusted(device):
    committed(device, "1", "2")
    device.world.disk_free = 1_000_000
    restart(device, clean=False)
    assert device.serves() == "2"
    assert device.world.verified == []
    assert device.state.problem.reason == "needs 66 MB of disk for a moment, 1 MB are free"
    device.world.disk_free = 10**9
    device.tick(600)
    assert device.world.verified == ["1", "2"]
    assert device.state.problem is None


# -- the archive


def saved(layers: list[bytes], order: str = "") -> tuple[bytes, str]:
    """What an engine saves, and the digest of the configuration in it."""
    config = json.dumps({"rootfs": {"diff_ids": [f"sha256:{hashlib.sha256(body).hexdigest()}" for body in layers]}})
    files = {f"{number}/layer.tar": body for number, body in enumerate(layers)} | {"manifest.json": b"[]"}
    files = {order + "config.json": config.encode()} | files if order else files | {"config.json": config.encode()}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
        link = tarfile.TarInfo("again/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../0/layer.tar"
        archive.addfile(link)
    return stream.getvalue(), f"sha256:{hashlib.sha256(config.encode()).hexdigest()}"


LAYERS = [b"base" * 200_000, b"model" * 1000]


@pytest.mark.parametrize("order", ["", "first-"])
def test_a_whole_archive_lacks_nothing_wherever_its_configuration_is(order):
    body, config = saved(LAYERS, order)
    assert missing(io.BytesIO(body), config, Cancel()) == []


def test_one_byte_of_a_layer_is_missed_and_the_layer_named():
    body, config = saved(LAYERS)
    at = body.index(b"model") + 17
    digest = hashlib.sha256(LAYERS[1]).hexdigest()
    broken = body[:at] + b"\0" + body[at + 1 :]
    assert missing(io.BytesIO(broken), config, Cancel()) == [f"layer sha256:{digest[:12]}"]


def test_another_configuration_is_none():
    body, config = saved(LAYERS)
    at = body.index(b'"diff_ids"') + 1
    broken = body[:at] + b"D" + body[at + 1 :]
    assert missing(io.BytesIO(broken), config, Cancel()) == ["the configuration"]
    assert missing(io.BytesIO(body), "sha256:" + "0" * 64, Cancel()) == ["the configuration"]


def test_an_archive_that_breaks_off_or_is_none_proves_nothing():
    body, config = saved(LAYERS)
    for broken in (body[:100_000], b"", b"\0" * 20, b"{}" * 1000):
        with pytest.raises(NotAnArchive):
            missing(io.BytesIO(broken), config, Cancel())


def test_it_gives_way_when_asked():
    body, config = saved(LAYERS)
    cancel = Cancel()
    cancel.set()
    with pytest.raises(StepCancelled):
        missing(io.BytesIO(body), config, cancel)
    assert issubclass(Tampered, Exception)
