"""Leaves nothing: containers and images of ours, the packet filter's table, unit, program, and the device's state.

What install.sh made is written in PREFIX/installed; a program that was installed another way is left alone.
Only names of our own are removed: what others put into these folders stays, and the folders with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from wherry.errors import Conflict, IdentityError, StoreError
from wherry_agent.assignment import TrustedImage
from wherry_agent.compose import Device, make_device
from wherry_agent.config import AgentConfig
from wherry_agent.identity_store import IdentityStore
from wherry_agent.installation import INSTALLED, VERSION, installed_prefix, read_installed
from wherry_agent.journal import Journal
from wherry_agent.state_folder import (
    is_own,
    is_system_folder,
    only_agent,
    refuse_folder_of_others,
    running_agent,
    running_supervisor,
)

_STOP_SECONDS = 60.0
Say = Callable[[str], None]


def uninstall(state: Path, config: AgentConfig, keep_state: bool, say: Say) -> None:
    """Remove everything, in an order that can be begun again after any failure.

    Args:
        state: the agent's state folder.
        config: the agent's settings.
        keep_state: leave the state folder, and with it the device's identity.
        say: told what was done.

    Raises:
        Conflict: the agent does not end, or a folder is not Wherry's; nothing was changed.
        EngineError: the engine cannot be asked: containers would stay behind.
        StoreError: a file cannot be removed.
    """
    prefix = installed_prefix()
    made = read_installed(prefix) if prefix else {}
    _refuse_folders_of_others(state, prefix, made)
    _stop_agent(state, made.get("unit", ""))
    proxy = [f"{made['proxy']}.{kind}" for kind in ("path", "service")] if "proxy" in made else []
    if proxy:
        _run("systemctl", "disable", "--now", *(Path(unit).name for unit in proxy))
    device = ""
    if state.is_dir():
        with only_agent(state):
            device = _clear_device(state, config, say)
    for unit in (made.get("unit", ""), *proxy):
        _remove_file(unit, say)
    if prefix and _leads_into(made.get("link", ""), prefix):
        _remove_file(made["link"], say)
    if "unit" in made:
        _run("systemctl", "daemon-reload")
    if state.is_dir() and not keep_state:
        _remove(state, [inside for inside in state.iterdir() if is_own(inside.name)], say)
    if prefix:
        _remove_program(prefix, say)
    if device and not keep_state:
        say(f"the server knows {device} still. Next, where you are the operator: wherry device remove {device}")


def _refuse_folders_of_others(state: Path, prefix: Path | None, made: dict[str, str]) -> None:
    refuse_folder_of_others(state)
    if prefix and is_system_folder(prefix):
        raise Conflict(f"folder {prefix}", "is the system's; nothing was changed", "Remove the program by hand")
    if made and state.resolve() != Path(made["state"]).resolve():
        reason = f"is not the one of this installation, {made['state']}; nothing was changed"
        raise Conflict(f"folder {state}", reason, "Leave --state out: it is known from the installation")


def _stop_agent(state: Path, unit: str) -> None:
    if unit:
        _run("systemctl", "disable", "--now", Path(unit).name)
    until = time.monotonic() + _STOP_SECONDS
    asked, words = 0, b""
    # The lock is free a moment before the process has ended.
    while (process := _process(state)) is not None or (words and _command_line(asked) == words):
        if process and not asked:
            asked, words = process, _command_line(process)
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        if time.monotonic() > until:
            raise Conflict(f"agent on {state}", "does not end", "Stop it by hand and uninstall again")
        time.sleep(0.1)


def _process(state: Path) -> int | None:
    """What is to be ended: a supervisor would start the agent again."""
    found = running_supervisor(state)
    return found if found is not None else running_agent(state)


def _command_line(process: int) -> bytes:
    """Empty for one that has ended; another process of the same number has another."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def _clear_device(state: Path, config: AgentConfig, say: Say) -> str:
    """The id of the device; empty when this is none."""
    try:
        identity = IdentityStore(state).load()
    except IdentityError:
        say("not enrolled: there are no containers of this device")
        return ""
    count = clear_world(
        make_device(state, config, identity.device, identity.profile), _images(state, identity.device, config)
    )
    say(f"removed {count} containers, the images and the routes of {identity.device}")
    return identity.device


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


def _leads_into(link: str, prefix: Path) -> bool:
    try:
        return bool(link) and Path(link).readlink() == prefix / "bin/wherry-agent"
    except OSError:
        return False


def _remove_program(prefix: Path, say: Say) -> None:
    """The file that says what is ours goes last."""
    named = [path for path in (prefix / "versions").glob("*") if VERSION.fullmatch(path.name)]
    made = [path for path in named if (path / "complete").exists() or (path / "pyvenv.cfg").exists()]
    _remove(prefix / "versions", made)
    _remove(prefix / "bin", [prefix / "bin/wherry-agent", prefix / "bin/.wherry-agent"])
    _remove(prefix, [prefix / "installed.new", prefix / INSTALLED], say)


def _remove(folder: Path, ours: Iterable[Path], say: Say = lambda _: None) -> None:
    """Remove what is ours, and the folder if nothing else is in it; a disk that is mounted there stays, emptied."""
    try:
        for path in ours:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"folder {folder}", f"cannot be removed ({error})") from error
    try:
        folder.rmdir()
    except OSError as error:
        say(f"removed what was ours in {folder}; the folder stays ({error.strerror})")
    else:
        say(f"removed {folder}")


def _run(*command: str) -> None:
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, capture_output=True, timeout=_STOP_SECONDS, check=False)
