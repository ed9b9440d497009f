"""Group *Server*: the control plane dies in the middle of things, and is asked for nonsense."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

from faults.rig import eventually
from faults.sweep import Run, fault


def _republish(run: Run) -> subprocess.CompletedProcess[str]:
    """Sign and publish version 1 once more, under a higher counter; the lab's own command."""
    package = str(run.rig.lab.folder / "package-1" / "package.json")
    return run.rig.lab.run("wherry", "release", "publish", package, check=False, timeout=120)


@fault("Server", 60, "SIGKILL mid-publish")
def killed(run: Run) -> None:
    """SIGKILL of the server at different moments of a publish, while a device swaps; then the publish is repeated."""
    for wait in (0.4, 0.8, 1.2, 1.6, 2.0)[: max(1, round(5 * run.scale))]:
        with run.swap():
            publishing = threading.Thread(target=_republish, args=(run,))
            publishing.start()
            time.sleep(wait)
            run.rig.kill_server()
            run.hit()
            publishing.join()
            run.rig.lab.start_server()
            again = _republish(run)
            words = (again.stderr or again.stdout).strip()[-200:]
            run.expect(again.returncode == 0 or "already" in words, f"a repeated publish is refused: {words}")


@fault("Server", 61, "two signers racing")
def racing(run: Run) -> None:
    """Two operators with the owner's keys publish at the same moment: one wins, the other is told so."""
    with run.swap():
        for _ in range(max(1, round(3 * run.scale))):
            done: list[subprocess.CompletedProcess[str]] = []
            threads = [threading.Thread(target=lambda done=done: done.append(_republish(run))) for _ in range(2)]
            for one in threads:
                one.start()
            for one in threads:
                one.join()
            run.hit()
            ended = [one.returncode for one in done]
            run.expect(any(code == 0 for code in ended) or _all_told(done), f"neither won, without words: {done}")


def _all_told(done: list[subprocess.CompletedProcess[str]]) -> bool:
    return all((one.stderr + one.stdout).strip() and "Traceback" not in one.stderr for one in done)


@fault("Server", 62, "database locked")
def locked(run: Run) -> None:
    """Another process holds the server's database for eight seconds in the middle of a swap."""
    with run.swap():
        time.sleep(1)
        with contextlib.closing(sqlite3.connect(run.rig.lab.folder / "server/server.db", timeout=20)) as database:
            database.execute("BEGIN IMMEDIATE")
            run.hit()
            time.sleep(8)
            database.rollback()


@fault("Server", 62, "disk full")
def full(run: Run) -> None:
    """The server may not write a file larger than it is now (RLIMIT_FSIZE), as with a full disk; then it may again."""
    pid = run.rig.lab.pid("server")
    assert pid is not None
    with run.swap():
        subprocess.run(["prlimit", f"--pid={pid}", "--fsize=4096:unlimited"], check=True)
        run.hit()
        try:
            time.sleep(6)
        finally:
            if run.rig.lab.pid("server") is None:
                run.rig.lab.start_server()
            else:
                subprocess.run(["prlimit", f"--pid={pid}", "--fsize=unlimited:unlimited"], check=True)


@fault("Server", 63, "API abuse, pagination, huge bodies")
def abuse(run: Run) -> None:
    """Ninety requests that no client makes, while a device swaps: each is refused in words, none ends the server."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is believed here
    token = (run.rig.lab.folder / "server/admin.token").read_text().strip()
    big = b"{" + b'"a":' * 100_000
    asked = [
        ("GET", "/v1/devices?limit=999999999999", None), ("GET", "/v1/devices?limit=-1&after=%00", None),
        ("GET", "/v1/audit?before=-5", None), ("GET", "/v1/rollouts/99999999999999999999", None),
        ("POST", "/v1/rollouts", big), ("POST", "/v1/enrol", b"\xff" * 2_000_000), ("POST", "/v1/tokens", b"[]"),
        ("GET", "/v1/tuf/metadata/..%2f..%2fadmin.token", None), ("PUT", "/v1/devices/x", b"{}"),
    ]  # fmt: skip
    with run.swap():
        for _ in range(max(1, round(10 * run.scale))):
            for method, path, body in asked:
                request = urllib.request.Request(
                    run.rig.lab.server_url + path, body, {"Authorization": f"Bearer {token}"}, method=method
                )  # fmt: skip
                status = _status(request, context)
                run.hit()
                run.expect(status is None or status < 500, f"{method} {path[:60]} is answered with {status}")
        run.expect(run.rig.lab.pid("server") is not None, "the server ended")


def _status(request: urllib.request.Request, context: ssl.SSLContext) -> int | None:
    """The status; None when the server hangs up on it."""
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@fault("Server", 60, "SIGKILL while devices report", sample=True)
def killed_in_reports(run: Run) -> None:
    """SIGKILL of the server during a swap; started again, it knows how the swap ended."""
    for _ in range(max(1, round(3 * run.scale))):
        with run.swap() as device:
            eventually(lambda: device.container("2"), 60, f"the swap does not begin: {device.tail()}")
            run.rig.kill_server()
            run.hit()
            device.wait("2")
            run.rig.lab.start_server()
            eventually(lambda: _known(run) == "2", 60, f"the server believes that {_known(run)} serves")


def _known(run: Run) -> str | None:
    shown = json.loads(run.rig.lab.run("wherry", "device", "show", run.device.name, "--json").stdout)
    slots = shown["slots"]
    return (slots[0].get("serving") or {}).get("version") if slots else None
