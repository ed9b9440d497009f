"""The program around the loop: settings, threads, the lock, the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from agent_fakes import DEVICE, START, Device, make_image

from wherry.errors import ConfigError, Conflict, RegistryError, StoreError
from wherry_agent import app, control, state_folder, steps
from wherry_agent.config import AgentConfig, load_config
from wherry_agent.events import Cancelled, Done, StepFinished, StepProgress, Stop, Tick
from wherry_agent.ports import StepCancelled
from wherry_agent.reporter import status_text
from wherry_agent.service_manager import ServiceManager
from wherry_agent.supervision import CANNOT_RUN, INSTALLED, RUNS_AS, WORLD
from wherry_agent.worker import Aide, Worker

FETCH = steps.Fetch("main", make_image(1))


class TestConfig:
    def test_defaults_hold_without_a_file(self, tmp_path):
        config = load_config(tmp_path, environ={})
        assert config == AgentConfig()
        assert config.table("cam-1") == "wherry_cam_1"

    def test_the_file_is_read_and_the_environment_wins(self, tmp_path):
        (tmp_path / "agent.toml").write_text("soak_seconds = 7\nreserve_mb = 9\n[slots]\nmain = 8600\n")
        environ = {
            "WHERRY_AGENT_SOAK_SECONDS": "0.5",
            "WHERRY_AGENT_EXPOSE": '["172.17.0.1"]',
            "DOCKER_HOST": "tcp://x",
        }
        config = load_config(tmp_path, environ=environ)
        assert (config.soak_seconds, config.reserve_mb, config.slots) == (0.5, 9, {"main": 8600})
        assert config.addresses() == ("127.0.0.1", "172.17.0.1")
        assert config.engine_url == "tcp://x"
        assert config.patience().soak_seconds == 0.5
        assert config.limits().reserve_mb == 9

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("soak_second = 7", "setting soak_second"),
            ("slot_base_port = 0", "setting slot_base_port"),
            ("= 7", "cannot be read"),
            ("[slots]\nMain = 8500", "setting slots.Main"),
        ],
    )
    def test_a_wrong_setting_is_named(self, tmp_path, text, words):
        (tmp_path / "agent.toml").write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_config(tmp_path, environ={})

    def test_a_supervised_agent_passes_over_settings_of_a_newer_one_but_not_over_wrong_ones(self, tmp_path, caplog):
        (tmp_path / "agent.toml").write_text("soak_second = 7\nsoak_seconds = 8\n")
        environ = {RUNS_AS: INSTALLED}
        assert load_config(tmp_path, environ=environ).soak_seconds == 8
        assert "setting soak_second in" in caplog.text
        (tmp_path / "agent.toml").write_text("slot_base_port = 0\n")
        with pytest.raises(ConfigError, match="setting slot_base_port"):
            load_config(tmp_path, environ=environ)

    @pytest.mark.parametrize(
        ("error", "code"), [(StoreError("disk", "is full"), WORLD), (ConfigError("setting x", "is wrong"), CANNOT_RUN)]
    )
    def test_the_supervisor_is_told_whose_fault_an_end_is(self, tmp_path, monkeypatch, capsys, error, code):
        def fail(*_):
            raise error

        monkeypatch.setattr(app, "_run_agent", fail)
        monkeypatch.setenv(RUNS_AS, INSTALLED)
        assert app.main(["run", "--state", str(tmp_path)]) == code
        assert error.reason in capsys.readouterr().err

    def test_a_named_file_must_exist(self, tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(tmp_path, tmp_path / "absent.toml", environ={})


class Patient:
    """A step that goes on until it is told to give way."""

    def __init__(self) -> None:
        self.began = threading.Event()

    def run(self, step, cancel, tell):
        tell(StepProgress(step, 1, 2))
        self.began.set()
        cancel.wait(20)
        try:
            cancel.check()
        except StepCancelled:
            return Cancelled()
        return Done()


def test_a_step_runs_beside_the_loop_and_gives_way_when_asked():
    inbox, patient = control.Inbox(), Patient()
    worker = Worker(patient, inbox.put)
    worker.submit(FETCH)
    assert inbox.get(5) == StepProgress(FETCH, 1, 2)
    assert worker.step == FETCH
    assert patient.began.wait(5)
    worker.cancel()
    assert inbox.get(5) == StepFinished(FETCH, Cancelled())
    assert worker.step == FETCH
    worker.settle()
    assert worker.step is None
    worker.stop(5)


def test_an_inbox_that_stays_empty_gives_a_tick():
    assert control.Inbox().get(0.01) == Tick()


def test_of_jobs_with_one_name_the_newest_waits_and_a_defect_ends_nothing():
    aide, done, go = Aide(), [], threading.Event()
    started, finished = threading.Event(), threading.Event()
    aide.submit("block", lambda: (started.set(), go.wait(5)))
    assert started.wait(5)
    aide.submit("verify", lambda: done.append("old"))
    aide.submit("defect", lambda: 1 / 0)
    aide.submit("verify", lambda: done.append("new"))
    aide.submit("last", finished.set)
    go.set()
    assert finished.wait(5)
    assert done == ["new"]
    aide.stop()


def test_the_loop_handles_events_until_it_is_told_to_stop(tmp_path):
    device = Device(tmp_path)
    inbox = control.Inbox()
    inbox.put(Tick())
    inbox.put(Stop())
    control.run(inbox, device.reconciler, ServiceManager({}), 1)
    assert device.state.device == DEVICE
    assert device.journal.entry.ended == device.world.boot, "what the next boot finds was left in order"


def test_an_engine_that_comes_up_late_is_noticed_at_once(tmp_path):
    device = Device(tmp_path)
    device.assign(1, main="1")
    device.world.power_cut()
    device.world.engine_down = True
    inbox, waits = control.Inbox(), []

    def get(seconds: float) -> object:
        waits.append(seconds)
        if len(waits) == 2:
            device.world.engine_down = False
        return Tick() if len(waits) < 4 else Stop()

    inbox.get = get
    control.run(inbox, device.reconciler, ServiceManager({}), 20)
    assert waits == [0.5, 0.5, 20, 20]


def test_the_loop_outlives_a_defect():
    class Defective:
        turns = 0
        summary = ""
        blind = False

        def start(self) -> None:
            """Nothing."""

        def handle(self, event: object) -> None:
            self.turns += 1
            raise RuntimeError("a defect")

        def stop(self) -> None:
            """Nothing."""

    defective, inbox = Defective(), control.Inbox()
    inbox.put(Tick())
    inbox.put(Stop())
    control.run(inbox, defective, ServiceManager({}), 1)
    assert defective.turns == 2


def test_two_agents_on_one_state_folder_refuse(tmp_path):
    with state_folder.only_agent(tmp_path):
        assert state_folder.running_agent(tmp_path) == os.getpid()
        with pytest.raises(Conflict, match="is in use by another agent"), state_folder.only_agent(tmp_path):
            pass
    assert state_folder.running_agent(tmp_path) is None


def agent(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wherry_agent.app", *arguments, "--state", str(state)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


class TestCommands:
    def test_the_version_is_printed_without_importing_an_engine(self):
        code = (
            "import sys\nfrom wherry_agent.app import main\n"
            "try:\n main(['--version'])\nexcept SystemExit:\n print('docker' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == ["wherry-agent 0.1.0", "False"]

    def test_what_is_not_enrolled_says_what_to_do(self, tmp_path):
        done = agent("run", state=tmp_path)
        assert done.returncode == 1
        assert "enrol" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_reader_that_goes_away_is_no_failure(self, tmp_path):
        code = "import sys; from wherry_agent import app; sys.exit(app.main(['doctor', '--state', sys.argv[1]]))"
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as closed:
            command = [sys.executable, "-c", code, str(tmp_path)]
            done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def test_status_without_an_agent_says_so(self, tmp_path, capsys):
        assert app.main(["status", "--state", str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert "this device is not enrolled.\n  Next: Make a join token" in said
        assert said.endswith("\n  Code: not_found (wherry explain not_found)\n")
        (tmp_path / "identity").mkdir()
        (tmp_path / "identity/device.json").write_text("{}")
        assert app.main(["status", "--state", str(tmp_path)]) == 1
        assert "no agent has run here yet" in capsys.readouterr().err

    def test_status_tells_versions_health_and_the_last_deployment_with_its_reason(self, device, tmp_path, capsys):
        device.assign(1, main="1")
        device.release("4", "wrong")
        device.assign(2, main="4")
        device.tick()
        state_folder.write_status(tmp_path)(device.state)
        assert app.main(["status", "--state", str(tmp_path)]) == 0
        text = capsys.readouterr().out
        for words in (
            "device cam-1 (generic-amd64), agent 0.1.0, NOT running, assignment 2",
            "slot main at 127.0.0.1:8500: serves vision 1",
            "healthy",
            "desired: vision 4",
            "vision 4 (", "rejected",
            "gate ready: passed",
            "gate golden: FAILED, 1 of 1 golden cases answered wrongly",
            "reason: release vision 4: golden gate",
            "rejected here: sha256:",
        ):  # fmt: skip
            assert words in text, text
        assert app.main(["status", "--state", str(tmp_path), "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["running"], shown["slots"][0]["serving"]["version"]) == (False, "1")


def test_status_says_what_is_down_and_how_far_a_download_is(device):
    assert "nothing was assigned yet" in status_text(device.state, True)
    device.world.registry = "down"
    device.assign(1, main="1")
    text = status_text(device.state, True)
    assert "serves nothing, empty" in text
    assert "fetching, 0 % fetched" in text
    assert RegistryError.code in text
    device.world.registry = "good"
    device.tick(60)
    device.world.hold_allowed = True
    for name in list(device.world.containers):
        del device.world.containers[name]
    device.world.images.clear()
    device.world.registry = "down"
    device.tick()
    assert "serves nothing, DOWN" in status_text(device.state, True)
    assert device.state.at > START
