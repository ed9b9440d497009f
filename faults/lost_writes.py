"""A power cut for the state folder: what the agent wrote is recorded, and what it had not synced is lost.

The kernel here has no device-mapper, so no disk can be told to drop writes. Instead strace records every change of
a file in the state folder, with its bytes, and kills the agent. Then the folder is built again from how it was
before: a write counts as on the disk once its file was synced after it; creating, renaming and removing counts once
its folder, or the file itself, was synced after it. Of what remains a random subset is done, too, in order.

It proves that the agent does not believe in data that it has not synced. It proves nothing about the filesystem.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from faults.device import PROGRAM, Device

_CALLS = "openat,pwrite64,write,ftruncate,rename,renameat,renameat2,unlink,unlinkat,fsync,fdatasync,mkdir"
_LINE = re.compile(r"^\d+ +(?P<call>\w+)\((?P<rest>.*)\) += (?P<result>-?\d+)")
_PATH = re.compile(r"<([^>]*)>")
_HEX = re.compile(r"\\x([0-9a-f]{2})")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass
class Change:
    """One change of a file: what it needs to be replayed."""

    kind: str
    path: Path
    data: bytes = b""
    offset: int = 0
    target: Path | None = None
    synced: bool = False


@dataclass
class Record:
    """Changes in order, with what is known to be on the disk."""

    folder: Path
    changes: list[Change] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def read(self, trace: Path) -> None:
        """Take in strace's output. Calls that were cut in two by other threads' are put together first."""
        waiting: dict[str, str] = {}
        for line in trace.read_text("latin-1").splitlines():
            thread = line.split(" ", 1)[0]
            if line.endswith("<unfinished ...>"):
                waiting[thread] = line.removesuffix("<unfinished ...>").rstrip()
                continue
            if " resumed>" in line:
                line = waiting.pop(thread, "") + line.partition(" resumed>")[2]
            found = _LINE.match(line)
            if found and int(found["result"]) >= 0:
                self._take(found["call"], found["rest"], int(found["result"]))

    def _take(self, call: str, rest: str, result: int) -> None:
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(rest)]
        opened = [Path(_HEX.sub(lambda found: chr(int(found[1], 16)), path)) for path in _PATH.findall(rest)]
        if call in ("fsync", "fdatasync"):
            self._sync(opened[0]) if opened else None
        elif call in ("pwrite64", "write") and opened and self._ours(opened[0]) and texts:
            self._write(opened[0], call, texts[0][:result], rest)
        elif call == "ftruncate" and opened and self._ours(opened[0]):
            self.changes.append(Change("truncate", opened[0], offset=int(rest.rpartition(",")[2])))
        elif call == "openat" and texts and ("O_TRUNC" in rest or "O_CREAT" in rest):
            path = Path(os.fsdecode(texts[0]))
            if self._ours(path):
                self.changes.append(Change("open", path, data=b"truncate" if "O_TRUNC" in rest else b""))
                self.sizes[str(path)] = 0
        elif call.startswith("rename") and len(texts) == 2 and self._ours(Path(os.fsdecode(texts[1]))):
            self.changes.append(Change("rename", Path(os.fsdecode(texts[0])), target=Path(os.fsdecode(texts[1]))))
        elif call.startswith("unlink") and texts and self._ours(Path(os.fsdecode(texts[0]))):
            self.changes.append(Change("unlink", Path(os.fsdecode(texts[0]))))
        elif call == "mkdir" and texts and self._ours(Path(os.fsdecode(texts[0]))):
            self.changes.append(Change("mkdir", Path(os.fsdecode(texts[0])), synced=True))

    def _ours(self, path: Path) -> bool:
        # The shared-memory index is not a file that SQLite reads again after a power cut.
        return path.is_relative_to(self.folder) and not path.name.endswith("-shm")

    def _write(self, path: Path, call: str, data: bytes, rest: str) -> None:
        if call == "pwrite64":
            offset = int(rest.rpartition(",")[2])
        else:
            offset = self.sizes.get(str(path), 0)
            self.sizes[str(path)] = offset + len(data)
        self.changes.append(Change("write", path, data, offset))

    def _sync(self, path: Path) -> None:
        """A file's own contents and name, or the names in a folder."""
        for change in self.changes:
            named = change.kind in ("open", "rename", "unlink")
            if (
                change.path == path
                or (named and change.path.parent == path)
                or (change.target is not None and path in (change.target, change.target.parent))
            ):
                change.synced = True


class PowerCut:
    """Runs the agent under strace until its power is cut.

    Attributes:
        lost: how many changes were lost.
    """

    def __init__(self, device: Device, torn: bool, chance: random.Random) -> None:
        self._device = device
        self._torn = torn
        self._chance = chance
        self._trace = device.rig.folder / f"{device.name}.strace"
        self._before = device.rig.folder / f"{device.name}.before"
        self.lost = 0

    def run_until(self, call: str, number: int) -> bool:
        """Run a life that is killed at the N-th call of a kind; False when it converged before."""
        device = self._device
        shutil.rmtree(self._before, ignore_errors=True)
        shutil.copytree(device.state, self._before, ignore=shutil.ignore_patterns("local.sock"))
        argv = [
            "strace", "-f", "-qq", "-y", "-xx", "-s", "1000000", "-o", str(self._trace),
            "-e", f"trace={_CALLS}", "-e", f"inject={call}:signal=SIGKILL:when={number}",
        ]  # fmt: skip
        device.start([*argv, *PROGRAM])
        deadline = time.monotonic() + 60
        while device.alive and time.monotonic() < deadline:
            if device.settled(device.goal):
                end_traced(device)
                return False
            time.sleep(0.1)
        end_traced(device)
        return True

    def lose(self) -> None:
        """Build the state folder from what the disk holds."""
        record = Record(self._device.state)
        record.read(self._trace)
        state = self._device.state
        for path in state.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self._before, state, dirs_exist_ok=True)
        for path in state.glob("*-shm"):
            path.unlink()
        unsynced = [change for change in record.changes if not change.synced]
        kept = {id(change) for change in unsynced if self._chance.random() < 0.5}
        self.lost = len(unsynced) - len(kept)
        half = next((c for c in reversed(unsynced) if c.kind == "write"), None) if self._torn else None
        for change in record.changes:
            if change is half:
                _replay(Change("write", change.path, change.data[: len(change.data) // 2], change.offset))
            elif change.synced or id(change) in kept:
                _replay(change)


def _replay(change: Change) -> None:
    """Do a change; one that builds on a lost one is lost, too."""
    path = change.path
    try:
        if change.kind == "open":
            flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if change.data else 0)
            os.close(os.open(path, flags, 0o600))
        elif change.kind == "write":
            with path.open("r+b") as file:
                file.seek(change.offset)
                file.write(change.data)
        elif change.kind == "truncate":
            os.truncate(path, change.offset)
        elif change.kind == "rename" and change.target is not None:
            path.replace(change.target)
        elif change.kind == "unlink":
            path.unlink()
        elif change.kind == "mkdir":
            path.mkdir(exist_ok=True)
    except FileNotFoundError:
        return


def end_traced(device: Device) -> None:
    """End the traced agent, then its tracer. The lock file may not know the agent: that write may have failed, too."""
    if not device.alive:
        return
    with contextlib.suppress(OSError):
        for pid in Path(f"/proc/{device.pid}/task/{device.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    device.kill(signal.SIGTERM)
