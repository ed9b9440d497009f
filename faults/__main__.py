"""`make faults`: the sweep. Prints a table and writes build/faults.json; started again, it goes on where it was.

Everything runs in network and mount namespaces of its own, with a container engine of its own: nothing that runs on
this machine is touched.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from faults import ROOT, clock, crash, disk, engine, mqtt, registry, server
from faults.device import Device
from faults.rig import Rig
from faults.sweep import FAULTS, Fault, Row, perform, prove

GROUPS = ("Crash", "Disk", "Engine", "Registry", "MQTT", "Time", "Server")
_PARTS = (crash, disk, engine, registry, mqtt, clock, server)
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
    done = {} if options.again or options.sample else _earlier(options.out)
    rows = _sweep([one for one in chosen if _key(one) not in done], options.scale, done, options.out)
    print("\n" + table(rows))
    return 0 if all(row["ok"] for row in rows) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the points and repetitions, default all")
    parser.add_argument("--sample", action="store_true", help="only a fault or two of each group, scaled down")
    parser.add_argument("--group", choices=GROUPS, help="only this group")
    parser.add_argument("--only", help="only faults whose number and name contain this")
    parser.add_argument("--again", action="store_true", help="forget what an earlier run has done")
    parser.add_argument("--list", action="store_true", help="list the faults and end")
    parser.add_argument("--out", type=Path, default=ROOT / "build/faults.json")
    options = parser.parse_args()
    if options.sample:
        options.scale = min(options.scale, 0.02)
    return options


def _wanted(one: Fault, options: argparse.Namespace) -> bool:
    if options.group and one.group != options.group:
        return False
    if options.only and options.only not in _key(one):
        return False
    return bool(one.sample or not options.sample)


def _key(one: Fault) -> str:
    return f"{one.number} {one.name}"


def _enter_namespaces() -> int:
    """Run this program again where it can do no harm, and where nothing of it outlives it."""
    script = 'ip link set lo up && mount --make-rprivate / && "$0" -m faults "$@"; exit $?'
    apart = ["unshare", "-m", "-n", "-p", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script]
    with tempfile.TemporaryDirectory(prefix="wherry-faults-", ignore_cleanup_errors=True) as folder:
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environ |= {_INSIDE: folder, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        argv = ["setpriv", "--pdeathsig", "KILL", *apart, sys.executable, *sys.argv[1:]]
        return subprocess.run(argv, cwd=ROOT, env=environ, check=False).returncode


def _earlier(out: Path) -> dict[str, dict[str, Any]]:
    """Faults that an earlier run has been through."""
    try:
        return {row["name"]: row for row in json.loads(out.read_text())["faults"]}
    except (OSError, ValueError, KeyError):
        return {}


def _sweep(todo: list[Fault], scale: float, done: dict[str, dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    if not todo:
        return list(done.values())
    folder = Path(os.environ[_INSIDE])
    rig = Rig(folder)
    try:
        print(f"starting engine, registry, broker and server in {folder} …", flush=True)
        rig.start()
        devices = _devices(rig, {one.device for one in todo})
        for number, one in enumerate(todo, 1):
            row = perform(rig, devices[one.device], one, scale)
            done[row.name] = row.document()
            print(_line(row, number, len(todo)), flush=True)
            _write(out, done)
        if "good" in devices:
            seen = prove(rig, devices["good"])
            print(f"proof: of an agent that never commits its journal the sweep says: {seen}", flush=True)
            if seen is None:
                raise SystemExit("the sweep noticed nothing of it: its results are worth nothing")
    finally:
        rig.stop()
        logs = out.with_suffix("")
        shutil.copytree(folder / "log", logs, dirs_exist_ok=True) if (folder / "log").exists() else None
        shutil.copytree(folder / "lab/log", logs, dirs_exist_ok=True) if (folder / "lab/log").exists() else None
    return list(done.values())


def _devices(rig: Rig, names: set[str]) -> dict[str, Device]:
    """The devices that the faults befall, each at the moment when version 1 had just been committed."""
    found = {}
    for name in sorted(names):
        device = Device(rig, f"faults-{name}", soak=0.2 if name == "good" else 2)
        device.enrol()
        device.begin()
        found[name] = device
    rig.back_up_server()
    for name, device in found.items():
        device.want("2" if name == "good" else "3")
    return found


def _line(row: Row, number: int, total: int) -> str:
    mark = "ok    " if row.ok else "FAILED"
    return (
        f"[{number}/{total}] {mark} {row.group} {row.name}: {row.injections} injections, {row.kill_points} kills, "
        f"{row.checks} checks, {row.failed_requests} of {row.sent} requests failed, {row.wrong_answers} wrong "
        f"({row.seconds:.0f} s)" + ("" if row.ok else f"\n    {row.outcome}")
    )


def table(rows: list[dict[str, Any]]) -> str:
    """What was injected and what came of it, group by group."""
    head = ("fault", "group", "inject.", "kills", "checks", "sent", "failed", "wrong", "outcome")
    lines = [head]
    for row in sorted(rows, key=lambda row: (GROUPS.index(row["group"]), int(row["name"].split()[0]))):
        outcome = ("" if row["ok"] else "FAILED: ") + row["outcome"]
        if row["ok"] and row["failed_requests"]:
            outcome += f" ({row['excuse']})"
        lines.append(
            (row["name"], row["group"], *(str(row[key]) for key in ("injections", "kill_points", "checks", "sent",
             "failed_requests", "wrong_answers")), outcome[:110])
        )  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    text = [
        "  ".join(
            cell.rjust(width) if 2 <= column <= 7 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, [*widths, 0], strict=True))
        )
        for line in lines
    ]
    total = {key: sum(row[key] for row in rows) for key in ("injections", "kill_points", "checks", "failed_requests",
                                                            "wrong_answers", "sent")}  # fmt: skip
    text.append(
        f"\n{len(rows)} faults, {total['injections']} injections, {total['kill_points']} kill points, "
        f"{total['checks']} invariant checks; {total['failed_requests']} of {total['sent']} requests failed, "
        f"{total['wrong_answers']} answers were wrong; {sum(not row['ok'] for row in rows)} faults failed"
    )
    return "\n".join(line.rstrip() for line in text)


def _write(out: Path, done: dict[str, dict[str, Any]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_suffix(".new")
    fresh.write_text(json.dumps({"faults": list(done.values())}, indent=1) + "\n")
    fresh.replace(out)


if __name__ == "__main__":
    sys.exit(main())
