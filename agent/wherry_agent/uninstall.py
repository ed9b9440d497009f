"""Leaves nothing: containers and images of ours, the packet filter's table, unit, program, and the device's state.

What install.sh made is written in PREFIX/installed; a program that was installed another way is left alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from wherry.errors import Conflict, IdentityError, StoreError
from wherry_agent.assignment import TrustedImage
from wherry_agent.compose import Device, make_device
from wherry_agent.config import AgentConfig
from wherry_agent.identity_store import IdentityStore
from wherry_agent.journal import Journal
from wherry_agent.state_folder import only_agent, running_agent

_STOP_SECONDS = 60.0
_INSTALLED = "installed"
Say = Callable[[str], None]


def uninstall(state: Path, config: AgentConfig, keep_state: bool, say: Say) -> None:
    """Remove everything, in an order that can be begun again after any failure.

    Args:
        state: the agent's state folder.
        config: the agent's settings.
        keep_state: leave the state folder, and with it the device's identity.
        say: told what was done.

    Raises:
        Conflict: the agent does not end.
        EngineError: the engine cannot be asked: containers would stay behind.
        StoreError: a file cannot be removed.
    """
    prefix = installed_prefix()
    made = _read_installed(prefix) if prefix else {}
    _stop_agent(state, made.get("unit", ""))
    if state.is_dir():
        with only_agent(state):
            _clear_device(state, config, say)
    for name in ("unit", "link"):
        _remove_file(made.get(name, ""), say)
    if "unit" in made:
        _run("systemctl", "daemon-reload")
    if state.is_dir() and not keep_state:
        _remove_folder(state, say)
    if prefix:
        _remove_folder(prefix, say)


def installed_prefix() -> Path | None:
    """The folder that install.sh made, when this program runs from it: PREFIX/versions/ID."""
    prefix = Path(sys.prefix).parent.parent
    return prefix if (prefix / _INSTALLED).is_file() else None


def _read_installed(prefix: Path) -> dict[str, str]:
    lines = (prefix / _INSTALLED).read_text(encoding="utf-8").splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines) if value}


def _stop_agent(state: Path, unit: str) -> None:
    if unit:
        _run("systemctl", "disable", "--now", Path(unit).name)
    until = time.monotonic() + _STOP_SECONDS
    asked = False
    while (process := running_agent(state)) is not None:
        if process and not asked:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
            asked = True
        if time.monotonic() > until:
            raise Conflict(f"agent on {state}", "does not end", "Stop it by hand and uninstall again")
        time.sleep(0.1)


def _clear_device(state: Path, config: AgentConfig, say: Say) -> None:
    try:
        identity = IdentityStore(state).load()
    except IdentityError:
        say("not enrolled: there are no containers of this device")
        return
    count = clear_world(make_device(config, identity.device, identity.profile), _images(state, identity.device, config))
    say(f"removed {count} containers, the images and the routes of {identity.device}")


def clear_world(device: Device, images: Iterable[TrustedImage]) -> int:
    """Remove a device's routes and containers, and the images they were made from; the number of containers."""
    device.route.clear()
    names = sorted(device.engine.observe())
    found = [device.engine.inspect(name) for name in names]
    for name in names:
        device.engine.remove(name)
    all_images = [*images, *(container.image for container in found if container and container.image)]
    for image in {image.pull_reference: image for image in all_images}.values():
        device.engine.remove_image(image)
    return len(names)


def _images(state: Path, device: str, config: AgentConfig) -> list[TrustedImage]:
    """Every image that the journal knows of; a journal that cannot be read knows of none."""
    if not (state / "journal.db").exists():
        return []
    try:
        journal = Journal(state / "journal.db", device, config.limits())
    except StoreError:
        return []
    slots = journal.entry.slots.values()
    journal.close()
    kept = [image for slot in slots for image in (slot.known_good, slot.previous) if image]
    tried = [slot.deployment.image for slot in slots if slot.deployment]
    return [*kept, *tried, *(image for slot in slots for image in slot.litter)]


def _remove_file(path: str, say: Say) -> None:
    if not path or not os.path.lexists(path):
        return
    try:
        Path(path).unlink()
    except OSError as error:
        raise StoreError(f"file {path}", f"cannot be removed ({error})") from error
    say(f"removed {path}")


def _remove_folder(path: Path, say: Say) -> None:
    """Also a disk of its own that is mounted there: it is emptied."""
    try:
        if path.is_mount():
            for inside in path.iterdir():
                if inside.is_dir() and not inside.is_symlink():
                    shutil.rmtree(inside)
                else:
                    inside.unlink()
        else:
            shutil.rmtree(path)
    except OSError as error:
        raise StoreError(f"folder {path}", f"cannot be removed ({error})") from error
    say(f"removed {path}")


def _run(*command: str) -> None:
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, capture_output=True, timeout=_STOP_SECONDS, check=False)
