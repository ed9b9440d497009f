"""The agent as a service: what it tells systemd, and the unit that systemd is given."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry_agent import app, control
from wherry_agent.events import Stop, Tick
from wherry_agent.service_manager import ServiceManager
from wherry_agent.uninstall import _remove_folder, installed_prefix

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
    """What uninstall removes is gone; a disk of its own is emptied."""

    def test_a_folder_is_removed_with_all_that_is_in_it(self, tmp_path):
        (tmp_path / "state/tuf").mkdir(parents=True)
        said: list[str] = []
        _remove_folder(tmp_path / "state", said.append)
        assert (list(tmp_path.iterdir()), said) == ([], [f"removed {tmp_path / 'state'}"])

    def test_a_disk_of_its_own_is_emptied(self, tmp_path, monkeypatch):
        (tmp_path / "state/tuf").mkdir(parents=True)
        (tmp_path / "state/journal.db").write_text("x")
        (tmp_path / "state/link").symlink_to(tmp_path)
        monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "state")
        _remove_folder(tmp_path / "state", lambda words: None)
        assert list((tmp_path / "state").iterdir()) == []

    def test_a_program_that_was_installed_another_way_is_left_alone(self):
        assert installed_prefix() is None
