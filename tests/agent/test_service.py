"""The agent as a service: what it tells systemd, and the unit that systemd is given."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from wherry.errors import Conflict, StoreError
from wherry_agent import app, control
from wherry_agent.config import AgentConfig
from wherry_agent.events import Stop, Tick
from wherry_agent.installation import installed_prefix, usual_state
from wherry_agent.service_manager import ServiceManager
from wherry_agent.state_folder import is_system_folder
from wherry_agent.uninstall import _remove_program, _stop_agent, uninstall

UNIT = Path(__file__).parents[2] / "deploy/systemd/wherry-agent.service"


@pytest.fixture
def told(tmp_path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(10)
        yield end


def messages(end: socket.socket) -> list[str]:
    end.setblocking(False)
    found = []
    while True:
        try:
            found.append(end.recv(4096).decode())
        except BlockingIOError:
            return found


def test_the_loop_says_that_it_is_ready_alive_and_how_it_is_and_that_it_ends(device, tmp_path, told):
    device.assign(1, main="1")
    inbox = control.Inbox()
    for event in (Tick(), Tick(), Stop()):
        inbox.put(event)
    control.run(inbox, device.reconciler, ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")}), 1)
    status = "WATCHDOG=1\nSTATUS=1 of 1 slots serve"
    assert messages(told) == ["READY=1", status, "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]


def test_nobody_is_told_where_there_is_no_systemd_or_it_went_away(tmp_path):
    ServiceManager({}).ready()
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).alive("well")
    ServiceManager({"NOTIFY_SOCKET": "@wherry-nobody-listens"}).stopping()


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def unit(tmp_path) -> Path:
    """The unit, with a program that is there."""
    program = shutil.copy(shutil.which("true"), tmp_path / "wherry-agent")
    made = tmp_path / "wherry-agent.service"
    made.write_text(UNIT.read_text().replace("/opt/wherry/bin/wherry-agent", str(program)))
    return made


def test_systemd_reads_the_unit_without_a_word(unit):
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(unit))
    ours = [line for line in done.stderr.splitlines() if "wherry" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_systemd_finds_little_exposed(unit):
    done = analyze("security", "--offline=true", "--threshold=40", str(unit))
    assert done.returncode == 0, done.stdout[-1500:]
    assert "NoNewPrivileges=" in done.stdout


def test_the_watchdog_is_fed_many_times_before_it_bites():
    settings = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line and line[0] != "#")
    assert settings["Type"] == "notify"
    assert settings["Restart"] == "always"
    assert int(settings["WatchdogSec"]) >= 60
    assert settings["CapabilityBoundingSet"] == "CAP_NET_ADMIN"


def test_the_lock_commands_hold_off_and_let_go(tmp_path, capsys):
    state = ["--state", str(tmp_path)]
    assert app.main(["lock", "--minutes", "5", "--holder", "crane", "--reason", "lifting", *state]) == 0
    assert "swaps are held off until" in capsys.readouterr().out
    assert json.loads((tmp_path / "update.lock").read_text())["holder"] == "crane"
    assert app.main(["lock", "--minutes", "2000", *state]) == 1
    assert "24 hours" in capsys.readouterr().err
    assert app.main(["unlock", *state]) == 0
    assert app.main(["unlock", *state]) == 0
    assert capsys.readouterr().out == "the update lock is released\nthere was no update lock\n"


class TestFolders:
    """What uninstall removes is Wherry's; all else stays."""

    def remove(self, state):
        said: list[str] = []
        uninstall(state, AgentConfig(), False, said.append)
        return said

    @pytest.fixture
    def state(self, tmp_path):
        """Of a device that is not enrolled: no container is looked for."""
        folder = tmp_path / "state"
        (folder / "tuf/root_history").mkdir(parents=True)
        (folder / "journal.db").touch()
        (folder / "spool.db.corrupt").touch()
        (folder / "identity").symlink_to(tmp_path)
        return folder

    def test_a_state_folder_is_removed_with_all_that_is_in_it(self, state, tmp_path):
        assert f"removed {state}" in self.remove(state)
        assert list(tmp_path.iterdir()) == []

    def test_files_of_others_in_it_stay(self, state):
        (state / "notes.txt").touch()
        assert "the folder stays" in self.remove(state)[-1]
        assert [path.name for path in state.iterdir()] == ["notes.txt"]

    def test_a_disk_of_its_own_is_emptied(self, state, monkeypatch):
        def busy(path):
            raise OSError(16, "Device or resource busy")

        monkeypatch.setattr(Path, "rmdir", busy)
        assert "Device or resource busy" in self.remove(state)[-1]
        assert list(state.iterdir()) == []

    def test_a_folder_that_is_no_device_s_is_refused_and_nothing_changes(self, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "lock").touch()
        with pytest.raises(Conflict, match="holds other things and no device; nothing was changed"):
            self.remove(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "photos"]

    @pytest.mark.parametrize(
        "path", ["/", "/opt", "/usr", "/usr/lib/x", "/usr/local", "/var/lib", "/home/joe", "/etc/x"]
    )
    def test_folders_of_the_system_are_refused(self, path):
        assert is_system_folder(Path(path))
        assert is_system_folder(Path(f"/srv/..{path}"))

    def test_a_link_to_a_folder_of_the_system_is_refused(self, tmp_path):
        (tmp_path / "link").symlink_to("/usr/local")
        with pytest.raises(Conflict, match="is the system's"):
            self.remove(tmp_path / "link")

    @pytest.mark.parametrize("path", ["/var/lib/wherry", "/opt/wherry", "/usr/local/wherry", "/srv/wherry", "/tmp/x"])
    def test_others_are_not(self, path):
        assert not is_system_folder(Path(path))

    def test_only_what_install_made_is_removed_of_the_program(self, tmp_path):
        for name in ("versions/0123456789abcdef", "versions/3.11.4", "bin"):
            (tmp_path / name).mkdir(parents=True)
        made = ["versions/0123456789abcdef/complete", "bin/wherry-agent", "installed"]
        for name in (*made, "bin/other", "versions/3.11.4/python"):
            (tmp_path / name).touch()
        _remove_program(tmp_path, lambda words: None)
        left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
        assert left == ["bin/other", "versions/3.11.4/python"]

    def test_all_of_it_goes_where_nobody_else_put_anything(self, tmp_path):
        (tmp_path / "prefix/versions/0123456789abcdef").mkdir(parents=True)
        (tmp_path / "prefix/versions/0123456789abcdef/complete").touch()
        _remove_program(tmp_path / "prefix", lambda words: None)
        assert list(tmp_path.iterdir()) == []

    def test_a_program_that_was_installed_another_way_is_left_alone(self, tmp_path, monkeypatch):
        assert installed_prefix() is None
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "versions/3.11.4"))
        (tmp_path / "installed").write_text("state=/var/lib/wherry\n")
        assert installed_prefix() is None
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "versions/0123456789abcdef"))
        assert installed_prefix() == tmp_path

    def test_what_install_was_told_need_not_be_told_again(self, tmp_path, monkeypatch, capsys):
        state, prefix = tmp_path / "own state", tmp_path / "prefix"
        for folder in (state / "identity", prefix / "versions/0123456789abcdef", prefix / "bin"):
            folder.mkdir(parents=True)
        (prefix / "versions/0123456789abcdef/complete").touch()
        (prefix / "installed").write_text(f"state={state}\n")
        assert usual_state() == Path("/var/lib/wherry")
        monkeypatch.setattr(sys, "prefix", str(prefix / "versions/0123456789abcdef"))
        assert usual_state() == state
        (tmp_path / "other").mkdir()
        assert app.main(["uninstall", "--yes", "--state", str(tmp_path / "other")]) == 1
        assert f"is not the one of this installation, {state}" in capsys.readouterr().err
        assert app.main(["uninstall", "--yes"]) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["other"]


class TestWhereADeviceMayLive:
    """`enroll --state` with a folder that is somebody else's."""

    @pytest.mark.parametrize("folder", ["/tmp", "/var/tmp", "/", "/var/lib", "/home/joe", "/etc/wherry"])
    def test_not_in_a_folder_of_the_system(self, folder, capsys):
        assert app.main(["enroll", "--state", folder, "wherry1.x"]) == 1
        assert f"folder {folder}: is the system's; nothing was changed." in capsys.readouterr().err

    def test_not_among_other_things(self, tmp_path, capsys):
        (tmp_path / "photos").mkdir()
        assert app.main(["enroll", "--state", str(tmp_path), "wherry1.x"]) == 1
        said = capsys.readouterr().err
        assert "holds other things and no device; nothing was changed" in said
        assert "Name a folder of Wherry's own with --state, such as /var/lib/wherry" in said
        assert [path.name for path in tmp_path.iterdir()] == ["photos"]

    @pytest.mark.parametrize("made", [[], ["agent.toml"], ["identity", "tuf", "lock"]])
    def test_in_one_that_is_empty_or_holds_what_a_device_needs(self, tmp_path, made, capsys):
        for name in made:
            (tmp_path / name).touch()
        assert app.main(["enroll", "--state", str(tmp_path), "not-a-token"]) == 1
        assert "join token" in capsys.readouterr().err


HOLDER = """
import pathlib, signal, sys, time
from wherry_agent.state_folder import only_agent
state = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
try:
    with only_agent(state):
        print("holds it", flush=True)
        time.sleep(60)
finally:
    time.sleep(1)
    (state / "ended").touch()
"""


def test_an_agent_has_ended_when_uninstall_goes_on(tmp_path):
    """It lets go of its folder before its process ends."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"holds it\n"
            _stop_agent(tmp_path, "")
            assert (tmp_path / "ended").exists()
        finally:
            process.kill()


def test_a_log_without_a_service_manager_is_bounded_and_private(tmp_path):
    before = os.umask(0o022)
    try:
        with closing(app._log_to(tmp_path / "agent.log")) as handler:
            for _ in range(300):
                handler.emit(logging.makeLogRecord({"msg": "x" * 10_000}))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2_000_000


def test_a_log_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        app._log_to(tmp_path / "absent/agent.log")
