"""Group *Engine*: the engine dies, hangs and lies; strangers meddle with containers; candidates break."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

from lab import LabError

from faults.device import Device
from faults.proxy import Trouble
from faults.rig import eventually
from faults.sweep import Run, fault

_OWN_GATES = "the release passes the only gate that its owner gave it, and callers reach it until it dies"
_AGAIN = "the only model dies again and again"
_DEAD = "the engine takes its containers with it, and then brings them back"


@fault("Engine", 17, "kill -9 of dockerd", excuse=_DEAD, seconds=20)
def killed(run: Run) -> None:
    """SIGKILL of the private dockerd at different moments of a swap; it is started again after a second."""
    for wait in (0.5, 2.0, 4.0, 12.0)[: max(1, round(4 * run.scale))]:
        with run.swap():
            time.sleep(wait)
            run.hit()
            run.rig.engine.send(signal.SIGKILL)
            time.sleep(1)
            run.rig.engine.start()
            run.over()


@fault("Engine", 18, "down at boot", excuse=_DEAD, seconds=20)
def down(run: Run) -> None:
    """The agent starts while dockerd is dead; it comes five seconds later."""
    with run.swap(start=False) as device:
        run.hit()
        run.rig.engine.send(signal.SIGKILL)
        device.start()
        time.sleep(5)
        run.expect(device.alive, f"the agent ended without an engine: {device.tail()}")
        problem = device.status.get("problem")
        run.expect(bool(problem), "it does not say that the engine is down")
        run.rig.engine.start()
        run.over()


@fault("Engine", 19, "hung")
def hung(run: Run) -> None:
    """SIGSTOP of dockerd for twelve seconds at different moments of a swap."""
    for wait in (0.2, 2.0, 4.0)[: max(1, round(3 * run.scale))]:
        with run.swap():
            time.sleep(wait)
            run.rig.engine.send(signal.SIGSTOP)
            run.hit()
            time.sleep(12)
            run.rig.engine.send(signal.SIGCONT)


def _relay(run: Run, trouble: Trouble, keep_image: bool = True, seconds: float = 10, calls: int = 1_000_000) -> None:
    """A swap through a relay in trouble, until so many calls have met it, or for so long."""
    with run.swap(before=lambda: run.device.engine.trouble(trouble), keep_image=keep_image) as device:
        most = min(calls, trouble.times)
        with contextlib.suppress(LabError):
            eventually(lambda: device.engine.hits >= most, seconds, "")
        run.hit(device.engine.hits)
        device.engine.trouble(None)


@fault("Engine", 19, "answers 500", sample=True)
def errors(run: Run) -> None:
    """Every call to the engine is answered with 500 for ten seconds."""

    def answer(_: bytes) -> Iterable[bytes]:
        yield b'HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 16\r\n\r\n{"message":"no"}'

    if run.scale > 0.05:
        _relay(run, Trouble(answer=answer))
    else:
        _relay(run, Trouble(answer=answer), seconds=30, calls=3)


@fault("Engine", 19, "answers nonsense")
def nonsense(run: Run) -> None:
    """Every call to the engine is answered with a document that is not what it should be."""

    def answer(_: bytes) -> Iterable[bytes]:
        yield b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 11\r\n\r\n[{"a":"b"}]'

    _relay(run, Trouble(answer=answer))


@fault("Engine", 19, "pull breaks off in the middle")
def broken_pull(run: Run) -> None:
    """The engine's socket is cut in the middle of the pull's stream, three times."""
    _relay(run, Trouble(when=b"POST /images/create", times=3, cut=300), keep_image=False, seconds=40)


@fault("Engine", 19, "each kind of call fails once")
def each_call(run: Run) -> None:
    """Create, start, update, archive and stop are cut off, each twice, before or after they took effect."""
    for call in (b"/containers/create", b"/start", b"/update", b"/archive", b"/stop"):
        for cut in (None, 1):
            _relay(run, Trouble(when=call, times=2, cut=cut, refuse=cut is None), seconds=20)


@fault("Engine", 21, "image deleted by someone")
def image_deleted(run: Run) -> None:
    """The wanted image is deleted again and again while it is fetched and staged."""
    with run.swap(keep_image=False):
        for _ in range(6):
            run.device.drop_image("2")
            run.hit()
            time.sleep(0.7)


@fault("Engine", 21, "known-good deleted by someone", excuse="the only model was deleted", seconds=30)
def known_good_deleted(run: Run) -> None:
    """Container and image of the serving known-good are removed by hand: the agent fetches and starts it again."""
    with run.swap() as device:
        device.wait("2")
        found = device.container("2")
        assert found is not None
        run.hit()
        run.rig.engine.api.remove_container(found["id"], force=True)
        device.drop_image("2")


@fault("Engine", 22, "foreign container with our name")
def foreign(run: Run) -> None:
    """A stranger's container has the candidate's name: said in words, never touched; gone, the swap goes on."""
    api = run.rig.engine.api
    with run.swap(start=False) as device:
        image = run.rig.images["1"]["config_digest"]
        stranger = api.create_container(image, name=f"wherry.{device.name}.main.tiny.2")["Id"]
        try:
            run.hit()
            device.start()
            eventually(lambda: "not made by this agent" in str(device.status), 40, "it does not say who is in the way")
            run.expect(bool(api.inspect_container(stranger)), "the stranger's container was touched")
        finally:
            api.remove_container(stranger, force=True)


def _broken_release(run: Run, version: str) -> None:
    """A release that cannot work is rolled out: rejected, with a reason, and version 1 never stops."""
    device = run.device
    device.restore()
    if device.wanted != version:
        device.want(version)
    with run.loaded():
        run.hit()
        device.start()
        eventually(lambda: _rejected(run, version), 150, f"version {version} was not rejected: {device.status}")
        run.converge("1")
    device.kill()


def _rejected(run: Run, version: str) -> bool:
    slots = run.device.status.get("slots") or [{}]
    deployment = slots[0].get("deployment") or {}
    problem = (deployment.get("problem") or {}).get("reason")
    if deployment.get("phase") != "rejected" or deployment["release"]["version"] != version or not problem:
        return False
    run.row.outcome = f"rejected: {problem[:120]}"
    return True


@fault("Engine", 23, "container exits 0, 1 and 137 at once", device="wrong")
def exits(run: Run) -> None:
    """Releases whose container ends at once, in three ways."""
    for version in ("exit0", "exit1", "exit137"):
        _broken_release(run, version)


@fault("Engine", 23, "container dies after a second", device="wrong", excuse=_OWN_GATES, seconds=20)
def dies(run: Run) -> None:
    """A release whose container answers once and dies a second later."""
    _broken_release(run, "dies")


@fault("Engine", 23, "flapping", excuse=_AGAIN, seconds=20)
def flapping(run: Run) -> None:
    """What serves dies three times and is brought back. Then, in the full sweep, it dies whenever it answers."""
    device = run.device
    with run.swap():
        device.wait("2")
        for _ in range(3):
            _die_once_answering(run)
    if run.scale < 0.1:
        return
    device.restore()
    with run.loaded():
        device.start()
        device.wait("2")
        deadline = time.monotonic() + 180
        while not _gave_way(device) and time.monotonic() < deadline:
            _die_once_answering(run)
        run.expect(_gave_way(device), f"it never gave way to the version before: {device.status}")
        run.converge("1", 90)


def _die_once_answering(run: Run) -> None:
    """SIGKILL to the process of what serves, as a crash of its own would end it."""
    serving = next((found for found in run.device.containers() if found["running"]), None)
    if serving is None or not run.device.answers(serving["version"]) or serving["version"] == "1":
        time.sleep(0.2)
        return
    with contextlib.suppress(ProcessLookupError):  # it may be dead by now
        run.hit()
        os.kill(run.rig.engine.api.inspect_container(serving["id"])["State"]["Pid"], signal.SIGKILL)


def _gave_way(device: Device) -> bool:
    slot: Mapping[str, Any] = next(iter(device.status.get("slots") or []), {})
    return (slot.get("known_good") or {}).get("version") == "1"


@fault("Engine", 24, "health endpoint hangs", device="wrong")
def hangs(run: Run) -> None:
    """A release whose port accepts and never answers."""
    _broken_release(run, "hangs")


@fault("Engine", 24, "health endpoint lies", device="wrong")
def lies(run: Run) -> None:
    """A release that is up and serves pages, but not the one by which it says that it is well."""
    _broken_release(run, "lies")


@fault("Engine", 24, "known-good hangs", excuse="the only model hangs until it is started anew", seconds=30)
def paused(run: Run) -> None:
    """The serving container is paused: it runs and does not answer."""
    with run.swap() as device:
        device.wait("2")
        found = device.container("2")
        assert found is not None
        run.hit()
        run.rig.engine.api.pause(found["id"])
        time.sleep(1)


@fault("Engine", 25, "port taken")
def port_taken(run: Run) -> None:
    """Another program takes the candidate's port between its creation and its start, then gives it back."""
    taken: list[socket.socket] = []

    def edit(request: bytes) -> bytes:
        found = re.search(rb'"HostPort": ?"(\d+)"', request)
        if found and len(taken) < 2:
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # somebody had it a moment ago
            one.bind(("127.0.0.1", int(found[1])))
            one.listen()
            taken.append(one)
        return request

    trouble = Trouble(when=b'"HostPort"', edit=edit)
    with run.swap(before=lambda: run.device.engine.trouble(trouble)):
        try:
            eventually(lambda: taken, 40, "no container was created")
            time.sleep(5)
            run.hit(len(taken))
        finally:
            run.device.engine.trouble(None)
            for one in taken:
                one.close()
