"""The server's side: its keys, and which uploads it takes."""

import stat
from dataclasses import replace

import pytest
from tuf.api.metadata import Metadata, Root, Targets

from wherry.errors import RolledBack, StoreError, Tampered, TrustError, Unsigned
from wherry.metadata import newest
from wherry_cli.repository import init_repository, publish, read_targets, rotate_root
from wherry_server.signing import OnlineSigner, release_images


def test_keys_are_made_once_and_private(tmp_path):
    first = OnlineSigner.open(tmp_path / "keys")
    assert OnlineSigner.open(tmp_path / "keys").online_keys() == first.online_keys()
    assert first.online_keys().timestamp["keyid"] != first.online_keys().director["keyid"]
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "keys" / "director.pem").write_bytes(b"")
    with pytest.raises(StoreError):
        OnlineSigner.open(tmp_path / "keys")


def test_first_upload_and_growth(world):
    first = dict(world.files)
    info = world.online.check_upload({}, first)
    assert (info.root, info.targets, info.snapshot) == (1, 1, 1)
    assert sorted(info.expires) == ["root", "snapshot", "targets"]
    world.release()
    second = {name: data for name, data in world.files.items() if name not in first}
    assert world.online.check_upload(first, second).targets == 2
    assert world.online.check_upload(world.files, world.files).targets == 2, "the same upload again does no harm"
    world.release()
    both = {name: data for name, data in world.files.items() if name not in first}
    assert world.online.check_upload(first, both).targets == 3, "an upload that was lost comes with the next"


def test_uploads_that_are_refused(world, make_owner, make_signer):
    first = dict(world.files)
    world.release()
    second = {name: data for name, data in world.files.items() if name not in first}
    check = world.online.check_upload
    with pytest.raises(Unsigned):
        check({}, {})
    with pytest.raises(Unsigned):
        check({}, {name: data for name, data in first.items() if "root" not in name})
    for missing in second:
        with pytest.raises(TrustError):
            check(first, {name: data for name, data in second.items() if name != missing})
    with pytest.raises(Tampered):
        check(first, {**second, "2.targets.json": second["2.targets.json"].replace(b"vision", b"hacked")})
    foreign = init_repository(make_owner(), world.online.online_keys(), world.clock)
    with pytest.raises(Tampered):
        check(first, foreign)
    with pytest.raises(Unsigned):
        check({}, init_repository(make_owner(), make_signer().online_keys(), world.clock))
    for name in ("timestamp.json", "../1.root.json", "01.root.json", "0.root.json", "1.director.json", "x"):
        with pytest.raises(Tampered):
            check(first, {**second, name: b"{}"})
    current = {**first, **second}
    del current["1.targets.json"]
    with pytest.raises(RolledBack):
        check(current, {"1.targets.json": first["1.targets.json"]})


def test_director_must_be_ours_and_no_more(world, make_signer):
    mine = world.online.online_keys()
    other = mine.model_copy(update={"director": make_signer().online_keys().director})
    with pytest.raises(Unsigned):
        world.online.check_upload({}, init_repository(world.keys, other, world.clock))
    disguised = {**make_signer().online_keys().director, "keyid": mine.director["keyid"]}
    other = mine.model_copy(update={"director": disguised})
    with pytest.raises(Unsigned):
        world.online.check_upload({}, init_repository(world.keys, other, world.clock))


def test_a_published_path_names_one_image_for_ever(world):
    world.release()
    before = dict(world.files)
    targets = read_targets(before)
    target = next(iter(targets.targets.values()))
    target.hashes = {"sha256": "f" * 64}
    files = _signed_again(world, targets)
    with pytest.raises(Tampered, match="another image"):
        world.online.check_upload(before, files)
    target.unrecognized_fields["custom"]["model"] = "words"
    with pytest.raises(Tampered):
        world.online.check_upload({}, {**before, **_signed_again(world, targets)})


def _signed_again(world, targets):
    from wherry_cli import repository

    targets.version = newest(world.files, "targets") + 1
    return repository._sign_targets(targets, targets.version, world.keys, world.clock)


def test_rotation_is_accepted_and_a_strange_root_is_not(world, make_owner):
    before = dict(world.files)
    fresh = make_owner()
    assert world.online.check_upload(before, rotate_root(before, world.keys, fresh, world.clock)).root == 2
    usurper = replace(fresh, root=make_owner().root)
    with pytest.raises(Unsigned):
        rotate_root(before, usurper, fresh, world.clock)


def test_new_root_that_its_own_keys_did_not_sign(world, make_owner):
    fresh = replace(world.keys, root=make_owner().root)
    found = Metadata[Root].from_bytes(rotate_root(world.files, world.keys, fresh, world.clock)["2.root.json"])
    found.sign(world.keys.root[0])
    with pytest.raises(Unsigned):
        world.online.check_upload(world.files, {"2.root.json": found.to_bytes()})


def test_targets_that_the_snapshot_does_not_know(world):
    """Same version, signed by the targets key, but not the bytes that the snapshot names."""
    targets = read_targets(world.files)
    targets.unrecognized_fields["note"] = "other"
    found = Metadata(targets)
    found.sign(world.keys.targets)
    with pytest.raises(Tampered, match="another length or hash"):
        world.online.check_upload({}, {**world.files, "1.targets.json": found.to_bytes()})


def test_release_images(world):
    world.release()
    world.release("words", profile="jetson-nano")
    found = release_images(world.files["3.targets.json"])
    assert [image.path for image in found] == [
        "models/vision/generic-amd64/1.manifest.json",
        "models/words/jetson-nano/1.manifest.json",
    ]
    assert found[0].image.label() == "vision 1"
    assert publish(world.files, [], world.keys, world.clock)


def test_an_assignment_is_small(world):
    payload = world.assign(1, {"main": world.release()})
    assert len(payload) < 700
    assert Metadata[Targets].from_bytes(payload).signed.version == 1
