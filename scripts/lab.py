"""A whole Wherry on this machine: registry, broker, server and one device, as real daemons.

Everything lives in one folder and on ports of its own, so an engine, broker or registry that already
runs here is left alone. The demo, the end-to-end tests and the benchmarks all start their parts here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports import free_ports

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
SYSTEM_PATH = f"{BIN}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class LabError(Exception):
    """A part did not start, or a command failed; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the parts listen, all on 127.0.0.1."""

    server: int = 8470
    broker: int = 8893
    registry: int = 5470
    slot: int = 8500
    second: int = 8501

    @classmethod
    def free(cls) -> Ports:
        """Ports that nothing uses now, for tests that run beside a demo."""
        return cls(*free_ports(5))


@dataclass
class Lab:
    """The parts of one small Wherry installation.

    Attributes:
        folder: where all state and logs are.
        ports: where the parts listen.
        device: the id under which this machine enrols.
    """

    folder: Path
    ports: Ports = field(default_factory=Ports)
    device: str = "this-machine"
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, repr=False)

    @property
    def server_url(self) -> str:
        """Base URL of the server's API and dashboard."""
        return f"https://127.0.0.1:{self.ports.server}"

    @property
    def registry(self) -> str:
        """Host and port of the OCI registry."""
        return f"127.0.0.1:{self.ports.registry}"

    @property
    def slot_url(self) -> str:
        """The stable local endpoint of the device's first slot."""
        return f"http://127.0.0.1:{self.ports.slot}"

    @property
    def home(self) -> Path:
        """The operator's folder (WHERRY_HOME): context and the owner's keys."""
        return self.folder / "operator"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of every command and daemon."""
        # Bytecode is kept, as it is where Wherry is installed: without it every start compiles all over again.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return inherited | {
            "PATH": SYSTEM_PATH,
            "WHERRY_HOME": str(self.home),
            "WHERRY_CACHE": str(ROOT / "build/cache"),
            "PYTHONUNBUFFERED": "1",
        }

    # -- commands --------------------------------------------------------------------------------

    def run(self, *argv: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, capturing what it prints.

        Raises:
            LabError: it exited non-zero and `check` is set.
        """
        done = subprocess.run(
            argv, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip()[-2000:]
            raise LabError(f"`{' '.join(argv)}` exited with {done.returncode}:\n{said}")
        return done

    def json(self, *argv: str) -> Any:
        """Run a command with `--json` and parse what it prints."""
        return json.loads(self.run(*argv, "--json").stdout)

    # -- daemons ---------------------------------------------------------------------------------

    def _pid_file(self, name: str) -> Path:
        return self.folder / "run" / f"{name}.pid"

    def start(
        self, name: str, argv: Sequence[str], ready: Callable[[], bool], env: Mapping[str, str] | None = None
    ) -> None:
        """Start a daemon and wait until it is ready.

        Raises:
            LabError: it ended, or was not ready within 60 seconds; the text ends with its log.
        """
        log = self.folder / "log" / f"{name}.log"
        for folder in (log.parent, self._pid_file(name).parent):
            folder.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            process = subprocess.Popen(
                argv,
                env=self.environment | dict(env or {}),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._children[name] = process
        self._pid_file(name).write_text(str(process.pid))
        deadline = time.monotonic() + 60
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:])
                raise LabError(f"{name} did not start. Its log ({log}) ends with:\n{tail}")
            time.sleep(0.1)

    def pid(self, name: str) -> int | None:
        """The process id of a daemon that runs, or None; also of one that an earlier run started."""
        try:
            pid = int(self._pid_file(name).read_text())
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return None
        return None if state == "Z" else pid

    def kill(self, name: str, sign: signal.Signals = signal.SIGTERM, wait: float = 20) -> None:
        """Signal a daemon and wait for its end; SIGKILL when it does not end in time."""
        pid = self.pid(name)
        if pid is None:
            self._reap(name)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
        deadline = time.monotonic() + wait
        while self.pid(name) is not None:
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._reap(name)

    def _reap(self, name: str) -> None:
        self._pid_file(name).unlink(missing_ok=True)
        child = self._children.pop(name, None)
        if child is not None:
            child.wait(10)

    def _listens(self, port: int) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def check_ports(self) -> None:
        """Refuse to start over somebody else's program.

        Raises:
            LabError: a port is taken.
        """
        for name in ("server", "broker", "registry"):
            port = getattr(self.ports, name)
            if self._listens(port):
                raise LabError(f"port {port} (for our {name}) is taken by another program: stop it, then run again")

    def start_registry(self) -> None:
        """Start an OCI registry that keeps its blobs in the lab's folder."""
        config = self.folder / "registry.yml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(
            "version: 0.1\n"
            "log: {level: warn, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.folder / 'registry'}}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '127.0.0.1:{self.ports.registry}'}}\n"
        )
        self.start("registry", ["docker-registry", "serve", str(config)], lambda: self._listens(self.ports.registry))

    def initialise_server(self) -> None:
        """Make the server's CA, keys and database, and the broker's configuration."""
        data = str(self.folder / "server")
        self.run(
            "wherry-server", "init", "--data", data, "--host", "127.0.0.1", "--bind", "127.0.0.1",
            "--port", str(self.ports.server),
            "--broker-host", "127.0.0.1", "--broker-port", str(self.ports.broker),
        )  # fmt: skip
        self.run("wherry-server", "broker-config", "--data", data, "--out", str(self.folder / "broker"))

    def start_broker(self) -> None:
        """Start Mosquitto with the configuration that the server wrote."""
        config = self.folder / "broker" / "mosquitto.conf"
        self.start("broker", ["mosquitto", "-c", str(config)], lambda: self._listens(self.ports.broker))

    def start_server(self) -> None:
        """Start the control plane."""
        argv = ["wherry-server", "run", "--data", str(self.folder / "server")]
        self.start("server", argv, self._server_answers)

    def _server_answers(self) -> bool:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # liveness only, nothing is believed
        try:
            with urllib.request.urlopen(f"{self.server_url}/healthz", timeout=2, context=context) as reply:
                return bool(reply.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def start_site(self) -> None:
        """All but devices: registry, server and broker, and an operator who is logged in and has the owner's keys."""
        self.start_registry()
        self.initialise_server()
        self.start_broker()
        self.start_server()
        self.login()

    def login(self) -> None:
        """Log the operator's tool in and make the owner's keys."""
        data = self.folder / "server"
        self.run(
            "wherry", "login", "--server", self.server_url, "--token-file", str(data / "admin.token"),
            "--ca-file", str(data / "pki" / "ca.crt"), "--registry", self.registry,
        )  # fmt: skip
        self.run("wherry", "keys", "init")

    @property
    def device_state(self) -> Path:
        """The agent's state folder."""
        return self.folder / "device"

    def enrol(self, profile: str = "generic-amd64", labels: Mapping[str, str] | None = None) -> None:
        """Enrol this machine as a device."""
        label_flags = [part for key, value in (labels or {}).items() for part in ("--label", f"{key}={value}")]
        token = self.json("wherry", "device", "token", self.device, "--profile", profile, *label_flags)
        self.device_state.mkdir(parents=True, exist_ok=True)
        self.run("wherry-agent", "enroll", "--state", str(self.device_state), token["join"], "--profile", profile)
        slots = f"[slots]\nmain = {self.ports.slot}\nsecond = {self.ports.second}\n"
        (self.device_state / "agent.toml").write_text(slots)

    def start_agent(self, env: Mapping[str, str] | None = None, command: str = "run") -> None:
        """Start the daemon, or its supervisor, and wait until the server sees the device online."""
        argv = ["wherry-agent", command, "--state", str(self.device_state)]
        self.start("agent", argv, self.online, {"MALLOC_ARENA_MAX": "1"} | dict(env or {}))

    def online(self) -> bool:
        """Whether the server sees the device online."""
        shown = self.run("wherry", "device", "show", self.device, "--json", check=False)
        return shown.returncode == 0 and bool(json.loads(shown.stdout)["online"])

    # -- ending ----------------------------------------------------------------------------------

    def remove_containers(self) -> None:
        """Remove this device's containers, their images and its packet filter rules."""
        flt = f"label=io.wherry.device={self.device}"
        found = self.run("docker", "ps", "-aq", "--filter", flt, check=False).stdout.split()
        images = set(self.run("docker", "inspect", "-f", "{{.Image}}", *found).stdout.split()) if found else set()
        if found:
            self.run("docker", "rm", "-f", *found)
        listed = self.run("docker", "images", "--no-trunc", "--format", "{{.Repository}} {{.ID}}", check=False)
        ours = (line.split() for line in listed.stdout.splitlines())
        images |= {identity for repository, identity in ours if repository.startswith(self.registry + "/")}
        for image in images:
            self.run("docker", "rmi", "-f", image, check=False)

    def _remove_routes(self) -> None:
        """Also of an agent that was killed and whose last thread still holds its state folder: wait for it."""
        deadline = time.monotonic() + 20
        while True:
            done = self.run("wherry-agent", "cleanup", "--state", str(self.device_state), check=False)
            if "conflict" not in done.stderr or time.monotonic() > deadline:
                return
            time.sleep(0.2)

    def stop(self, keep: bool = True) -> None:
        """Stop every daemon and remove the device's containers; `keep` leaves the folder for reading."""
        for name in ("agent", "server", "broker", "registry"):
            self.kill(name)
        self.remove_containers()
        self._remove_routes()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
