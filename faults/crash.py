"""Group *Crash*: the agent dies at every point it has, is stopped, and loses what it had not synced."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from faults import lost_writes
from faults.device import HOOKED, PROGRAM
from faults.sweep import Run, fault

SYSCALLS = ("fdatasync", "fsync", "rename", "unlink", "pwrite64")
_RECOVERY_POINTS = 110
"""How far a life that only recovers gets, roughly."""


def _live(run: Run, point: int, seconds: float = 45, lost: str = "") -> str | None:
    """One life of the agent that is killed at a point; the point's label, or None when it did not come so far."""
    log = run.rig.folder / f"{run.device.name}.points"
    log.unlink(missing_ok=True)
    env = {"WHERRY_FAULT_POINT": str(point), "WHERRY_FAULT_LOG": str(log), "WHERRY_FAULT_LOST": lost}
    run.device.start(HOOKED, env)
    deadline = time.monotonic() + seconds
    while run.device.alive and time.monotonic() < deadline:
        if run.device.settled("1" if run.device.wanted == "3" else "2") and _passed(log) < point:
            break
        time.sleep(0.1)
    if run.device.alive:
        run.device.kill()
        return None
    if _passed(log) != point:
        run.problem(f"the agent ended by itself at point {_passed(log)}: {run.device.tail()}")
    run.hit(kill=True)
    run.died()
    return log.read_text().splitlines()[-1]


def _passed(log: Path) -> int:
    try:
        return log.read_bytes().count(b"\n")
    except OSError:
        return 0


def points(run: Run, last: int, step: int = 1) -> Iterator[int]:
    """Numbers of points, spread evenly over all of them when the sweep is scaled down."""
    stride = max(step, round(step / run.scale))
    if run.scale < 0.05:
        last = min(last, stride)  # the sample: one point, another with every change of the stride
    yield from range(1 + random.Random(run.row.name).randrange(min(stride, 60)), last + 1, stride)


def _chain(run: Run, chain: Sequence[int], expected: str) -> bool:
    """Lives that each die at their point, then one that converges; whether the first one came to its point."""
    run.device.restore()
    with run.loaded():
        reached = [_live(run, point) for point in chain]
        run.device.start()
        run.converge(expected, when=f"after being killed at {reached}")
    run.device.kill()
    return reached[0] is not None


def _sweep(run: Run, expected: str, step: int, recoveries: int, last: int = 400) -> None:
    """Killed at every point; and `recoveries` times again while recovering from it."""
    for number, point in enumerate(points(run, last, step)):
        again = [1 + (number * 37 + extra * 53) % _RECOVERY_POINTS for extra in range(recoveries)]
        if not _chain(run, [point, *again], expected):
            break


@fault("Crash", 2, "SIGKILL at every call and commit, good release", sample=True)
def every_point(run: Run) -> None:
    """SIGKILL before and after each engine call, nft call, probe, commit, fsync, rename and unlink of a swap."""
    _sweep(run, "2", step=2, recoveries=0)


@fault("Crash", 2, "SIGKILL at every call and commit, wrong release", device="wrong")
def every_point_wrong(run: Run) -> None:
    """The same while a release that answers wrongly is tried and rolled back."""
    _sweep(run, "1", step=2, recoveries=0)


@fault("Crash", 3, "SIGKILL again during recovery")
def recovery(run: Run) -> None:
    """Killed at a point of a swap, then four times again at points of the recovery."""
    _sweep(run, "2", step=4, recoveries=4)


@fault("Crash", 3, "SIGKILL again during roll-back", device="wrong")
def recovery_wrong(run: Run) -> None:
    """The same with a release that answers wrongly."""
    _sweep(run, "1", step=4, recoveries=4)


@fault("Crash", 4, "crash loop x50")
def loop(run: Run) -> None:
    """Fifty lives in a row, each killed at one of the first hundred points."""
    count = max(3, round(50 * run.scale))
    _chain(run, [1 + (life * 29) % 100 for life in range(count)], "2")


@fault("Crash", 1, "SIGKILL at every fsync, rename, unlink and write")
def syscalls(run: Run) -> None:
    """Strace kills the unchanged program at the N-th system call of a kind, SQLite's own included."""
    for call in SYSCALLS:
        for number in range(1, max(2, round(21 * run.scale))):
            run.device.restore()
            with run.loaded():
                if not _traced(run, call, number):
                    break
                run.device.start()
                run.converge("2", when=f"after {call} {number}")
            run.device.kill()


def _traced(run: Run, call: str, number: int) -> bool:
    inject = f"inject={call}:signal=SIGKILL:when={number}"
    run.device.start(["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject,
                      *PROGRAM])  # fmt: skip
    deadline = time.monotonic() + 60
    while run.device.alive and time.monotonic() < deadline:
        if run.device.settled("2"):
            lost_writes.end_traced(run.device)
            return False
        time.sleep(0.1)
    lost_writes.end_traced(run.device)
    run.hit(kill=True)
    run.died()
    return True


@fault("Crash", 5, "power cut: unsynced writes lost", sample=True)
def unsynced(run: Run) -> None:
    """Killed at the N-th sync; the state folder holds what was synced, and a random subset of the rest."""
    _power_cuts(run, torn=False)


@fault("Crash", 6, "power cut: torn writes")
def torn(run: Run) -> None:
    """The same, and the last write that was not synced is on the disk by half."""
    _power_cuts(run, torn=True)


def _power_cuts(run: Run, torn: bool) -> None:
    for number in range(1, max(2, round(16 * run.scale))):
        for seed in range(max(1, round(3 * run.scale))):
            run.device.restore()
            with run.loaded():
                cut = lost_writes.PowerCut(run.device, torn, random.Random(f"{number}/{seed}"))
                if not cut.run_until("fdatasync", number):
                    return
                run.hit(kill=True)
                cut.lose()
                run.died()
                run.device.start()
                run.converge("2", when=f"after a power cut at sync {number}, seed {seed}, which lost {cut.lost}")
            run.device.kill()


@fault("Crash", 7, "SIGSTOP and SIGCONT in every phase")
def stopped(run: Run) -> None:
    """The agent is stopped for a while at different moments of a swap. Ten minutes once in the full sweep."""
    for wait in (0.5, 1.5, 2.5, 4.0):
        with run.swap() as device:
            time.sleep(wait)
            with device.frozen():
                time.sleep(600 if run.scale >= 1 and wait == 1.5 else 10 * min(1, run.scale * 2))
            run.hit()


@fault("Crash", 8, "OOM kill of the agent")
def oom_agent(run: Run) -> None:
    """The agent starts in a memory group that is too small for it, until the kernel has killed it."""
    group = Path("/sys/fs/cgroup/memory") / f"wherry-faults-{os.getpid()}"
    group.mkdir(exist_ok=True)
    try:
        for limit in (24, 32, 40):
            (group / "memory.limit_in_bytes").write_text(str(limit * 2**20))
            with run.swap(start=False) as device:
                shell = ["sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$0" "$@"', *PROGRAM]
                device.start(shell)
                deadline = time.monotonic() + 15
                while device.alive and time.monotonic() < deadline:
                    time.sleep(0.1)
                killed = not device.alive
                device.kill()
                if killed:
                    run.hit()
                    run.died()
    finally:
        group.rmdir()


@fault("Crash", 8, "OOM kill of the model", excuse="the only model is dead until the engine has started it again")
def oom_model(run: Run) -> None:
    """SIGKILL of the serving process, as the kernel's OOM killer does, while the agent runs and settled."""
    with run.swap() as device:
        device.wait("2")
        for _ in range(max(1, round(3 * run.scale))):
            serving = device.container("2")
            assert serving is not None
            state = run.rig.engine.api.inspect_container(serving["id"])["State"]
            os.kill(state["Pid"], signal.SIGKILL)
            run.hit()
            time.sleep(3)
