"""Group *Time*: the clock jumps, metadata and certificates expire, renewals are lost, the signer goes back in time.

The clock is libfaketime's: it is preloaded into the unchanged agent and reads its offset from a file, so that the
clock can jump under a running program, TLS and SQLite included. The monotonic clock stays real, as in a device.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path

from faults.device import HOOKED, Device
from faults.proxy import Trouble
from faults.rig import eventually
from faults.sweep import Run, fault

_LIBRARY = "/usr/lib/*/faketime/libfaketimeMT.so.1"
YEARS = 365 * 86_400


class Clock:
    """The clock of one agent."""

    def __init__(self, device: Device) -> None:
        self._file = device.rig.folder / f"{device.name}.clock"
        self.set(0)

    def set(self, seconds: float) -> None:
        """So far from the real time."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+.0f}\n")
        fresh.replace(self._file)

    @property
    def env(self) -> dict[str, str]:
        """What the agent needs in its environment."""
        return {
            "LD_PRELOAD": glob(_LIBRARY)[0],  # noqa: PTH207
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "WHERRY_FAULT_LOG": str(self._file.with_suffix(".points")),
        }


def _jumps(run: Run, jumps: tuple[float, ...], waits: tuple[float, ...], back: bool = True) -> None:
    """The clock jumps in the middle of a swap, and some seconds later back to the real time."""
    for jump in jumps:
        for wait in waits:
            clock = Clock(run.device)
            with run.swap(env=clock.env, argv=HOOKED, keep_image=False) as device:
                time.sleep(wait)
                clock.set(jump)
                run.hit()
                time.sleep(6)
                run.expect(device.answers("1") or device.answers("2"), "nothing answers")
                if back:
                    clock.set(0)


def _now_to_1970() -> float:
    return 86_400 - time.time()


@fault("Time", 43, "clock at 1970", sample=True)
def epoch(run: Run) -> None:
    """The agent starts on 2 January 1970; some seconds after it has said how it is somebody sets the clock."""
    clock = Clock(run.device)
    clock.set(_now_to_1970())
    with run.swap(env=clock.env, argv=HOOKED) as device:
        run.hit()
        eventually(lambda: device.status.get("slots"), 60, f"it says nothing: {device.tail()}")
        if run.scale > 0.05:
            time.sleep(8)
        run.expect(device.answers("1") or device.answers("2"), "nothing answers")
        clock.set(0)


@fault("Time", 43, "clock +10 years in the middle of a swap")
def ahead(run: Run) -> None:
    """The clock jumps ten years ahead at different moments, and back six seconds later."""
    _jumps(run, (10 * YEARS,), (0.3, 2.0, 4.0))


@fault("Time", 43, "clock backwards in the middle of a swap")
def backwards(run: Run) -> None:
    """The clock jumps back by five minutes and stays there; and by a year, until somebody sets it."""
    _jumps(run, (-300.0,), (1.0, 3.0), back=False)
    _jumps(run, (-1.0 * YEARS,), (1.0, 3.0))


@fault("Time", 44, "metadata expires in the middle of the download")
def metadata_expires(run: Run) -> None:
    """The registry stalls the download; meanwhile eight days pass."""
    clock = Clock(run.device)

    def before() -> None:
        run.rig.registry.trouble(Trouble(when=b"/blobs/", times=2, stall=True))

    with run.swap(env=clock.env, argv=HOOKED, before=before, keep_image=False):
        with contextlib.suppress(Exception):
            eventually(lambda: run.rig.registry.hits, 30, "")
        clock.set(8 * 86_400)
        run.hit()
        time.sleep(8)
        run.rig.registry.trouble(None)
        run.rig.registry.break_all()  # the engine waits for a silent connection for as long as it is open
        clock.set(0)


@fault("Time", 45, "certificate expires offline")
def certificate_expires(run: Run) -> None:
    """Nobody can be reached for thirty days: what serves goes on, a restart in between included; then it renews."""
    clock = Clock(run.device)
    with run.swap(env=clock.env, argv=HOOKED, before=run.rig.cut_network) as device:
        clock.set(30 * 86_400)
        run.hit()
        time.sleep(4)
        device.kill()
        device.start(HOOKED, clock.env)
        time.sleep(4)
        run.expect(device.answers("1"), "version 1 does not answer with an expired certificate")
        run.rig.heal()
        time.sleep(6)
        clock.set(0)


@contextlib.contextmanager
def _renewing(run: Run, extra: dict[str, str] | None = None) -> Iterator[Device]:
    """An agent whose certificate is due for renewal."""
    clock = Clock(run.device)
    clock.set(5 * 86_400)
    settings = (run.device.origin / "agent.toml").read_text()
    with run.swap(start=False) as device:
        (device.state / "agent.toml").write_text("renew_check_seconds = 1\n" + settings)
        device.start(HOOKED, clock.env | (extra or {}))
        yield device
        if device.alive:
            with contextlib.suppress(Exception):
                eventually(lambda: _renewed(run), 60, "")
            device.kill()
        run.expect(_renewed(run), f"the certificate was not renewed: {device.tail()}")


def _renewed(run: Run) -> bool:
    new, old = (folder / "identity/device.pem" for folder in (run.device.state, run.device.origin))
    return new.read_bytes() != old.read_bytes()


def _until(holds: Callable[[], bool], seconds: float) -> None:
    with contextlib.suppress(Exception):
        eventually(holds, seconds, "")


@fault("Time", 46, "renewal reply lost")
def reply_lost(run: Run) -> None:
    """The server renews, and its answer never arrives, three times."""
    run.rig.server.trouble(None)
    with _renewing(run) as device:
        run.rig.server.trouble(Trouble(when=b"", times=6, cut=1500))
        run.rig.server.break_all()
        _until(lambda: run.rig.server.hits >= 6, 20)
        run.hit(max(1, run.rig.server.hits))
        run.rig.server.trouble(None)
        run.expect(device.alive, "the agent ended")
    _adopt(run)


@fault("Time", 47, "crash between key and certificate")
def crash_in_renewal(run: Run) -> None:
    """Killed at each of the first file operations of an agent whose certificate is renewed, then started again."""
    log = run.rig.folder / "renewal.points"
    for point in range(2, max(6, round(60 * run.scale)), 3):
        with _renewing(run, {"WHERRY_FAULT_POINT": str(point), "WHERRY_FAULT_LOG": str(log)}) as device:
            _until(lambda: not device.alive, 30)
            if not device.alive:
                run.hit(kill=True)
                run.died()
            device.kill()
            clock = Clock(device)
            clock.set(5 * 86_400)
            device.start(HOOKED, clock.env)
        _adopt(run)


def _adopt(run: Run) -> None:
    """The server knows the newest key from now on: later faults begin with it."""
    target = run.device.origin / "identity"
    shutil.rmtree(target)
    shutil.copytree(run.device.state / "identity", target)


@fault("Time", 50, "signer restored from an old backup", backup=True)
def old_backup(run: Run) -> None:
    """The server's whole folder goes back to before version 2 was rolled out; the device never goes back with it."""
    lab = run.rig.lab
    live, kept = lab.folder / "server", lab.folder / "server.kept"
    backup = run.rig.folder / "server.backup"
    if not backup.exists():
        run.problem("no backup was made")
        return
    device = run.device
    with run.swap():
        device.wait("2")
        run.rig.kill_server()
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(live, kept)
        _replace(live, backup)
        lab.start_server()
        run.hit()
        try:
            device.kill()
            device.start()
            time.sleep(8)
            run.converge("2", when="with a server from an old backup")
        finally:
            run.rig.kill_server()
            _replace(live, kept)
            lab.start_server()


def _replace(live: Path, other: Path) -> None:
    shutil.rmtree(live)
    shutil.copytree(other, live)
