"""What a server gives to a machine that is to become a device: the same bytes every time, pinned by the script."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import socket
import stat
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
    units = {"wherry-agent.service", "wherry-haproxy.path", "wherry-haproxy.service"}
    assert set(first) == {bundle.WHEEL, "agent.txt", *units}


def test_the_wheel_holds_the_agent_and_nothing_of_the_server():
    names = zipfile.ZipFile(io.BytesIO(bundle.install_files()[bundle.WHEEL])).namelist()
    assert "wherry_agent/route/slots.lua" in names
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
        (["--prefix", "/opt/with space"], "only letters"),
        (["--state", "/srv/a;reboot"], "only letters"),
        (["--state", "/srv/../srv/wherry"], "without . and .."),
        (["--state", "/srv/" + "x" * 100], "too long"),
        (["--uninstall", "--prefix", "/opt/nonexistent"], "there is no agent in /opt/nonexistent"),
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


SYSTEM = ["/", "/opt", "/usr", "/usr/local", "/usr/local/bin", "/usr/share/x", "/var/lib", "/home/joe", "/etc/wherry"]
AGENT = """#!{python}
import http.server, os, pathlib, socketserver, sys
state = pathlib.Path(sys.argv[sys.argv.index("--state") + 1])
(state / "lock").write_text(str(os.getpid()))
(state / "local.sock").unlink(missing_ok=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def address_string(self):
        return ""
socketserver.UnixStreamServer(str(state / "local.sock"), Handler).serve_forever()
"""


class TestFoldersOfOthers:
    """What is not Wherry's is neither changed nor removed."""

    @pytest.fixture
    def shell(self, context, tmp_path):
        """Run a piece of the script, with its folders under tmp_path."""
        *rest, _ = bundle.install_script(context).splitlines()
        own = f"STATE={tmp_path}/state PREFIX={tmp_path}/prefix LINK={tmp_path}/link SYSTEMD='' SERVICE=''"
        own += f" AGENT_BIN={tmp_path}/prefix/bin/wherry-agent VERSION={tmp_path}/prefix/versions/{'b' * 16}"

        def run(code):
            text = "\n".join([*rest, own, code])
            return subprocess.run(["sh"], input=text, capture_output=True, text=True, check=False, timeout=120)

        return run

    def version(self, tmp_path, name, agent="#!/bin/sh\nexit 1\n"):
        folder = tmp_path / "prefix/versions" / name
        (folder / "bin").mkdir(parents=True)
        (folder / "complete").touch()
        (folder / "bin/wherry-agent").write_text(agent)
        (folder / "bin/wherry-agent").chmod(0o755)
        return folder

    @pytest.mark.parametrize("option", ["--state", "--prefix"])
    @pytest.mark.parametrize("folder", SYSTEM)
    def test_folders_of_the_system_are_refused(self, shell, option, folder):
        done = shell(f"read_arguments --uninstall {option} {folder}")
        assert (done.returncode, "is a folder of the system" in done.stderr) == (1, True), done.stderr

    def test_a_link_to_a_folder_of_the_system_is_refused(self, shell, tmp_path):
        (tmp_path / "here").symlink_to("/usr/local")
        assert "is a folder of the system" in shell(f"read_arguments --prefix {tmp_path}/here").stderr
        assert shell("read_arguments --prefix /usr/local/wherry --state /var/lib/wherry/").returncode == 0

    def test_places_of_the_installation_before_need_not_be_told_again(self, shell, tmp_path):
        asked = 'STATE="" PREFIX=""; read_arguments --yes; echo "$PREFIX $STATE"'
        assert shell(asked).stdout == "/opt/wherry /var/lib/wherry\n"
        (tmp_path / "prefix/bin").mkdir(parents=True)
        (tmp_path / "prefix/installed").write_text("state=/srv/device\n")
        (tmp_path / "link").symlink_to(tmp_path / "prefix/bin/wherry-agent")
        assert shell(asked).stdout == f"{tmp_path}/prefix /srv/device\n"
        named = f'STATE="" PREFIX=""; read_arguments --prefix {tmp_path}/prefix --state /srv/x; echo "$PREFIX $STATE"'
        assert shell(named).stdout == f"{tmp_path}/prefix /srv/x\n"

    @pytest.mark.parametrize("inside", ["prefix/versions/3.11.4/bin", "prefix/.git", "state/photos"])
    def test_a_folder_with_other_things_is_refused(self, shell, tmp_path, inside):
        (tmp_path / inside).mkdir(parents=True)
        done = shell('check_folders; echo "$PROBLEMS"')
        assert f"{tmp_path}/{inside.partition('/')[0]} holds other things than Wherry's" in done.stdout

    def test_a_program_that_somebody_else_put_in_the_links_place_is_refused(self, shell, tmp_path):
        (tmp_path / "link").touch()
        assert "is there already" in shell('SERVICE=yes; check_folders; echo "$PROBLEMS"').stdout

    @pytest.mark.parametrize("inside", ["prefix/versions/0123456789abcdef", "state/identity", "state/tuf"])
    def test_what_a_killed_installation_left_is_taken_over(self, shell, tmp_path, inside):
        (tmp_path / inside).mkdir(parents=True)
        assert shell('check_folders; echo "$PROBLEMS"').stdout == "\n"

    def test_a_device_keeps_files_of_its_operator(self, shell, tmp_path):
        for name in ("state/identity/device.json", "state/notes.txt", "prefix/notes.txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "prefix/installed").write_text("state=/var/lib/wherry\n")
        assert shell('check_folders; echo "$PROBLEMS"').stdout == "\n"

    def test_only_old_versions_of_ours_are_removed(self, shell, tmp_path):
        old, new = self.version(tmp_path, "a" * 16), self.version(tmp_path, "b" * 16)
        others = [tmp_path / "prefix/versions" / name for name in ("3.11.4", "c" * 16, "system", "d" * 15)]
        for folder in others:
            folder.mkdir()
        (others[0] / "complete").touch()
        assert shell("remove_old_versions").returncode == 0
        assert sorted(old.parent.iterdir()) == sorted([new, *others])

    def test_the_mode_of_a_folder_that_was_there_is_left_alone(self, shell, tmp_path):
        self.version(tmp_path, "b" * 16)
        (tmp_path / "state").mkdir()
        (tmp_path / "state").chmod(0o755)
        assert shell("switch_over").returncode == 0
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o755

    def test_an_agent_that_does_not_start_gives_way_to_the_one_before(self, shell, tmp_path):
        old = self.version(tmp_path, "a" * 16, AGENT.format(python=sys.executable))
        self.version(tmp_path, "b" * 16)
        (tmp_path / "prefix/bin").mkdir()
        (tmp_path / "prefix/bin/wherry-agent").symlink_to(old / "bin/wherry-agent")
        (tmp_path / "state").mkdir()
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(tmp_path / "state/local.sock"))
        try:
            done = shell("switch_over; start_and_prove")
            assert (done.returncode, "the upgrade was taken back" in done.stderr) == (1, True), done.stderr
            assert (tmp_path / "prefix/bin/wherry-agent").readlink() == old / "bin/wherry-agent"
            assert shell("runs").returncode == 0
            assert stat.S_IMODE((tmp_path / "state/agent.log").stat().st_mode) == 0o600
        finally:
            os.kill(int((tmp_path / "state/lock").read_text()), signal.SIGKILL)

    def test_one_that_runs_replaces_the_one_before(self, shell, tmp_path):
        old = self.version(tmp_path, "a" * 16)
        self.version(tmp_path, "b" * 16, AGENT.format(python=sys.executable))
        (tmp_path / "prefix/bin").mkdir()
        (tmp_path / "prefix/bin/wherry-agent").symlink_to(old / "bin/wherry-agent")
        try:
            done = shell("switch_over; start_and_prove")
            assert done.returncode == 0, done.stderr
            assert not old.exists()
        finally:
            os.kill(int((tmp_path / "state/lock").read_text()), signal.SIGKILL)

    def test_a_first_one_that_does_not_start_is_said(self, shell, tmp_path):
        new = self.version(tmp_path, "b" * 16)
        done = shell("switch_over; start_and_prove")
        assert (done.returncode, "the agent does not run" in done.stderr, new.exists()) == (1, True, True)


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
