"""Starts the agent, looks after it, and goes back to the version before when a new one does not prove itself.

It is the one program of a device that no release replaces: small, of the standard library alone, in a process into
which nothing of a release is loaded. What to start is decided by the pure rules of `supervision`; here a process is
started, listened to and waited for.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import time

from wherry_agent.supervision import (
    CANNOT_RUN,
    FILE,
    FOLDER,
    HANG_SECONDS,
    INSTALLED,
    LATE_SILENCE_SECONDS,
    LOCK,
    RUNS_AS,
    End,
    State,
    choose,
    how,
    judge,
    present_versions,
    read_state,
    write_state,
)

STOP_SECONDS = 45.0
_WORDS = 300


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
        self._unwritten: tuple[State, State] | None = None
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
            state, version = choose(self._known(), present_versions(self._folder))
            self._keep(state)
            end = self._look_after(version, state.seconds if version == state.trial else 0.0)
            if self._stopping:
                return 0
            state = self._known()
            if end.code == CANNOT_RUN and version == state.current and not state.trial:
                return CANNOT_RUN
            following, wait = judge(state, version, end)
            self._keep(following)
            left = state.trial not in ("", version) or version not in (state.trial, state.current)
            words = "made way for another" if left else f"{how(end, state)}; next start in {wait:.0f} s"
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

    def _known(self) -> State:
        """What the file says, or would say if the disk had taken it; what an agent wrote since counts more."""
        found = read_state(self._folder)
        if self._unwritten is None or self._unwritten[0] != found:
            return found
        return self._unwritten[1]

    def _keep(self, state: State) -> None:
        """On a full disk it goes on with what it knows: an agent that runs is worth more than a file that says so."""
        found = read_state(self._folder)
        self._unwritten = None
        if state != found:
            try:
                write_state(self._folder, state)
            except OSError as error:
                self._unwritten = (found, state)
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
            late = bool(allowed and child.lived > allowed)
            hung = child.silent > (LATE_SILENCE_SECONDS if late else HANG_SECONDS)
            if (late or hung) if not asked else time.monotonic() - asked > STOP_SECONDS:
                os.kill(child.pid, signal.SIGKILL)
            select.select(child.sources(self._wake), [], [], 5.0)
            _read(self._wake)
            for message in child.messages():
                self._tell(message)
            found, status = os.waitpid(child.pid, os.WNOHANG)
            if found:
                child.messages()
                return End(os.waitstatus_to_exitcode(status), child.lived, hung, child.last_words(), late)

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
