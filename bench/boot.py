"""`make bench-boot`: how soon a device answers after a power cut, without a network. Writes build/bench-boot.json.

A device serves one model; then its power is cut: engine, containers and agent are killed at once, the packet filter
is emptied, and the machine has another boot id. Its network is gone: server, broker and registry neither answer nor
refuse. Engine and agent are started at the same moment, as an init system does, and what counts are the seconds from
the moment when the engine answers to the first right answer at the slot's port. Beside it, in turns: `docker start` of
a container of the same image as soon as the engine answers, and its first right answer. In namespaces and with an
engine of its own, so that nothing on this machine is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

# ruff: noqa: E402
import docker
from lab import Lab
from ports import free_port

from faults import releases
from faults.device import SAMPLE, Device
from faults.rig import Rig, eventually
from wherry.tensors import HEADER_LENGTH, decode_response, encode_request

_INSIDE = "WHERRY_BOOT_INSIDE"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BARE = "bare"
_PATIENCE = 120.0


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if _INSIDE not in os.environ:
        return _enter_namespaces()
    rig = Rig(Path(os.environ[_INSIDE]))
    try:
        print("starting engine, registry, broker and server …", flush=True)
        rig.start()
        figures = _measure(rig, options.rounds)
    finally:
        rig.stop()
    target = ROOT / "build" / "bench-boot.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps({name: value for name, value in figures.items() if not isinstance(value, list)}, indent=2))
    return 0


def _enter_namespaces() -> int:
    script = 'ip link set lo up && mount --make-rprivate / && "$0" bench/boot.py "$@"; exit $?'
    apart = ["unshare", "-m", "-n", "-p", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script]
    with tempfile.TemporaryDirectory(prefix="wherry-boot-", ignore_cleanup_errors=True) as folder:
        _fill_cache(Path(folder))
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environ |= {_INSIDE: folder, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        argv = ["setpriv", "--pdeathsig", "KILL", *apart, sys.executable, *sys.argv[1:]]
        return subprocess.run(argv, cwd=ROOT, env=environ, check=False).returncode


def _fill_cache(folder: Path) -> None:
    """Base and runtime layers are made with a network, which there is none of inside."""
    lab = Lab(folder / "lab")
    model = folder / "warm.onnx"
    releases.write_model(model, 1.0, 0)
    out = str(folder / "warm")
    lab.run(
        "wherry", "package", str(model), "--name", releases.MODEL, "--version", "0", "--profile", releases.PROFILE,
        "--output", out,
    )  # fmt: skip


def _measure(rig: Rig, rounds: int) -> dict[str, Any]:
    """Boot in turns with the agent and with the bare container."""
    device = Device(rig, "boot", soak=0.5, wants="1")
    device.enrol()
    # As installed: what the sweep makes quicker is left at its default.
    settings = f'engine_url = "unix://{rig.engine.socket}"\nwatermark_mb = 1\n[slots]\nmain = {device.port}\n'
    (device.state / "agent.toml").write_text(settings)
    device.start()
    device.want("1")
    device.wait("1", 120)
    bare = _make_bare(rig, device)
    print("the network is gone", flush=True)
    _cut_network(rig)
    found: dict[str, list[float]] = {"wherry": [], "bare": []}
    for number in range(rounds):
        for name in ("wherry", "bare") if number % 2 else ("bare", "wherry"):
            seconds = _boot(rig, device, bare, with_agent=name == "wherry")
            found[name].append(round(seconds, 3))
            print(f"{name}: {seconds:.2f} s", flush=True)
    ratios = [ours / theirs for ours, theirs in zip(found["wherry"], found["bare"], strict=True)]
    return {
        "at": datetime.now(UTC).isoformat(),
        "what": "seconds from engine up to the first answer; network gone, boot after a power cut",
        "rounds": rounds,
        "wherry_s": statistics.median(found["wherry"]),
        "bare_s": statistics.median(found["bare"]),
        "ratio": statistics.median(ratios),
        "wherry_worst_s": max(found["wherry"]),
        "bare_worst_s": max(found["bare"]),
        "wherry_all_s": found["wherry"],
        "bare_all_s": found["bare"],
    }


def _make_bare(rig: Rig, device: Device) -> int:
    """A container of the same image with nothing of ours around it; the port that it answers at."""
    api, item = rig.engine.api, device.container("1")
    assert item is not None
    port = free_port()
    inspected = api.inspect_container(item["id"])
    inner = next(iter(inspected["Config"]["ExposedPorts"]))
    host = api.create_host_config(port_bindings={inner: [("127.0.0.1", port)]}, restart_policy={"Name": "no"})
    api.create_container(inspected["Image"], name=_BARE, host_config=host, ports=[inner])
    return port


def _cut_network(rig: Rig) -> None:
    """Packets to server, broker and registry are dropped: whoever asks waits for his own deadline."""
    ports = ", ".join(str(port) for port in (rig.server_port, rig.broker_port, rig.lab.ports.registry))
    rules = (
        "table inet away {\nchain output {\ntype filter hook output priority 0;\n"
        f"oifname lo tcp dport {{ {ports} }} drop\n}}\n}}\n"
    )
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


def _boot(rig: Rig, device: Device, bare: int, with_agent: bool) -> float:
    """Cut the power and boot; seconds from engine up to the first answer."""
    item = device.container("1")
    assert item is not None
    _prepare(rig, item["id"], with_agent)
    _cut_power(rig, device)
    began = time.monotonic()
    if with_agent:
        device.start()
    rig.engine.start()
    up = time.monotonic()
    if not with_agent:
        rig.engine.api.start(_BARE)
    port = device.port if with_agent else bare
    eventually(lambda: _answers(port), _PATIENCE, f"nobody answers: {device.status}", pause=0.005)
    answered = time.monotonic()
    print(f"  engine up after {up - began:.2f} s", flush=True)
    return max(0.0, answered - up)


def _answers(port: int) -> bool:
    body, length = encode_request([SAMPLE])
    headers = {} if length is None else {HEADER_LENGTH: str(length)}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("POST", f"/v2/models/{releases.MODEL}/infer", body, headers)
        answer = connection.getresponse()
        found = answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    if answer.status != 200:
        return False
    header = answer.headers.get(HEADER_LENGTH)
    outputs = decode_response(found, int(header) if header else None).outputs
    return abs(float(outputs[0].values()[0]) - 1.0) < 1e-5


def _prepare(rig: Rig, ours: str, with_agent: bool) -> None:
    """One of the two containers is there to come back, the other is not."""
    api = rig.engine.api
    api.update_container(ours, restart_policy={"Name": "unless-stopped" if with_agent else "no"})
    if with_agent:
        api.start(ours)
        with contextlib.suppress(docker.errors.APIError):
            api.stop(_BARE, timeout=0)


def _cut_power(rig: Rig, device: Device) -> None:
    """Whatever runs of the device is gone at once, and so is what the kernel knew."""
    api = rig.engine.api
    processes = [item["Id"] for item in api.containers()]
    pids = [int(api.inspect_container(name)["State"]["Pid"]) for name in processes]
    device.kill(signal.SIGKILL)
    rig.engine.send(signal.SIGKILL)
    for pid in [*pids, *_named("containerd-shim"), *_named("containerd"), *_named("docker-proxy")]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _until(lambda: not _named("containerd"))
    for table in _tables():
        subprocess.run(["nft", "delete", "table", *table.split()], check=True)
    for family in ("filter", "nat"):
        subprocess.run(["iptables", "-t", family, "-F"], check=False)
        subprocess.run(["iptables", "-t", family, "-X"], check=False)
    _cut_network(rig)
    fresh = rig.folder / "boot_id"
    fresh.write_text(f"{uuid.uuid4()}\n")
    if not os.path.ismount(_BOOT_ID):
        subprocess.run(["mount", "--bind", str(fresh), str(_BOOT_ID)], check=True)


def _named(name: str) -> list[int]:
    done = subprocess.run(["pgrep", "-f", f"^(/[^ ]*/)?{name}( |$)"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in done.stdout.split() if int(pid) != os.getpid()]


def _tables() -> list[str]:
    done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    tables = [line.removeprefix("table ") for line in done.stdout.splitlines()]
    return [table for table in tables if table.split()[1] == "away" or table.split()[1].startswith("wherry")]


def _until(done: Callable[[], bool]) -> None:
    eventually(done, 20, "the old engine does not end", pause=0.02)


if __name__ == "__main__":
    sys.exit(main())
