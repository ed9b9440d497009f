"""The doctor: verdicts as sentences, looks that hang or break, and the command on a machine that has nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from wherry.profile import HostFacts, load_profiles
from wherry.questions import Check
from wherry_agent import doctor, examination, registry_examination, verdicts
from wherry_agent.config import AgentConfig
from wherry_agent.verdicts import AcceleratorFacts, DiskFacts, EngineFacts, IdentityFacts, PeerFacts, ServiceFacts

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
GB = 10**9
PROFILES = load_profiles()
AMD, JETSON = PROFILES["generic-amd64"], next(p for p in PROFILES.values() if p.run.runtime == "nvidia")
FACTS = HostFacts(architecture="x86_64", memory_mb=8000)
ENGINE = EngineFacts("unix:///x.sock", "usable", version="26.1", api=(1, 45), driver="overlay2", root="/var/lib/docker")
DISK = DiskFacts("/var/lib/docker", 50 * GB, 100 * GB, 900, 1000, "ext4")
ME = IdentityFacts("cam-1", "generic-amd64", NOW - DAY, NOW + 6 * DAY)
PEER = PeerFacts("server:8470")


def changed(facts, **changes):
    from dataclasses import replace

    return replace(facts, **changes)


@pytest.mark.parametrize(
    ("check", "level", "words"),
    [
        (verdicts.profile(FACTS, AMD, ""), "ok", "generic-amd64"),
        (verdicts.profile(FACTS, None, ""), "error", "none fits"),
        (verdicts.profile(FACTS, AMD, "generic-arm64"), "warning", "enrolled as generic-arm64, detected generic-amd64"),
        (verdicts.engine(ENGINE), "ok", "Docker 26.1"),
        (verdicts.engine(EngineFacts("unix:///x.sock", "absent")), "error", "there is no socket"),
        (verdicts.engine(EngineFacts("unix:///x.sock", "forbidden")), "error", "this user may not use"),
        (verdicts.engine(EngineFacts("unix:///x.sock", "usable", "no answer in time")), "error", "no answer in time"),
        (verdicts.engine(changed(ENGINE, api=(1, 39))), "error", "too old"),
        (verdicts.storage(ENGINE), "ok", "overlay2"),
        (verdicts.storage(changed(ENGINE, driver="vfs")), "warning", "wastes"),
        (verdicts.cgroups(ENGINE), "ok", "limit"),
        (verdicts.cgroups(changed(ENGINE, memory_limits=False)), "error", "does not limit"),
        (verdicts.disk(DISK, GB), "ok", "50.0 of 100.0 GB free"),
        (verdicts.disk(changed(DISK, free_bytes=int(1.5 * GB)), GB), "warning", "little room"),
        (verdicts.disk(changed(DISK, free_bytes=GB // 2), GB), "error", "1.0 GB must stay free"),
        (verdicts.disk(DiskFacts("/x", problem="Input/output error"), GB), "error", "Input/output error"),
        (verdicts.inodes(DISK), "ok", "90 %"),
        (verdicts.inodes(changed(DISK, free_inodes=40)), "warning", "4 %"),
        (verdicts.inodes(changed(DISK, free_inodes=0)), "error", "0 %"),
        (verdicts.inodes(changed(DISK, free_inodes=0, inodes=0)), "ok", "as needed"),
        (verdicts.state_folder(DISK), "ok", "writable"),
        (verdicts.state_folder(changed(DISK, kind="tmpfs")), "warning", "forgets"),
        (verdicts.state_folder(changed(DISK, writable=False)), "error", "cannot be written"),
        (verdicts.clock(NOW, NOW - DAY, ME, timedelta(seconds=1)), "ok", "agrees"),
        (verdicts.clock(NOW, NOW - DAY, None, None), "ok", "2030-01-01"),
        (verdicts.clock(NOW, NOW + DAY, None, None), "error", "before this program was made"),
        (verdicts.clock(NOW - 2 * DAY, NOW - 9 * DAY, ME, None), "error", "before the device's certificate begins"),
        (verdicts.clock(NOW, NOW - DAY, ME, 3 * DAY), "error", "3 days ahead of the server's"),
        (verdicts.clock(NOW, NOW - DAY, ME, -timedelta(minutes=10)), "error", "10 minutes behind the server's"),
        (verdicts.clock(NOW, NOW - DAY, ME, timedelta(seconds=60)), "warning", "60 s off"),
        (verdicts.identity(None, NOW), "warning", "not enrolled"),
        (verdicts.identity(ME, NOW), "ok", "valid until"),
        (verdicts.identity(ME, NOW + 5 * DAY), "warning", "should have been renewed"),
        (verdicts.identity(ME, NOW + 7 * DAY), "error", "expired"),
        (verdicts.identity(IdentityFacts("", problem="key device.pem: cannot be read"), NOW), "error", "device.pem"),
        (verdicts.broker(PEER), "ok", "accepts"),
        (verdicts.broker(changed(PEER, problem="Connection refused")), "error", "Connection refused"),
        (verdicts.server(PEER), "ok", "answers"),
        (verdicts.server(changed(PEER, problem="no answer in time")), "error", "no answer"),
        (verdicts.registry([]), "ok", "nothing was assigned"),
        (verdicts.registry([PEER, changed(PEER, address="r:5000", problem="no route")]), "error", "r:5000: no route"),
        (verdicts.registry([PEER]), "ok", "lets this device in"),
        (verdicts.registry([changed(PEER, detail="accepts connections")]), "ok", "accepts connections"),
        (verdicts.registry([changed(PEER, problem="asks for a login", fix="Log in")]), "error", "asks for a login"),
        (verdicts.packet_filter(""), "ok", "can be made"),
        (
            verdicts.packet_filter("cannot be run ([Errno 2] No such file or directory: 'nft')"),
            "error",
            "not installed",
        ),
        (verdicts.packet_filter("Operation not permitted (you must be root)"), "error", "may not change"),
        (verdicts.packet_filter("Could not process rule: redirect"), "error", "redirect"),
        (verdicts.memory(8000, 4000), "ok", "4000 of 8000 MB"),
        (verdicts.memory(512, 100), "warning", "swaps stop the old model first"),
        (verdicts.memory(512, 10), "error", "10 of 512 MB"),
        (verdicts.service(ServiceFacts(True, "active"), True), "ok", "unit active"),
        (verdicts.service(ServiceFacts(True), True), "ok", "runs"),
        (verdicts.service(ServiceFacts(True, "inactive"), True), "warning", "not as a service"),
        (verdicts.service(ServiceFacts(False, "failed"), True), "error", "does not run"),
        (verdicts.service(ServiceFacts(False), False), "ok", "not enrolled yet"),
    ],
)
def test_what_was_found_becomes_a_verdict(check, level, words):
    assert (check.level, words in check.detail) == (level, True), check
    assert bool(check.fix) == (level != "ok"), "what is wrong says how to mend it"


def test_only_a_profile_that_passes_hardware_through_has_an_accelerator_to_check():
    assert verdicts.accelerator(AMD, AcceleratorFacts(), frozenset({"runc"})) is None
    check = verdicts.accelerator(JETSON, AcceleratorFacts(), frozenset({"runc"}))
    assert (check.level, "no runtime 'nvidia'" in check.detail) == ("error", True)
    runtimes = frozenset({"runc", "nvidia"})
    check = verdicts.accelerator(JETSON, AcceleratorFacts(["/dev/nvhost-gpu"], ["video"]), runtimes)
    assert (check.level, check.detail) == ("error", "missing: device /dev/nvhost-gpu, group video")
    assert verdicts.accelerator(JETSON, AcceleratorFacts(), runtimes).level == "ok"


def test_a_look_that_hangs_or_breaks_is_a_finding_and_the_others_stand():
    forever = threading.Event()

    def hangs():
        forever.wait(60)
        return []

    def breaks():
        raise ZeroDivisionError

    fine = verdicts.ok("fine", "well")
    found = doctor.side_by_side({"hangs": hangs, "breaks": breaks, "fine": lambda: [fine]}, 2.0)
    forever.set()
    assert [check.level for check in found] == ["error", "error", "ok"]
    assert "no end after" in found[0].detail
    assert "ZeroDivisionError" in found[1].detail


def test_the_text_is_aligned_and_says_what_to_do_beneath():
    checks = [
        Check(name="disk", level="ok", detail="fine"),
        Check(
            name="state folder", level="warning", detail="word " * 30, fix="Run `wherry-agent enroll LINE` " + "x " * 40
        ),
    ]
    text = doctor.doctor_text(checks, colour=False)
    lines = text.splitlines()
    assert lines[2] == "  ok       disk          fine"
    assert lines[-1] == "2 checks: 1 warning"
    assert all(line.startswith(" " * 25) for line in lines[4:-2])
    assert all(len(line) <= 100 for line in lines)
    assert "`wherry-agent enroll LINE`" in text, "a command stays on one line"
    assert "\033[33mwarning" in doctor.doctor_text(checks, colour=True)
    assert doctor.exit_code(checks) == 0
    assert doctor.exit_code([verdicts.error("x", "y", "z")]) == 1


class TestLooks:
    def test_an_engine_that_is_not_there_that_is_shut_and_that_hangs(self, tmp_path):
        import socket

        assert examination.look_at_engine(f"unix://{tmp_path}/absent").socket == "absent"
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(tmp_path / "silent"))
            silent.listen()
            facts = examination.look_at_engine(f"unix://{tmp_path}/silent")
        assert (facts.socket, facts.problem) == ("usable", "no answer in time")

    @pytest.mark.docker
    def test_a_real_engine_names_itself(self):
        facts = examination.look_at_engine("unix:///var/run/docker.sock")
        assert facts.problem == ""
        assert facts.api >= (1, 40)
        assert facts.driver
        assert "runc" in facts.runtimes

    def test_a_folder_that_is_still_to_be_made_is_judged_by_the_one_above(self, tmp_path):
        facts = examination.look_at_disk(tmp_path / "a/b", write=True)
        assert (facts.problem, facts.writable) == ("", True)
        assert facts.total_bytes > 0
        assert facts.kind
        assert not (tmp_path / "a").exists()

    def test_a_folder_that_takes_no_file_is_not_writable(self):
        assert not examination.look_at_disk(Path("/proc/sys"), write=True).writable

    def test_the_registries_of_the_journal_are_read_without_writing(self, device, tmp_path):
        device.assign(1, main="1")
        known = registry_examination.assigned_repositories(device.folder)
        assert known == {"127.0.0.1:5000": "127.0.0.1:5000/vision"}
        with pytest.raises(sqlite3.OperationalError, match="locked"):  # the lock of who writes it is as it was
            sqlite3.connect(device.folder / "journal.db", timeout=0).execute("SELECT * FROM facts")
        assert registry_examination.assigned_repositories(tmp_path / "absent") == {}
        (tmp_path / "other").mkdir()
        (tmp_path / "other/journal.db").write_bytes(b"garbage" * 1000)
        assert registry_examination.assigned_repositories(tmp_path / "other") == {}

    def test_device_nodes_and_groups_that_are_missing_are_named(self):
        run = AMD.run.model_copy(update={"devices": ["/dev/null", "/dev/none"], "groups": ["root", "no-such-group"]})
        facts = examination.look_at_accelerator(AMD.model_copy(update={"run": run}))
        assert (list(facts.missing_devices), list(facts.missing_groups)) == (["/dev/none"], ["no-such-group"])


def test_before_it_is_enrolled_it_checks_what_it_can(tmp_path):
    checks = {check.name: check for check in doctor.examine(tmp_path, AgentConfig(engine_url=f"unix://{tmp_path}/no"))}
    assert checks["engine"].level == "error"
    assert "docker.io" in checks["engine"].fix
    assert checks["identity"].level == "warning"
    assert {"profile", "memory", "nftables", "state folder", "clock", "agent", "disk", "inodes"} <= set(checks)
    assert "broker" not in checks


def test_the_command_without_an_engine_ends_with_1_and_needs_no_docker_sdk(tmp_path):
    code = (
        "import sys\nfrom wherry_agent.app import main\ncode = main(sys.argv[1:])\nprint(code, 'docker' in sys.modules)"
    )
    environ = os.environ | {"WHERRY_AGENT_ENGINE_URL": f"unix://{tmp_path}/no"}
    command = [sys.executable, "-c", code, "doctor", "--json", "--state", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    *document, last = done.stdout.splitlines()
    assert last == "1 False"
    assert {"name", "level", "detail", "fix"} == set(json.loads("\n".join(document))["checks"][0])
