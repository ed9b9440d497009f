"""The agent as an image: the same bytes for the same input, and clear words for what is no agent."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from wherry.agent_release import AGENT_FOLDER, AGENT_MODEL
from wherry.errors import InputError
from wherry.profile import load_profiles, misfits
from wherry_cli.options import read_request
from wherry_cli.packaging import agent
from wherry_cli.packaging.agent import AgentOrder, package_agent
from wherry_cli.packaging.layers import Entry, make_layer


@pytest.fixture(autouse=True)
def no_wheels(monkeypatch):
    """Instead of packages from an index: a file that says for which Python they would be."""

    def packages(lock, profile, python, store, report):
        entry = Entry(f"{AGENT_FOLDER[1:]}/python{python}/{profile.platform.replace('/', '-')}", data=lock.encode())
        return make_layer("packages", [entry], store)

    monkeypatch.setattr(agent, "_packages_layer", packages)


def wheel(path: Path, version: str = "1.2.3", code: bytes = b"", **left_out: bool) -> Path:
    files = {
        "wherry/__init__.py": f'"""The contract."""\n\n__version__ = "{version}"\n'.encode(),
        "wherry/device_profiles/generic-amd64.toml": b"",
        "wherry_agent/__main__.py": code,
        "wherry_server/app.py": b"not for devices",
        "wherry_cli/requirements/agent.txt": b"six==1.0 --hash=sha256:00\n",
    }
    with zipfile.ZipFile(path, "w") as made:
        for name, body in files.items():
            if not left_out.get(name.partition("/")[0]):
                made.writestr(name, body)
    return path


def order(tmp_path: Path, *profiles: str, **changes) -> AgentOrder:
    values = {"output": tmp_path / "out", "cache": tmp_path / "cache"} | changes
    return AgentOrder(profiles or ("generic-amd64",), **values)


def names(tmp_path: Path, profile: str) -> set[str]:
    blobs = tmp_path / "out" / profile / "blobs/sha256"
    index = json.loads((tmp_path / "out" / profile / "index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    found: set[str] = set()
    for layer in manifest["layers"]:
        data = gzip.decompress((blobs / layer["digest"][7:]).read_bytes())
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            found |= {"/" + member.name for member in archive if member.isfile()}
    return found


def test_an_image_holds_the_agent_and_what_it_needs_for_each_python(tmp_path):
    made = package_agent(
        order(tmp_path, "generic-amd64", "raspberry-pi-5", wheel=wheel(tmp_path / "w.whl"), pythons=("3.11", "3.13"))
    )
    assert (made.model, made.version) == (AGENT_MODEL, "1.2.3")
    assert [image.profile for image in made.images] == ["generic-amd64", "raspberry-pi-5"]
    assert names(tmp_path, "raspberry-pi-5") == {
        f"{AGENT_FOLDER}/app/wherry/__init__.py", f"{AGENT_FOLDER}/app/wherry/device_profiles/generic-amd64.toml",
        f"{AGENT_FOLDER}/app/wherry_agent/__main__.py", f"{AGENT_FOLDER}/python3.11/linux-arm64",
        f"{AGENT_FOLDER}/python3.13/linux-arm64",
    }  # fmt: skip
    image = made.images[0]
    assert (image.runtime, image.needs.python, image.run.start_seconds) == ("agent", ["3.11", "3.13"], 120)
    assert [layer.kind for layer in image.layers] == ["packages", "packages", "agent"]


def test_the_same_input_gives_the_same_digest_and_new_code_moves_one_layer(tmp_path):
    first = package_agent(order(tmp_path, wheel=wheel(tmp_path / "w.whl")))
    again = package_agent(order(tmp_path, wheel=wheel(tmp_path / "other.whl"), cache=tmp_path / "elsewhere"))
    assert again.images[0].digest == first.images[0].digest
    newer = package_agent(order(tmp_path, wheel=wheel(tmp_path / "newer.whl", "1.2.4", b"new")))
    old, new = ({layer.kind: layer.digest for layer in made.images[0].layers} for made in (first, newer))
    assert (old["packages"] == new["packages"], old["agent"] == new["agent"]) == (True, False)


def test_the_agent_installed_here_is_taken_without_a_wheel(tmp_path):
    made = package_agent(order(tmp_path))
    found = names(tmp_path, "generic-amd64")
    assert f"{AGENT_FOLDER}/app/wherry_agent/supervisor.py" in found
    assert f"{AGENT_FOLDER}/app/wherry/device_profiles/jetson-nano.toml" in found
    assert not [name for name in found if "__pycache__" in name]
    assert made.version


def test_it_fits_devices_with_that_python_and_no_others(tmp_path):
    made = package_agent(order(tmp_path, wheel=wheel(tmp_path / "w.whl")))
    image = made.images[0].model_copy(update={"repository": "127.0.0.1:5000/x"}).to_release_image(1)
    profile = load_profiles()["generic-amd64"]
    from wherry.profile import HostFacts

    assert misfits(image, profile) == []
    here = HostFacts(architecture="x86_64", memory_mb=2000, python="3.11")
    assert misfits(image, profile, here) == []
    there = misfits(image, profile, here.model_copy(update={"python": "3.13"}))
    assert there == ["is made for Python 3.11, this device has 3.13"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pythons": ("3",)}, "not a version such as 3.11"),
        ({"output": None}, "nowhere to go"),
        ({"wheel": Path("nothing.whl")}, "no wheel of wherry"),
    ],
)
def test_what_is_not_usable_is_named(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        package_agent(order(tmp_path, **change))


def test_a_wheel_of_something_else_is_refused(tmp_path):
    for left_out in ("wherry", "wherry_agent", "wherry_cli"):
        with pytest.raises(InputError, match=r"w\.whl"):
            package_agent(order(tmp_path, wheel=wheel(tmp_path / "w.whl", **{left_out: True})))


def test_its_name_is_not_free_for_models(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match="is kept for the agent itself"):
        read_request(
            model=tmp_path / "model.onnx", name=AGENT_MODEL, version="1", profiles=["generic-amd64"], no_push=True
        )
