"""The supervisor: what it starts next, that a kill at any moment leaves it something to start, and real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wherry_agent import supervision, supervisor
from wherry_agent.supervision import (
    CANNOT_RUN,
    INSTALLED,
    RUNS_AS,
    WORLD,
    End,
    State,
    choose,
    judge,
    read_state,
    write_state,
)
from wherry_agent.version_store import VersionStore

A, B, C = "a" * 64, "b" * 64, "c" * 64
CRASHED = End(code=1, seconds=0.5, words="ImportError: broken")

FULL = End(code=WORLD, seconds=0.5, words="adapter.store")


class TestWhatIsStarted:
    def test_without_a_file_the_installed_agent(self, tmp_path):
        assert choose(read_state(str(tmp_path)), []) == (State(), "")

    def test_a_version_that_proved_itself(self):
        assert choose(State(current=A), [A]) == (State(current=A), A)

    def test_a_version_on_trial_is_counted_before_it_starts(self):
        assert choose(State(trial=B, current=A), [A, B]) == (State(trial=B, current=A, attempts=1), B)

    def test_a_version_on_trial_that_was_started_three_times_is_not_started_again(self):
        state, version = choose(State(trial=B, current=A, attempts=3), [A, B])
        assert (version, state.trial, state.verdicts) == (A, "", ((B, "was started 3 times and never proved itself"),))

    def test_files_that_are_missing_lead_to_the_version_before_and_then_to_the_installed_agent(self):
        state, version = choose(State(trial=C, current=B, previous=A), [A])
        assert version == A
        assert [found for found, _ in state.verdicts] == [C, B]
        assert choose(State(current=B, previous=A), [])[1] == ""

    @pytest.mark.parametrize(
        "text", ["", "current x", "attempts many", "\x00\xff", f"current {A[:-1]}", "trial ../../etc"]
    )
    def test_a_file_that_cannot_be_read_means_the_installed_agent(self, tmp_path, text):
        (tmp_path / "versions").write_text(text, encoding="latin-1")
        assert read_state(str(tmp_path)) == State()


class TestWhatFollowsFromAnEnd:
    def test_an_agent_that_ordered_a_trial_makes_way_at_once(self):
        state = State(current=A, trial=B)
        assert judge(state, A, End()) == (state, 0.0)

    def test_one_on_trial_that_crashes_is_started_again_twice(self):
        state = State(current=A, trial=B, attempts=2)
        assert judge(state, B, CRASHED) == (state, 2.0)
        following, wait = judge(state._replace(attempts=3), B, CRASHED)
        reason = "it ended with exit code 1 after 0 s; its last words: ImportError: broken"
        assert (following, wait) == (State(current=A, verdicts=((B, reason),)), 0.0)

    def test_one_on_trial_that_is_late_gets_no_second_chance(self):
        following, wait = judge(State(trial=B, attempts=1, seconds=90.0), B, End(code=-9, seconds=91, hung=True))
        assert (following, wait) == (State(verdicts=((B, "it did not prove itself within 90 s"),)), 0.0)

    def test_one_on_trial_that_is_silent_before_it_is_late_is_blamed_for_that(self):
        following, _ = judge(State(trial=B, attempts=1, seconds=900.0), B, End(code=-9, seconds=151, hung=True))
        assert following.verdicts == ((B, "its control loop was silent for 150 s"),)

    def test_one_on_trial_that_is_late_but_speaks_has_the_rest_of_its_starts(self):
        late = End(code=-9, seconds=91, late=True)
        state = State(trial=B, attempts=2, seconds=90.0)
        assert judge(state, B, late) == (state, 2.0)
        following, _ = judge(state._replace(attempts=3), B, late)
        assert following == State(verdicts=((B, "it did not prove itself within 90 s"),))

    def test_one_on_trial_that_a_full_disk_ends_is_not_rejected_for_it(self):
        state = State(current=A, trial=B, attempts=2, seconds=90.0)
        assert judge(state, B, FULL) == (state, 20.0)
        assert judge(state._replace(attempts=3), B, FULL) == (State(current=A), 20.0)

    def test_one_that_had_proved_itself_gives_way_on_a_full_disk_too_but_is_not_rejected(self):
        """The disk may be a pretext: another version gets its chance, and the server's wish brings this one back."""
        state, waits = State(current=B, previous=A), []
        for _ in range(3):
            state, wait = judge(state, B, FULL)
            waits.append(wait)
        assert (state, waits) == (State(current=A), [20.0, 20.0, 0.0])

    def test_one_that_gave_itself_up_is_followed_by_the_one_before(self):
        assert judge(State(current=A), B, End()) == (State(current=A), 0.0)

    def test_a_version_that_had_proved_itself_gives_way_after_three_crashes_in_a_row(self):
        state, waits = State(current=B, previous=A), []
        for _ in range(2):
            state, wait = judge(state, B, CRASHED)
            waits.append(wait)
        assert (state.crashes, waits) == (2, [2.0, 4.0])
        state, wait = judge(state, B, CRASHED)
        assert (state.current, state.previous, state.crashes, wait) == (A, "", 0, 0.0)
        assert "ended 3 times soon after its start; it ended with exit code 1" in dict(state.verdicts)[B]
        for _ in range(3):
            state, _ = judge(state, A, CRASHED)
        assert (state.current, choose(state, [A, B])[1]) == ("", "")

    def test_a_crash_after_hours_is_the_first_one_again(self):
        state, wait = judge(State(current=B, previous=A, crashes=2), B, End(code=1, seconds=7200))
        assert (state.current, state.crashes, wait) == (B, 1, 2.0)

    def test_the_installed_agent_is_tried_for_ever_and_the_file_is_not_written_for_ever(self):
        state, waits, written = State(), [], 0
        for _ in range(40):
            following, wait = judge(state, "", CRASHED)
            written += following != state
            state = following
            waits.append(wait)
        assert state.current == ""
        assert (waits[:5], waits[-1]) == ([2.0, 4.0, 8.0, 16.0, 32.0], 60.0)
        assert written < 10


class Kill(BaseException):
    """Power is cut."""


class Power:
    """Cuts power before or in the middle of the nth call that touches the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.left = at
        for name in ("open", "write", "fsync", "rename"):
            monkeypatch.setattr(supervision.os, name, self._cut(name, getattr(os, name)))

    def _cut(self, name, real):
        def call(first, *rest, **options):
            self.left -= 1
            if self.left == 0:
                if name == "write":
                    real(first, rest[0][: len(rest[0]) // 2])
                raise Kill
            return real(first, *rest, **options)

        return call


@pytest.mark.parametrize("behaviour", ["good", "crashes", "crashes later"])
def test_a_kill_at_any_write_leaves_something_to_start_and_the_same_end(tmp_path, monkeypatch, behaviour):
    """A whole update again and again, with power cut at each call in turn, by supervisor and agent alike."""
    kills, at = 0, 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        for version in (A, B):
            (folder / "agent" / version).mkdir(parents=True)
        write_state(str(folder / "agent"), State(current=A))
        with monkeypatch.context() as patch:
            power = Power(patch, at)
            ended = live(folder, behaviour)
        kills += power.left <= 0
        assert ended.trial == ""
        if behaviour == "good":
            # A power cut after its order may have cost the order: then the agent before orders again.
            assert (ended.current, ended.previous) == (B, A)
        else:
            assert ended.current == A
            assert B in dict(ended.verdicts)
        if power.left > 0:
            break
    assert kills > 10


def live(folder: Path, behaviour: str) -> State:
    """Supervisor and agents take turns until nothing more happens; power comes back after each cut."""
    starts = []
    for _ in range(40):
        try:
            while True:
                state, version = choose(
                    read_state(str(folder / "agent")), supervision.present_versions(str(folder / "agent"))
                )
                if state != read_state(str(folder / "agent")):
                    write_state(str(folder / "agent"), state)
                assert version in (A, B), "the installed agent is not called for"
                starts.append(version)
                assert len(starts) < 100, f"no end: {[version[0] for version in starts]}"
                end = agent(folder, version, behaviour)
                if end is None:
                    return read_state(str(folder / "agent"))
                state, _ = judge(read_state(str(folder / "agent")), version, end)
                write_state(str(folder / "agent"), state)
        except Kill:
            continue
    raise AssertionError(f"no end: {[version[0] for version in starts]}")


def agent(folder: Path, version: str, behaviour: str) -> End | None:
    """What an agent does with the file; None when it goes on for ever."""
    store = VersionStore(folder, {RUNS_AS: version})
    state = read_state(str(folder / "agent"))
    if version == A:
        if B in dict(state.verdicts):
            return None
        store.order(f"sha256:{B}", 60, "link")
        return End()
    if behaviour == "crashes":
        return CRASHED
    if state.current == B and behaviour == "crashes later":
        return CRASHED
    store.confirm()
    return None if behaviour == "good" else CRASHED


class Dry(supervisor.Supervisor):
    """A supervisor without processes: each agent ends as it is told to."""

    def __init__(self, state: Path, ends: list[End]) -> None:
        self._folder = str(state / "agent")
        self._stopping, self._unwritten = False, None
        self._ends = ends
        self.started: list[str] = []

    def _locked(self, lock: int) -> bool:
        os.close(lock)
        return True

    def _look_after(self, version: str, allowed: float) -> End:
        self.started.append(version[:1] or INSTALLED)
        end = self._ends[len(self.started) - 1]
        self._stopping = len(self.started) == len(self._ends)
        return end

    def _pause(self, seconds: float) -> None:
        pass


class TestOnADiskThatCannotBeWritten:
    @pytest.fixture
    def state(self, tmp_path):
        for version in (A, B):
            (tmp_path / "agent" / version).mkdir(parents=True)
        return tmp_path

    def full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(supervisor, "write_state", refuse)

    def test_a_broken_trial_still_ends_after_three_starts(self, state, monkeypatch):
        write_state(str(state / "agent"), State(current=A, trial=B, seconds=100.0))
        self.full(monkeypatch)
        dry = Dry(state, [CRASHED] * 3 + [End(seconds=1000.0)])
        assert dry.run() == 0
        assert dry.started == ["b", "b", "b", "a"]

    def test_a_version_that_crashes_still_gives_way_to_the_one_before(self, state, monkeypatch):
        write_state(str(state / "agent"), State(current=B, previous=A))
        self.full(monkeypatch)
        dry = Dry(state, [CRASHED] * 7)
        dry.run()
        assert dry.started == ["b", "b", "b", "a", "a", "a", INSTALLED]

    def test_what_it_knew_is_written_when_there_is_room_and_an_agents_order_counts_more(self, state, monkeypatch):
        write_state(str(state / "agent"), State(current=B, previous=A))
        with monkeypatch.context() as patch:
            self.full(patch)
            dry = Dry(state, [CRASHED] * 3)
            dry.run()
        dry._keep(dry._known())
        assert read_state(str(state / "agent")).crashes == 2
        with monkeypatch.context() as patch:
            self.full(patch)
            dry._keep(State())
        write_state(str(state / "agent"), State(current=A))
        assert dry._known() == State(current=A)


FAKE_AGENT = """
import os, signal, socket, sys, time
log, state = os.environ["FAKE_LOG"], sys.argv[sys.argv.index("--state") + 1]
name = os.environ["WHERRY_AGENT_VERSION"]
def say(words):
    with open(log, "a") as file:
        file.write(f"{name[:9]} {words}\\n")
def tell(words):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        try:
            out.sendto(words.encode(), os.environ["NOTIFY_SOCKET"])
        except OSError:
            pass  # nobody listens any more
def stop(*_):
    tell("STOPPING=1")
    say("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
say("started")
tell("READY=1\\nSTATUS=well")
BEHAVIOUR
parent = os.getppid()
while os.getppid() == parent:
    tell("WATCHDOG=1")
    time.sleep(0.05)
say("orphaned")
"""


PROVES_ITSELF = """
import importlib.util
found = importlib.util.spec_from_file_location("supervisor", MODULE)
module = importlib.util.module_from_spec(found)
found.loader.exec_module(module)
module.write_state(state + "/agent", module.State(current=name))
say("confirmed")
time.sleep(15.5)
say("lives")
"""


class Real:
    """A real supervisor with agents that are a few lines long."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.log = folder / "log"
        self.log.touch()
        (self.state / "agent").mkdir(parents=True)
        self._write(folder / "base", "pass")
        self.processes: list[subprocess.Popen[bytes]] = []

    def _write(self, place: Path, behaviour: str) -> None:
        package = place / "wherry_agent"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(FAKE_AGENT.replace("BEHAVIOUR", behaviour))

    def version(self, digest: str, behaviour: str) -> None:
        self._write(self.state / "agent" / digest / "app", behaviour)

    def base(self, behaviour: str) -> None:
        (self.folder / "base/wherry_agent/__main__.py").write_text(FAKE_AGENT.replace("BEHAVIOUR", behaviour))

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        here = str(Path(supervisor.__file__).parent.parent)
        code = "import sys; sys.path.append(sys.argv[1]); from wherry_agent import supervisor; "
        code += "sys.exit(supervisor.main(sys.argv[2:]))"
        found = {"PYTHONPATH": str(self.folder / "base"), "FAKE_LOG": str(self.log), **env}
        with (self.folder / "stderr").open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code, here, str(self.state), "--state", str(self.state)],
                env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"} | found,
                stderr=said,
            )
        self.processes.append(process)
        return process

    def wait_for(self, *lines: str) -> None:
        """Until these lines have been logged, in this order."""
        until = time.monotonic() + 60
        while True:
            rest = iter(self.log.read_text().splitlines())
            if all(line in rest for line in lines):
                return
            assert time.monotonic() < until, f"{lines} not in:\n{self.log.read_text()}\n{self.stderr()}"
            time.sleep(0.02)

    def read(self) -> State:
        return read_state(str(self.state / "agent"))

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()


@pytest.fixture
def real(tmp_path):
    made = Real(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


class TestRealProcesses:
    def test_a_trial_that_raises_is_taken_back_and_its_last_words_are_known(self, real):
        real.version(A, "raise ImportError('no module named courage')")
        write_state(str(real.state / "agent"), State(trial=A, seconds=60.0))
        real.start()
        real.wait_for("aaaaaaaaa started", "aaaaaaaaa started", "aaaaaaaaa started", "installed started")
        assert "ImportError: no module named courage" in dict(real.read().verdicts)[A]
        assert "Traceback" in real.stderr()

    def test_a_trial_that_does_not_prove_itself_in_time_is_ended(self, real):
        real.version(A, "pass")
        write_state(str(real.state / "agent"), State(trial=A, seconds=1.0))
        real.start()
        real.wait_for("installed started")
        assert real.read() == State(verdicts=((A, "it did not prove itself within 1 s"),))
        assert real.stderr().count("it did not prove itself") == 3, "it spoke, so that it had all of its starts"

    def test_a_trial_that_proves_itself_outlives_its_deadline(self, real):
        real.version(A, PROVES_ITSELF.replace("MODULE", repr(supervision.__file__)))
        write_state(str(real.state / "agent"), State(trial=A, seconds=15.0))
        real.start()
        real.wait_for("aaaaaaaaa confirmed", "aaaaaaaaa lives")
        assert real.read() == State(current=A)

    def test_what_an_agent_says_goes_on_to_systemd_but_not_its_end(self, real):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(real.folder / "systemd"))
            systemd.settimeout(60)
            process = real.start(NOTIFY_SOCKET=str(real.folder / "systemd"))
            assert systemd.recv(4096).startswith(b"EXTEND_TIMEOUT_USEC=")
            heard = [systemd.recv(4096) for _ in range(4)]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            systemd.setblocking(False)
            while True:
                try:
                    heard.append(systemd.recv(4096))
                except BlockingIOError:
                    break
        assert heard[0] == b"READY=1\nSTATUS=well"
        assert heard[1] == b"WATCHDOG=1"
        assert not any(b"STOPPING" in message for message in heard)
        real.wait_for("installed stopped")

    def test_an_agent_that_no_version_could_help_ends_the_supervisor_too(self, real):
        real.base(f"sys.exit({CANNOT_RUN})")
        assert real.start().wait(60) == CANNOT_RUN
        assert real.read() == State()

    def test_a_supervisor_waits_for_the_agent_of_one_that_was_killed(self, real):
        first = real.start()
        real.wait_for("installed started")
        first.kill()
        first.wait(60)
        real.start()
        real.wait_for("installed started", "installed orphaned", "installed started")

    def test_its_memory_is_small(self, real):
        process = real.start()
        real.wait_for("installed started")
        status = Path(f"/proc/{process.pid}/status").read_text()
        kilobytes = int(status.partition("VmRSS:")[2].split()[0])
        assert kilobytes < 13_000  # 10.4 MB, of which 4.3 MB are not shared with the agent's own Python


def test_an_agent_knows_what_it_was_started_as(tmp_path):
    assert not VersionStore(tmp_path, {}).read().supervised
    installed = VersionStore(tmp_path, {RUNS_AS: INSTALLED}).read()
    assert (installed.supervised, installed.digest) == (True, "")
    assert VersionStore(tmp_path, {RUNS_AS: A}).read().digest == f"sha256:{A}"
