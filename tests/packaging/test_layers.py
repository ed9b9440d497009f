"""Layers: the same files give the same bytes wherever and whenever, and the cache gives back what was put in."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from wherry.errors import StoreError
from wherry_cli.packaging.layers import EPOCH, Entry, folder_entries, make_layer
from wherry_cli.packaging.store import GZIP_LAYER, PLAIN_LAYER, Store

ENTRIES = [
    Entry("opt/wherry/b.txt", data=b"second"),
    Entry("opt/wherry/a.txt", data=b"first"),
    Entry("opt/wherry/run", data=b"#!", mode=0o755),
    Entry("opt/wherry/link", link="a.txt"),
]


def members(layer, compressed):
    data = Path(layer.path).read_bytes()
    return tarfile.open(fileobj=io.BytesIO(gzip.decompress(data) if compressed else data)).getmembers()


@pytest.mark.parametrize("compress", [True, False])
def test_order_and_place_do_not_change_the_digest(tmp_path, compress):
    first = make_layer("model", ENTRIES, Store(tmp_path / "one"), compress=compress)
    second = make_layer("model", ENTRIES[::-1], Store(tmp_path / "two"), compress=compress)
    assert (first.digest, first.diff_id, first.size) == (second.digest, second.diff_id, second.size)
    assert Path(first.path).read_bytes() == Path(second.path).read_bytes()


def test_digests_are_those_of_the_bytes(store):
    packed = make_layer("model", ENTRIES, store)
    data = Path(packed.path).read_bytes()
    assert packed.media_type == GZIP_LAYER
    assert packed.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert packed.diff_id == "sha256:" + hashlib.sha256(gzip.decompress(data)).hexdigest()
    assert (packed.size, packed.unpacked) == (len(data), len(gzip.decompress(data)))
    plain = make_layer("model", ENTRIES, store, compress=False)
    assert plain.media_type == PLAIN_LAYER
    assert plain.digest == plain.diff_id == packed.diff_id


def test_a_layer_tells_nothing_of_the_machine_that_made_it(tmp_path, store):
    source = tmp_path / "files" / "sub"
    source.mkdir(parents=True)
    (source / "x").write_text("x")
    (source / "x").chmod(0o600)
    (tmp_path / "files" / "link").symlink_to("sub/x")
    layer = make_layer("runtime", folder_entries(tmp_path / "files", "/opt/w"), store)
    found = members(layer, compressed=True)
    assert [item.name for item in found] == ["opt", "opt/w", "opt/w/link", "opt/w/sub", "opt/w/sub/x"]
    assert {(item.uid, item.gid, item.uname, item.gname, item.mtime) for item in found} == {(0, 0, "", "", EPOCH)}
    assert [item.mode for item in found if item.isreg()] == [0o644]
    assert [item.linkname for item in found if item.issym()] == ["sub/x"]


def test_the_cache_recalls_a_layer_only_while_its_file_is_whole(store):
    layer = make_layer("runtime", ENTRIES, store)
    store.remember("runtime", "lock", layer)
    assert store.recall("runtime", "lock") == layer
    assert store.recall("runtime", "another lock") is None
    Path(layer.path).write_bytes(b"torn")
    assert store.recall("runtime", "lock") is None


def test_a_blob_with_other_bytes_is_not_kept(store):
    digest = "sha256:" + hashlib.sha256(b"right").hexdigest()
    assert store.add_blob(iter([b"wro", b"ng"]), digest) is None
    assert not store.has(digest)
    assert store.add_blob(iter([b"rig", b"ht"]), digest) == store.path(digest)
    assert list((store.folder / "scratch").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="WHERRY_CACHE"):
        make_layer("model", ENTRIES, Store(tmp_path / "file"))


def test_unpacked_size_refuses_a_blob_of_another_archive(store):
    layer = make_layer("base", ENTRIES, store)
    assert store.unpacked_size(layer.digest, layer.diff_id, compressed=True) == layer.unpacked
    with pytest.raises(StoreError, match="does not hold the archive"):
        store.unpacked_size(layer.digest, "sha256:" + "0" * 64, compressed=True)
    Path(layer.path).write_bytes(Path(layer.path).read_bytes()[:50])
    with pytest.raises(StoreError, match="does not unpack"):
        store.unpacked_size(layer.digest, layer.diff_id, compressed=True)
