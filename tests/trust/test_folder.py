"""The TUF folder: power cuts, full disks, lost files, no network."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.ngclient import UpdaterConfig

from wherry.errors import Expired, IdentityError, RolledBack, StoreError, TrustError, Unsigned, WrongDevice
from wherry_agent import tuf_updater
from wherry_agent.assignment import Marks
from wherry_agent.entry import withdrawn
from wherry_agent.trust import Trust
from wherry_cli.repository import init_repository, revoke, rotate_root, set_min_counter


class PowerCut(Exception):
    """Nothing after this happens: not an OSError, so nobody can tidy up after it."""


class Failpoints:
    """Counts open, write, fsync and replace in the TUF folder, and fails at one of them."""

    def __init__(self, monkeypatch, error):
        self.seen = 0
        self.fail_at = None
        self._error = error
        monkeypatch.setattr(os, "fsync", self._hit(os.fsync))
        monkeypatch.setattr(Path, "replace", self._hit(Path.replace))
        monkeypatch.setattr(Path, "open", self._hit_write(Path.open))

    def _check(self):
        self.seen += 1
        if self.seen == self.fail_at:
            raise self._error

    def _hit(self, function):
        def wrapped(*args, **kwargs):
            self._check()
            return function(*args, **kwargs)

        return wrapped

    def _hit_write(self, function):
        def wrapped(path, mode="r", *args, **kwargs):
            if "w" not in mode:
                return function(path, mode, *args, **kwargs)
            self._check()
            file = function(path, mode, *args, **kwargs)
            file.write(b"torn")
            file.flush()
            try:
                self._check()
            except BaseException:
                file.close()
                raise
            file.seek(0)
            file.truncate()
            return file

        return wrapped


@pytest.mark.parametrize("error", [PowerCut(), OSError(28, "No space left on device")], ids=["power", "full"])
def test_a_crash_at_every_write_leaves_a_folder_that_works(world, device, monkeypatch, make_owner, error):
    """A new root with new targets and snapshot keys, then new metadata, all over old files."""
    accepted = world.assign(1, {"main": world.release()})
    device.verify(accepted)
    fresh = make_owner()
    world.take(rotate_root(world.files, world.keys, fresh, world.clock))
    world.keys = fresh
    image = world.release()
    start = device.files()
    points = Failpoints(monkeypatch, error)
    marks = device.marks
    device.verify(world.assign(2, {"main": image}))
    total, done = points.seen, device.files()
    assert total == 5 * 5, "root twice, targets, snapshot, timestamp: open, write, fsync, replace, fsync of the folder"
    for fail_at in range(1, total + 1):
        _restore(device.folder, start)
        device.marks, points.seen, points.fail_at = marks, 0, fail_at
        with pytest.raises((PowerCut, StoreError)):
            device.verify(world.assign(2, {"main": image}))
        assert device.marks == marks
        points.fail_at = None
        assert device.trust.stored(accepted, marks, world.clock).sequence == 1
        device.verify(world.assign(2, {"main": image}))
        assert {**device.files(), ".new": b"", "root_history/.new": b""} == {
            **done,
            ".new": b"",
            "root_history/.new": b"",
        }


def _restore(folder, files):
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.unlink()
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    "name", ["root.json", "root_history/2.root.json", "timestamp.json", "snapshot.json", "targets.json"]
)
@pytest.mark.parametrize("content", [None, b"", bytes(600), b"{}", b"x" * 5_000_000])
def test_any_lost_or_damaged_file_is_fetched_again(world, device, name, content):
    world.take(rotate_root(world.files, world.keys, world.keys, world.clock))
    image = world.release()
    device.verify(world.assign(1, {"main": image}))
    before = device.files()
    (device.folder / name).unlink()
    if content is not None:
        (device.folder / name).write_bytes(content)
    device.verify(world.assign(2, {"main": image}))
    assert device.files() == before


def test_pinned_root_lost_too_is_said_so(world, device):
    for path in device.folder.rglob("*.json"):
        path.write_bytes(b"")
    with pytest.raises(IdentityError, match="Enrol this device again"):
        device.verify(world.assign(1, {"main": world.release()}))


def test_older_root_on_disk_and_on_the_server(world, device):
    image = world.release()
    world.take(rotate_root(world.files, world.keys, world.keys, world.clock))
    device.verify(world.assign(1, {"main": image}))
    del world.served["2.root.json"]
    for path in device.folder.rglob("*.json"):
        if path.name != "first.root.json":
            path.unlink()
    with pytest.raises(RolledBack, match="root metadata"):
        device.verify(world.assign(2, {"main": image}))


def test_nothing_is_written_when_nothing_is_new(world, device, monkeypatch):
    image = world.release()
    device.verify(world.assign(1, {"main": image}))
    points = Failpoints(monkeypatch, PowerCut())
    world.asked.clear()
    device.verify(world.assign(2, {"main": image}))
    assert points.seen == 0
    assert world.asked == ["2.root.json", "timestamp.json"]


def test_stored_assignment_without_network_and_past_expiry(world, device, later, make_device):
    image = world.release()
    payload = world.assign(1, {"main": image})
    accepted = device.verify(payload)
    world.answers = dict.fromkeys(["2.root.json", "timestamp.json"], lambda handler: handler.send_error(500))
    offline = Trust(device.folder, "dev-1", "generic-amd64", "https://127.0.0.1:1/", None)
    assert offline.stored(payload, device.marks, later(4000)) == accepted
    with pytest.raises(Expired):
        offline.verify(world.assign(2, {"main": image}), device.marks, later(8), online=False)
    again, marks = offline.verify(world.assign(2, {"main": image}), device.marks, later(6), online=False)
    assert again.slots == accepted.slots
    assert marks.sequence == 2


def test_what_is_withdrawn_is_told_by_the_files_when_the_marks_are_lost(world, device):
    world.release()
    second = world.release()
    device.verify(world.assign(1, {"main": second}))
    world.take(revoke(world.files, second.digest, world.keys, world.clock))
    world.take(set_min_counter(world.files, "vision", 2, world.keys, world.clock))
    device.marks = device.trust.refresh(device.marks, world.clock)
    offline = Trust(device.folder, "dev-1", "generic-amd64", "https://127.0.0.1:1/", None)
    found = offline.withdrawals(Marks())
    assert (found.revoked, found.min_counters) == ({second.digest}, {"vision/generic-amd64": 2})
    assert found.keys == {"targets": device.marks.keys["targets"]}, "else they outlive a stolen key's replacement"
    (device.folder / "targets.json").unlink()
    with pytest.raises(StoreError):
        offline.withdrawals(Marks())


def test_stored_still_refuses_what_it_must(world, device, make_signer):
    image = world.release()
    payload = world.assign(1, {"main": image})
    device.verify(payload)
    with pytest.raises(TrustError):
        device.trust.stored(payload.replace(b'"main"', b'"moon"'), device.marks, world.clock)
    foreign = make_signer().sign_assignment("dev-1", 1, {"main": image}, world.clock)
    with pytest.raises(Unsigned):
        device.trust.stored(foreign, device.marks, world.clock)
    with pytest.raises(WrongDevice):
        device.trust.stored(world.assign(1, {}, device="dev-2"), device.marks, world.clock)
    world.take(revoke(world.files, image.digest, world.keys, world.clock))
    device.verify(world.assign(2, {}))
    stored = device.trust.stored(payload, device.marks, world.clock)
    assert withdrawn(stored.slots["main"], device.marks), "read, but admission keeps it from running"
    old = device.folder / "targets.json"
    old.write_bytes(world.files["2.targets.json"])
    with pytest.raises(RolledBack):
        device.trust.stored(payload, device.marks, world.clock)
    old.unlink()
    with pytest.raises(StoreError):
        device.trust.stored(payload, device.marks, world.clock)


def test_more_missed_roots_than_one_run_takes(world, device, monkeypatch):
    world.release()
    for _ in range(5):
        world.take(rotate_root(world.files, world.keys, world.keys, world.clock))
    config = UpdaterConfig(**{**vars(tuf_updater.CONFIG), "max_root_rotations": 2})
    monkeypatch.setattr(tuf_updater.StagedUpdater.__init__, "__defaults__", (config,))
    for root in (3, 5, 6):
        device.marks = device.trust.refresh(device.marks, world.clock)
        assert device.marks.root == root


def test_a_device_that_slept_through_several_owners_keys_takes_the_next_release(world, device, make_owner):
    device.verify(world.assign(1, {"main": world.release()}))
    for number in (2, 3, 4):
        fresh = make_owner(number)
        world.take(rotate_root(world.files, world.keys, fresh, world.clock, threshold=number))
        world.keys = fresh
        image = world.release()
    device.verify(world.assign(2, {"main": image}))
    assert device.marks.root == 4


def test_enrolling_again(world, device, make_owner):
    """The same root keeps everything; another owner's root starts afresh."""
    image = world.release()
    device.verify(world.assign(1, {"main": image}))
    before = device.files()
    device.trust.install_root(world.files["1.root.json"])
    assert device.files() == before
    other = init_repository(make_owner(), world.online.online_keys(), world.clock)
    device.trust.install_root(other["1.root.json"])
    assert device.files() == {"first.root.json": other["1.root.json"]}
    with pytest.raises(TrustError):
        device.trust.install_root(b"{}")
    with pytest.raises(TrustError):
        device.trust.install_root(other["1.root.json"].replace(b"2027", b"2037"))


def test_folder_that_cannot_be_made(world, make_device, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        make_device(world, tmp_path / "file" / "tuf")


def test_private_names_of_tuf_that_we_build_on():
    """If this fails, tuf changed: read its updater again before anything else."""
    from tuf.ngclient import Updater
    from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

    for name in ("_download_metadata", "_load_local_metadata", "_persist_metadata", "_persist_root"):
        assert name in vars(Updater), name
        assert name in vars(tuf_updater.StagedUpdater), name
    assert "_update_root_symlink" in vars(Updater)
    for name in ("update_timestamp", "update_snapshot", "update_targets"):
        assert name in vars(TrustedMetadataSet), name


def test_reference_time_is_what_expiry_is_judged_by(world, device):
    image = world.release()
    payload = world.assign(1, {"main": image})
    device.verify(payload, now=world.clock - timedelta(days=400))
    assert device.marks.floor == world.clock - timedelta(days=400)
