"""Keys, publishing, withdrawing: what the owner signs reaches the server, or nothing changes."""

from __future__ import annotations

import json
import stat

import pytest

from wherry.identity import sha256_digest
from wherry.metadata import signed_images, verify_owner_set


def package_text(version="1", digest=None, profile="generic-amd64", repository="127.0.0.1:5470/wherry/vision"):
    image = {
        "model": "vision", "version": version, "profile": profile, "platform": "linux/amd64", "repository": repository,
        "digest": digest or sha256_digest(version.encode()), "manifest_bytes": 1234,
        "config_digest": sha256_digest(b"config"), "unpacked_bytes": 9_000_000, "download_bytes": 3_400_000,
        "runtime": "onnx", "provider": "CPUExecutionProvider", "precision": "fp32",
    }  # fmt: skip
    return json.dumps({"schema": 1, "model": "vision", "version": version, "images": [image]})


@pytest.fixture
def package(tmp_path):
    def write(**more):
        path = tmp_path / "package.json"
        path.write_text(package_text(**more))
        return path

    return write


@pytest.fixture
def owner(operator):
    assert operator("keys", "init").code == 0
    return operator


def signed(server):
    files = {name: text.encode() for name, text in server.files.items()}
    return signed_images(verify_owner_set(files).targets)


def test_keys_init_makes_keys_and_gives_signed_metadata_to_the_server(operator, server, home):
    answer = operator("keys", "init")
    assert answer.code == 0, answer.err
    assert "Back up the keys" in answer.out
    assert sorted(server.files) == ["1.root.json", "1.snapshot.json", "1.targets.json"]
    assert stat.S_IMODE((home / "keys" / "root-1.pem").stat().st_mode) == 0o600
    assert (home / "repository" / "1.root.json").read_text() == server.files["1.root.json"]


def test_keys_init_again_changes_nothing(owner, server):
    before = dict(server.files)
    answer = owner("keys", "init", "--json")
    assert answer.json["names"] == ["root-1", "snapshot", "targets"]
    assert server.files == before


def test_keys_init_goes_on_after_the_server_was_away(operator, server, monkeypatch):
    monkeypatch.setattr("wherry_cli.client.RETRY_WAITS", ())
    server.failing = [0, 0, 503]  # the keys are made, the upload fails
    assert operator("keys", "init").code == 1
    assert operator("keys", "init").code == 0
    assert "1.root.json" in server.files


def test_keys_init_goes_on_after_the_reply_was_lost(owner, server, home):
    for path in home.joinpath("repository").iterdir():
        path.unlink()
    assert owner("keys", "init").code == 0
    assert home.joinpath("repository/1.root.json").read_text() == server.files["1.root.json"]


def test_keys_init_does_not_take_over_anothers_server(owner, server, home):
    for path in [*home.joinpath("repository").iterdir(), *home.joinpath("keys").iterdir()]:
        path.unlink()
    error = owner("keys", "init", "--json").json["error"]
    assert error["code"] == "conflict"
    assert "other keys" in error["reason"]
    assert not list(home.joinpath("keys").iterdir())


def test_more_signatures_than_keys_are_refused_before_any_key_is_made(operator, home):
    answer = operator("keys", "init", "--roots", "2", "--threshold", "3")
    assert answer.code == 1
    assert not home.joinpath("keys").exists()


def test_keys_show(owner):
    shown = owner("keys", "show").out
    assert "root-1" in shown
    assert "here" in shown
    assert "expires in 179 d" in shown
    assert len(owner("keys", "show", "--json").json["keys"]) == 3


def test_publish_signs_the_image(owner, server, package):
    answer = owner("release", "publish", package())
    assert answer.code == 0, answer.err
    assert "Published vision 1" in answer.out
    [image] = signed(server)
    assert (image.image.version, image.image.counter, image.digest) == ("1", 1, sha256_digest(b"1"))
    answer = owner("release", "publish", package(version="2"), "--json")
    assert answer.json["images"][0]["counter"] == 2
    assert [image.image.version for image in signed(server)] == ["1", "2"]
    assert [item["version"] for item in owner("release", "list", "--json").json["items"]] == ["1", "2"]


def test_publishing_the_same_again_is_harmless(owner, server, package):
    owner("release", "publish", package())
    before = dict(server.files)
    answer = owner("release", "publish", package())
    assert "published before" in answer.out
    assert server.files == before


def test_a_published_version_never_changes(owner, server, package):
    owner("release", "publish", package())
    before = dict(server.files)
    answer = owner("release", "publish", package(digest=sha256_digest(b"other")), "--json")
    assert answer.json["error"]["code"] == "conflict"
    assert server.files == before


def test_another_profile_joins_a_published_version(owner, server, package):
    owner("release", "publish", package())
    assert owner("release", "publish", package(profile="generic-arm64", digest=sha256_digest(b"arm"))).code == 0
    assert sorted(image.image.profile for image in signed(server)) == ["generic-amd64", "generic-arm64"]


def test_again_goes_back_to_an_older_version_under_a_higher_counter(owner, server, package):
    owner("release", "publish", package())
    owner("release", "publish", package(version="2"))
    assert "go back to it, publish it with --again" in owner("release", "publish", package()).err
    assert "--again" not in owner("release", "publish", package(version="2")).err
    answer = owner("release", "publish", package(), "--again", "--json")
    assert answer.json["images"][0]["counter"] == 3
    assert "--again" not in owner("release", "publish", package()).err
    assert signed(server)[-1].digest == sha256_digest(b"1")


def test_publish_needs_keys_a_package_and_a_registry(operator, package, tmp_path):
    assert "wherry keys init" in operator("release", "publish", package()).err
    operator("keys", "init")
    assert "cannot be read" in operator("release", "publish", tmp_path / "none.json").err
    assert "was not pushed to a registry" in operator("release", "publish", package(repository="")).err


def test_the_upload_fails_and_the_next_one_makes_up_for_it(owner, server, package, home):
    before = sorted(path.name for path in home.joinpath("repository").iterdir())
    server.failing = [0, 0, 0, 0, 500]
    assert owner("release", "publish", package()).code == 1
    assert sorted(path.name for path in home.joinpath("repository").iterdir()) == before
    assert owner("release", "publish", package()).code == 0


def test_a_server_that_lost_metadata_gets_it_again_with_a_warning(owner, server, package):
    owner("release", "publish", package())
    for name in ("2.targets.json", "2.snapshot.json"):
        del server.files[name]
    answer = owner("release", "publish", package(version="2"))
    assert answer.code == 0, answer.err
    assert "Warning: The server holds older metadata" in answer.err
    assert [image.image.version for image in signed(server)] == ["1", "2"]


def test_a_server_that_changed_metadata_is_named(owner, server, package):
    server.files["1.targets.json"] = server.files["1.targets.json"].replace("targets", "targetz", 1)
    answer = owner("release", "publish", package(), "--json")
    assert answer.json["error"]["code"] == "trust.tampered"


def test_revoke_withdraws_an_image_for_good(owner, server, package):
    owner("release", "publish", package())
    assert owner("release", "revoke", "vision", "1").code == 1
    answer = owner("release", "revoke", "vision", "1", "--yes", "--json")
    assert answer.json["revoked"] == [{"profile": "generic-amd64", "digest": sha256_digest(b"1")}]
    assert signed(server)[0].image.revoked == [sha256_digest(b"1")]
    assert "was never published" in owner("release", "revoke", "vision", "9", "--yes").err


def test_the_root_is_renewed_with_the_same_keys(owner, server):
    assert "Signed root 2" in owner("keys", "renew").out
    assert {"2.root.json", "2.targets.json", "2.snapshot.json"} <= server.files.keys()


def test_keys_init_again_with_other_numbers_is_refused(owner):
    assert owner("keys", "init").code == 0
    assert "exists already with 1 of 1 root keys" in owner("keys", "init", "--roots", "3", "--threshold", "2").err


def test_renew_signs_again(owner, server):
    assert "Signed again" in owner("release", "renew").out
    assert "2.snapshot.json" in server.files
    assert owner("release", "renew", "--json").json["targets"] == 3
