"""Images saved with --no-push, carried to a site of their own: pushed and published there, checked on arrival."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny_model import write_tiny

from wherry.errors import InputError, RegistryError, StoreError
from wherry_cli.packaging.carried import is_carried, push_carried
from wherry_cli.packaging.command import PackageOrder, package
from wherry_cli.packaging.credentials import Credentials
from wherry_cli.packaging.package_file import read_package_file
from wherry_cli.packaging.registry import RegistryClient
from wherry_cli.packaging.store import Store

PROFILE = "generic-amd64"


@pytest.fixture(scope="module")
def saved(tmp_path_factory, package_cache):
    """A folder as `wherry package --no-push` leaves it."""
    folder = tmp_path_factory.mktemp("saved")
    order = PackageOrder(
        "tiny", "3", (PROFILE,), model=write_tiny(folder / "tiny.onnx"), output=folder / "out", cache=package_cache
    )
    package(order)
    return folder / "out"


@pytest.fixture
def carried(saved, tmp_path):
    """The folder on another machine, whose cache is empty."""
    return shutil.copytree(saved, tmp_path / "stick")


def blob(carried, digest):
    return carried / PROFILE / "blobs/sha256" / digest.removeprefix("sha256:")


@pytest.mark.registry
def test_what_is_carried_arrives_as_it_was_made(carried, registry, tmp_path):
    made = read_package_file(carried)
    assert is_carried(made)
    pushed = push_carried(made, carried, lambda: RegistryClient(registry))
    assert not is_carried(pushed)
    (image,), (before,) = pushed.images, made.images
    assert image.repository == f"{registry}/wherry/tiny"
    assert image.model_copy(update={"repository": ""}) == before
    with RegistryClient(registry) as client:
        manifest = client.manifest("wherry/tiny", image.digest)
        tagged = client.manifest("wherry/tiny", f"3-{PROFILE}")
        assert manifest is not None
        assert tagged is not None
        assert manifest.data == tagged.data == blob(carried, image.digest).read_bytes()
        for layer in manifest.json()["layers"]:
            client.pull_blob("wherry/tiny", layer["digest"], Store(tmp_path / "cache"))
    assert push_carried(made, carried, lambda: RegistryClient(registry)) == pushed, "again is harmless"


@pytest.mark.registry
def test_a_registry_that_asks_who_it_is_is_told(carried, locked_registry):
    made = read_package_file(carried)
    with pytest.raises(RegistryError):
        push_carried(made, carried, lambda: RegistryClient(locked_registry))
    login = Credentials("operator", "secret")
    assert not is_carried(push_carried(made, carried, lambda: RegistryClient(locked_registry, login)))


def never():
    raise AssertionError("the registry was asked")


def test_what_is_not_there_is_said_before_the_registry_is_asked(carried):
    shutil.rmtree(carried / PROFILE)
    with pytest.raises(InputError, match=f"was not pushed to a registry, and is not in .*{PROFILE}"):
        push_carried(read_package_file(carried), carried, never)


@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_medium_that_lost_something_is_named_before_the_registry_is_asked(carried, which, damage):
    (image,) = read_package_file(carried).images
    digests = {"manifest": image.digest, "config": image.config_digest, "layer": image.layers[-1].digest}
    path = blob(carried, digests[which])
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-1] + (b"" if damage == "cut" else bytes([data[-1] ^ 1])))
    with pytest.raises(StoreError, match="lacks" if damage == "gone" else "is damaged") as caught:
        push_carried(read_package_file(carried), carried, never)
    assert caught.value.fix.startswith("Carry the folder here once more")


def test_another_image_than_the_package_names_is_refused(carried):
    path = carried / "package.json"
    document = json.loads(path.read_text())
    document["images"][0]["layers"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="does not hold the image that package"):
        push_carried(read_package_file(carried), carried, never)
