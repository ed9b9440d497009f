"""One device of the sweep: its state folder, its agent, its load, and the way back to where it was."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
from lab import ROOT, SYSTEM_PATH, LabError
from load import Load
from ports import free_port

from faults import releases
from faults.proxy import Proxy
from faults.rig import Rig, eventually, read_json
from wherry.tensors import Tensor, tensor_from_values
from wherry_agent.route.kernel import KernelRoute

SAMPLE = tensor_from_values("x", "FP32", [1, 4], [1.0, 2.0, 3.0, 4.0])
SETTINGS = """\
tick_seconds = 0.5
route_check_seconds = 1
poll_seconds = 2
backoff_base_seconds = 0.3
backoff_max_seconds = 2
engine_timeout_seconds = 5
pull_stall_seconds = 5
pull_deadline_seconds = 40
unready_restarts = 3
flush_seconds = 1
sample_seconds = 1
watermark_mb = 1
"""
PROGRAM = [str(Path(sys.executable).parent / "wherry-agent")]
HOOKED = [sys.executable, "-m", "faults.hooked"]


def judge(outputs: list[Tensor]) -> str | None:
    """Only the good versions may answer callers; each multiplies by 1 or by 2."""
    first = float(outputs[0].values()[0])
    return None if any(abs(first - good) < 1e-5 for good in (1.0, 2.0)) else f"wrong answer {first}"


_SURVIVES: Any = {"Name": "unless-stopped"}


class Device:
    """An enrolled device that can be put back to the moment when version 1 had just been committed.

    Attributes:
        wants: the version that the faults find it on its way to; an image of its own, so that others leave it alone.
        name: its id; state: its folder; port: the slot's stable port.
        marks: the highest high-water marks ever seen in its journal.
        lives: agents started.
        wanted: the version that the server wants here; until it was tried, nothing counts as settled.
        lost: a call that the agent is made to leave out, to prove that the sweep notices.
        ended: how the last life ended: its exit code, or the signal as a negative number.
    """

    def __init__(self, rig: Rig, name: str, soak: float, wants: str) -> None:
        self.rig = rig
        self.wants = wants
        self.name = name
        self.state = rig.folder / name
        self.origin = rig.folder / f"{name}.origin"
        self.port = free_port()
        self.socket = rig.folder / f"{name}.sock"
        self.engine = Proxy(self.socket, rig.engine.socket)
        self.route = KernelRoute("wherry_" + name.replace("-", "_"))
        self.log = rig.folder / "log" / f"{name}.log"
        self.log.parent.mkdir(exist_ok=True)
        self.marks: dict[str, Any] = {}
        self.lives = 0
        self.wanted = ""
        self.lost = ""
        self.ended: int | None = None
        self._agent: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._settings = f"{SETTINGS}soak_seconds = {soak}\n"

    @property
    def goal(self) -> str:
        """The version that serves when a swap is over: the wrong one is rolled back."""
        return "1" if self.wants == releases.WRONG else self.wants

    # -- once --------------------------------------------------------------------------------------------

    def enrol(self) -> None:
        """Enrol; its server and broker are reached through the relays."""
        rig = self.rig
        token = rig.lab.json("wherry", "device", "token", self.name, "--profile", releases.PROFILE)
        rig.lab.run(
            "wherry-agent", "enroll", "--state", str(self.state), token["join"], "--profile", releases.PROFILE
        )  # fmt: skip
        path = self.state / "identity/device.json"
        about = json.loads(path.read_text())
        about["server_url"], about["broker_port"] = f"https://127.0.0.1:{rig.server_port}", rig.broker_port
        path.write_text(json.dumps(about))
        engine = f'engine_url = "unix://{self.socket}"\n'
        (self.state / "agent.toml").write_text(f"{engine}{self._settings}[slots]\nmain = {self.port}\n")

    def begin(self) -> None:
        """Commit version 1 and remember that moment."""
        self.start()
        self.want("1")
        self.wait("1")
        self.kill()
        shutil.copytree(self.state, self.origin, ignore=shutil.ignore_patterns("spool.db*", "local.sock", "lock"))
        self.marks = self.read_marks()

    def want(self, version: str) -> None:
        """Have the server want a version here."""
        self.rig.roll_out(version, self.name)
        self.wanted = version

    # -- lives -------------------------------------------------------------------------------------------

    def start(self, argv: list[str] | None = None, env: Mapping[str, str] | None = None) -> None:
        """Start the agent; it may fail to live long."""
        assert not self.alive, "two agents on one device"
        if self.lost:
            argv, env = HOOKED, {"WHERRY_FAULT_LOG": f"{self.log}.points", "WHERRY_FAULT_LOST": self.lost}
        with contextlib.suppress(OSError):  # the disk may be the fault
            (self.state / "status.json").unlink()
        self.lives += 1
        inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        with self.log.open("ab") as out:
            out.write(f"--- life {self.lives}\n".encode())
            out.flush()
            self._agent = subprocess.Popen(
                [*(argv or PROGRAM), "run", "--state", str(self.state)],
                env=inherited | {"PATH": SYSTEM_PATH, "MALLOC_ARENA_MAX": "1"} | dict(env or {}),
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether the agent runs."""
        if self._agent is None:
            return False
        self.ended = self._agent.poll()
        return self.ended is None

    @property
    def pid(self) -> int:
        """The agent's process id (or that of the tracer that it runs under)."""
        assert self._agent is not None
        return self._agent.pid

    def kill(self, sign: signal.Signals = signal.SIGKILL) -> None:
        """End the agent."""
        if self._agent is None:
            return
        if self._agent.poll() is None:
            self._agent.send_signal(sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._agent.wait(20)
        if self._agent.poll() is None:
            self._agent.kill()
            self._agent.wait(20)
        self._agent = None

    @property
    def status(self) -> dict[str, Any]:
        """What the agent says of itself in this life."""
        return read_json(self.state / "status.json") or {}

    def settled(self, version: str) -> bool:
        """Whether the agent says that it is through with what is wanted and this version serves; and only it runs."""
        slot: Mapping[str, Any] = next(iter(self.status.get("slots") or []), {})
        if (slot.get("serving") or {}).get("version") != version:
            return False
        return self._through(slot) and [c["version"] for c in self.containers() if c["running"]] == [version]

    def _through(self, slot: Mapping[str, Any]) -> bool:
        """Whether a slot's deployment of what is wanted is over; a journal that was rebuilt knows of none."""
        deployment, desired = slot.get("deployment"), slot.get("desired") or {}
        if not deployment:
            return bool(desired) and desired.get("digest") == slot["serving"]["digest"]
        tried = not self.wanted or deployment["release"]["version"] == self.wanted
        return tried and deployment["phase"] in ("committed", "rejected", "refused")

    def wait(self, version: str, seconds: float = 60) -> None:
        """Wait until the agent has converged on a version.

        Raises:
            LabError: it has not; the text says what it says of itself.
        """
        deadline = time.monotonic() + seconds
        while not self.settled(version):
            if not self.alive:
                raise LabError(f"the agent ended by itself; its log ends with: {self.tail()}")
            if time.monotonic() > deadline:
                slots = self.status.get("slots") or [{}]
                deployment = slots[0].get("deployment") or {}
                said = {
                    "serving": slots[0].get("serving"), "phase": deployment.get("phase"),
                    "why": deployment.get("problem"), "problem": self.status.get("problem"),
                }  # fmt: skip
                raise LabError(f"did not converge on {version} in {seconds:.0f} s: {said}; log: {self.tail()}")
            time.sleep(0.1)

    def tail(self, lines: int = 4) -> str:
        """The end of the agent's log."""
        return " | ".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    # -- the world ---------------------------------------------------------------------------------------

    def containers(self) -> list[dict[str, Any]]:
        """This device's containers as the engine shows them, past the relay."""
        found = []
        try:
            listed = self.rig.engine.api.containers(all=True, filters={"label": f"io.wherry.device={self.name}"})
        except docker.errors.DockerException:
            return []
        for item in listed:
            labels = item["Labels"]
            found.append(
                {
                    "id": item["Id"], "name": item["Names"][0].lstrip("/"), "running": item["State"] == "running",
                    "version": labels["io.wherry.version"], "port": int(labels["io.wherry.port"]),
                    "digest": labels["io.wherry.release"], "image": item["ImageID"],
                }
            )  # fmt: skip
        return found

    def container(self, version: str) -> dict[str, Any] | None:
        """One of them."""
        return next((found for found in self.containers() if found["version"] == version), None)

    def load(self, rate: float = 20) -> Load:
        """Requests at the stable port, never retried."""
        return Load("127.0.0.1", self.port, releases.MODEL, [SAMPLE], judge=judge, rate=rate, workers=2)

    def answers(self, version: str, port: int | None = None) -> bool:
        """Whether a port answers with a version now."""
        load = Load("127.0.0.1", port or self.port, releases.MODEL, [SAMPLE], judge=judge, rate=50, workers=1)
        with load:
            deadline = time.monotonic() + 5
            while not load.answers and time.monotonic() < deadline:
                time.sleep(0.01)
        return bool(load.versions.get(version))

    def read_rows(self) -> dict[str, Any]:
        """The journal's rows, from a copy, so that looking does not change it."""
        with tempfile.TemporaryDirectory() as folder:
            for name in ("journal.db", "journal.db-wal"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy(self.state / name, Path(folder) / name)
            with contextlib.closing(sqlite3.connect(Path(folder) / "journal.db")) as database:
                try:
                    rows = database.execute("SELECT key, value FROM facts").fetchall()
                except sqlite3.OperationalError:
                    return {}  # the first life died before the table was there
        return {key: json.loads(value) for key, value in rows if key != "payload"}

    def read_marks(self) -> dict[str, Any]:
        """The journal's high-water marks; empty where there is no journal."""
        return self.read_rows().get("marks") or {}

    # -- back --------------------------------------------------------------------------------------------

    def restore(self, keep_image: bool = True) -> None:
        """Back to the moment when version 1 had been committed: state folder, containers and route.

        The journal's count of starts goes on rising, so that the server takes this device's reports for new.
        """
        self.kill()
        self.engine.trouble(None)
        self._starts = max(self._starts, int((self.read_rows_safely().get("meta") or {}).get("starts", 0)))
        api = self.rig.engine.api
        first = next(item for item in self.containers() if item["version"] == "1")
        api.update_container(first["id"], restart_policy=_SURVIVES)
        api.start(first["id"])
        eventually(lambda: self.answers("1", first["port"]), 120, "version 1 does not come back")
        self.route.apply({self.port: first["port"]})
        for item in self.containers():
            if item["version"] != "1":
                api.remove_container(item["id"], force=True, v=True)
        if keep_image:
            self._place_image(self.wanted)
        else:
            eventually(lambda: self.drop_image(self.wanted), 30, f"the image of version {self.wanted} stays")
        self._restore_folder()
        self.marks = self.read_marks()

    def _restore_folder(self) -> None:
        for path in self.state.iterdir():
            if path.name.startswith("spool.db"):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.origin, self.state, dirs_exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.state / "journal.db")) as database, database:
            database.execute(
                "UPDATE facts SET value = CAST(json_set(value, '$.starts', ?) AS BLOB) WHERE key = 'meta'",
                (self._starts + 1,),
            )

    def read_rows_safely(self) -> dict[str, Any]:
        """The journal's rows, or nothing when a fault has left no readable journal."""
        with contextlib.suppress(sqlite3.Error, OSError, ValueError):
            return self.read_rows()
        return {}

    def _place_image(self, version: str) -> None:
        """Have the image on the device, past the agent."""
        image, api = self.rig.images[version], self.rig.engine.api
        reference = f"{image['repository']}@{image['digest']}"
        try:
            api.inspect_image(reference)
        except docker.errors.ImageNotFound:
            api.pull(reference)

    def drop_image(self, version: str) -> bool:
        """Remove an image from the engine, so that it must be fetched; False while something uses it."""
        image = self.rig.images[version]
        try:
            self.rig.engine.api.remove_image(f"{image['repository']}@{image['digest']}", force=True)
        except docker.errors.ImageNotFound:
            return True
        except docker.errors.APIError:
            return False
        return True

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP for as long as the block lasts."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)
