"""Slots' stable ports by haproxy: for images that cannot drain, and where callers must wait while versions change.

haproxy outlives the agent: its unit runs it where the agent is a service, else it is started on its own. It is
asked and told over its master's socket, so that workers that are leaving after a reload hear of it, too.
"""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from wherry.errors import RouteError
from wherry_agent.route.haproxy_config import (
    CONFIG_FILE,
    LUA_FILE,
    MAP_FILE,
    MASTER_SOCKET,
    USUAL,
    Answers,
    Bounds,
    Led,
    Targets,
    map_value,
    read_answers,
    read_map,
    read_open,
    render,
    render_map,
    servers_of,
    structure,
    targets_of,
    turn,
)

_log = logging.getLogger(__name__)
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_AGENT_UNIT = "wherry-agent.service"
_UNIT = Path("/etc/systemd/system/wherry-haproxy.path")
_CGROUP = Path("/proc/self/cgroup")
_MOST_BYTES = 4_194_304
_USER = "haproxy"
_FIX = "See `wherry-agent doctor` and, where systemd runs, `systemctl status wherry-haproxy`"


class HaproxyRoute:
    """Leads stable ports by a haproxy of its own.

    Args:
        folder: holds its configuration and its sockets; made when it is first needed.
        addresses: where callers reach the stable ports.
        bounds: how much it may take.
        before_reload: called before a new process begins to count at zero.
        by_unit: a service manager starts it once the configuration is there; else it is started from here.
        timeout: seconds that haproxy may take to start, to load anew or to answer.
    """

    def __init__(
        self,
        folder: Path,
        addresses: tuple[str, ...] = ("127.0.0.1",),
        bounds: Bounds = USUAL,
        before_reload: Callable[[], None] = lambda: None,
        by_unit: bool = False,
        timeout: float = 10.0,
    ) -> None:
        self._folder = folder
        self._addresses = addresses
        self._bounds = bounds
        self._before_reload = before_reload
        self._by_unit = by_unit
        self._timeout = timeout

    def read(self) -> Mapping[int, int]:
        """Stable port to the port it is turned to: what runs and what is written must say the same.

        A port that haproxy would lead elsewhere after a restart is not turned, nor is one whose callers wait.
        """
        written = self._written()
        if not written or not (workers := self._workers()):
            return {}
        running = self._led(workers[0])
        return {stable: led.port for stable, led in written.items() if led.port and running.get(stable) == led}

    def written(self) -> dict[int, int | None]:
        """What is written; empty when nothing is. It lasts over restarts of everything."""
        return targets_of(self._written())

    def apply(self, targets: Targets, start: bool = True) -> None:
        """Make it exactly this; None lets callers wait. Requests that are being answered are let finish.

        Args:
            targets: of all slots that it is to know.
            start: it must run; else what is written is enough where it does not.
        """
        if not targets:
            self.clear()
            return
        before = self._written()
        led = turn(before, targets)
        self._write(led)
        try:
            self._bring(led, start)
        except RouteError:
            self._go_back(before)
            raise

    def _bring(self, led: Mapping[int, Led], start: bool) -> None:
        """What is written comes to pass."""
        workers = self._workers()
        if not workers and not start:
            return
        workers = workers or self._start()
        wanted = structure(led, self._addresses, self._bounds)
        if self._description(workers[0]) != wanted:
            workers = self._reload(wanted)
        for worker in workers:
            self._turn(worker, led)

    def _go_back(self, before: Mapping[int, Led]) -> None:
        """A slot that cannot be had must not cost the others theirs, nor keep haproxy from starting."""
        try:
            if not before:
                self.clear()
                return
            self._write(before)
            # One that failed to load anew may have let go of its ports: only a start brings them all back for sure.
            if master := self._master():
                self._end(master)
            self._bring(before, start=True)
        except RouteError as error:
            _log.error("haproxy does not lead the slots that it led: %s", error)

    def under_way(self, port: int) -> int:
        """Requests that an image at a loopback port is answering now, as far as they came this way."""
        servers = servers_of(self._written(), port)
        return sum(read_open(self._tell(worker, "show stat"), servers) for worker in self._workers()) if servers else 0

    def answers(self, port: int) -> Answers | None:
        """What was counted of a container's port; None where no slot leads to it by this way.

        Raises:
            RouteError: haproxy does not answer, or not so that it can be understood.
        """
        if not (workers := self._workers()):
            return None
        worker = workers[0]  # those that are leaving answer what they began, and that is not counted
        if not servers_of(self._led(worker), port):
            return None
        try:
            return read_answers(self._tell(worker, "show answers"), port, f"haproxy-{worker}")
        except ValueError as error:
            raise RouteError("haproxy's counters", f"cannot be read ({error})", _FIX) from error

    def clear(self) -> None:
        """End haproxy, and remove what it was told."""
        if not self._folder.exists():
            return
        master = self._master()
        with suppress(FileNotFoundError):
            (self._folder / CONFIG_FILE).unlink()  # first: nothing starts it again
        if master:
            self._end(master)
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- files and process ---------------------------------------------------------------------------

    def _written(self) -> dict[int, Led]:
        try:
            return read_map((self._folder / MAP_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise RouteError(f"haproxy's map in {self._folder}", f"cannot be read ({error})", _FIX) from error

    def _write(self, led: Mapping[int, Led]) -> None:
        """The configuration comes last: where it is, all is there that it needs."""
        script = files(__package__).joinpath(LUA_FILE).read_text(encoding="utf-8")
        text = render(led, self._addresses, self._bounds, *_runs_as())
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, content in ((LUA_FILE, script), (MAP_FILE, render_map(led)), (CONFIG_FILE, text)):
                _replace(self._folder / name, content)
        except OSError as error:
            words, fix = f"cannot be written ({error})", "Check free space and permissions of the folder"
            raise RouteError(f"haproxy's configuration in {self._folder}", words, fix) from error

    def _start(self) -> list[int]:
        if not self._by_unit:
            self._start_alone()
        workers = self._until(self._workers)
        if not workers:
            raise RouteError("haproxy", "is not started by its unit" if self._by_unit else "ended at once", _FIX)
        return workers

    def _start_alone(self) -> None:
        if not program():
            raise RouteError("haproxy", "is not installed", "Install it (Debian: `apt-get install haproxy`)")
        socket_name = f"unix@{MASTER_SOCKET},mode,600"
        command = [program(), "-W", "-D", "-C", str(self._folder), "-S", socket_name, "-f", CONFIG_FILE]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=self._timeout, check=False
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RouteError("haproxy", f"cannot be run ({error})", _FIX) from error
        if done.returncode:
            raise RouteError("haproxy", f"does not start: {_alert(done.stderr)}", _FIX)

    def _reload(self, wanted: str) -> list[int]:
        """Load the new structure; connections stay where they are, and listening sockets are handed over."""
        self._before_reload()
        self._ask("reload")

        def loaded() -> list[int]:
            workers = self._workers()
            return workers if workers and self._description(workers[0]) == wanted else []

        workers = self._until(loaded)
        if not workers:
            raise RouteError("haproxy", "did not take its new configuration", _FIX)
        return workers

    def _until(self, look: Callable[[], list[int]]) -> list[int]:
        deadline = time.monotonic() + self._timeout
        while True:
            with suppress(RouteError):
                if found := look():
                    return found
            if time.monotonic() > deadline:
                return []
            time.sleep(0.02)

    def _end(self, master: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(master, signal.SIGTERM)
        deadline = time.monotonic() + self._timeout
        while _lives(master) and time.monotonic() < deadline:
            time.sleep(0.02)

    # -- the master's socket -------------------------------------------------------------------------

    def _processes(self) -> list[tuple[int, str]]:
        """(process, kind) of master and workers, those that are leaving last; empty when none answers."""
        try:
            lines = self._ask("show proc").splitlines()
        except RouteError:
            return []
        words = [line.split() for line in lines]
        return [(int(word[0]), word[1]) for word in words if len(word) > 2 and word[0].isdigit()]

    def _master(self) -> int | None:
        return next((process for process, kind in self._processes() if kind == "master"), None)

    def _workers(self) -> list[int]:
        return [process for process, kind in self._processes() if kind == "worker"]

    def _led(self, worker: int) -> dict[int, Led]:
        return read_map(self._tell(worker, f"show map {MAP_FILE}"))

    def _turn(self, worker: int, led: Mapping[int, Led]) -> None:
        """One command a slot, from which on every request goes there. A worker that is leaving may know fewer."""
        known = self._led(worker)
        for stable, one in led.items():
            if known.get(stable, one) != one:
                self._tell(worker, f"set map {MAP_FILE} {stable} {map_value(one)}")

    def _description(self, worker: int) -> str:
        lines = self._tell(worker, "show info").splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("description:")), "")

    def _tell(self, worker: int, command: str) -> str:
        return self._ask(f"@!{worker} {command}")

    def _ask(self, line: str) -> str:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as out:
                out.settimeout(self._timeout)
                out.connect(str(self._folder / MASTER_SOCKET))
                out.sendall(f"{line}\n".encode())
                out.shutdown(socket.SHUT_WR)
                answer = b""
                while len(answer) < _MOST_BYTES and (part := out.recv(65_536)):
                    answer += part
                return answer.decode("utf-8", "replace")
        except OSError as error:
            raise RouteError("haproxy", f"does not answer ({error})", _FIX) from error


def _lives(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def program() -> str:
    """Where haproxy is; empty when it is not installed."""
    return shutil.which("haproxy", path=_PATH) or ""


def lacks(by_unit: bool = False) -> str:
    """Why haproxy cannot be used on this device; empty when it can."""
    if not program():
        return "is not installed"
    return "has no unit here: run install.sh again" if by_unit and not _UNIT.exists() else ""


def runs_by_unit() -> bool:
    """Whether this process is in the cgroup of the agent's unit: what it starts ends with it."""
    with suppress(OSError):
        return f"/{_AGENT_UNIT}" in _CGROUP.read_text(encoding="utf-8", errors="replace")
    return False


def _runs_as() -> tuple[str, str]:
    """Whom root hands the work to; nobody else can choose."""
    if os.geteuid() != 0:
        return "", ""
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        return "nobody", "nogroup"
    return _USER, _USER


def _replace(path: Path, content: str) -> None:
    """In one step, so that it is whole after a power cut; nothing is written when nothing changes."""
    with suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == content:
            return
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _alert(text: str) -> str:
    lines = [line for line in text.splitlines() if "ALERT" in line]
    return (lines or text.strip().splitlines() or ["no reason"])[0].partition(" : ")[2] or "no reason"
