"""The entry point for the TUF conformance suite, driven as that suite drives it."""

from hashlib import sha256

import pytest
from tuf.api.metadata import TargetFile

from wherry_agent.tuf_client import main
from wherry_cli import repository


@pytest.fixture
def client(world, tmp_path, monkeypatch):
    """Runs commands; the folder holds metadata as the suite expects it."""
    monkeypatch.setattr("wherry_agent.tuf_client._now", lambda: world.clock)
    folder = tmp_path / "metadata"
    (tmp_path / "initial.json").write_bytes(world.files["1.root.json"])
    (tmp_path / "targets").mkdir()

    def run(command, *extra):
        common = ["--metadata-dir", str(folder), "--metadata-url", world.url.rstrip("/")]
        more = ["--target-dir", str(tmp_path / "targets"), "--target-base-url", world.url.rstrip("/")]
        return main([*common, *more, *extra, command, *([str(tmp_path / "initial.json")] if command == "init" else [])])

    return run


def test_init_refresh_and_failure_in_between(world, client, tmp_path):
    folder = tmp_path / "metadata"
    assert client("init") == 0
    assert world.asked == []
    assert client("refresh") == 0
    assert world.asked == ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert sorted(path.name for path in folder.glob("*.json")) == [
        "root.json",
        "snapshot.json",
        "targets.json",
        "timestamp.json",
    ]
    world.release()
    del world.served["2.snapshot.json"]
    assert client("refresh") == 1
    assert (folder / "timestamp.json").read_bytes() == world.served["timestamp.json"]
    assert (folder / "snapshot.json").read_bytes() == world.files["1.snapshot.json"]


def test_download_once(world, client, tmp_path):
    body = b"artifact"
    targets = repository.read_targets(world.files)
    digest = sha256(body).hexdigest()
    targets.targets["a/b.txt"] = TargetFile(len(body), {"sha256": digest}, "a/b.txt")
    targets.version = 2
    world.take(repository._sign_targets(targets, 2, world.keys, world.clock))
    world.served[f"{digest}.b.txt"] = body
    assert client("init") == 0
    assert client("download", "--target-name", "a/none.txt") == 1
    assert client("download", "--target-name", "a/b.txt") == 0
    assert [path.read_bytes() for path in (tmp_path / "targets").iterdir()] == [body]
    world.asked.clear()
    assert client("download", "--target-name", "a/b.txt") == 0
    assert world.asked == ["2.root.json", "timestamp.json"]


def test_bad_roots(world, client, tmp_path):
    (tmp_path / "initial.json").write_bytes(b"{}")
    assert client("init") == 0
    assert client("refresh") == 1
    assert world.asked == []
