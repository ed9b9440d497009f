"""Runs the foreign programs that build layers, and says what they said when they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from wherry.errors import BuildError

_TAIL = 3


def run_tool(
    command: Sequence[str], thing: str, *, env: Mapping[str, str] | None = None, seconds: int = 900, install: str = ""
) -> str:
    """Run a program to its end and return what it printed.

    Args:
        command: program and arguments; never through a shell.
        thing: what it builds, for the error.
        env: added to this process' environment.
        seconds: how long it may take.
        install: how to get the program when it is missing.

    Raises:
        BuildError: missing, failed, or too slow.
    """
    program = command[0]
    if shutil.which(program) is None:
        raise BuildError(thing, f"{program} is not installed", install or f"Install {program}")
    try:
        done = subprocess.run(
            list(command),
            env=os.environ | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(thing, f"{program} did not finish within {seconds} s", "Check the network") from error
    except OSError as error:
        raise BuildError(thing, f"{program} cannot be run ({error.strerror})") from error
    if done.returncode != 0:
        raise BuildError(thing, f"{program} failed: {_last_words(done.stderr or done.stdout)}")
    return done.stdout


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "ERROR", "error"))]
    return " / ".join((errors or lines)[-_TAIL:])[:600] or "it said nothing"
