"""Slots' stable ports by haproxy: for images that cannot drain, and where callers must wait while versions change."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import pwd
import shutil
import socket
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from wherry.errors import RouteError
from wherry_agent.route.haproxy_config import (
    CONFIG_FILE,
    LUA_FILE,
    MAP_FILE,
    USUAL,
    Answers,
    Bounds,
    Led,
    Targets,
    map_value,
    read_answers,
    read_listened,
    read_map,
    read_open,
    render,
    render_map,
    servers_of,
    structure,
    targets_of,
    turn,
)
from wherry_agent.route.haproxy_process import FIX, HaproxyProcess

_log = logging.getLogger(__name__)
_USER = "haproxy"
_LEFT_SECONDS = 1.0
"""A process that leaves after a reload may not have let go of its ports yet."""


class HaproxyRoute:
    """Leads stable ports by a haproxy of its own.

    Args:
        folder: holds its configuration and its sockets; made when it is first needed.
        addresses: where callers reach the stable ports.
        bounds: how much it may take.
        before_reload: called before a new process begins to count at zero.
        by_unit: a service manager starts it once the configuration is there; else it is started from here.
        timeout: seconds that haproxy may take to start, to load anew or to answer.
    """

    def __init__(
        self,
        folder: Path,
        addresses: tuple[str, ...] = ("127.0.0.1",),
        bounds: Bounds = USUAL,
        before_reload: Callable[[], None] = lambda: None,
        by_unit: bool = False,
        timeout: float = 10.0,
    ) -> None:
        self._folder = folder
        self._addresses = addresses
        self._bounds = bounds
        self._before_reload = before_reload
        self._process = HaproxyProcess(folder, by_unit, timeout)

    def read(self) -> Mapping[int, int]:
        """Stable port to the port it is turned to: what runs and what is written must say the same.

        A port that haproxy would lead elsewhere after a restart is not turned, nor is one whose callers wait.
        """
        written = self._written()
        if not written or not (workers := self._process.workers()):
            return {}
        try:
            running = self._led(workers[0])
        except RouteError:  # it has just ended
            return {}
        return {stable: led.port for stable, led in written.items() if led.port and running.get(stable) == led}

    def written(self) -> dict[int, int | None]:
        """What is written; empty when nothing is. It lasts over restarts of everything."""
        return targets_of(self._written())

    def apply(self, targets: Targets, start: bool = True) -> None:
        """Make it exactly this; None lets callers wait. Requests that are being answered are let finish.

        Args:
            targets: of all slots that it is to know.
            start: it must run; else what is written is enough where it does not.
        """
        if not targets:
            self.clear()
            return
        before = self._written()
        led = turn(before, targets)
        self._check_free(targets)
        self._write(led)
        try:
            self._bring(led, start)
        except RouteError:
            self._go_back(before)
            raise

    def _check_free(self, stable: Collection[int]) -> None:
        """A haproxy that fails to load anew cuts all slots: what it would fail at is found out before.

        Raises:
            RouteError: somebody else listens on a port that the haproxy that runs is to listen on from now on.
        """
        if not (workers := self._process.workers()):
            return
        listened = read_listened(self._process.tell(workers[0], "show stat"))
        deadline = time.monotonic() + _LEFT_SECONDS
        for port, address in itertools.product(sorted(set(stable) - listened), self._addresses):
            while _is_taken(address, port):
                if time.monotonic() > deadline:
                    fix = f"Find out who: `ss -ltnp sport = :{port}`; end it, or give the slot another port"
                    raise RouteError(f"port {port} of {address}", "is taken by another process", fix)
                time.sleep(0.02)

    def _bring(self, led: Mapping[int, Led], start: bool) -> None:
        """What is written comes to pass."""
        workers = self._process.workers()
        if not workers and not start:
            return
        workers = workers or self._process.start()
        wanted = structure(led, self._addresses, self._bounds)
        if self._process.description(workers[0]) != wanted:
            self._before_reload()
            workers = self._process.reload(wanted)
        for worker in workers:
            self._turn(worker, led)

    def _go_back(self, before: Mapping[int, Led]) -> None:
        """A slot that cannot be had must not cost the others theirs, nor keep haproxy from starting."""
        try:
            if not before:
                self.clear()
                return
            self._write(before)
            # One that failed to load anew may have let go of its ports: only a start brings them all back for sure.
            if master := self._process.master():
                self._process.end(master)
            self._bring(before, start=True)
        except RouteError as error:
            _log.error("haproxy does not lead the slots that it led: %s", error)

    def under_way(self, port: int) -> int:
        """Requests that an image at a loopback port is answering now, as far as they came this way."""
        servers = servers_of(self._written(), port)
        return (
            sum(read_open(self._process.tell(worker, "show stat"), servers) for worker in self._process.workers())
            if servers
            else 0
        )

    def answers(self, port: int) -> Answers | None:
        """What was counted of a container's port; None where no slot leads to it by this way.

        Raises:
            RouteError: haproxy does not answer, or not so that it can be understood.
        """
        if not (workers := self._process.workers()):
            return None
        worker = workers[0]  # those that are leaving answer what they began, and that is not counted
        if not servers_of(self._led(worker), port):
            return None
        try:
            return read_answers(self._process.tell(worker, "show answers"), port, f"haproxy-{worker}")
        except ValueError as error:
            raise RouteError("haproxy's counters", f"cannot be read ({error})", FIX) from error

    def clear(self) -> None:
        """End haproxy, and remove what it was told."""
        if not self._folder.exists():
            return
        master = self._process.master()
        with suppress(FileNotFoundError):
            (self._folder / CONFIG_FILE).unlink()  # first: nothing starts it again
        if master:
            self._process.end(master)
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- what is written, and what runs -----------------------------------------------------------------

    def _written(self) -> dict[int, Led]:
        try:
            return read_map((self._folder / MAP_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise RouteError(f"haproxy's map in {self._folder}", f"cannot be read ({error})", FIX) from error

    def _write(self, led: Mapping[int, Led]) -> None:
        """The configuration comes last: where it is, all is there that it needs."""
        script = files(__package__).joinpath(LUA_FILE).read_text(encoding="utf-8")
        text = render(led, self._addresses, self._bounds, *_runs_as())
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, content in ((LUA_FILE, script), (MAP_FILE, render_map(led)), (CONFIG_FILE, text)):
                _replace(self._folder / name, content)
        except OSError as error:
            words, fix = f"cannot be written ({error})", "Check free space and permissions of the folder"
            raise RouteError(f"haproxy's configuration in {self._folder}", words, fix) from error

    def _led(self, worker: int) -> dict[int, Led]:
        return read_map(self._process.tell(worker, f"show map {MAP_FILE}"))

    def _turn(self, worker: int, led: Mapping[int, Led]) -> None:
        """One command a slot, from which on every request goes there. A worker that is leaving may know fewer."""
        known = self._led(worker)
        for stable, one in led.items():
            if known.get(stable, one) != one:
                self._process.tell(worker, f"set map {MAP_FILE} {stable} {map_value(one)}")


def _is_taken(address: str, port: int) -> bool:
    """Whether somebody listens there; an address that is not there (yet), or a port that is not ours to try, is not."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _runs_as() -> tuple[str, str]:
    """Whom root hands the work to; nobody else can choose."""
    if os.geteuid() != 0:
        return "", ""
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        return "nobody", "nogroup"
    return _USER, _USER


def _replace(path: Path, content: str) -> None:
    """In one step, so that it is whole after a power cut; nothing is written when nothing changes."""
    with suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == content:
            return
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
