"""The owner's side: key files, making metadata, and comparing it with the server's."""

import stat

import pytest

from wherry.errors import ConfigError, Conflict, InputError, MalformedMessage, NotFound, Tampered, TrustError, Unsigned
from wherry.metadata import newest, verify_owner_set
from wherry_cli.keystore import KeyStore
from wherry_cli.local_repository import LocalRepository, compare, names_of
from wherry_cli.repository import (
    ImageToSign,
    OwnerKeys,
    init_repository,
    next_counter,
    publish,
    read_targets,
    released,
    revoke,
    rotate_root,
    set_min_counter,
)


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
@pytest.mark.parametrize("passphrase", [None, "geheim"])
def test_key_files(tmp_path, world, kind, passphrase):
    store = KeyStore(tmp_path / "keys", passphrase)
    keys = store.create_owner_keys(3, kind)
    assert store.names() == ["root-1", "root-2", "root-3", "snapshot", "targets"]
    for name in store.names():
        path = tmp_path / "keys" / f"{name}.pem"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (b"ENCRYPTED" in path.read_bytes()) == (passphrase is not None)
        assert b"PRIVATE" not in path.with_suffix(".pub").read_bytes()
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    files = init_repository(keys, world.online.online_keys(), world.clock, 2)
    again = KeyStore.from_environment(tmp_path / "keys", {"WHERRY_KEY_PASSPHRASE": passphrase or ""})
    files |= publish(files, [], again.owner_keys(), world.clock)
    files |= rotate_root(files, again.owner_keys(with_root=True), keys, world.clock)
    assert verify_owner_set(files).root.version == 2


def test_key_file_mistakes(tmp_path):
    store = KeyStore(tmp_path, "geheim")
    store.create("targets")
    with pytest.raises(Conflict):
        store.create("targets")
    with pytest.raises(Conflict):
        store.create_owner_keys()
    assert store.names() == ["targets"], "nothing half-made"
    with pytest.raises(ConfigError, match="WHERRY_KEY_PASSPHRASE"):
        KeyStore(tmp_path).load("targets")
    with pytest.raises(ConfigError):
        KeyStore(tmp_path, "falsch").load("targets")
    with pytest.raises(NotFound):
        store.owner_keys()
    with pytest.raises(NotFound):
        store.owner_keys(with_root=True)
    (tmp_path / "snapshot.pem").write_bytes(b"junk")
    with pytest.raises(ConfigError):
        store.load("snapshot")
    for name in ("", "../x", "A", "x.y"):
        with pytest.raises(InputError):
            store.create(name)
    with pytest.raises(InputError):
        store.create_owner_keys(0)


def test_counters_grow_for_all_profiles_together(world):
    assert next_counter(read_targets(world.files), "vision") == 1
    world.release(profile="jetson-nano")
    assert next_counter(read_targets(world.files), "vision") == 2
    assert world.release().path == "models/vision/generic-amd64/2.manifest.json"
    assert next_counter(read_targets(world.files), "words") == 1
    with pytest.raises(Conflict):
        world.release(counter=2)
    with pytest.raises(Conflict):
        world.release(counter=1)


def test_minimum_counter_is_carried_on_and_never_falls(world):
    world.release()
    world.release()
    world.take(set_min_counter(world.files, "vision", 2, world.keys, world.clock))
    assert world.release().image.min_counter == 2
    with pytest.raises(Conflict):
        set_min_counter(world.files, "vision", 1, world.keys, world.clock)
    with pytest.raises(NotFound):
        set_min_counter(world.files, "words", 1, world.keys, world.clock)
    with pytest.raises(NotFound):
        set_min_counter(world.files, "vision", 3, world.keys, world.clock, profile="jetson-nano")


def test_revocation_stays(world):
    image = world.release()
    world.take(revoke(world.files, image.digest, world.keys, world.clock))
    world.release()
    assert [found.image.revoked for found in released(world.files)] == [[image.digest], []]
    with pytest.raises(NotFound):
        revoke(world.files, "sha256:" + "0" * 64, world.keys, world.clock)


def test_what_cannot_be_signed(world, make_owner):
    image = world.release().image
    with pytest.raises(InputError):
        init_repository(make_owner(1), world.online.online_keys(), world.clock, threshold=2)
    with pytest.raises(Unsigned):
        publish(world.files, [], make_owner(), world.clock)
    with pytest.raises(TrustError):
        publish({**world.files, "2.targets.json": b"{}"}, [], world.keys, world.clock)
    with pytest.raises(MalformedMessage):
        init_repository(make_owner(), world.online.online_keys().model_copy(update={"director": {}}), world.clock)
    huge = image.model_copy(update={"counter": 5, "run": image.run.model_copy(update={"env": {"X": "y" * 5_000_000}})})
    with pytest.raises(InputError, match="bytes"):
        publish(world.files, [ImageToSign(huge, "sha256:" + "1" * 64, 1)], world.keys, world.clock)


def test_publishing_needs_no_root_key(world):
    keys = OwnerKeys(world.keys.targets, world.keys.snapshot)
    files = publish(world.files, [], keys, world.clock)
    assert sorted(files) == ["2.snapshot.json", "2.targets.json"]


def test_fresh_machine_and_fresh_server(world):
    assert compare({}, {}).files == {}
    assert compare({}, world.files).files == world.files
    lost = compare(world.files, {})
    assert lost.missing == world.files
    assert lost.warning is not None


def test_server_behind_the_owner(world):
    before = dict(world.files)
    world.release()
    standing = compare(world.files, before)
    assert sorted(standing.missing) == ["2.snapshot.json", "2.targets.json"]
    assert "older metadata" in (standing.warning or "")
    assert newest(standing.files, "targets") == 2


def test_owner_behind_the_server(world):
    """Another of the owner's machines published."""
    before = dict(world.files)
    world.release()
    standing = compare(before, world.files)
    assert (standing.missing, standing.warning) == ({}, None)
    assert newest(standing.files, "targets") == 2


def test_server_that_changed_something(world, make_owner):
    mine = dict(world.files)
    foreign = init_repository(make_owner(), world.online.online_keys(), world.clock)
    with pytest.raises(Tampered):
        compare(mine, foreign)
    with pytest.raises(TrustError):
        compare({"1.root.json": mine["1.root.json"]}, {**foreign, "1.root.json": mine["1.root.json"]})
    with pytest.raises(TrustError):
        compare(
            mine, {**mine, "2.targets.json": foreign["1.targets.json"], "2.snapshot.json": foreign["1.snapshot.json"]}
        )


def test_server_that_is_behind_with_something_forged(world, make_owner):
    """The owner's copy keeps few old files, so that these must be verified, not compared."""
    old = dict(world.files)
    world.release()
    mine = {
        name: data for name, data in world.files.items() if not name.startswith("1.t") and name != "1.snapshot.json"
    }
    forged = init_repository(make_owner(), world.online.online_keys(), world.clock)
    with pytest.raises(TrustError):
        compare(mine, {**forged, "1.root.json": old["1.root.json"]})


def test_local_copy(tmp_path, world):
    local = LocalRepository(tmp_path / "repository")
    assert local.load() == {}
    for _ in range(8):
        local.save(world.files)
        world.take(publish(world.files, [], world.keys, world.clock))
    kept = local.load()
    assert sorted(name for name in kept if "targets" in name) == [f"{n}.targets.json" for n in range(4, 9)]
    assert "1.root.json" in kept
    assert newest(compare(kept, world.files).files, "targets") == 9


def test_names_to_fetch(world):
    world.take(rotate_root(world.files, world.keys, world.keys, world.clock))
    info = world.online.check_upload({}, world.files)
    assert names_of(info) == ["1.root.json", "2.root.json", "2.targets.json", "2.snapshot.json"]
