"""A container engine of the sweep's own, in its own network namespace: it may be killed without harm to others."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import docker
import requests
from lab import LabError


class Engine:
    """A private `dockerd` with its own containerd, data and socket.

    Attributes:
        socket: where it listens.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.socket = folder / "docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def api(self) -> Any:
        """A new client; the engine may have been killed since the last one."""
        return docker.APIClient(base_url=f"unix://{self.socket}", version="auto", timeout=30)

    def start(self, seconds: float = 60) -> None:
        """Start it and wait until it answers.

        Raises:
            LabError: it does not.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clear_pids()
        log = self._folder / "dockerd.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [
                    "dockerd", "--data-root", str(self._folder / "root"), "--exec-root", str(self._folder / "exec"),
                    "-H", f"unix://{self.socket}", "-p", str(self._folder / "docker.pid"), "--bip", "172.31.240.1/20",
                    "--max-download-attempts", "2",
                ],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException):
                self.api.ping()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:])
                raise LabError(f"the private engine did not start; its log {log} ends with:\n{tail}")
            time.sleep(0.1)

    def _clear_pids(self) -> None:
        """Remove what a killed daemon leaves behind; the next one would refuse to start, or wait for a dead one."""
        (self._folder / "docker.pid").unlink(missing_ok=True)
        file = self._folder / "exec/containerd/containerd.pid"
        with contextlib.suppress(OSError, ValueError):
            status = Path(f"/proc/{int(file.read_text())}/status").read_text()
            if status.startswith("Name:\tcontainerd") and "State:\tZ" not in status:
                return
        file.unlink(missing_ok=True)

    def send(self, sign: signal.Signals) -> None:
        """Signal the daemon; a fatal one is waited for."""
        os.kill(self.pid, sign)
        if sign in (signal.SIGKILL, signal.SIGTERM) and self._process is not None:
            self._process.wait(30)

    def mend(self) -> None:
        """Have it run, whatever a fault did to it."""
        if self._process is None or self._process.poll() is not None:
            self.start()
        self.send(signal.SIGCONT)

    def stop(self) -> None:
        """End it, and the containers with it."""
        if self._process is None or self._process.poll() is not None:
            return
        with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException):
            for container in self.api.containers(all=True):
                self.api.remove_container(container["Id"], force=True, v=True)
        self.send(signal.SIGTERM)
