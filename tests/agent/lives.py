"""An agent that lives in a child process and may be killed -9 before or after any call of a port or journal write."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from agent_fakes import Device, Killer, World

from wherry_agent.assignment import TrustedImage


def live(
    folder: Path, catalogue: Mapping[str, TrustedImage], act: Callable[[Device], None], kill_at: int | None
) -> bool:  # fmt: skip
    """One life of the agent in a child process; whether it ended by itself."""
    child = os.fork()
    if child == 0:
        try:
            act(Device(folder, World.load(folder / "world"), catalogue, Killer(kill_at)))
        except BaseException as error:  # the parent must see it, pytest must not
            (folder / "error").write_text(repr(error))
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, (folder / "error").read_text()
    return True
