"""The haproxy that leads slots: processes of one folder, which outlive whoever started them.

Its unit runs it where the agent is a service, else it is started on its own. It is asked and told over its master's
socket, so that workers that are leaving after a reload hear of it, too.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from wherry.errors import RouteError
from wherry_agent.route.haproxy_config import CONFIG_FILE, MASTER_SOCKET, PID_FILE

FIX = "See `wherry-agent doctor` and, where systemd runs, `systemctl status wherry-haproxy`"
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_AGENT_UNIT = "wherry-agent.service"
_UNIT = Path("/etc/systemd/system/wherry-haproxy.path")
_CGROUP = Path("/proc/self/cgroup")
_BEGINS_SECONDS = 3.0
"""One that does not answer yet may just be starting."""
_MOST_BYTES = 4_194_304
_FAILED = re.compile(r"^[0-9]+ +master .*\[failed: (?P<times>[0-9]+)\]", re.MULTILINE)


class HaproxyProcess:
    """Starts, asks and ends the haproxy of a folder.

    Args:
        folder: holds its configuration and its sockets.
        by_unit: a service manager starts it once the configuration is there; else it is started from here.
        timeout: seconds that it may take to start, to load anew, to answer or to end.
    """

    def __init__(self, folder: Path, by_unit: bool, timeout: float) -> None:
        self._folder = folder
        self._by_unit = by_unit
        self._timeout = timeout

    def start(self) -> list[int]:
        """Start it; its workers, once it answers.

        Raises:
            RouteError: it does not start.
        """
        if master := self.master():
            ended = [0]
            workers = self._until(
                lambda: self.workers() if _lives(master) else ended, min(self._timeout, _BEGINS_SECONDS)
            )
            if workers and workers != ended:
                return workers
            self.end(master)  # it does not answer any more; under a unit it is started again by that
        if not self._by_unit:
            self._start_alone()
        workers = self._until(self.workers, self._timeout)
        if not workers:
            raise RouteError("haproxy", "is not started by its unit" if self._by_unit else "ended at once", FIX)
        return workers

    def _start_alone(self) -> None:
        if not program():
            raise RouteError("haproxy", "is not installed", "Install it (Debian: `apt-get install haproxy`)")
        socket_name = f"unix@{MASTER_SOCKET},mode,600"
        command = [program(), "-W", "-D", "-C", str(self._folder), "-S", socket_name, "-p", PID_FILE, "-f", CONFIG_FILE]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=self._timeout, check=False
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RouteError("haproxy", f"cannot be run ({error})", FIX) from error
        if done.returncode:
            raise RouteError("haproxy", f"does not start: {_alert(done.stderr)}", FIX)

    def reload(self, wanted: str) -> list[int]:
        """Load the new structure; connections stay where they are, and listening sockets are handed over.

        Raises:
            RouteError: it did not take it.
        """
        failed_before = self._failed_reloads()
        self._ask("reload")
        failed = [0]

        def loaded() -> list[int]:
            if self._failed_reloads() > failed_before:
                return failed
            workers = self.workers()
            return workers if workers and self.description(workers[0]) == wanted else []

        workers = self._until(loaded, self._timeout)
        if not workers or workers == failed:
            raise RouteError("haproxy", "did not take its new configuration", FIX)
        return workers

    def _failed_reloads(self) -> int:
        """How often its master failed to load anew since it last did."""
        found = _FAILED.search(self._ask("show proc"))
        return int(found["times"]) if found else 0

    def _until(self, look: Callable[[], list[int]], seconds: float) -> list[int]:
        deadline = time.monotonic() + seconds
        while True:
            with suppress(RouteError):
                if found := look():
                    return found
            if time.monotonic() > deadline:
                return []
            time.sleep(0.02)

    def end(self, master: int) -> None:
        """End a master, and its workers with it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(master, number)
            deadline = time.monotonic() + self._timeout
            while _lives(master) and time.monotonic() < deadline:
                time.sleep(0.02)
            if not _lives(master):
                return

    def workers(self) -> list[int]:
        """Processes that handle requests, those that are leaving last; empty when none answers."""
        try:
            lines = self._ask("show proc").splitlines()
        except RouteError:
            return []
        words = [line.split() for line in lines]
        found = [int(word[0]) for word in words if len(word) > 2 and word[0].isdigit() and word[1] == "worker"]
        return [worker for worker in found if _lives(worker)]

    def master(self) -> int | None:
        """The process that was started on this folder, also one that does not answer; None when it is gone."""
        with suppress(OSError, ValueError):
            found = int((self._folder / PID_FILE).read_text(encoding="ascii"))
            words = Path(f"/proc/{found}/cmdline").read_bytes().split(b"\0")
            return found if str(self._folder).encode() in words and _lives(found) else None
        return None

    def description(self, worker: int) -> str:
        """The name of the configuration that a worker has loaded."""
        lines = self.tell(worker, "show info").splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("description:")), "")

    def tell(self, worker: int, command: str) -> str:
        """Give a worker a command; its answer.

        Raises:
            RouteError: no answer.
        """
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
            raise RouteError("haproxy", f"does not answer ({error})", FIX) from error


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


def _alert(text: str) -> str:
    lines = [line for line in text.splitlines() if "ALERT" in line]
    return (lines or text.strip().splitlines() or ["no reason"])[0].partition(" : ")[2] or "no reason"
