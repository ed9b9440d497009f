"""Group *Disk*: full, read-only, failing and corrupted storage under the state folder and the images."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.device import PROGRAM, Device
from faults.lost_writes import end_traced
from faults.rig import eventually
from faults.sweep import Run, fault


@contextlib.contextmanager
def small_disk(device: Device, inodes: int = 512) -> Iterator[Path]:
    """The state folder on a filesystem of 16 MB of its own."""
    image = _image(device)
    with image.open("wb") as file:
        file.truncate(16 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-N", str(inodes), str(image)], check=True)
    aside = device.state.with_name(device.name + ".aside")
    shutil.copytree(device.state, aside, dirs_exist_ok=True)
    _mount(device)
    try:
        shutil.copytree(aside, device.state, dirs_exist_ok=True)
        subprocess.run(["sync", "-f", str(device.state)], check=True)  # what the device had before is on its disk
        yield device.state
    finally:
        device.kill()
        subprocess.run(["umount", str(device.state)], check=True)
        shutil.rmtree(aside)


def fill(folder: Path) -> Path:
    """Use up every byte that is free."""
    path = folder / "filler"
    with path.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
            file.flush()
    return path


def _on_small_disk(run: Run, hurt: Callable[[Path], object], heal: Callable[[Path], None], seconds: float = 5) -> None:
    """Hurt the disk at different moments of a swap, for a while."""
    for wait in (0.0, 1.0, 3.0):
        run.device.restore()
        with small_disk(run.device) as folder, run.loaded():
            if wait:
                run.device.start()
                time.sleep(wait)
            hurt(folder)
            run.hit()
            if not wait:
                run.device.start()
            time.sleep(seconds)
            heal(folder)
            if not run.device.alive:
                # A supervisor would do so; what it said must be words.
                run.expect("wherry-agent: " in run.device.tail(), f"it ended without words: {run.device.tail()}")
                run.device.start()
            run.converge("2")


@fault("Disk", 9, "disk full")
def full(run: Run) -> None:
    """The state folder is on an ext4 of 16 MB that is filled to the last byte, before and during a swap."""
    _on_small_disk(run, lambda folder: fill(folder), lambda folder: (folder / "filler").unlink())


def _failing_calls(run: Run, calls: tuple[str, ...], error: str, most: int) -> None:
    """One system call of the program fails, each in turn; the program is not killed."""
    for call in calls:
        for number in range(1, max(2, round((most + 1) * run.scale))):
            run.device.restore()
            with run.loaded():
                inject = f"inject={call}:error={error}:when={number}"
                run.device.start(["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}",
                                  "-e", inject, *PROGRAM])  # fmt: skip
                with contextlib.suppress(Exception):
                    run.device.wait(run.device.goal, 45)
                run.hit()
                end_traced(run.device)
                run.device.start()  # a supervisor would, too
                run.converge(run.device.goal, when=f"after {error} at {call} {number}")
            run.device.kill()


@fault("Disk", 9, "ENOSPC at each write", device="other", apart=True)
def no_space(run: Run) -> None:
    """Strace fails the N-th pwrite64 of each thread with ENOSPC, one N after the other."""
    _failing_calls(run, ("pwrite64",), "ENOSPC", 24)


@fault("Disk", 10, "no inodes")
def no_inodes(run: Run) -> None:
    """Empty files use up every inode of the state folder's ext4."""

    def hurt(folder: Path) -> None:
        (folder / "inodes").mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            for number in range(10_000):
                (folder / "inodes" / str(number)).touch()

    _on_small_disk(run, hurt, lambda folder: shutil.rmtree(folder / "inodes"))


@fault("Disk", 11, "EIO on fsync", device="other", apart=True)
def failing_sync(run: Run) -> None:
    """Strace fails the N-th fdatasync, then the N-th fsync, with EIO."""
    _failing_calls(run, ("fdatasync", "fsync"), "EIO", 8)


@fault("Disk", 12, "read-only remount")
def read_only(run: Run) -> None:
    """The state folder's filesystem is remounted read-only for five seconds, before and during a swap."""

    def hurt(folder: Path) -> None:
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)

    def heal(folder: Path) -> None:
        subprocess.run(["umount", "-l", str(folder)], check=True)

    run.device.restore()
    with small_disk(run.device) as folder, run.loaded():
        hurt(folder)
        try:
            run.hit()
            run.device.start()
            time.sleep(4)
            said = run.device.alive or "wherry-agent: " in run.device.tail()
            run.expect(said, f"no words: {run.device.tail()}")
            run.device.kill()
        finally:
            heal(folder)
        run.device.start()
        run.converge("2")
    for wait in (1.0, 3.0):
        run.device.restore()
        with small_disk(run.device) as folder, run.loaded():
            run.device.start()
            time.sleep(wait)
            # As on a disk error; sysrq's emergency remount would hit the whole machine, this hits one filesystem.
            _shut_down(folder)
            run.hit()
            time.sleep(4)
            run.device.kill()
            _mount_again(run.device)
            run.device.start()
            run.converge("2")


def _mount_again(device: Device) -> None:
    """As after a power cut: what the filesystem holds is what it had synced."""
    subprocess.run(["umount", str(device.state)], check=True)
    _mount(device)


def _mount(device: Device) -> None:
    subprocess.run(["mount", "-o", "loop", str(_image(device)), str(device.state)], check=True)


def _image(device: Device) -> Path:
    return device.rig.folder / f"{device.name}.disk"


def _shut_down(folder: Path) -> None:
    """EXT4_IOC_SHUTDOWN without flushing: every later write and sync fails; what was not synced is lost."""
    import fcntl
    import struct

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(handle, 0x8004587D, struct.pack("I", 2))  # EXT4_GOING_FLAGS_NOLOGFLUSH
    finally:
        os.close(handle)


@fault("Disk", 5, "power cut: the filesystem itself loses what was not synced")
def shut_down(run: Run) -> None:
    """ext4 is shut down unflushed at a moment of a swap, the agent killed, the disk mounted again."""
    for number in range(max(2, round(20 * run.scale))):
        run.device.restore()
        with small_disk(run.device) as folder, run.loaded():
            run.device.start()
            time.sleep(0.4 * number % 6)
            _shut_down(folder)
            run.hit(kill=True)
            run.device.kill()
            _mount_again(run.device)
            run.died()
            run.device.start()
            run.converge("2", when=f"after the cut at {0.4 * number % 6:.1f} s")


def _layer_file(run: Run, version: str, name: str) -> Path:
    """A file of an image in the engine's layer store."""
    image = run.rig.images[version]
    found = run.rig.engine.api.inspect_image(f"{image['repository']}@{image['digest']}")
    layers = [found["GraphDriver"]["Data"]["UpperDir"], *found["GraphDriver"]["Data"].get("LowerDir", "").split(":")]
    for layer in layers:
        for path in Path(layer).rglob(name):
            if path.is_file():
                return path
    raise FileNotFoundError(f"{name} is in no layer of version {version}")


def _bad_layer(run: Run, corrupt: Callable[[bytearray], None]) -> None:
    """The image of version 2 lies damaged in the engine's store: version 1 goes on, and the agent says why."""
    for _ in range(max(1, round(3 * run.scale))):
        run.device.restore()
        path = _layer_file(run, "2", "model.onnx")
        whole = path.read_bytes()
        content = bytearray(whole)
        corrupt(content)
        path.write_bytes(content)
        run.hit()
        try:
            with run.loaded():
                run.device.start()
                eventually(lambda: _ended(run.device), 120, f"never came to an end: {run.device.status}")
                slot = run.device.status["slots"][0]
                problem = (slot.get("deployment") or {}).get("problem")
                if slot["serving"]["version"] == "1":
                    run.expect(bool(problem and problem.get("reason")), "version 2 is out, without a reason in words")
                    run.row.outcome = f"version 1 serves; said: {(problem or {}).get('reason', '')[:160]}"
                run.converge(slot["serving"]["version"])
        finally:
            run.device.kill()
            if path.exists():  # the agent may have thrown the bad image away
                path.write_bytes(whole)


def _ended(device: Device) -> bool:
    slots = device.status.get("slots") or [{}]
    deployment = slots[0].get("deployment") or {}
    ended = deployment.get("phase") in ("committed", "rejected", "refused")
    return ended and deployment["release"]["version"] == "2"


@fault("Disk", 13, "bit flips in stored blobs")
def flipped(run: Run) -> None:
    """A bit in each of the model's first 64 bytes is turned over in the engine's layer store."""

    def corrupt(content: bytearray) -> None:
        for index in range(64):
            content[index] ^= 1 << (index % 8)

    _bad_layer(run, corrupt)


@fault("Engine", 20, "zeroed layer file")
def zeroed_layer(run: Run) -> None:
    """The model's file in the engine's layer store is all zeros, as after an unclean power cut."""

    def corrupt(content: bytearray) -> None:
        content[:] = bytes(len(content))

    _bad_layer(run, corrupt)


def _overwritten(run: Run, names: tuple[str, ...], change: Callable[[bytes], bytes], lost_marks: bool) -> None:
    """Files of the state folder are damaged while the agent is dead, at different moments of a swap."""
    for wait in (0.0, 2.0, 20.0) if run.scale > 0.05 else (2.0,):
        run.device.restore()
        with run.loaded():
            if wait:
                run.device.start()
                with contextlib.suppress(Exception):
                    eventually(lambda: run.device.settled("2"), wait, "")
                run.device.kill()
            for name in names:
                for path in run.device.state.glob(name):
                    path.write_bytes(change(path.read_bytes()))
                    run.hit()
            if lost_marks:
                # Sequence and versions went with the file; counters must come back from the containers.
                run.device.marks = {}
            run.device.start()
            run.converge("2", when=f"damaged after {wait} s")
            if lost_marks:
                counters = run.device.read_marks().get("counters", {})
                run.expect(max(counters.values(), default=0) >= 1, f"counters are gone: {counters}")
        run.device.kill()


@fault("Disk", 14, "zeroed journal", sample=True)
def zeroed_journal(run: Run) -> None:
    """journal.db and its log are all zeros when the agent starts."""
    _overwritten(run, ("journal.db", "journal.db-wal"), lambda content: bytes(len(content)), lost_marks=True)


@fault("Disk", 14, "zeroed metadata")
def zeroed_metadata(run: Run) -> None:
    """Every TUF file but the pinned root is all zeros."""
    names = ("tuf/[!f]*.json", "tuf/root_history/*.json")
    _overwritten(run, names, lambda content: bytes(len(content)), lost_marks=False)


@fault("Disk", 14, "zeroed certificate")
def zeroed_certificate(run: Run) -> None:
    """device.pem is all zeros: the agent cannot start and says so; what serves goes on; put back, it converges."""
    path = run.device.state / "identity/device.pem"
    with run.swap(start=False) as device:
        whole = path.read_bytes()
        path.write_bytes(bytes(len(whole)))
        run.hit()
        device.start()
        deadline = time.monotonic() + 20
        while device.alive and time.monotonic() < deadline:
            time.sleep(0.1)
        run.expect(not device.alive and "device.pem" in device.tail(), f"it did not say what is wrong: {device.tail()}")
        run.expect(device.answers("1"), "version 1 does not answer meanwhile")
        path.write_bytes(whole)


@fault("Disk", 15, "corrupt SQLite page")
def corrupt_page(run: Run) -> None:
    """A page in the middle of journal.db and of spool.db is random."""

    def damage(content: bytes) -> bytes:
        middle = (len(content) // 8192) * 4096
        return content[:middle] + os.urandom(min(4096, len(content) - middle)) + content[middle + 4096 :]

    _overwritten(run, ("journal.db", "spool.db"), damage, lost_marks=True)


@fault("Disk", 16, "full while rolling back", device="wrong")
def full_in_rollback(run: Run) -> None:
    """The state folder's disk is full from the moment the candidate of a wrong release is probed."""
    for _ in range(max(1, round(3 * run.scale))):
        run.device.restore()
        with small_disk(run.device) as folder, run.loaded():
            run.device.start()
            eventually(lambda: (run.device.container("3") or {}).get("running"), 60, "version 3 never started")
            filler = fill(folder)
            run.hit()
            time.sleep(8)
            run.expect(run.device.answers("1"), "version 1 does not answer with a full disk")
            filler.unlink()
            if not run.device.alive:
                run.device.start()
            run.converge("1")
