"""`wherry-agent doctor`: every look side by side, none longer than a few seconds, and the findings as text."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import wrap

from wherry import __version__
from wherry.profile import DeviceProfile, HostFacts, detect_profile, load_profiles
from wherry.questions import Check
from wherry_agent import examination as look
from wherry_agent import verdicts
from wherry_agent.config import AgentConfig
from wherry_agent.host import Host, read_facts
from wherry_agent.registry_examination import look_at_registries

PATIENCE_SECONDS = 8.0
"""All looks together; the server waits for an answer a little longer."""
Look = Callable[[], list[Check]]
_COLOURS = {"ok": "\033[32m", "warning": "\033[33m", "error": "\033[1;31m"}
_PLAIN = "\033[0m"
_WIDTH = 100


def examine(state: Path, config: AgentConfig) -> list[Check]:
    """Look at everything. Never raises, never hangs.

    Args:
        state: the agent's state folder; it may be absent.
        config: the agent's settings.
    """
    facts, profiles = read_facts(), load_profiles()
    known, identity = look.look_at_identity(state)
    found = detect_profile(facts, profiles.values())
    wanted = profiles.get(known.profile) if known else found
    looks: dict[str, Look] = {
        "profile": lambda: [verdicts.profile(facts, found, known.profile if known else "")],
        "engine": lambda: _engine(state, config, wanted),
        "memory": lambda: [_memory(state, facts)],
        "nftables": lambda: [verdicts.packet_filter(look.look_at_packet_filter())],
        "haproxy": lambda: [verdicts.proxy(*look.look_at_proxy(state))],
        "state folder": lambda: [verdicts.state_folder(look.look_at_disk(state, write=True))],
        "identity": lambda: [verdicts.identity(known, _now())],
    }
    if identity is None:
        looks["clock"] = lambda: [verdicts.clock(_now(), look.not_before(_now()), known, None)]
    else:
        me = identity

        def server() -> list[Check]:
            there = look.look_at_server(me, _now)
            clock = verdicts.clock(_now(), look.not_before(_now()), known, there.ahead)
            return [verdicts.server(there), clock]

        looks["server"] = server
        looks["broker"] = lambda: [verdicts.broker(look.look_at_broker(me))]
        credentials = config.credentials(state)
        looks["registry"] = lambda: [verdicts.registry(look_at_registries(state, config.engine_url, credentials))]
    looks["agent"] = lambda: [verdicts.service(look.look_at_service(state), known is not None)]
    return side_by_side(looks, PATIENCE_SECONDS)


def _now() -> datetime:
    return datetime.now(UTC)


def _engine(state: Path, config: AgentConfig, wanted: DeviceProfile | None) -> list[Check]:
    """The engine, and the disk that it keeps images on."""
    engine = look.look_at_engine(config.engine_url)
    folders = [Path(engine.root)] if engine.root else []
    images = next((folder for folder in (*folders, config.images_folder, state) if folder.exists()), state)
    disk = look.look_at_disk(images)
    checks = [verdicts.engine(engine)]
    if engine.version:
        checks += [verdicts.storage(engine), verdicts.cgroups(engine)]
    checks += [verdicts.disk(disk, config.watermark_mb * 1_048_576), verdicts.inodes(disk)]
    if wanted and engine.version:
        check = verdicts.accelerator(wanted, look.look_at_accelerator(wanted), engine.runtimes)
        checks += [check] if check else []
    return checks


def _memory(state: Path, facts: HostFacts) -> Check:
    return verdicts.memory(facts.memory_mb, Host(state).memory_available_mb())


def side_by_side(looks: Mapping[str, Look], seconds: float) -> list[Check]:
    """All findings in the order of the looks; one that breaks, or does not end in time, is a finding itself.

    Args:
        looks: by name.
        seconds: for all of them together.
    """
    ended: queue.SimpleQueue[tuple[str, list[Check]]] = queue.SimpleQueue()

    def run(name: str, one: Look) -> None:
        try:
            ended.put((name, one()))
        except Exception as error:
            ended.put((name, [verdicts.unknown(name, repr(error)[:200])]))

    for name, one in looks.items():
        threading.Thread(target=run, args=(name, one), name=f"wherry-look-{name}", daemon=True).start()
    found: dict[str, list[Check]] = {}
    deadline = time.monotonic() + seconds
    while len(found) < len(looks):
        try:
            name, checks = ended.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[name] = checks
    late = f"no end after {seconds:.0f} s"
    return [check for name in looks for check in found.get(name, [verdicts.unknown(name, late)])]


def exit_code(checks: Sequence[Check]) -> int:
    """1 when something does not work."""
    return int(any(check.level == "error" for check in checks))


def doctor_text(checks: Sequence[Check], colour: bool) -> str:
    """The findings for people, aligned; what to do stands under what is wrong."""
    room = max((len(check.name) for check in checks), default=0)
    lines = [f"wherry-agent {__version__} looks at this device", ""]
    for check in checks:
        label = f"{check.level:7}"
        shown = f"{_COLOURS[check.level]}{label}{_PLAIN}" if colour else label
        indent = " " * (13 + room)
        body = _folded(check.detail, _WIDTH - len(indent)) or [""]
        lines.append(f"  {shown}  {check.name:{room}}  {body[0]}")
        lines += [f"{indent}{line}" for line in body[1:]]
        lines += [f"{indent}{line}" for line in _folded(f"-> {check.fix}", _WIDTH - len(indent))] if check.fix else []
    return "\n".join([*lines, "", _sum(checks)])


def _folded(text: str, width: int) -> list[str]:
    """Lines of a width; commands stay whole."""
    marked = re.sub(r"`[^`]*`", lambda match: match[0].replace(" ", "\0"), text)
    return [line.replace("\0", " ") for line in wrap(marked, width, break_long_words=False, break_on_hyphens=False)]


def _sum(checks: Sequence[Check]) -> str:
    count = {level: sum(check.level == level for check in checks) for level in ("error", "warning")}
    if not any(count.values()):
        return f"all {len(checks)} checks are well"
    words = [f"{number} {level}{'s' if number > 1 else ''}" for level, number in count.items() if number]
    return f"{len(checks)} checks: {' and '.join(words)}"
