"""The journal on disk: SQLite, synchronous FULL, one row a thing, one transaction a fact.

It writes before anything acts, and only rows that changed. The write-ahead log keeps a commit at one
fsync and a few pages, which spares the flash.

An agent may find the journal of a newer one that did not prove itself, so the table and the rows `meta`, `marks` and
`rejected/…` keep their meaning for ever; only slots may be told in words that an older agent does not know.
"""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from wherry.errors import StoreError
from wherry_agent.assignment import Marks
from wherry_agent.entry import Entry, Limits, Rejection, SlotEntry
from wherry_agent.ports import Writing, uncounted
from wherry_agent.progress import Began, Fact, advance
from wherry_agent.steps import Step

JOURNAL_SCHEMA = 1
_SLOT = TypeAdapter(SlotEntry)
_MARKS = TypeAdapter(Marks)
_REJECTION = TypeAdapter(Rejection)
_META = TypeAdapter(dict[str, str | int])
_DIGESTS = TypeAdapter(list[str])
_VOLATILE = {"deployment": {"finished", "fetched_bytes", "gate", "deadline"}}
_UNREADABLE = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)


def _damaged(error: Exception) -> bool:
    """Whether the file itself is unusable. A full disk or a lock is not: the journal's marks must outlive those."""
    if not isinstance(error, sqlite3.OperationalError):
        return True
    code = error.sqlite_errorcode
    return code in _UNREADABLE or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Journal:
    """The one writer of deployment state. Used by the control loop's thread only.

    Attributes:
        entry: what it holds now.
        rebuilt: why it was started anew, or None.

    Raises:
        StoreError: the file can be neither read nor replaced.
    """

    def __init__(self, path: Path, device: str, limits: Limits, writing: Writing = uncounted) -> None:
        self._path = path
        self._writing = writing
        self._limits = limits
        self.rebuilt: str | None = None
        try:
            self._rows = self._open()
            self.entry = self._read(device)
        except (sqlite3.DatabaseError, ValidationError, KeyError) as error:
            if not _damaged(error):
                raise StoreError(f"journal {path}", str(error)) from error
            self._set_aside(str(error).splitlines()[0])
            try:
                self._rows = self._open()
            except sqlite3.DatabaseError as again:
                raise StoreError(f"journal {path}", str(again)) from again
            self.entry = self._read(device)

    def _open(self) -> dict[str, bytes]:
        database = sqlite3.connect(self._path, isolation_level=None, timeout=5.0)
        self._database = database
        # Alone with it, SQLite makes no -shm file, for which a full disk would have no room at the next start.
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("PRAGMA wal_autocheckpoint=64")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > JOURNAL_SCHEMA:  # it did not do, and this agent is to take over: marks stay, slots are found again
            self.rebuilt = f"a newer agent wrote it (schema {version}, this one knows {JOURNAL_SCHEMA})"
            database.execute(f"PRAGMA user_version={JOURNAL_SCHEMA}")
        if version == 0:
            database.execute("CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
            database.execute(f"PRAGMA user_version={JOURNAL_SCHEMA}")
        check = database.execute("PRAGMA quick_check").fetchone()[0]
        if check != "ok":
            raise sqlite3.DatabaseError(check)
        return dict(database.execute("SELECT key, value FROM facts"))

    def _read(self, device: str) -> Entry:
        """The rows as an entry. Slots in words of another agent are left out, to be found again by their containers."""
        entry, strange = _decode(self._rows, device)
        if strange and not self.rebuilt:
            self.rebuilt = f"another agent wrote what it says of slot {', '.join(strange)}"
        return entry

    def _set_aside(self, reason: str) -> None:
        """Keep the unreadable files for a post-mortem and start anew."""
        self.rebuilt = f"it could not be read ({reason}); kept as {self._path.name}.corrupt"
        with contextlib.suppress(sqlite3.Error, AttributeError):
            self._database.close()
        try:
            self._path.replace(self._path.with_name(self._path.name + ".corrupt"))
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"journal {self._path}", f"cannot be replaced ({error})") from error

    @property
    def fresh(self) -> bool:
        """Whether nothing was ever written to it."""
        return not self._rows

    def apply(self, fact: Fact, now: datetime) -> Entry:
        """Take a fact in and write what changed, or neither.

        Raises:
            PhaseError: the phase table does not allow it.
            StoreError: it could not be written.
        """
        return self.keep(advance(self.entry, fact, now, self._limits))

    def begin(self, step: Step, now: datetime) -> Entry:
        """Note that a step is about to act.

        Raises:
            PhaseError: the phase table does not allow it.
            StoreError: it could not be written: do not act.
        """
        return self.apply(Began(step), now)

    def keep(self, entry: Entry) -> Entry:
        """Write an entry: changed rows, in one transaction.

        Raises:
            StoreError: it could not be written; the entry stays as it was.
        """
        rows = _encode(entry)
        changed = [(key, value) for key, value in rows.items() if self._rows.get(key) != value]
        gone = [(key,) for key in self._rows if key not in rows]
        if changed or gone:
            self._write(changed, gone)
        self._rows, self.entry = rows, entry
        return entry

    def _write(self, changed: list[tuple[str, bytes]], gone: list[tuple[str]]) -> None:
        try:
            with self._writing("journal"):
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany("INSERT OR REPLACE INTO facts (key, value) VALUES (?, ?)", changed)
                self._database.executemany("DELETE FROM facts WHERE key = ?", gone)
                self._database.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise StoreError(f"journal {self._path}", f"cannot be written ({error})") from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _encode(entry: Entry) -> dict[str, bytes]:
    meta: dict[str, str | int] = {
        "device": entry.device, "stream": entry.stream, "starts": entry.starts, "boot_id": entry.boot_id,
        "deployments": entry.deployments, "ended": entry.ended,
    }  # fmt: skip
    rows = {"meta": _META.dump_json(meta), "marks": _marks_json(entry.marks)}
    if entry.payload is not None:
        rows["payload"] = entry.payload
    if entry.unverified:
        rows["unverified"] = _DIGESTS.dump_json(sorted(entry.unverified))
    for name, slot in entry.slots.items():
        rows[f"slot/{name}"] = _SLOT.dump_json(slot, exclude=_VOLATILE if slot.deployment else None)
    for digest, rejection in entry.rejected.items():
        rows[f"rejected/{digest}"] = _REJECTION.dump_json(rejection)
    return rows


def _marks_json(marks: Marks) -> bytes:
    """Sorted, so that equal marks are equal bytes."""
    ordered = replace(
        marks, counters=dict(sorted(marks.counters.items())), min_counters=dict(sorted(marks.min_counters.items()))
    )  # fmt: skip
    body = _MARKS.dump_python(ordered, mode="json")
    body["revoked"] = sorted(body["revoked"])
    return TypeAdapter(dict[str, object]).dump_json(body)


def _decode(rows: Mapping[str, bytes], device: str) -> tuple[Entry, list[str]]:
    """The entry, and slots whose rows this agent cannot read. Marks and rejections must be readable."""
    if not rows:
        return Entry(device=device, stream=uuid.uuid4().hex), []
    meta = _META.validate_json(rows["meta"])
    if meta["device"] != device:
        raise StoreError(
            "journal", f"belongs to device {meta['device']}, this is {device}", "Use another state folder"
        )  # fmt: skip
    under = {
        kind: {key.partition("/")[2]: value for key, value in rows.items() if key.startswith(kind + "/")}
        for kind in ("slot", "rejected")
    }
    slots, strange = {}, []
    for name, value in under["slot"].items():
        try:
            slots[name] = _SLOT.validate_json(value)
        except ValidationError:
            strange.append(name)
    entry = Entry(
        device=device,
        stream=str(meta["stream"]),
        starts=int(meta["starts"]),
        boot_id=str(meta["boot_id"]),
        deployments=int(meta["deployments"]),
        payload=rows.get("payload"),
        marks=_MARKS.validate_json(rows["marks"]),
        slots=slots,
        rejected={digest: _REJECTION.validate_json(value) for digest, value in under["rejected"].items()},
        ended=str(meta.get("ended", "")),
        unverified=frozenset(_DIGESTS.validate_json(rows.get("unverified", b"[]"))),
    )
    return entry, strange
