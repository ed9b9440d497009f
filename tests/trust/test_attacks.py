"""What somebody gains who holds some of the keys, and how the owner gets the fleet back."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

from wherry.api.repository import OnlineKeys
from wherry.errors import Replayed, RolledBack, ServerError, Tampered, TrustError, Unsigned
from wherry.metadata import MAX_VERSION
from wherry_agent.assignment import Marks, mark_above
from wherry_cli.repository import ImageToSign, _sign_targets, init_repository, publish, read_targets, rotate_root


def _forged_repository(world, make_owner):
    """A complete repository of an attacker who has all online keys and makes owner keys of his own."""
    attacker = make_owner()
    files = init_repository(attacker, world.online.online_keys(), world.clock)
    image = world.release()
    evil = ImageToSign(image.image, "sha256:" + "6" * 64, 66)
    files |= publish(files, [evil], attacker, world.clock)
    return attacker, files, world.online.sign_timestamp(files["2.snapshot.json"], 99, world.clock)


def test_compromised_server_cannot_install_what_the_owner_did_not_sign(world, device, make_owner):
    attacker, files, timestamp = _forged_repository(world, make_owner)
    mine = replace(world.image("models/vision/generic-amd64/1.manifest.json"), digest="sha256:" + "6" * 64)
    payload = world.assign(1, {"main": mine})
    served = dict(world.served)
    with pytest.raises(Unsigned):
        device.verify(payload)
    world.served.update(files)
    world.served["timestamp.json"] = timestamp
    with pytest.raises(TrustError):
        device.verify(payload)
    # Nor by calling his root the next one.
    bridge = rotate_root(files, attacker, attacker, world.clock)
    world.served.clear()
    world.served.update(served | {"2.root.json": bridge["2.root.json"]})
    with pytest.raises(TrustError):
        device.verify(payload)
    assert device.marks == Marks()


def test_server_cannot_speak_for_the_owner_by_assignment_fields(world, device):
    """An assignment's own custom fields, delegations and extra targets mean nothing."""
    image = world.release()
    found = Metadata[Targets].from_bytes(world.assign(1, {"main": image}))
    found.signed.targets[image.path].unrecognized_fields["custom"] = {"run": {"command": ["sh"]}}
    found.sign(world.online.director)
    assert device.verify(found.to_bytes()).slots["main"].image == image.image


def test_mix_and_match(world, device):
    """Each file is signed by its owner, but they were never published together."""
    first = world.release()
    old = dict(world.served)
    second = world.release()
    new = dict(world.served)
    payload = world.assign(1, {"main": second})
    for name, other in (("3.targets.json", "2.targets.json"), ("3.snapshot.json", "2.snapshot.json")):
        world.served[name] = old[other]
        with pytest.raises(Tampered):
            device.verify(payload)
        world.served[name] = new[name]
    device.verify(payload)
    assert first.path != second.path


def test_mix_and_match_without_hashes(world, device):
    """A timestamp key holder who leaves out the hashes cannot pair a new snapshot number with an old file."""
    world.release()
    old = world.served["2.snapshot.json"]
    image = world.release()
    found = Metadata[Timestamp].from_bytes(world.served["timestamp.json"])
    found.signed.snapshot_meta = MetaFile(3)
    found.sign(world.online.timestamp)
    world.served["timestamp.json"] = found.to_bytes()
    world.served["3.snapshot.json"] = old
    with pytest.raises(RolledBack):
        device.verify(world.assign(1, {"main": image}))


def test_a_timestamp_for_a_snapshot_that_does_not_exist_leaves_nothing_behind(world, device):
    image = world.release()
    payload = world.assign(1, {"main": image})
    good = world.served["timestamp.json"]
    forged = Metadata[Timestamp].from_bytes(good)
    forged.signed.version = MAX_VERSION
    forged.signed.snapshot_meta = MetaFile(9999)
    forged.sign(world.online.timestamp)
    world.served["timestamp.json"] = forged.to_bytes()
    with pytest.raises(ServerError):
        device.verify(payload)
    world.served["timestamp.json"] = good
    device.verify(payload)


def _rotated_online(world, make_signer):
    fresh = make_signer()
    files = rotate_root(world.files, world.keys, world.keys, world.clock, online=fresh.online_keys())
    world.online = fresh
    world.timestamp = 0
    world.take(files)


def test_fast_forwarded_timestamp_and_sequence_recover_when_the_owner_replaces_the_online_keys(
    world, device, make_signer
):
    image = world.release()
    world.timestamp = MAX_VERSION - 1
    world.serve()
    device.verify(world.assign(MAX_VERSION, {"main": image}))
    world.timestamp = 5
    world.serve()
    with pytest.raises(RolledBack):
        device.verify(world.assign(1, {"main": image}))
    stolen = world.online
    _rotated_online(world, make_signer)
    with pytest.raises(Unsigned):
        device.verify(stolen.sign_assignment("dev-1", MAX_VERSION, {"main": image}, world.clock))
    device.verify(world.assign(1, {"main": image}))
    assert (device.marks.timestamp, device.marks.sequence) == (world.timestamp, 1)
    with pytest.raises(Replayed):
        device.verify(world.assign(1, {"main": image}))


def test_fast_forwarded_counter_recovers_when_the_owner_replaces_the_targets_key(world, device, make_owner):
    first = world.release()
    stolen = world.release(counter=10**15, min_counter=10**15, revoked=[first.digest])
    device.verify(world.assign(1, {"main": stolen}))
    fresh = replace(world.keys, targets=make_owner().targets)
    world.take(_without(world, stolen.path, fresh))
    device.verify(world.assign(2, {"main": first}))
    assert device.marks.counters["vision/generic-amd64"] == 1
    assert device.marks.revoked == frozenset()
    second = world.release()
    device.verify(world.assign(3, {"main": second}))
    back = device.verify(world.assign(4, {"main": first})).slots["main"]
    assert mark_above("main", back, device.marks.counters) == second.image.counter


def _without(world, path, fresh):
    """The owner's recovery: a new targets key, and the attacker's release gone."""
    files = rotate_root(world.files, world.keys, fresh, world.clock)
    targets = read_targets({**world.files, **files})
    del targets.targets[path]
    found = Metadata(targets)
    found.sign(fresh.targets)
    name = f"{targets.version}.targets.json"
    snapshot = Metadata[Snapshot].from_bytes(files[f"{targets.version}.snapshot.json"])
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(targets.version, found.to_bytes(), ["sha256"])
    snapshot.sign(fresh.snapshot)
    world.keys = fresh
    return {**files, name: found.to_bytes(), f"{targets.version}.snapshot.json": snapshot.to_bytes()}


def test_routine_replacement_of_the_targets_key_opens_no_way_back(world, device, make_owner):
    old, new = world.release(), world.release()
    device.verify(world.assign(1, {"main": new}))
    fresh = replace(world.keys, targets=make_owner().targets)
    world.take(rotate_root(world.files, world.keys, fresh, world.clock))
    back = device.verify(world.assign(2, {"main": old})).slots["main"]
    assert mark_above("main", back, device.marks.counters) == new.image.counter


def test_removing_the_director_and_naming_it_again_keeps_the_sequence(world, device):
    image = world.release()
    device.verify(world.assign(5, {"main": image}))
    keys = world.online.online_keys()
    away = OnlineKeys(timestamp=keys.timestamp, director=keys.timestamp)
    world.take(rotate_root(world.files, world.keys, world.keys, world.clock, online=away))
    with pytest.raises(Unsigned):
        device.verify(world.assign(6, {"main": image}))
    world.take(rotate_root(world.files, world.keys, world.keys, world.clock, online=keys))
    with pytest.raises(Replayed):
        device.verify(world.assign(5, {"main": image}))
    nobody = read_targets(world.files)
    nobody.delegations = None
    nobody.version += 1
    world.take(_sign_targets(nobody, nobody.version, world.keys, world.clock))
    with pytest.raises(Unsigned):
        device.verify(world.assign(6, {"main": image}))
    device.marks = device.trust.refresh(device.marks, world.clock)
    world.take(rotate_root(world.files, world.keys, world.keys, world.clock, online=keys))
    with pytest.raises(Replayed):
        device.verify(world.assign(5, {"main": image}))


def test_root_rotation_from_one_to_three(world, device, make_owner):
    """A device that slept through two roots follows, and the first key alone is worth nothing then."""
    image = world.release()
    device.verify(world.assign(1, {"main": image}))
    first = world.keys
    two_of_three = make_owner(3)
    world.take(rotate_root(world.files, first, two_of_three, world.clock, threshold=2))
    world.keys = two_of_three
    third = make_owner(3)
    world.take(rotate_root(world.files, replace(two_of_three, root=two_of_three.root[1:]), third, world.clock, 2))
    world.keys = third
    device.verify(world.assign(2, {"main": image}))
    assert device.marks.root == 3
    stale = rotate_root(_renumbered(world, first), first, first, world.clock)
    world.served["4.root.json"] = _as_version_four(stale["2.root.json"], first)
    with pytest.raises(Unsigned):
        device.verify(world.assign(3, {"main": image}))


def _renumbered(world, first):
    return init_repository(first, world.online.online_keys(), world.clock)


def _as_version_four(data, keys):
    found = Metadata.from_bytes(data)
    found.signed.version = 4
    for signer in keys.root:
        found.sign(signer)
    return found.to_bytes()


def test_too_few_root_signatures(world, device, make_owner):
    image = world.release()
    threefold = make_owner(3)
    world.take(rotate_root(world.files, world.keys, threefold, world.clock, threshold=2))
    world.keys = threefold
    device.verify(world.assign(1, {"main": image}))
    with pytest.raises(Unsigned):
        rotate_root(world.files, replace(threefold, root=threefold.root[:1]), make_owner(1), world.clock, threshold=1)
    root = Metadata.from_bytes(world.files["2.root.json"])
    root.signed.version = 3
    root.sign(threefold.root[0])
    world.served["3.root.json"] = root.to_bytes()
    with pytest.raises(Unsigned):
        device.verify(world.assign(2, {"main": image}))


def test_one_key_under_two_names_is_one_signature(world, device, make_owner):
    """A root that lists a key twice could fake a threshold; the owner's tool counts keys, so show where it stands."""
    key = CryptoSigner.generate_ecdsa()
    assert json.loads(init_repository(make_owner(2), world.online.online_keys(), world.clock, 2)["1.root.json"])
    with pytest.raises(ValueError, match="keyids"):
        init_repository(replace(make_owner(), root=(key, key)), world.online.online_keys(), world.clock, 2)


def test_clock_thirty_days_behind(world, device):
    """What expired before this device's newest certain moment stays expired, whatever the clock says."""
    image = world.release()
    payload, replay = world.assign(1, {"main": image}), world.assign(2, {})
    frozen = dict(world.served)
    start = world.clock
    world.clock = start + timedelta(days=30)
    world.serve()
    device.verify(world.assign(1, {"main": image}))
    assert device.marks.floor == start + timedelta(days=30)
    with pytest.raises(TrustError) as caught:
        device.verify(replay, now=start)
    assert caught.value.code == "trust.expired"
    world.served.clear()
    world.served.update(frozen)
    device.marks = replace(Marks(), floor=device.marks.floor)
    for path in device.folder.glob("*.json"):
        if path.name != "first.root.json":
            path.unlink()
    with pytest.raises(TrustError) as caught:
        device.verify(payload, now=start)
    assert caught.value.code == "trust.expired"


def test_clock_far_ahead_refuses_and_leaves_no_floor(world, device):
    image = world.release()
    payload = world.assign(1, {"main": image})
    with pytest.raises(TrustError):
        device.verify(payload, now=world.clock + timedelta(days=3650))
    device.verify(payload)
