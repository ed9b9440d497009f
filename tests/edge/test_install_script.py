"""What a server gives to a machine that is to become a device: the same bytes every time, pinned by the script."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from wherry_server.api import install
from wherry_server.config import ServerConfig
from wherry_server.services import bundle

ROOT = Path(__file__).parents[2]


class Authority:
    ca_pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


class Context:
    def __init__(self, data: Path) -> None:
        self.config = ServerConfig(data=data, host="fleet.example", port=8470)
        self.authority = Authority()


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path)


def test_the_bundle_is_the_same_every_time():
    first = dict(bundle.install_files())
    bundle.install_files.cache_clear()
    assert dict(bundle.install_files()) == first
    assert set(first) == {bundle.WHEEL, "agent.txt", "wherry-agent.service"}


def test_the_wheel_holds_the_agent_and_nothing_of_the_server():
    names = zipfile.ZipFile(io.BytesIO(bundle.install_files()[bundle.WHEEL])).namelist()
    assert {"wherry_agent/app.py", "wherry/errors.py", "wherry/device_profiles/generic-amd64.toml"} <= set(names)
    assert {name.split("/")[0] for name in names} == {
        "wherry",
        "wherry_agent",
        f"{bundle.WHEEL.removesuffix('-py3-none-any.whl')}.dist-info",
    }
    assert not [name for name in names if "__pycache__" in name]


def test_pip_takes_the_wheel_and_its_program_runs(tmp_path):
    wheel = tmp_path / bundle.WHEEL
    wheel.write_bytes(bundle.install_files()[bundle.WHEEL])
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(wheel)], check=True, capture_output=True)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import wherry_agent; print(wherry_agent.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert (tmp_path / "site/bin/wherry-agent").exists()


def test_the_script_names_the_hash_of_everything_it_downloads(context):
    script = bundle.install_script(context)
    assert not re.search(r"@[A-Z0-9_]+@", script)
    assert "SERVER='https://fleet.example:8470'" in script
    assert Authority.ca_pem.strip() in script
    for content in bundle.install_files().values():
        assert hashlib.sha256(content).hexdigest() in script
    assert "OFFLINE=''" in script
    (context.config.data / "wheels").mkdir()
    assert "OFFLINE='yes'" in bundle.install_script(context)


def test_shellcheck_has_nothing_to_say(context, tmp_path):
    path = tmp_path / "install.sh"
    path.write_text(bundle.install_script(context))
    done = subprocess.run(["shellcheck", "-s", "sh", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_script_that_was_cut_off_does_nothing(context):
    script = bundle.install_script(context)
    *rest, last = script.splitlines()
    assert last == 'main "$@"'
    done = subprocess.run(["sh"], input="\n".join(rest[:-1]), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--state"], "--state needs a value"),
        (["nonsense"], "cannot read 'nonsense'"),
        (["--prefix", "relative"], "must be an absolute path"),
        (["--prefix", "/with space"], "spaces"),
        (["--uninstall", "--prefix", "/nonexistent"], "there is no agent in /nonexistent"),
    ],
)
def test_what_it_cannot_do_it_says_and_changes_nothing(context, arguments, words):
    script = bundle.install_script(context)
    done = subprocess.run(["sh", "-s", "--", *arguments], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, words in done.stderr) == (1, True), done.stderr


def test_a_machine_that_lacks_things_is_told_all_of_them_and_what_to_install(context, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "id", "uname", "date", "df", "awk", "dirname", "cat"):
        found = subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=True).stdout
        (tools / name).symlink_to(found.strip())
    script = bundle.install_script(context).replace('PATH="$PATH:/usr/sbin:/sbin"', ":")
    environ = {"PATH": str(tools), "DOCKER_SOCKET": "/nonexistent"}
    done = subprocess.run([tools / "sh", "-s"], input=script, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 1
    for words in ("curl is missing", "nft is missing", "Docker is missing", "python3 is missing"):
        assert words in done.stderr
    assert "apt-get install -y curl coreutils nftables docker.io python3 python3-venv" in done.stderr
    assert "nothing was changed" in done.stderr


class TestWheels:
    """Packages for devices that reach no index."""

    @pytest.fixture
    def folder(self, context):
        folder = context.config.data / "wheels"
        folder.mkdir()
        (folder / "tiny-1-py3-none-any.whl").write_bytes(b"wheel")
        (folder / "secret.txt").write_text("secret")
        (folder / "<b>-1-py3-none-any.whl").write_bytes(b"wheel")
        return folder

    def test_only_wheels_are_listed_and_names_are_escaped(self, context, folder):
        assert list(bundle.offline_wheels(context)) == ["<b>-1-py3-none-any.whl", "tiny-1-py3-none-any.whl"]
        request = type("Request", (), {"app": type("App", (), {"state": type("State", (), {"context": context})})})
        page = install.wheels(request).body.decode()
        assert '<a href="tiny-1-py3-none-any.whl">' in page
        assert "<b>" not in page

    @pytest.mark.parametrize("name", ["secret.txt", "../server.toml", "absent.whl"])
    def test_nothing_else_is_served(self, context, folder, name):
        request = type("Request", (), {"app": type("App", (), {"state": type("State", (), {"context": context})})})
        with pytest.raises(Exception, match="is not in this server's folder"):
            install.wheel(name, request)
        with pytest.raises(Exception, match="is not part of the installation"):
            install.file(name)
