"""The state folder as a whole: whose it is, who holds it, and the status that the agent leaves in it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from wherry.errors import Conflict, ContractError, NotFound, StoreError
from wherry.messages import StateReport, parse_up
from wherry_agent import supervision
from wherry_agent.installation import USUAL_STATE

STATUS_FILE = "status.json"
LOCK_FILE = "lock"
OWN_NAMES = (
    "identity", "registries", "tuf", "journal.db*", "spool.db*", LOCK_FILE, STATUS_FILE, "status.new", "update.lock",
    "update.new", "local.sock", "agent.toml", "agent.log", "agent.log.1", "haproxy", supervision.FOLDER,
)  # fmt: skip
"""All that an agent, its operator and install.sh put into a state folder; install.sh knows the same names."""
_SYSTEM = re.compile(
    r"/[^/]*|/(bin|boot|dev|etc|lib|lib32|lib64|proc|sbin|sys)/.*|/(home|run|var)/[^/]*|/usr/(?!local/).*"
    r"|/usr/local/(bin|etc|games|include|lib|man|sbin|share|src)"
)


def is_own(name: str) -> bool:
    """Whether a state folder's entry of this name is Wherry's."""
    return any(fnmatch(name, pattern) for pattern in OWN_NAMES)


def is_system_folder(path: Path) -> bool:
    """Whether a folder is the machine's, whatever is in it; install.sh has the same list."""
    return any(_SYSTEM.fullmatch(str(place)) is not None for place in (path.absolute(), path.resolve()))


def is_state_folder(path: Path) -> bool:
    """Whether a folder is a device's, or holds nothing but what an agent writes before it is enrolled."""
    if any((path / name).exists() for name in ("identity/device.json", "journal.db")):
        return True
    return all(is_own(inside.name) or inside.name == "lost+found" for inside in path.iterdir())


def refuse_folder_of_others(state: Path) -> None:
    """Make sure that a folder may be a device's state folder: whatever is in one is read, replaced and removed by us.

    Raises:
        Conflict: it is the system's, or holds other things.
        StoreError: it cannot be looked into.
    """
    fix = f"Name a folder of Wherry's own with --state, such as {USUAL_STATE}"
    if is_system_folder(state):
        raise Conflict(f"folder {state}", "is the system's; nothing was changed", fix)
    try:
        others = state.exists() and not is_state_folder(state)
    except OSError as error:
        raise StoreError(f"state folder {state}", f"cannot be used ({error})", fix) from error
    if others:
        raise Conflict(f"folder {state}", "holds other things and no device; nothing was changed", fix)


@contextmanager
def only_agent(state: Path, patience_seconds: float = 1.0) -> Iterator[None]:
    """Hold the state folder's lock; the process that holds it is named in the file.

    Args:
        state: the state folder.
        patience_seconds: how long to wait for somebody who only looks, or is about to end.

    Raises:
        Conflict: another agent runs on it.
        StoreError: the folder cannot be used.
    """
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(state / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"state folder {state}", f"cannot be used ({error})") from error
    try:
        _take(handle, state, patience_seconds)
        with suppress(OSError):  # on a full disk it holds the lock all the same, and serves
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _take(handle: int, state: Path, patience_seconds: float) -> None:
    until = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() < until:
                time.sleep(0.05)
                continue
            raise Conflict(
                f"state folder {state}", "is in use by another agent", "Stop that one, or use another --state"
            ) from None
        return


def running_agent(state: Path) -> int | None:
    """Process id of the agent that holds the state folder, 0 when it does not say; None when none does."""
    return _holder(state / LOCK_FILE)


def running_supervisor(state: Path) -> int | None:
    """Process id of the supervisor of the state folder's agent, 0 when it does not say; None when there is none.

    An agent that outlives its supervisor counts as one: it holds the same lock.
    """
    return _holder(state / supervision.FOLDER / supervision.LOCK)


def _holder(path: Path) -> int | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(handle, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(handle)
    return None


def write_status(state: Path) -> Callable[[StateReport], None]:
    """What writes STATE/status.json, atomically; it raises StoreError when it cannot."""

    def publish(report: StateReport) -> None:
        path = state / STATUS_FILE
        try:
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(json.loads(report.to_bytes()), indent=1) + "\n", encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            raise StoreError(f"status in {path}", f"cannot be written ({error})", "Free disk on the device") from error

    return publish


def read_status(state: Path) -> StateReport:
    """What the agent said last.

    Raises:
        NotFound: nothing usable; it says what to do first.
    """
    thing = f"status of {state}"
    try:
        report = parse_up((state / STATUS_FILE).read_bytes())
    except OSError:
        if not (state / "identity/device.json").exists():
            fix = "Make a join token with `wherry device token` and run `wherry-agent enroll TOKEN` here"
            raise NotFound(thing, "this device is not enrolled", fix) from None
        raise NotFound(thing, "no agent has run here yet", f"Run `wherry-agent run --state {state}`") from None
    except ContractError as error:
        raise NotFound(thing, f"cannot be read ({error.reason})", "Start the agent again") from error
    if not isinstance(report, StateReport):
        raise NotFound(thing, "is not a state report", "Start the agent again")
    return report
