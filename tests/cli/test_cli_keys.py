"""`wherry keys replace`: stolen keys are worth nothing, nothing is half done, and devices follow."""

from __future__ import annotations

import json
import shutil

import pytest
from tuf.api.metadata import Metadata, Root, Targets

from wherry.metadata import verify_owner_set
from wherry_cli.keystore import KeyStore


@pytest.fixture
def owner(operator):
    def run(*args):
        return operator(*args, "--json") if "--json" not in args else operator(*args)

    assert run("keys", "init", "--roots", "3", "--threshold", "2").code == 0
    return run


def files(server):
    return {name: text.encode() for name, text in server.files.items()}


def holders(server):
    """Key ids by role, of the newest root."""
    root = verify_owner_set(files(server)).root
    return {role: set(found.keyids) for role, found in root.roles.items()}


def keyids(home, folder="keys"):
    return {path.stem: json.loads(path.read_text())["keyid"] for path in (home / folder).glob("*.pub")}


def signed_by(server, name, kind):
    return set(Metadata[kind].from_bytes(files(server)[name]).signatures)


def test_a_stolen_targets_key_signs_nothing_any_more(owner, server, home):
    before, roots = keyids(home), holders(server)["root"]
    answer = owner("keys", "replace", "targets", "--yes")
    assert (answer.code, answer.json["repository"]["root"]) == (0, 2), answer.err
    after = holders(server)
    assert after["root"] == roots
    assert after["targets"] == {keyids(home)["targets"]}
    assert after["targets"] != {before["targets"]}
    assert signed_by(server, "2.targets.json", Targets) == after["targets"]
    retired = sorted(path.name for path in (home / "keys/retired").iterdir())
    assert retired == [f"targets-{before['targets'][:8]}.pem", f"targets-{before['targets'][:8]}.pub"]
    assert owner("release", "renew").code == 0
    assert owner("keys", "renew").json["root"] == 3


def test_new_root_keys_are_introduced_by_the_old_ones(owner, server, home):
    old = {keyid for name, keyid in keyids(home).items() if name.startswith("root-")}
    assert owner("keys", "replace", "root", "--roots", "2", "--threshold", "1", "--yes").code == 0
    new = {keyid for name, keyid in keyids(home).items() if name.startswith("root-")}
    assert sorted(keyids(home)) == ["root-1", "root-2", "snapshot", "targets"]
    assert (len(new), new & old, holders(server)["root"]) == (2, set(), new)
    assert signed_by(server, "2.root.json", Root) == old | new
    assert owner("keys", "renew").json["root"] == 3


def test_all_keys_again_and_again(owner, server):
    for number in (2, 3, 4):
        assert owner("keys", "replace", "all", "--yes").json["repository"]["root"] == number
    found = verify_owner_set(files(server)).root
    assert (len(found.roles["root"].keyids), found.roles["root"].threshold) == (3, 2)


def test_root_keys_that_are_elsewhere_stay_root_keys(owner, server, home):
    """Two of three are enough, whatever is signed; the third is not forgotten for lying in its safe."""
    roots = holders(server)["root"]
    for suffix in ("pem", "pub"):
        (home / f"keys/root-3.{suffix}").rename(home / f"root-3.{suffix}")
    assert owner("keys", "renew").code == 0
    assert owner("keys", "replace", "snapshot", "--yes").code == 0
    assert holders(server)["root"] == roots


def test_too_few_root_keys_are_said_before_a_key_is_made(owner, server, home):
    for name in ("root-2.pem", "root-3.pem"):
        (home / "keys" / name).unlink()
    before = dict(server.files)
    for command in (["replace", "targets", "--yes"], ["renew"]):
        error = owner("keys", *command).json["error"]
        assert error["reason"].endswith("2 of 3 must sign")
    assert server.files == before
    assert not list(home.glob("keys/next-*"))


def test_a_lost_targets_key_is_no_hindrance(owner, server, home):
    (home / "keys/targets.pem").unlink()
    assert owner("keys", "replace", "targets", "--yes").code == 0
    assert holders(server)["targets"] == {keyids(home)["targets"]}


def test_the_server_s_new_keys_are_named(owner, server):
    timestamp = dict(server.keys["timestamp"])
    server.keys["timestamp"] = {**server.keys["director"]}
    assert owner("keys", "replace", "server", "--yes").code == 0
    assert holders(server)["timestamp"] == {server.keys["director"]["keyid"]} != {timestamp["keyid"]}


def test_it_goes_on_with_the_same_keys_after_the_server_was_away(owner, server, home, monkeypatch):
    monkeypatch.setattr("wherry_cli.client.RETRY_WAITS", ())
    server.failing = [0, 0, 0, 0, 503]
    assert owner("keys", "replace", "targets", "--yes").code == 1
    made = keyids(home)["next-targets"]
    assert holders(server)["targets"] == {keyids(home)["targets"]}
    assert owner("keys", "replace", "targets", "--yes").code == 0
    assert holders(server)["targets"] == {keyids(home)["targets"]} == {made}


@pytest.mark.parametrize("command", [["release", "renew"], ["keys", "replace", "snapshot", "--yes"]])
def test_an_answer_that_was_lost_is_made_up_for_by_the_next_command(owner, server, home, monkeypatch, command):
    with monkeypatch.context() as patch:
        patch.setattr(KeyStore, "take_over", lambda *_: [])  # killed before its keys were put in use
        owner("keys", "replace", "targets", "--yes")
    shutil.rmtree(home / "repository")
    assert "next-targets" in keyids(home)
    assert owner(*command).code == 0
    assert "next-targets" not in keyids(home)
    assert holders(server)["targets"] == {keyids(home)["targets"]}


def test_keys_are_put_in_use_wherever_that_was_interrupted(tmp_path, monkeypatch):
    def begin(folder):
        store = KeyStore(folder)
        store.create_owner_keys(2)
        new = store.next_keys(["root-1", "targets"])
        kept = {store.load("snapshot").public_key.keyid}
        return store, kept | {signer.public_key.keyid for signer in new.values()}, new

    real, moves = type(tmp_path).rename, []
    monkeypatch.setattr(type(tmp_path), "rename", lambda path, to: (moves.append(path), real(path, to))[1])
    begin(tmp_path / "whole")[0].take_over(begin(tmp_path / "count")[1])
    store, keys, _ = begin(tmp_path / "all")
    moves.clear()
    store.take_over(keys)
    total = len(moves)
    assert total == 10, "six files retired, four put in use"
    for fail_at in range(total):
        store, keys, new = begin(tmp_path / f"at-{fail_at}")
        left = iter(range(fail_at))

        def rename(path, to, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(path, to)

        monkeypatch.setattr(type(tmp_path), "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            store.take_over(keys)
        monkeypatch.setattr(type(tmp_path), "rename", real)
        store.take_over(keys)
        assert store.names() == ["root-1", "snapshot", "targets"]
        for name, signer in new.items():
            assert store.load(name).public_key.keyid == signer.public_key.keyid
        assert len(list((tmp_path / f"at-{fail_at}/retired").iterdir())) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pope"], "role pope"),
        (["targets", "--roots", "2"], "are about the root keys"),
        (["root", "--roots", "1"], "asks for 2 signatures of 1 root keys"),
    ],
)
def test_what_makes_no_sense_is_refused(owner, home, arguments, words):
    answer = owner("keys", "replace", *arguments, "--yes")
    assert answer.code == 1
    assert words in str(answer.json["error"])
    assert not list(home.glob("keys/next-*"))


def test_another_number_of_root_keys_than_was_begun_with_is_refused(owner, server, monkeypatch):
    monkeypatch.setattr("wherry_cli.client.RETRY_WAITS", ())
    server.failing = [0, 0, 0, 0, 503]
    assert owner("keys", "replace", "root", "--yes").code == 1
    answer = owner("keys", "replace", "root", "--roots", "2", "--yes")
    assert "Say --roots 3" in answer.json["error"]["fix"]


def test_it_asks_first(operator, owner):
    assert operator("keys", "replace", "targets").code == 1
