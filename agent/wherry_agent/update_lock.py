"""The update lock: an application on the device holds off swaps while it must not be disturbed.

STATE/update.lock is JSON: `{"holder": "inspection", "reason": "a run is on", "expires": "2030-01-01T12:00:00Z"}`.
Root may write it by hand, `wherry-agent lock` and the local API write it for others. It holds for a day at
most, whatever it says, and a file that cannot be read holds nothing off: a forgotten lock must not keep a
device from its updates. It never holds off a rollback, nor the restart of what serves.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from wherry.errors import ContractError, InputError, StoreError
from wherry.messages import UpdateLock
from wherry.schemas import load_json

LOCK_NAME = "update.lock"
LONGEST = timedelta(hours=24)
_MOST_BYTES = 4096
_MOST_CHARS = 200
_log = logging.getLogger(__name__)


class UnusableLock(InputError):
    """A lock file holds nothing off; the reason says why."""


def parse_lock(body: bytes, written: datetime, now: datetime) -> UpdateLock | None:
    """What a lock file says: the lock that holds now, or None when it expired.

    Args:
        body: of the file.
        written: when; no lock holds longer than `LONGEST` from then.
        now: the time.

    Raises:
        UnusableLock: it cannot be read, or was written in what is the future now.
    """
    thing = f"update lock {LOCK_NAME}"
    if len(body) > _MOST_BYTES:
        raise UnusableLock(thing, f"is longer than {_MOST_BYTES} bytes")
    try:
        lock = UpdateLock.model_validate(load_json(body, thing))
    except (ContractError, ValidationError) as error:
        raise UnusableLock(thing, "is not {holder, reason, expires with its time zone} as JSON") from error
    if written > now + timedelta(minutes=5):
        raise UnusableLock(thing, f"was written in the future ({written:%F %T}Z)")
    expires = min(lock.expires.astimezone(UTC), written + LONGEST)
    if expires <= now:
        return None
    return UpdateLock(holder=lock.holder[:_MOST_CHARS], reason=lock.reason[:_MOST_CHARS], expires=expires)


class LockFile:
    """STATE/update.lock. May be read and written from any thread.

    Args:
        state: the agent's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / LOCK_NAME
        self._said = ""

    def read(self, now: datetime) -> UpdateLock | None:
        """The lock that holds now. Never raises: what is unreadable holds nothing off."""
        try:
            with self._path.open("rb") as file:
                written = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
                lock = parse_lock(file.read(_MOST_BYTES + 1), written, now)
        except FileNotFoundError:
            self._say("")
            return None
        except (UnusableLock, OSError, ValueError, OverflowError) as error:
            self._say(f"the update lock holds nothing off: {error}")
            return None
        self._say("" if lock else "the update lock expired and holds nothing off any more")
        return lock

    def _say(self, words: str) -> None:
        if words and words != self._said:
            _log.warning("%s", words)
        self._said = words

    def hold(self, holder: str, reason: str, length: timedelta, now: datetime) -> UpdateLock:
        """Hold off swaps for a while; replaces the lock that was there.

        Raises:
            InputError: no time at all, or more than `LONGEST`.
            StoreError: the file cannot be written.
        """
        if not timedelta(0) < length <= LONGEST:
            raise InputError("update lock", "must last between a moment and 24 hours", "Choose another length")
        lock = UpdateLock(
            holder=holder[:_MOST_CHARS], reason=reason[:_MOST_CHARS], expires=(now + length).replace(microsecond=0)
        )  # fmt: skip
        body = json.dumps(lock.model_dump(mode="json"), indent=1) + "\n"
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(body, encoding="utf-8")
            fresh.chmod(0o644)
            fresh.replace(self._path)
        except OSError as error:
            raise StoreError(f"update lock {self._path}", f"cannot be written ({error})") from error
        return lock

    def release(self) -> bool:
        """Let swaps happen again; False when there was no lock file.

        Raises:
            StoreError: the file cannot be removed.
        """
        existed = False
        try:
            with suppress(FileNotFoundError):
                self._path.unlink()
                existed = True
        except OSError as error:
            raise StoreError(f"update lock {self._path}", f"cannot be removed ({error})") from error
        return existed
