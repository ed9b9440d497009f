"""`make faults`: the sweep. Prints a table and writes build/faults.json; started again, it goes on where it was.

Everything runs in network and mount namespaces of its own, with a container engine of its own: nothing that runs on
this machine is touched. Faults that touch nothing but their own device run beside each other, the others alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from faults import ROOT, clock, crash, disk, engine, mqtt, registry, releases, results, server
from faults.device import Device
from faults.results import GROUPS, Code
from faults.rig import Rig
from faults.sweep import FAULTS, Fault, perform, prove

_PARTS = (crash, disk, engine, registry, mqtt, clock, server)
_WANTS = {"good": "2", "wrong": releases.WRONG, "other": "4"}
_INSIDE = "WHERRY_FAULTS_INSIDE"


def main() -> int:
    """Sweep what is asked for. Returns 1 when a fault failed."""
    options = _options()
    chosen = sorted((one for one in FAULTS if _wanted(one, options)), key=lambda one: GROUPS.index(one.group))
    if options.list:
        for one in chosen:
            print(f"{one.group:9} {one.number:3} {one.name}")
        return 0
    if _INSIDE not in os.environ:
        return _enter_namespaces()
    sweep = _Sweep(options, chosen)
    sweep.run()
    print("\n" + results.table(list(sweep.rows.values())))
    return 0 if all(row["ok"] or row["not_done"] for row in sweep.rows.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the points and repetitions, default all")
    parser.add_argument("--sample", action="store_true", help="only a fault or two of each group, scaled down")
    parser.add_argument("--group", choices=GROUPS, nargs="+", help="only these groups")
    parser.add_argument("--only", help="only faults whose number and name contain this")
    parser.add_argument("--again", action="store_true", help="also faults that an earlier run has been through")
    parser.add_argument("--failed", action="store_true", help="also faults that an earlier run has seen fail")
    parser.add_argument("--mixed", action="store_true", help="keep rows of other code; the table says so")
    parser.add_argument("--list", action="store_true", help="list the faults and end")
    parser.add_argument("--out", type=Path, default=ROOT / "build/faults.json")
    options = parser.parse_args()
    if options.sample:
        options.scale = min(options.scale, 0.02)
    return options


def _wanted(one: Fault, options: argparse.Namespace) -> bool:
    if options.group and one.group not in options.group:
        return False
    if options.only and options.only not in one.key:
        return False
    return bool(one.sample or not options.sample)


def _enter_namespaces() -> int:
    """Run this program again where it can do no harm, and where nothing of it outlives it."""
    script = 'ip link set lo up && mount --make-rprivate / && "$0" -m faults "$@"; exit $?'
    apart = ["unshare", "-m", "-n", "-p", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script]
    with tempfile.TemporaryDirectory(prefix="wherry-faults-", ignore_cleanup_errors=True) as folder:
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environ |= {_INSIDE: folder, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        argv = ["setpriv", "--pdeathsig", "KILL", *apart, sys.executable, *sys.argv[1:]]
        return subprocess.run(argv, cwd=ROOT, env=environ, check=False).returncode


class _Sweep:
    """One run: what is known already, what is to be done, and what came of it.

    Attributes:
        rows: by the fault's name.
    """

    def __init__(self, options: argparse.Namespace, chosen: Sequence[Fault]) -> None:
        self._options = options
        self._code = Code.here()
        self._lock = threading.Lock()
        self._done = 0
        kept, old = results.still_true(results.read(options.out), self._code, options.scale)
        if options.mixed:
            kept = [*old, *kept]
        elif old:
            print(f"{len(old)} rows of {options.out} tell of other code, or of less: these faults begin anew")
        self.rows = {row["name"]: row for row in kept}
        self._todo = [one for one in chosen if self._is_due(one)]

    def _is_due(self, one: Fault) -> bool:
        row = self.rows.get(one.key)
        return row is None or self._options.again or (self._options.failed and not row["ok"])

    def _device(self, one: Fault) -> str:
        return "good" if self._options.sample and one.device == "other" else one.device

    def run(self) -> None:
        """Inject every fault that is due."""
        if not self._todo:
            return
        folder = Path(os.environ[_INSIDE])
        rig = Rig(folder)
        try:
            print(f"starting engine, registry, broker and server in {folder} …", flush=True)
            rig.start()
            names = {self._device(one) for one in self._todo}
            devices = _devices(rig, names, any(one.backup for one in self._todo))
            self._beside_each_other(rig, devices)
            for one in self._todo:
                if not one.apart:
                    self._perform(rig, devices[self._device(one)], one)
            if "good" in devices:
                seen = prove(rig, devices["good"])
                print(f"proof: of an agent that never commits its journal the sweep says: {seen}", flush=True)
                if seen is None:
                    raise SystemExit("the sweep noticed nothing of it: its results are worth nothing")
        finally:
            rig.stop()
            for logs in (folder / "log", folder / "lab/log"):
                if logs.exists():
                    shutil.copytree(logs, self._options.out.with_suffix(""), dirs_exist_ok=True)

    def _beside_each_other(self, rig: Rig, devices: dict[str, Device]) -> None:
        """Faults that touch their own device only: a thread for each device."""

        def lane(name: str) -> None:
            for one in self._todo:
                if one.apart and self._device(one) == name:
                    self._perform(rig, devices[name], one)

        with ThreadPoolExecutor() as threads:
            for ended in [threads.submit(lane, name) for name in devices]:
                ended.result()

    def _perform(self, rig: Rig, device: Device, one: Fault) -> None:
        row = perform(rig, device, one, self._options.scale)
        found = replace(row, commit=self._code.commit, code=self._code.digest).document()
        with self._lock:
            self._done += 1
            self.rows[one.key] = found
            print(results.line(found, self._done, len(self._todo)), flush=True)
            results.write(self._options.out, self.rows.values())


def _devices(rig: Rig, names: set[str], backup: bool) -> dict[str, Device]:
    """The devices that the faults befall, each at the moment when version 1 had just been committed."""
    found = {}
    for name in sorted(names):
        device = Device(rig, f"faults-{name}", soak=2 if name == "wrong" else 0.2, wants=_WANTS[name])
        device.enrol()
        device.begin()
        found[name] = device
    if backup:
        rig.back_up_server()
    for device in found.values():
        device.want(device.wants)
    return found


if __name__ == "__main__":
    sys.exit(main())
