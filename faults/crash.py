"""Group *Crash*: the agent dies at every point it has, is stopped, and loses what it had not synced."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults import lost_writes
from faults.device import HOOKED, PROGRAM
from faults.sweep import ENGINE_RESTARTS, NotHereError, Run, fault

SYSCALLS = ("fdatasync", "fsync", "rename", "unlink", "pwrite64")
_WAYS_LIVES = 30
"""Lives after which a device gets the time to converge, and all is looked at."""


@dataclass(frozen=True)
class _Course:
    """From version 1 to where the device is to end.

    Attributes:
        settled: deadline of one life, in seconds.
    """

    run: Run
    settled: float = 90

    @property
    def log(self) -> Path:
        """Where a life writes the points that it passes."""
        return self.run.rig.folder / f"{self.run.device.name}.points"

    @property
    def deaths(self) -> Path:
        """The points at which the agent has died in this fault."""
        return self.run.rig.folder / f"{self.run.device.name}.deaths"

    def passed(self) -> list[str]:
        """Points that the last life passed."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def live(self, env: Mapping[str, str]) -> str | None:
        """One life that is to be killed at a point; the point's key, or None when it converged before it."""
        run, device = self.run, self.run.device
        self.log.unlink(missing_ok=True)
        device.start(HOOKED, {"WHERRY_FAULT_LOG": str(self.log), **env})
        deadline = time.monotonic() + self.settled
        while device.alive and time.monotonic() < deadline and not device.settled(device.goal):
            time.sleep(0.03)
        if device.alive:
            device.kill()
            return None
        if device.ended != -signal.SIGKILL:
            run.problem(f"the agent ended by itself with {device.ended}: {device.tail()}")
        run.hit(kill=True)
        run.died()
        return self.passed()[-1]

    def single(self, env: Mapping[str, str]) -> str | None:
        """One death, one recovery, and everything is looked at."""
        self.run.device.restore(keep_image=False)
        with self.run.loaded():
            died = self.live(env)
            self.recover(f"after being killed at {died}")
        return died

    def recover(self, when: str) -> None:
        """A life that may go to its end."""
        self.run.device.start()
        self.run.converge(self.run.device.goal, when=when)
        self.run.device.kill()

    def walk(self, share: float) -> None:
        """From life to life: each dies at the first point at which none has died, and the next goes on from there.

        Ends when every point of a share of all has had its death.
        """
        self.deaths.write_text("")
        env = {"WHERRY_FAULT_DEATHS": str(self.deaths), "WHERRY_FAULT_SHARE": f"{share:.3f}"}
        lives = _WAYS_LIVES
        while lives == _WAYS_LIVES:
            self.run.device.restore(keep_image=False)
            with self.run.loaded():
                for lives in range(1, _WAYS_LIVES + 1):  # noqa: B007
                    died = self.live(env)
                    if died is None:
                        break
                    with self.deaths.open("a") as file:
                        file.write(died + "\n")
                self.recover(f"after {lives} lives, the last killed at {died}")


def _every(run: Run, share: float) -> None:
    """A life that is not killed shows which points there are; then one is killed at each, and recovers."""
    course = _Course(run)
    course.single({})
    keys = list(dict.fromkeys(key for key in course.passed() if int(key.rpartition(" ")[2]) <= 1))
    stride = max(1, round(1 / (share * run.scale)))
    first = random.Random(run.row.name).randrange(stride)
    reached = [course.single({"WHERRY_FAULT_AT": key}) for key in keys[first::stride]]
    died = [key for key in reached if key]
    run.expect(bool(died), f"of {len(keys)} points that a life passed none was reached again")
    run.row.outcome = f"converged after a death at each of {len(set(died))} of {len(keys)} points of a swap"


def _walk(run: Run) -> None:
    course = _Course(run)
    course.walk(run.scale)
    keys = course.deaths.read_text().splitlines()
    phases = {key.partition(" | ")[0] for key in keys}
    run.row.outcome = f"converged after a death at each of {len(set(keys))} points in {len(phases)} phases"


@fault("Crash", 2, "SIGKILL at every call and commit, good release")
def every_point(run: Run) -> None:
    """SIGKILL before and after engine, nft and probe calls, commits, fsyncs, renames and unlinks of a swap."""
    _every(run, share=0.5)


@fault("Crash", 2, "SIGKILL at every call and commit, wrong release", device="wrong")
def every_point_wrong(run: Run) -> None:
    """The same while a release that answers wrongly is tried and rolled back."""
    _every(run, share=0.5)


@fault("Crash", 3, "SIGKILL again during recovery", sample=True)
def recovery(run: Run) -> None:
    """The agent dies at every point of every phase, each life a recovery from the death before."""
    _walk(run)


@fault("Crash", 3, "SIGKILL again during roll-back", device="wrong")
def recovery_wrong(run: Run) -> None:
    """The same with a release that answers wrongly."""
    _walk(run)


@fault("Crash", 4, "crash loop x50")
def loop(run: Run) -> None:
    """Fifty lives in a row, each killed at one of the first hundred points."""
    course = _Course(run)
    run.device.restore()
    with run.loaded():
        for life in range(max(3, round(50 * run.scale))):
            course.live({"WHERRY_FAULT_POINT": str(1 + (life * 29) % 100)})
        course.recover("after the crash loop")


@fault("Crash", 1, "SIGKILL at every fsync, rename, unlink and write", device="other")
def syscalls(run: Run) -> None:
    """Strace kills the unchanged program at the N-th system call of a kind, SQLite's own included, up to 20."""
    chains = max(1, round(5 * run.scale))
    for call in SYSCALLS:
        for first in range(1, chains + 1):
            if not _traced_chain(run, call, range(first, 21, 5)):
                break


def _traced_chain(run: Run, call: str, numbers: Sequence[int]) -> bool:
    """Lives that each die at their call, the next going on from there; whether the first one came so far."""
    run.device.restore()
    reached: list[int] = []
    with run.loaded():
        for number in numbers:
            if not _traced(run, call, number):
                break
            reached.append(number)
        run.device.start()
        run.converge(run.device.goal, when=f"after {call} {reached}")
    run.device.kill()
    return bool(reached)


def _traced(run: Run, call: str, number: int) -> bool:
    inject = f"inject={call}:signal=SIGKILL:when={number}"
    run.device.start(["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject,
                      *PROGRAM])  # fmt: skip
    deadline = time.monotonic() + 60
    while run.device.alive and time.monotonic() < deadline:
        if run.device.settled(run.device.goal):
            lost_writes.end_traced(run.device)
            return False
        time.sleep(0.05)
    lost_writes.end_traced(run.device)
    run.hit(kill=True)
    run.died()
    return True


@fault("Crash", 5, "power cut: unsynced writes lost", device="other")
def unsynced(run: Run) -> None:
    """Killed at the N-th sync; the state folder holds what was synced, and a random subset of the rest."""
    _power_cuts(run, torn=False)


@fault("Crash", 6, "power cut: torn writes", device="other")
def torn(run: Run) -> None:
    """The same, and the last write that was not synced is on the disk by half."""
    _power_cuts(run, torn=True)


def _power_cuts(run: Run, torn: bool) -> None:
    """Three cuts on the way from one version to the next, the first at each of the first fifteen syncs."""
    chance = random.Random(run.row.name)
    for number in range(1, max(2, round(16 * run.scale))):
        run.device.restore()
        with run.loaded():
            cuts = [number, *(chance.randint(1, 8) for _ in range(2 if run.scale > 0.05 else 0))]
            lost = [_cut(run, torn, at, chance) for at in cuts]
            run.device.start()
            run.converge(run.device.goal, when=f"after power cuts at syncs {cuts}, which lost {lost}")
        run.device.kill()
        if lost[0] is None:
            return


def _cut(run: Run, torn: bool, number: int, chance: random.Random) -> int | None:
    """One power cut; how many writes were lost, or None when the agent converged before it."""
    cut = lost_writes.PowerCut(run.device, torn, chance)
    if not cut.run_until("fdatasync", number):
        return None
    run.hit(kill=True)
    cut.lose()
    run.died()
    return cut.lost


@fault("Crash", 7, "SIGSTOP and SIGCONT in every phase", device="other")
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
    memory = Path("/sys/fs/cgroup/memory")
    if not (memory / "memory.limit_in_bytes").exists():
        raise NotHereError("this machine has no memory controller of control groups version 1")
    group = memory / f"wherry-faults-{os.getpid()}"
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


@fault("Crash", 8, "OOM kill of the model", excuse=ENGINE_RESTARTS, seconds=15)
def oom_model(run: Run) -> None:
    """SIGKILL of the serving process, as the kernel's OOM killer does, while the agent runs and settled."""
    with run.swap() as device:
        device.wait("2")
        for _ in range(max(1, round(3 * run.scale))):
            serving = device.container("2")
            assert serving is not None
            state = run.rig.engine.api.inspect_container(serving["id"])["State"]
            run.hit()
            os.kill(state["Pid"], signal.SIGKILL)
            time.sleep(3)
