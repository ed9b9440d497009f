"""Each thing that a device must refuse, each with its own error, and nothing changed by it."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

from wherry.errors import (
    Expired,
    MalformedMessage,
    Replayed,
    RolledBack,
    ServerError,
    Tampered,
    Unsigned,
    UnsupportedSchema,
    WrongDevice,
    WrongProfile,
)
from wherry.roles import ASSIGNMENT_FIELD
from wherry_agent.assignment import Marks, mark_above
from wherry_agent.entry import withdrawn
from wherry_agent.trust_rules import refused_sequence
from wherry_cli import repository
from wherry_cli.repository import publish, revoke, rotate_root, set_min_counter


def _refused(device, error, payload, **kwargs):
    """The device refuses, and its marks stay."""
    before = device.marks
    with pytest.raises(error) as caught:
        device.verify(payload, **kwargs)
    assert type(caught.value) is error
    assert device.marks == before
    return caught.value


def _steps_back(device, payload, slot, **kwargs):
    """Accepted as the server's newest word; but the slot's mark stays where it was, above the image."""
    counters = dict(device.marks.counters)
    assignment = device.verify(payload, **kwargs)
    mark = mark_above(slot, assignment.slots[slot], device.marks.counters)
    assert mark > assignment.slots[slot].image.counter
    assert all(device.marks.counters.get(key, 0) >= value for key, value in counters.items() if ":" not in key)
    assert device.marks.counters.get(f"{slot}:vision/generic-amd64", mark) == mark
    assert device.trust.stored(payload, device.marks, device.world.clock) == assignment


def test_accepts_what_owner_and_server_signed(world, device):
    image = world.release()
    assignment = device.verify(world.assign(7, {"main": image}))
    assert assignment.device == "dev-1"
    assert assignment.sequence == 7
    accepted = assignment.slots["main"]
    assert (accepted.digest, accepted.manifest_bytes) == (image.digest, image.manifest_bytes)
    assert accepted.image == image.image
    assert accepted.pull_reference == f"127.0.0.1:5000/wherry/vision@{image.digest}"
    assert (device.marks.root, device.marks.targets, device.marks.snapshot) == (1, 2, 2)
    assert device.marks.timestamp == world.timestamp
    assert device.marks.sequence == 7
    assert device.marks.counters == {"vision/generic-amd64": 1, "main:vision/generic-amd64": 1}
    assert device.marks.floor == world.clock


def test_unsigned_by_the_director(world, device, make_signer):
    image = world.release()
    stranger = make_signer()
    _refused(device, Unsigned, stranger.sign_assignment("dev-1", 1, {"main": image}, world.clock))


def test_unsigned_image_that_only_the_server_names(world, device):
    image = world.release()
    invented = world.online.sign_assignment(
        "dev-1", 1, {"main": _renamed(image, "models/vision/generic-amd64/9.manifest.json")}, world.clock
    )
    assert "not in the owner's" in _refused(device, Unsigned, invented).reason


def test_unsigned_image_under_a_signed_name(world, device):
    image = world.release()
    other = type(image)(image.path, "sha256:" + "e" * 64, image.manifest_bytes, image.image)
    _refused(device, Unsigned, world.assign(1, {"main": other}))
    longer = type(image)(image.path, image.digest, image.manifest_bytes + 1, image.image)
    _refused(device, Unsigned, world.assign(1, {"main": longer}))


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_unsigned_metadata(world, device, make_owner, make_signer, role):
    """All of the metadata made by somebody else, or one file of it."""
    image = world.release()
    payload = world.assign(1, {"main": image})
    foreign, strange = make_owner(), make_signer()
    if role == "timestamp":
        world.served["timestamp.json"] = strange.sign_timestamp(world.files["2.snapshot.json"], 9, world.clock)
    else:
        forged = publish_by(world, foreign, role)
        world.served.update(forged)
        world.served["timestamp.json"] = world.online.sign_timestamp(forged["3.snapshot.json"], 9, world.clock)
    _refused(device, Unsigned, payload)


def publish_by(world, foreign, role):
    """The next targets and snapshot with one of them signed by a foreign key, hashes matching."""
    keys = replace(world.keys, **{role: getattr(foreign, role)})
    targets = repository.read_targets(world.files)
    targets.version += 1
    return repository._sign_targets(targets, 3, keys, world.clock)


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_tampered_metadata(world, device, name):
    image = world.release()
    original = world.served[name]
    payload = world.assign(1, {"main": image})
    for changed in (
        original.replace(b'"version":2', b'"version":3', 1),
        original.replace(b"2026", b"2036", 1),
        original[:-9],
        original + b"x",
        b"",
        b"[]",
        b"[" * 100_000,
    ):
        world.served[name] = changed
        _refused(device, Tampered, payload)
    world.served[name] = original
    device.verify(payload)


def test_tampered_new_root(world, device):
    image = world.release()
    world.take(rotate_root(world.files, world.keys, world.keys, world.clock))
    good = world.served["2.root.json"]
    world.served["2.root.json"] = good.replace(b'"threshold":1', b'"threshold":2', 1)
    payload = world.assign(1, {"main": image})
    _refused(device, Tampered, payload)
    world.served["2.root.json"] = good
    device.verify(payload)


def test_tampered_assignment(world, device):
    image = world.release()
    payload = world.assign(1, {"main": image})
    _refused(device, Tampered, payload.replace(b'"version":1', b'"version":2'))
    _refused(device, Tampered, payload.replace(b'"main"', b'"moon"'))


def test_endless_metadata(world, device):
    image = world.release()

    def endless(handler):
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
        except OSError:
            handler.close_connection = True

    for name in ("timestamp.json", "2.snapshot.json", "2.targets.json"):
        world.answers = {name: endless}
        _refused(device, Tampered, world.assign(1, {"main": image}))


def test_announced_length_does_not_raise_the_limit(world, device):
    image = world.release()
    found = Metadata[Timestamp].from_bytes(world.served["timestamp.json"])
    found.signed.snapshot_meta.length = 10**15
    found.sign(world.online.timestamp)
    world.served["timestamp.json"] = found.to_bytes()
    world.served["2.snapshot.json"] += b" " * 20_000
    assert "longer" in _refused(device, Tampered, world.assign(1, {"main": image})).reason


def test_sequence_that_is_a_truth_value(world, device):
    found = Metadata[Targets].from_bytes(world.assign(1, {"main": world.release()}))
    found.signed.version = True
    found.sign(world.online.director)
    _refused(device, Tampered, found.to_bytes())


def test_replayed_assignment(world, device):
    image = world.release()
    first, second = world.assign(1, {"main": image}), world.assign(2, {})
    device.verify(second)
    _refused(device, Replayed, first)
    _refused(device, Replayed, second)


@pytest.mark.parametrize(("days", "role"), [(8, "timestamp"), (61, "snapshot"), (181, "targets"), (366, "root")])
def test_expired_metadata(world, device, later, days, role):
    image = world.release()
    world.clock = later(days)
    if role != "timestamp":
        world.serve()
    if role == "targets":
        _renew_snapshot_only(world)
    if role == "root":
        world.take(publish(world.files, [], world.keys, world.clock))
    assert role in _refused(device, Expired, world.assign(1, {"main": image})).reason


def _renew_snapshot_only(world):
    targets = repository.read_targets(world.files)
    snapshot = repository._sign_targets(targets, 3, world.keys, world.clock)["3.snapshot.json"]
    meta = json.loads(snapshot)
    assert meta["signed"]["meta"]["targets.json"]["version"] == 2
    # The same targets bytes stay; only their hash in the new snapshot must be that of the old file.
    found = Metadata[Snapshot].from_bytes(snapshot)
    found.signed.meta["targets.json"] = MetaFile.from_data(2, world.files["2.targets.json"], ["sha256"])
    found.sign(world.keys.snapshot)
    world.take({"3.snapshot.json": found.to_bytes()})


def test_expired_assignment(world, device, later):
    payload = world.assign(1, {"main": world.release()})
    world.clock = later(7)
    world.serve()
    assert _refused(device, Expired, payload).thing == "assignment"
    assert device.verify(payload, now=later(7) - timedelta(seconds=1))


def test_another_devices_assignment(world, device):
    _refused(device, WrongDevice, world.assign(1, {"main": world.release()}, device="dev-2"))


def test_another_profiles_image(world, device):
    _refused(device, WrongProfile, world.assign(1, {"main": world.release(profile="jetson-nano")}))


def test_older_release_in_the_same_slot(world, device):
    old, new = world.release(), world.release()
    device.verify(world.assign(1, {"main": new}))
    _steps_back(device, world.assign(2, {"main": old}), "main")
    _steps_back(device, world.assign(3, {"other": old}), "other")
    device.verify(world.assign(4, {}))
    _steps_back(device, world.assign(5, {"main": old}), "main")


def test_slot_that_stays_behind_is_no_rollback(world, device):
    old, new = world.release(), world.release()
    device.verify(world.assign(1, {"main": old}))
    device.verify(world.assign(2, {"main": old, "canary": new}))
    device.verify(world.assign(3, {"main": old, "canary": new, "third": world.release("words")}))
    _steps_back(device, world.assign(4, {"main": new, "canary": old}), "canary")
    assert device.marks.counters["main:vision/generic-amd64"] == 2, "the other slot goes on"
    device.verify(world.assign(5, {"main": new, "canary": new}))


def test_told_to_keep_what_serves_after_a_newer_release_failed(world, device):
    good, wrong = world.release(), world.release()
    device.verify(world.assign(1, {"main": good}))
    device.verify(world.assign(2, {"main": wrong}))
    _steps_back(device, world.assign(3, {"main": good}), "main")
    device.verify(world.assign(4, {"main": good}), serving={"main": good.digest})
    assert device.marks.counters["main:vision/generic-amd64"] == 2
    _steps_back(device, world.assign(5, {"main": good}), "main")


def test_what_serves_in_one_slot_is_still_a_step_back_in_another(world, device):
    """Else a stolen server could take any slot back to the oldest release that any other slot runs."""
    old, new = world.release(), world.release()
    device.verify(world.assign(1, {"canary": old}))
    device.verify(world.assign(2, {"canary": old, "main": new}))
    serving = {"canary": old.digest, "main": new.digest}
    _steps_back(device, world.assign(3, {"canary": old, "main": old}), "main", serving=serving)
    device.verify(world.assign(4, {"canary": old, "main": new}), serving=serving)


def test_older_timestamp(world, device):
    image = world.release()
    old = world.served["timestamp.json"]
    world.serve()
    device.verify(world.assign(1, {"main": image}))
    world.served["timestamp.json"] = old
    _refused(device, RolledBack, world.assign(2, {"main": image}))


@pytest.mark.parametrize("damage", ["zeroed", "removed"])
def test_older_set_with_the_files_lost(world, device, damage):
    """Security page: with zeroed files, ngclient alone accepted an older set."""
    image = world.release()
    old = dict(world.served)
    world.release()
    device.verify(world.assign(1, {"main": image}))
    for path in device.folder.glob("*.json"):
        if path.name in ("timestamp.json", "snapshot.json", "targets.json"):
            path.write_bytes(bytes(path.stat().st_size)) if damage == "zeroed" else path.unlink()
    before = device.files()
    world.served.clear()
    world.served.update(old)
    _refused(device, RolledBack, world.assign(2, {"main": image}))
    assert device.files() == before, "the older set must not be written"
    device.marks = Marks()
    device.verify(world.assign(2, {"main": image}))


def _withdrawn_only(device, payload, image):
    """Accepted as the server's newest word, with marks that keep the withdrawn image from running."""
    before = dict(device.marks.counters)
    assignment = device.verify(payload)
    assert [found.digest for found in assignment.slots.values() if withdrawn(found, device.marks)] == [image.digest]
    return before


def test_a_revoked_image_is_marked_and_other_slots_go_on(world, device):
    image, other = world.release(), world.release("words")
    device.verify(world.assign(1, {"main": image}))
    world.take(revoke(world.files, image.digest, world.keys, world.clock))
    _withdrawn_only(device, world.assign(2, {"main": world.image(image.path), "words": other}), image)
    assert device.marks.revoked == {image.digest}
    assert device.marks.counters["words/generic-amd64"] == 1


def test_an_image_below_the_minimum_counter_is_withdrawn(world, device):
    old, new = world.release(), world.release()
    device.verify(world.assign(1, {"main": old}))
    world.take(set_min_counter(world.files, "vision", 2, world.keys, world.clock))
    _withdrawn_only(device, world.assign(2, {"main": world.image(old.path)}), old)
    device.verify(world.assign(3, {"main": world.image(new.path)}))
    assert device.marks.min_counters == {"vision/generic-amd64": 2}


def test_a_withdrawn_image_raises_no_counter_so_that_an_older_one_may_follow(world, device):
    older, newer = world.release(), world.release()
    device.verify(world.assign(1, {"main": older}))
    world.take(revoke(world.files, newer.digest, world.keys, world.clock))
    before = _withdrawn_only(device, world.assign(2, {"main": world.image(newer.path)}), newer)
    assert device.marks.counters == before
    device.verify(world.assign(3, {"main": world.image(older.path)}))


@pytest.mark.parametrize("slot", ["main", "new"])
def test_a_withdrawn_image_does_not_free_a_slot_from_the_counter_of_its_model(world, device, slot):
    """Else a stolen director key could take any slot back: emptied or new, then withdrawn, then anything."""
    oldest, older, newest = world.release(), world.release(), world.release()
    device.verify(world.assign(1, {"main": newest}))
    world.take(revoke(world.files, older.digest, world.keys, world.clock))
    device.verify(world.assign(2, {}))
    _withdrawn_only(device, world.assign(3, {slot: world.image(older.path)}), older)
    assert device.marks.counters == {"vision/generic-amd64": 3}
    _steps_back(device, world.assign(4, {slot: world.image(oldest.path)}), slot)
    device.verify(world.assign(5, {slot: world.image(newest.path)}))


def test_withdrawal_is_learned_without_an_assignment(world, device):
    image = world.release()
    device.verify(world.assign(1, {"main": image}))
    world.take(revoke(world.files, image.digest, world.keys, world.clock))
    device.marks = device.trust.refresh(device.marks, world.clock)
    assert image.digest in device.marks.revoked
    stored = device.trust.stored(world.assign(1, {"main": world.image(image.path)}), device.marks, world.clock)
    assert withdrawn(stored.slots["main"], device.marks)


def test_malformed_assignments(world, device):
    good = json.loads(world.assign(1, {"main": world.release()}))
    for payload in (b"", b"null", b"[]", b"{}", b'{"signed":[]}', b"\xff", b'{"a":1,"a":2}', b"x" * 300_000):
        _refused(device, MalformedMessage, payload)
    wrong = [(version, Tampered) for version in (0, -1, 1.5, "1", True, 2**53)]
    for version, error in (*wrong, (10**400, MalformedMessage)):
        changed = {**good, "signed": {**good["signed"], "version": version}}
        _refused(device, error, json.dumps(changed).encode())
    newer = {**good["signed"][ASSIGNMENT_FIELD], "schema": 2}
    _refused(
        device, UnsupportedSchema, json.dumps({**good, "signed": {**good["signed"], ASSIGNMENT_FIELD: newer}}).encode()
    )


def _renamed(image, path):
    return type(image)(path, image.digest, image.manifest_bytes, image.image)


def test_a_refusal_names_the_assignment_by_its_own_words(world, device):
    image = world.release(profile="jetson-nano")
    payload = world.assign(7, {"main": image})
    with pytest.raises(WrongProfile) as found:
        device.verify(payload)
    assert refused_sequence(payload, found.value) == 7
    assert refused_sequence(payload, WrongDevice("assignment", "is for another")) == 0
    assert refused_sequence(payload, ServerError("server", "is away")) == 0
    assert refused_sequence(b"{}", found.value) == 0


def test_groups_of_slots_that_go_together_are_signed_with_them(world, device):
    slots = {"main": world.release(), "words": world.release("words"), "third": world.release("third")}
    payload = world.online.sign_assignment("dev-1", 1, slots, world.clock, [["words", "main"]])
    assert device.verify(payload).together == (frozenset({"main", "words"}),)
    for number, groups in enumerate(([["main", "none"]], [["main", "words"], ["words", "third"]], [["main"]]), start=2):
        wrong = world.online.sign_assignment("dev-1", number, slots, world.clock, groups)
        assert "together" in _refused(device, MalformedMessage, wrong).reason
    plain = json.loads(world.online.sign_assignment("dev-1", 9, slots, world.clock))
    assert "together" not in plain["signed"][ASSIGNMENT_FIELD], "agents from before see what they always saw"


def test_a_step_back_in_one_slot_leaves_the_other_slots_their_releases(world, device):
    old, new, words = world.release(), world.release(), world.release("words")
    device.verify(world.assign(1, {"main": new}))
    _steps_back(device, world.assign(2, {"main": old, "words": words}), "main")
    assert device.marks.counters["words:words/generic-amd64"] == 1
    assert device.marks.counters["main:vision/generic-amd64"] == 2
    assert device.marks.sequence == 2
