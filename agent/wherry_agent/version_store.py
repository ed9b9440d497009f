"""Versions of the agent on disk: STATE/agent, which the supervisor reads when this agent has ended."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from wherry.agent_release import APP_PART, python_part
from wherry.errors import StoreError, Tampered
from wherry_agent import supervision
from wherry_agent.archive import unpack_tree
from wherry_agent.own_version import Running
from wherry_agent.supervision import State, read_state, write_state

PYTHON = python_part(f"{sys.version_info.major}.{sys.version_info.minor}")
"""The part of an image that this device's Python can use."""
PARTS = (PYTHON, APP_PART)


class VersionStore:
    """Reads and writes what supervisor and agent share.

    Args:
        state: the agent's state folder.
        environ: the supervisor says in it what it started.
    """

    def __init__(self, state: Path, environ: Mapping[str, str] = os.environ) -> None:
        self._folder = state / supervision.FOLDER
        runs_as = environ.get(supervision.RUNS_AS, "")
        self._supervised = bool(runs_as)
        self._own = "" if runs_as in ("", supervision.INSTALLED) else runs_as

    def read(self) -> Running:
        """Which agent runs here."""
        if not self._supervised:
            return Running()
        verdicts = {f"sha256:{version}": reason for version, reason in self._state().verdicts}
        return Running(f"sha256:{self._own}" if self._own else "", True, verdicts)

    def has(self, digest: str) -> bool:
        """Whether a version's files are here, all of them."""
        return (self._folder / _hex(digest)).is_dir()

    def unpack(self, digest: str, trees: Iterable[Iterator[bytes]], limit: int) -> None:
        """Take a version's files in: whole, on disk, and then under its name.

        Args:
            digest: of the release image.
            trees: folders of the image, each as a tar stream.
            limit: most bytes, as the owner signed them.

        Raises:
            Tampered: there is more in it than was signed, or something else than files and folders.
            StoreError: the disk cannot be written.
        """
        fresh = self._folder / f"new-{_hex(digest)[:16]}"
        with self._wrapped(f"agent {digest[:19]}"):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            try:
                for tree in trees:
                    limit -= unpack_tree(tree, fresh, limit)
                if not (fresh / APP_PART / "wherry_agent/__main__.py").is_file():
                    raise Tampered(f"agent {digest[:19]}", "holds no agent")
                os.sync()  # a file at a time would take minutes on a memory card
                fresh.rename(self._folder / _hex(digest))
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
            supervision.sync_folder(str(self._folder))

    def order(self, digest: str, seconds: float, before: str) -> None:
        """Have the supervisor try a version when this agent has ended.

        Args:
            digest: of the release image.
            seconds: how long it may take to prove itself.
            before: what works now, for the new one to compare with.

        Raises:
            StoreError: that cannot be written.
        """
        state = self._state()
        verdicts = tuple(found for found in state.verdicts if found[0] != _hex(digest))
        self._write(
            state._replace(trial=_hex(digest), seconds=seconds, attempts=0, before=before, verdicts=verdicts)
        )  # fmt: skip

    def before(self) -> str:
        """What worked before this agent was started on trial."""
        return str(self._state().before)

    def confirm(self) -> None:
        """This agent has proved itself: it is what runs from now on.

        Raises:
            StoreError: that cannot be written.
        """
        state = self._state()
        if self._own and state.current != self._own:
            previous = state.current if state.current != state.trial else ""
            self._write(State(current=self._own, previous=previous, verdicts=state.verdicts))

    def go_back(self, digest: str | None) -> None:
        """Have the supervisor start another version when this agent has ended.

        Args:
            digest: which, if it is here; else the installed agent is started.

        Raises:
            StoreError: that cannot be written.
        """
        version = _hex(digest) if digest and self.has(digest) and _hex(digest) != self._own else ""
        self._write(State(current=version, verdicts=self._state().verdicts))

    def give_up(self) -> None:
        """This agent is on trial and does not prove itself: what ran before runs again.

        Raises:
            StoreError: that cannot be written.
        """
        state = self._state()
        if state.current == self._own:
            state = State(current=state.previous, verdicts=state.verdicts)
        self._write(State(current=state.current, previous=state.previous, verdicts=state.verdicts))

    def remove(self, digest: str, for_good: bool = False) -> None:
        """Remove a version's files, unless it runs or may have to run.

        Args:
            digest: of the release image.
            for_good: nobody may go back to it any more, not even the supervisor.

        Raises:
            StoreError: they cannot be removed.
        """
        state, version = self._state(), _hex(digest)
        if version in (self._own, state.current, state.trial):
            return
        if version == state.previous:
            if not for_good:
                return
            state = state._replace(previous="")
            self._write(state)
        with self._wrapped(f"agent {digest[:19]}"):
            place = self._folder / version
            if place.exists():
                aside = self._folder / f"old-{version[:16]}"
                place.rename(aside)  # half of a version must not look like one
                shutil.rmtree(aside)
        if version in dict(state.verdicts):
            self._write(state._replace(verdicts=tuple(found for found in state.verdicts if found[0] != version)))

    def _state(self) -> State:
        return read_state(str(self._folder))

    def _write(self, state: State) -> None:
        with self._wrapped("order for the supervisor"):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_state(str(self._folder), state)

    @contextmanager
    def _wrapped(self, thing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(thing, f"{self._folder} cannot be written ({error})") from error
        except tarfile.TarError as error:
            raise StoreError(thing, f"what the engine sent is no archive ({error})") from error


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
