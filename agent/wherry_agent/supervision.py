"""What the supervisor starts, and the file that tells it: pure rules, and a file that changes as a whole or not at all.

Shared by the supervisor and by every agent that it starts, of whatever version; so it is of the standard library alone.
Only one writes the file at a time: the agent while it runs, the supervisor while none does. Whatever it says, there is
something to start: at last the agent that was installed.
"""

from __future__ import annotations

import os
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

FOLDER = "agent"
"""In the state folder: versions by the hex digits of their digest, and the file `versions`."""
FILE = "versions"
LOCK = "lock"
RUNS_AS = "WHERRY_AGENT_VERSION"
"""Environment of an agent that was started here: its version, or INSTALLED."""
INSTALLED = "installed"
CANNOT_RUN = 78
"""Exit code of an agent that no other version could help: not enrolled, wrong settings, another agent runs."""
WORLD = 75
"""Exit code of an agent that the disk did not let start or go on: no release is rejected for it."""
ATTEMPTS = 3
"""Starts that a version on trial gets, whatever ended it: a power cut is not its fault, three of them are odd."""
CRASHES = 3
"""Ends in a row, each soon after its start, before a version that had proved itself gives way."""
STEADY_SECONDS = 300.0
HANG_SECONDS = 150.0
"""Silence of an agent's control loop that counts as its end; it speaks at every turn, each few seconds."""
LATE_SILENCE_SECONDS = 15.0
"""Of an agent on trial that is late. One that still speaks may only be busy: it has the rest of its starts."""
_PAUSE, _WORLD_PAUSE, _LONGEST_PAUSE = 2.0, 20.0, 60.0
_VERDICTS_KEPT = 8

State = namedtuple(  # noqa: PYI024 - typing costs a megabyte here
    "State",
    ("current", "previous", "trial", "seconds", "attempts", "crashes", "before", "verdicts"),
    defaults=("", "", "", 0.0, 0, 0, "", ()),
)
State.__doc__ = """What STATE/agent/versions says. Versions are hex digits of digests; "" is the installed agent.

Attributes:
    current: what runs when nothing is on trial; previous: the one before, to fall back to.
    trial: a version that must prove itself; seconds: how long it may take.
    attempts: how often it was started; crashes: of `current`, in a row.
    before: what worked before the trial, in words of the agent's own.
    verdicts: (version, reason) of those that failed.
"""
End = namedtuple(  # noqa: PYI024
    "End", ("code", "seconds", "hung", "words", "late"), defaults=(0, 0.0, False, "", False)
)
End.__doc__ = """How an agent ended.

Attributes:
    code: its exit code; negative for a signal.
    seconds: how long it lived.
    hung: it was silent, and was killed for it.
    words: its last line.
    late: it was killed because it did not prove itself in time.
"""


# -- decisions --------------------------------------------------------------------------------------------


def choose(state: State, present: Collection[str]) -> tuple[State, str]:
    """What to start now, and what to write down before.

    Args:
        state: what the file says.
        present: versions whose files are here.
    """
    if state.trial and state.trial not in present:
        state = rejected(state, "its files are not there")
    if state.trial and state.attempts >= ATTEMPTS:
        state = rejected(state, f"was started {state.attempts} times and never proved itself")
    if state.trial:
        return state._replace(attempts=state.attempts + 1), state.trial
    while state.current and state.current not in present:
        state = fallen_back(state, "its files are not there any more")
    return state, state.current


def judge(state: State, version: str, end: End) -> tuple[State, float]:
    """What follows from the end of an agent: what to write down, and how long to wait before the next start.

    Args:
        state: what the file says now; the agent may have written it.
        version: which one ended.
        end: how.
    """
    if version == state.trial and version:
        if end.code == WORLD:
            return (_trial_over(state) if state.attempts >= ATTEMPTS else state), _WORLD_PAUSE
        if end.hung or state.attempts >= ATTEMPTS:
            return rejected(state, how(end, state)), 0.0
        return state, _PAUSE
    if state.trial or version != state.current:  # it left for another one
        return state, 0.0
    crashes = 1 if end.seconds >= STEADY_SECONDS else min(state.crashes, CRASHES + 3) + 1
    if version and crashes >= CRASHES:
        following = fallen_back(state, f"ended {crashes} times soon after its start; {how(end, state)}")
        return (following._replace(verdicts=state.verdicts) if end.code == WORLD else following), 0.0
    if end.code == WORLD:
        return state._replace(crashes=crashes), _WORLD_PAUSE
    return state._replace(crashes=crashes), min(_PAUSE * 2.0 ** (crashes - 1), _LONGEST_PAUSE)


def rejected(state: State, reason: str) -> State:
    """The trial is over; what ran before runs again."""
    return _trial_over(state._replace(verdicts=_with(state.verdicts, state.trial, reason)))


def _trial_over(state: State) -> State:
    """Without a verdict the agent that runs again may order another."""
    return state._replace(trial="", seconds=0.0, attempts=0, crashes=0, before="")


def fallen_back(state: State, reason: str) -> State:
    """The version before takes the place of the current one, and the installed agent that of the one before."""
    verdicts = _with(state.verdicts, state.current, reason)
    return state._replace(current=state.previous, previous="", crashes=0, verdicts=verdicts)


def _with(verdicts: tuple[tuple[str, str], ...], version: str, reason: str) -> tuple[tuple[str, str], ...]:
    others = [found for found in verdicts if found[0] != version]
    return (*others, (version, " ".join(reason.split())))[-_VERDICTS_KEPT:]


def how(end: End, state: State) -> str:
    """How an agent ended, in words."""
    if (end.late or end.hung) and state.seconds and end.seconds >= state.seconds:
        words = f"it did not prove itself within {state.seconds:.0f} s"
    elif end.hung:
        words = f"its control loop was silent for {HANG_SECONDS:.0f} s"
    else:
        ended = f"exit code {end.code}" if end.code >= 0 else f"signal {-end.code}"
        words = f"it ended with {ended} after {end.seconds:.0f} s"
    return f"{words}; its last words: {end.words}" if end.words else words


# -- the file ---------------------------------------------------------------------------------------------


def read_state(folder: str) -> State:
    """What the file says; one that is absent or unreadable says that the installed agent runs."""
    try:
        with open(f"{folder}/{FILE}", encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs a megabyte here
            return _parse(file.read())
    except (OSError, ValueError):
        return State()


def _parse(text: str) -> State:
    values: dict[str, object] = {}
    verdicts: list[tuple[str, str]] = []
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "verdict":
            version, _, reason = value.partition(" ")
            verdicts.append((_version(version), reason))
        elif name in ("current", "previous", "trial"):
            values[name] = _version(value)
        elif name in ("attempts", "crashes"):
            values[name] = int(value)
        elif name == "seconds":
            values[name] = float(value)
        elif name == "before":
            values[name] = value
    return State(**values, verdicts=tuple(verdicts))


def _version(text: str) -> str:
    if text and (len(text) != 64 or set(text) - set("0123456789abcdef")):
        raise ValueError(text)
    return text


def write_state(folder: str, state: State) -> None:
    """Write the file: whole, or not at all; what it names was on disk before.

    Raises:
        OSError: it could not be written.
    """
    lines = [f"{name} {getattr(state, name)}" for name in State._fields if name != "verdicts"]
    lines += [f"verdict {version} {reason}" for version, reason in state.verdicts]
    fresh = f"{folder}/{FILE}.new"
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, ("\n".join(lines) + "\n").encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    os.rename(fresh, f"{folder}/{FILE}")  # noqa: PTH104
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Bring names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def present_versions(folder: str) -> frozenset[str]:
    """Versions whose files are here; what is being unpacked has another name."""
    try:
        return frozenset(name for name in os.listdir(folder) if len(name) == 64)  # noqa: PTH208
    except OSError:
        return frozenset()
