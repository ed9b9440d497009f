"""Starts the agent, looks after it, and goes back to the version before when a new one does not prove itself.

It is the one program of a device that no release replaces: small, of the standard library alone, in a process into
which nothing of a release is loaded. What to start is decided by `choose` and `judge`, pure functions of
STATE/agent/versions; the rest starts a process, listens to it and waits.

Only one writes that file at a time: the agent while it runs, the supervisor while none does. It changes as a whole or
not at all, and whatever it says, there is something to start: at last the agent that was installed.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

FOLDER = "agent"
"""In the state folder: versions by the hex digits of their digest, and the file `versions`."""
FILE = "versions"
LOCK = "lock"
RUNS_AS = "WHERRY_AGENT_VERSION"
"""Environment of an agent that was started here: its version, or INSTALLED."""
INSTALLED = "installed"
CANNOT_RUN = 78
"""Exit code of an agent that no other version could help: not enrolled, wrong settings, another agent runs."""
ATTEMPTS = 3
"""Starts that a version on trial gets, whatever ended it: a power cut is not its fault, three of them are odd."""
CRASHES = 3
"""Ends in a row, each soon after its start, before a version that had proved itself gives way."""
STEADY_SECONDS = 300.0
HANG_SECONDS = 150.0
"""Silence of an agent's control loop that counts as its end; it speaks at every turn, each few seconds."""
STOP_SECONDS = 45.0
_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
_WORDS = 300
_VERDICTS_KEPT = 8

State = namedtuple(  # noqa: PYI024 - typing costs a megabyte here
    "State",
    ("current", "previous", "trial", "seconds", "attempts", "crashes", "before", "verdicts"),
    defaults=("", "", "", 0.0, 0, 0, "", ()),
)
State.__doc__ = """What STATE/agent/versions says. Versions are hex digits of digests; "" is the installed agent.

Attributes:
    current: what runs when nothing is on trial; previous: the one before, to fall back to.
    trial: a version that must prove itself; seconds: how long it may take.
    attempts: how often it was started; crashes: of `current`, in a row.
    before: what worked before the trial, in words of the agent's own.
    verdicts: (version, reason) of those that failed.
"""
End = namedtuple(  # noqa: PYI024
    "End", ("code", "seconds", "hung", "words"), defaults=(0, 0.0, False, "")
)
End.__doc__ = """How an agent ended.

Attributes:
    code: its exit code; negative for a signal.
    seconds: how long it lived.
    hung: it was silent or late, and was killed for it.
    words: its last line.
"""


# -- decisions --------------------------------------------------------------------------------------------


def choose(state: State, present: Collection[str]) -> tuple[State, str]:
    """What to start now, and what to write down before.

    Args:
        state: what the file says.
        present: versions whose files are here.
    """
    if state.trial and state.trial not in present:
        state = rejected(state, "its files are not there")
    if state.trial and state.attempts >= ATTEMPTS:
        state = rejected(state, f"was started {state.attempts} times and never proved itself")
    if state.trial:
        return state._replace(attempts=state.attempts + 1), state.trial
    while state.current and state.current not in present:
        state = fallen_back(state, "its files are not there any more")
    return state, state.current


def judge(state: State, version: str, end: End) -> tuple[State, float]:
    """What follows from the end of an agent: what to write down, and how long to wait before the next start.

    Args:
        state: what the file says now; the agent may have written it.
        version: which one ended.
        end: how.
    """
    if version == state.trial and version:
        if end.hung or state.attempts >= ATTEMPTS:
            return rejected(state, _how(end, state)), 0.0
        return state, _PAUSE
    if state.trial or version != state.current:  # it left for another one
        return state, 0.0
    crashes = 1 if end.seconds >= STEADY_SECONDS else min(state.crashes, CRASHES + 3) + 1
    if version and crashes >= CRASHES:
        return fallen_back(state, f"ended {crashes} times soon after its start; {_how(end, state)}"), 0.0
    return state._replace(crashes=crashes), min(_PAUSE * 2.0 ** (crashes - 1), _LONGEST_PAUSE)


def rejected(state: State, reason: str) -> State:
    """The trial is over; what ran before runs again."""
    verdicts = _with(state.verdicts, state.trial, reason)
    return state._replace(trial="", seconds=0.0, attempts=0, crashes=0, before="", verdicts=verdicts)


def fallen_back(state: State, reason: str) -> State:
    """The version before takes the place of the current one, and the installed agent that of the one before."""
    verdicts = _with(state.verdicts, state.current, reason)
    return state._replace(current=state.previous, previous="", crashes=0, verdicts=verdicts)


def _with(verdicts: tuple[tuple[str, str], ...], version: str, reason: str) -> tuple[tuple[str, str], ...]:
    others = [found for found in verdicts if found[0] != version]
    return (*others, (version, " ".join(reason.split())))[-_VERDICTS_KEPT:]


def _how(end: End, state: State) -> str:
    if end.hung and state.seconds and end.seconds >= state.seconds:
        words = f"it did not prove itself within {state.seconds:.0f} s"
    elif end.hung:
        words = f"its control loop was silent for {HANG_SECONDS:.0f} s"
    else:
        ended = f"exit code {end.code}" if end.code >= 0 else f"signal {-end.code}"
        words = f"it ended with {ended} after {end.seconds:.0f} s"
    return f"{words}; its last words: {end.words}" if end.words else words


# -- the file ---------------------------------------------------------------------------------------------


def read_state(folder: str) -> State:
    """What the file says; one that is absent or unreadable says that the installed agent runs."""
    try:
        with open(f"{folder}/{FILE}", encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs a megabyte here
            return _parse(file.read())
    except (OSError, ValueError):
        return State()


def _parse(text: str) -> State:
    values: dict[str, object] = {}
    verdicts: list[tuple[str, str]] = []
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "verdict":
            version, _, reason = value.partition(" ")
            verdicts.append((_version(version), reason))
        elif name in ("current", "previous", "trial"):
            values[name] = _version(value)
        elif name in ("attempts", "crashes"):
            values[name] = int(value)
        elif name == "seconds":
            values[name] = float(value)
        elif name == "before":
            values[name] = value
    return State(**values, verdicts=tuple(verdicts))


def _version(text: str) -> str:
    if text and (len(text) != 64 or set(text) - set("0123456789abcdef")):
        raise ValueError(text)
    return text


def write_state(folder: str, state: State) -> None:
    """Write the file: whole, or not at all; what it names was on disk before.

    Raises:
        OSError: it could not be written.
    """
    lines = [f"{name} {getattr(state, name)}" for name in State._fields if name != "verdicts"]
    lines += [f"verdict {version} {reason}" for version, reason in state.verdicts]
    fresh = f"{folder}/{FILE}.new"
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, ("\n".join(lines) + "\n").encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    os.rename(fresh, f"{folder}/{FILE}")  # noqa: PTH104
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Bring names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def present_versions(folder: str) -> frozenset[str]:
    """Versions whose files are here; what is being unpacked has another name."""
    try:
        return frozenset(name for name in os.listdir(folder) if len(name) == 64)  # noqa: PTH208
    except OSError:
        return frozenset()


# -- the process ------------------------------------------------------------------------------------------


class Supervisor:
    """One agent after the other, until it is told to stop.

    Args:
        state: the device's state folder.
        arguments: of `wherry-agent run`.
    """

    def __init__(self, state: str, arguments: list[str]) -> None:
        self._folder = f"{state}/{FOLDER}"
        self._arguments = arguments
        self._manager = os.environ.get("NOTIFY_SOCKET", "")
        self._stopping = False
        self._wake, wakes = os.pipe()
        os.set_blocking(wakes, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> int:
        """Supervise. Returns the exit code."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)  # noqa: PTH103
        lock = os.open(f"{self._folder}/{LOCK}", os.O_RDWR | os.O_CREAT, 0o600)
        # Each agent inherits it: the next supervisor waits for the last agent of a killed one.
        os.set_inheritable(lock, True)
        if not self._locked(lock):
            _say("another supervisor looks after this device")
            return CANNOT_RUN
        while not self._stopping:
            state, version = choose(read_state(self._folder), present_versions(self._folder))
            self._keep(state)
            end = self._look_after(version, state.seconds if version == state.trial else 0.0)
            if self._stopping:
                return 0
            state = read_state(self._folder)
            if end.code == CANNOT_RUN and version == state.current and not state.trial:
                return CANNOT_RUN
            following, wait = judge(state, version, end)
            self._keep(following)
            left = state.trial not in ("", version) or version not in (state.trial, state.current)
            words = "made way for another" if left else f"{_how(end, state)}; next start in {wait:.0f} s"
            _say(f"agent {version[:12] or INSTALLED} {words}")
            self._pause(wait)
        return 0

    def _locked(self, lock: int) -> bool:
        until = time.monotonic() + 30
        while time.monotonic() < until and not self._stopping:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.1)
                continue
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            return True
        return False

    def _keep(self, state: State) -> None:
        """On a full disk it goes on with what it knows: an agent that runs is worth more than its count of starts."""
        if state != read_state(self._folder):
            try:
                write_state(self._folder, state)
            except OSError as error:
                _say(f"{self._folder}/{FILE} cannot be written ({error})")

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping and (left := until - time.monotonic()) > 0:
            self._tell(b"WATCHDOG=1")
            select.select([self._wake], [], [], min(left, 10.0))
            _read(self._wake)

    def _look_after(self, version: str, allowed: float) -> End:
        """Start a version and stay with it to its end."""
        self._tell(b"EXTEND_TIMEOUT_USEC=180000000")  # a trial at boot may use up systemd's patience for a start
        ear = self._listen()
        words, said = os.pipe()
        os.set_blocking(words, False)
        try:
            pid = self._start(version, said)
        except OSError as error:
            os.close(words)
            return End(code=127, words=str(error))
        finally:
            os.close(said)
        child = _Child(pid, ear, words)
        try:
            return self._until_its_end(child, allowed, version)
        finally:
            os.close(words)
            if ear is not None:
                ear.close()

    def _start(self, version: str, said: int) -> int:
        environment = {**os.environ, RUNS_AS: version or INSTALLED, "NOTIFY_SOCKET": f"{self._folder}/notify"}
        command = [sys.executable, "-m", "wherry_agent", "run", *self._arguments]
        if version:
            place = f"{self._folder}/{version}"
            python = f"python{sys.version_info.major}.{sys.version_info.minor}"
            environment["PYTHONPATH"] = f"{place}/app:{place}/{python}"
            # Without site and the working folder: no package of another version can come in.
            command[1:1] = ["-S", "-P"]
        return os.posix_spawn(
            command[0], command, environment, file_actions=[(os.POSIX_SPAWN_DUP2, said, 2)]
        )  # fmt: skip

    def _listen(self) -> socket.socket | None:
        """Where the agent says how it is, as it would to systemd."""
        path = f"{self._folder}/notify"
        ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if os.path.lexists(path):
                os.unlink(path)  # noqa: PTH108
            ear.bind(path)
        except OSError as error:
            _say(f"{path} cannot be made ({error}): an agent that hangs is not noticed")
            ear.close()
            return None
        return ear

    def _until_its_end(self, child: _Child, allowed: float, version: str) -> End:
        asked = 0.0
        while True:
            if self._stopping and not asked:
                asked = time.monotonic()
                os.kill(child.pid, signal.SIGTERM)
            if allowed and child.lived > allowed and read_state(self._folder).trial != version:
                allowed = 0.0  # it has proved itself
            hung = child.silent > HANG_SECONDS or bool(allowed and child.lived > allowed)
            if hung if not asked else time.monotonic() - asked > STOP_SECONDS:
                os.kill(child.pid, signal.SIGKILL)
            select.select(child.sources(self._wake), [], [], 5.0)
            _read(self._wake)
            for message in child.messages():
                self._tell(message)
            found, status = os.waitpid(child.pid, os.WNOHANG)
            if found:
                child.messages()
                return End(os.waitstatus_to_exitcode(status), child.lived, hung, child.last_words())

    def _tell(self, message: bytes) -> None:
        """To systemd: as the main process of the unit, so that no other process needs to be believed."""
        lines = [line for line in message.split(b"\n") if line != b"STOPPING=1"]
        if not self._manager or not lines:
            return
        address = "\0" + self._manager[1:] if self._manager.startswith("@") else self._manager
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
            try:
                out.sendto(b"\n".join(lines), address)
            except OSError:
                return


class _Child:
    """An agent that runs: what it says, and since when it has been silent."""

    def __init__(self, pid: int, ear: socket.socket | None, words: int) -> None:
        self.pid = pid
        self._ear = ear
        self._words = words
        self._speaks = True
        self._tail = b""
        self._started = self._heard = time.monotonic()

    @property
    def lived(self) -> float:
        return time.monotonic() - self._started

    @property
    def silent(self) -> float:
        """Since its last message; 0 for one that cannot be heard."""
        return time.monotonic() - self._heard if self._ear else 0.0

    def sources(self, wake: int) -> list[int | socket.socket]:
        return [wake, *([self._words] if self._speaks else []), *([self._ear] if self._ear else [])]

    def messages(self) -> list[bytes]:
        """What it told its service manager; what it wrote to standard error goes on to ours."""
        while self._speaks and (part := _read(self._words)) is not None:
            self._speaks = bool(part)
            _write(part)
            self._tail = (self._tail + part)[-4096:]
        found = []
        while self._ear is not None:
            try:
                found.append(self._ear.recv(4096))
            except OSError:
                break
        if found:
            self._heard = time.monotonic()
        return found

    def last_words(self) -> str:
        lines = [line.strip() for line in self._tail.decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1][:_WORDS] if lines else ""


def _read(handle: int) -> bytes | None:
    """What there is; empty at the end, None when nothing came yet."""
    try:
        return os.read(handle, 65536)
    except OSError:
        return None


def _write(data: bytes) -> None:
    try:
        os.write(2, data)
    except OSError:
        return


def _say(words: str) -> None:
    _write(f"supervisor: {words}\n".encode())


def main(arguments: list[str]) -> int:
    """`wherry-agent supervise`: the state folder, then the arguments of `wherry-agent run`."""
    os.umask(0o077)
    return Supervisor(arguments[0], arguments[1:]).run()
