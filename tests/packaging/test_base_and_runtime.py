"""The base layer from Debian packages and the runtime layer from wheels: chosen and cleaned for the target."""

import io
import tarfile
from pathlib import PurePosixPath

import pytest

from wherry.errors import BuildError, ConfigError, InputError
from wherry_cli.packaging import base as base_module
from wherry_cli.packaging.base import base_for, base_key
from wherry_cli.packaging.debian import finish_base
from wherry_cli.packaging.locks import Target, lock_for, locks_folder, read_lock
from wherry_cli.packaging.registry import RegistryClient
from wherry_cli.packaging.runtime import is_needed, runtime_layer
from wherry_cli.packaging.store import Store
from wherry_cli.packaging.tools import run_tool

PACKAGES = {
    "./usr/bin/python3.11": (0o4755, b"elf"),
    "./usr/bin/dpkg-deb": (0o755, b"elf"),
    "./bin/tar": (0o755, b"elf"),
    "./etc/resolv.conf": (0o644, b"nameserver of the building machine"),
    "./etc/hostname": (0o644, b"building machine"),
    "./usr/share/ca-certificates/mozilla/B.crt": (0o644, b"B\n"),
    "./usr/share/ca-certificates/mozilla/A.crt": (0o644, b"A\n"),
    "./usr/lib/x86_64-linux-gnu/gconv/BIG5.so": (0o644, b"elf"),
    "./usr/lib/x86_64-linux-gnu/libc.so": (0o644, b"elf"),
    "./var/lib/dpkg/status": (0o644, b"Package: libc6\n"),
    "./var/lib/dpkg/info/libc6.postinst": (0o755, b"#!/bin/sh"),
}


def unpacked(mtime: int) -> io.BytesIO:
    """What mmdebstrap gives, made at some time."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, (mode, data) in PACKAGES.items():
            info = tarfile.TarInfo(name)
            info.mode, info.size, info.mtime, info.uname = mode, len(data), mtime, "me"
            archive.addfile(info, io.BytesIO(data))
        device = tarfile.TarInfo("./dev/null")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    target.seek(0)
    return target


def finished(mtime: int = 0) -> bytes:
    target = io.BytesIO()
    finish_base(unpacked(mtime), target, "3.11")
    return target.getvalue()


def test_the_base_holds_what_a_model_server_needs_and_no_more():
    with tarfile.open(fileobj=io.BytesIO(finished())) as archive:
        members = {item.name: item for item in archive}
        bundle = archive.extractfile("etc/ssl/certs/ca-certificates.crt")
        passwd = archive.extractfile("etc/passwd")
        assert bundle is not None
        assert bundle.read() == b"A\nB\n"
        assert passwd is not None
        assert b"wherry:x:65532:65532" in passwd.read()
    assert members["usr/bin/python3.11"].mode == 0o755, "no setuid"
    assert members["tmp"].mode == 0o1777
    assert members["usr/lib/ssl/cert.pem"].linkname == "/etc/ssl/certs/ca-certificates.crt"
    assert "var/lib/dpkg/status" in members
    gone = ["bin/tar", "usr/bin/dpkg-deb", "etc/resolv.conf", "etc/hostname", "dev/null"]
    assert not set(gone) & set(members)
    assert not [name for name in members if "gconv" in name or "postinst" in name]
    assert not [name for name, item in members.items() if item.isdev()]


def test_the_base_does_not_depend_on_the_day_it_is_built():
    assert finished(1) == finished(2_000_000_000)


def test_packages_without_the_python_of_the_profile_are_refused():
    with pytest.raises(BuildError, match=r"do not hold Python 3\.12"):
        finish_base(unpacked(0), io.BytesIO(), "3.12")


@pytest.mark.registry
def test_every_machine_that_uses_a_registry_gets_the_same_base(registry, profiles, tmp_path, monkeypatch):
    """Packages differ from day to day: the second machine must take the first one's base, not build its own."""
    profile = profiles["generic-amd64"]
    monkeypatch.setattr(base_module, "BASE_REPOSITORY", "t/base")
    days = iter([1, 2])

    def unpack(suite, platform, target):
        target.write_bytes(unpacked(0).getvalue().replace(b"B\n", b"%d\n" % next(days)))

    monkeypatch.setattr(base_module, "debootstrap", unpack)
    with RegistryClient(registry) as client:
        first = base_for(profile.base, profile.platform, Store(tmp_path / "one"), client)
        second = base_for(profile.base, profile.platform, Store(tmp_path / "two"), client)
        again = base_for(profile.base, profile.platform, Store(tmp_path / "one"), client)
        alone = base_for(profile.base, profile.platform, Store(tmp_path / "three"), None)
    digests = [found.layers[0].digest for found in (first, second, again)]
    assert len(set(digests)) == 1
    assert [layer.unpacked for layer in second.layers] == [layer.unpacked for layer in first.layers]
    assert alone.layers[0].digest not in digests


def test_base_keys_differ_by_what_is_in_the_base(profiles):
    base = profiles["generic-amd64"].base
    keys = {base_key(base, "linux/amd64"), base_key(base, "linux/arm64")}
    keys.add(base_key(base.model_copy(update={"suite": "trixie"}), "linux/arm64"))
    assert len(keys) == 3


def test_a_registry_base_needs_a_registry(profiles, store):
    with pytest.raises(InputError, match="--registry"):
        base_for(profiles["jetson-orin"].base, "linux/arm64", store, None)


def test_a_missing_tool_is_named_with_how_to_get_it():
    with pytest.raises(BuildError, match=r"no-such-tool is not installed\. Do this"):
        run_tool(["no-such-tool"], "x", install="Do this")
    with pytest.raises(BuildError, match="sh failed: E: broken"):
        run_tool(["sh", "-c", "echo noise; echo E: broken >&2; exit 3"], "x")
    with pytest.raises(BuildError, match="did not finish within 0"):
        run_tool(["sleep", "5"], "x", seconds=0)


# -- runtime


def test_markers_are_judged_for_the_target_not_for_this_machine():
    lock = (
        "# comment\n"
        "always==1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:ab\n"
        "windows==1 ; sys_platform == 'win32' \\\n    --hash=sha256:ba\n"
        "arm==1 ; platform_machine == 'aarch64' \\\n    --hash=sha256:ca\n"
        "old==1 ; python_full_version < '3.12' \\\n    --hash=sha256:da\n"
        "new==2 ; python_full_version >= '3.12' \\\n    --hash=sha256:ea\n"
    )
    assert lock_for(lock, Target("aarch64", "3.11", "2.36")).splitlines() == [
        "always==1 --hash=sha256:aa --hash=sha256:ab",
        "arm==1 --hash=sha256:ca",
        "old==1 --hash=sha256:da",
    ]
    assert lock_for(lock, Target("x86_64", "3.13", "2.36")).splitlines()[1:] == ["new==2 --hash=sha256:ea"]


@pytest.mark.parametrize("line", ["loose>=1 --hash=sha256:aa", "unhashed==1", "-r other.txt"])
def test_what_is_not_pinned_and_hashed_is_refused(line):
    with pytest.raises(ConfigError, match="pinned"):
        lock_for(line, Target("x86_64", "3.11", "2.36"))


def test_every_glibc_tag_is_named_for_pip(profiles):
    tags = Target.of(profiles["generic-arm64"]).tags()
    assert tags[0] == "manylinux_2_36_aarch64"
    assert {"manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"} <= set(tags)
    assert "manylinux_2_37_aarch64" not in tags
    assert "manylinux1_x86_64" in Target.of(profiles["generic-amd64"]).tags()


@pytest.mark.parametrize("runtime", ["onnx", "litert", "tflite"])
def test_the_shipped_locks_hold_their_runtime(runtime):
    package = {"onnx": "onnxruntime", "litert": "ai-edge-litert", "tflite": "tflite-runtime"}[runtime]
    assert (locks_folder() / f"serving-{runtime}.txt").is_file()
    names = [
        line.split("==")[0] for line in lock_for(read_lock(runtime), Target("aarch64", "3.11", "2.36")).splitlines()
    ]
    assert package in names
    assert len(names) == len(set(names))
    assert "colorama" not in names


def test_an_unknown_runtime_is_refused():
    with pytest.raises(InputError, match="has no lock file"):
        read_lock("torch")


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("numpy/__init__.py", True),
        ("numpy/testing/__init__.py", True),
        ("numpy/testing/tests/test_x.py", False),
        ("numpy/linalg/tests/test_linalg.py", False),
        ("numpy-2.4.6.dist-info/RECORD", False),
        ("numpy-2.4.6.dist-info/licenses/LICENSE.txt", True),
        ("bin/uvicorn", False),
        ("onnxruntime/transformers/optimizer.py", False),
        ("onnxruntime/capi/_pybind_state.py", True),
        ("onnxruntime/capi/libonnxruntime.so.1.32.0", False),
        ("uvloop/loop.pyx", False),
        ("uvloop/loop.cpython-311-x86_64-linux-gnu.so", True),
    ],
)
def test_what_a_model_server_never_uses_stays_out(path, kept):
    assert is_needed(PurePosixPath(path)) is kept


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wheels_are_for_the_target(profiles, package_cache):
    """Real wheels, arm64 on whatever this machine is; from the cache when they were unpacked before."""
    layer = runtime_layer("tflite", profiles["generic-arm64"], Store(package_cache))
    with tarfile.open(layer.path) as archive:
        libraries = [item for item in archive if ".so" in item.name and item.isreg()]
        machines = set()
        for item in libraries:
            file = archive.extractfile(item)
            assert file is not None
            head = file.read(20)
            machines.add(int.from_bytes(head[18:20], "little"))
    assert machines == {183}, "EM_AARCH64"
    assert layer.kind == "runtime"
