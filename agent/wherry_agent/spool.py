"""Store-and-forward on disk: records wait here until the server says that it has stored them.

Bounded: when the budget is used up, the least important and oldest records go first, and what went is
counted and sent as a `DropNotice`. Careful with flash: a commit waits for the disk only for deployment
events, and acknowledged records are deleted a batch at a time.

Numbers are reserved in blocks, durably, and every start begins a new block: after a power cut has undone
the last commits, a number that the server may have seen already is not given to another record.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter

from wherry.errors import StoreError
from wherry.messages import (
    DeploymentEvent,
    DropNotice,
    HostSample,
    Record,
    SlotSample,
    TelemetryBatch,
    TelemetryRecord,
)
from wherry_agent.ports import Writing, uncounted

AnyRecord = SlotSample | HostSample | DeploymentEvent | DropNotice
IN_MEMORY = Path(":memory:")
"""Where a spool is that the disk does not take: what waits there is gone when the agent ends."""
OVERHEAD_BYTES = 96
"""Added to each record's JSON, for its row and for its place in a batch."""
MAX_RECORD_BYTES = 131_072
UNSYNCED = "unsynced"
"""In a DropNotice: power was cut; the samples of the last seconds before it may be missing."""
UNKNOWN = "unknown"
"""In a DropNotice: a spool file could not be read; nobody knows what was in it."""
_PRIORITY = {"host": 0, "slot": 1, "drop": 2, "deployment": 3}
_DURABLE = "deployment"
_BLOCK = 4096
_RECORD: TypeAdapter[AnyRecord] = TypeAdapter(Record)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    sequence INTEGER PRIMARY KEY, type TEXT NOT NULL, priority INTEGER NOT NULL, bytes INTEGER NOT NULL,
    at TEXT NOT NULL, body TEXT NOT NULL
);
"""
_FAILURES = (sqlite3.Error, StoreError)
_log = logging.getLogger(__name__)


class Spool:
    """The spool of one device. Every method may be called from any thread.

    Args:
        path: the database file, or `IN_MEMORY`. A file that cannot be read is moved aside and a new stream begins.
        device: its id, for the batches.
        budget_bytes: how much may wait.
        boot_id: tells a power cut from a mere restart of the agent.
        writing: counts what is written.

    Raises:
        StoreError: the file cannot be created at all.
    """

    def __init__(
        self, path: Path, device: str, budget_bytes: int = 16 * 2**20, boot_id: str = "", writing: Writing = uncounted
    ) -> None:
        self._path = path
        self._writing = writing
        self._device = device
        self._budget = budget_bytes
        self._boot_id = boot_id
        self._lock = threading.RLock()
        self._waiting: Counter[str] = Counter()
        self._bytes = 0
        self._offered = 0
        self._next = self._reserved = 1
        self._dropped: Counter[str] = Counter()
        self._unwritten: Counter[str] = Counter()
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise StoreError(f"spool {path}", f"cannot be opened: {error}") from error
            self._begin_again(str(error))

    @property
    def stream(self) -> str:
        """Names this spool file; sequences count within it."""
        return self._stream

    def waiting(self) -> dict[str, int]:
        """How many records wait, by type."""
        with self._lock:
            return dict(+self._waiting)

    def bookmark(self) -> str | None:
        """What the last `extend` with a bookmark wrote, also before a restart."""
        with self._lock, contextlib.suppress(*_FAILURES):
            row = self._db.execute("SELECT value FROM meta WHERE key = 'bookmark'").fetchone()
            return str(row[0]) if row else None
        return None

    def append(self, record: AnyRecord, at: datetime) -> None:
        """Keep a record until it is acknowledged. Never raises: one that cannot be written is counted."""
        self.extend([record], at)

    def extend(self, records: Iterable[AnyRecord], at: datetime, bookmark: str | None = None) -> None:
        """Keep several records with one commit, and with them how far their source had been read."""
        found = list(records)
        with self._lock:
            try:
                with self._transaction(len(found), durable=any(record.type == _DURABLE for record in found)):
                    for record in found:
                        self._insert(record, at)
                    self._keep_within_budget()
                    if bookmark is not None:
                        self._set("bookmark", bookmark)
            except _FAILURES as error:
                self._unwritten.update(record.type for record in found)
                _log.error("%d telemetry records could not be kept: %s", len(found), error)

    def batch(self, now: datetime, limit_bytes: int = 65_536) -> TelemetryBatch | None:
        """The oldest records, up to a size, as a message; None when nothing waits. They stay until `ack`.

        Args:
            now: the time of the `DropNotice`, when there is one to make.
            limit_bytes: about how long the message may get; one record is always taken.
        """
        with self._lock, contextlib.suppress(*_FAILURES):
            if self._dropped or self._unwritten:
                self._write_notice(now)
            records = self._oldest(limit_bytes)
            if records:
                self._offered = max(self._offered, records[-1].sequence)
                return TelemetryBatch(device=self._device, stream=self._stream, records=records)
        return None

    def ack(self, stream: str, sequence: int) -> None:
        """Forget what the server stored. Another stream's, or what was never offered, is left alone."""
        with self._lock, contextlib.suppress(*_FAILURES):
            if stream == self._stream:
                self._forget(min(sequence, self._offered))

    def close(self) -> None:
        """Flush to disk and close."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            with self._transaction(durable=True):
                self._set("clean", "yes")
            self._db.close()

    # -- inside a transaction, with the lock held

    def _insert(self, record: AnyRecord, at: datetime) -> None:
        body = record.model_dump_json(exclude_none=True)
        size = len(body.encode()) + OVERHEAD_BYTES
        if size > min(MAX_RECORD_BYTES, self._budget):
            self._count_as_dropped(record.type, body)
            return
        row = (self._next, record.type, _PRIORITY[record.type], size, at.isoformat(), body)
        self._db.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", row)
        self._next += 1
        self._waiting[record.type] += 1
        self._bytes += size

    def _keep_within_budget(self) -> None:
        if self._bytes <= self._budget:
            return
        # A little more than needed, so that a full spool is not searched at every record. What was
        # offered goes last: it may have arrived, and would then be counted as lost.
        enough = self._budget - self._budget // 20
        victims = self._db.execute(
            "SELECT sequence, type, bytes, body FROM records ORDER BY sequence <= ?, priority, sequence",
            (self._offered,),
        )
        gone = []
        for sequence, kind, size, body in victims:
            if self._bytes <= enough:
                break
            gone.append((sequence,))
            self._bytes -= size
            self._waiting[kind] -= 1
            self._count_as_dropped(kind, body)
        victims.close()
        self._db.executemany("DELETE FROM records WHERE sequence = ?", gone)

    def _count_as_dropped(self, kind: str, body: str) -> None:
        counts = Counter({kind: 1})
        if kind == "drop":
            with contextlib.suppress(ValueError):
                counts = Counter(DropNotice.model_validate_json(body).dropped)
        self._dropped.update(counts)
        self._set("dropped", json.dumps(self._dropped))

    def _set(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # -- whole operations, with the lock held

    def _forget(self, sequence: int) -> None:
        with self._transaction():
            counted = "SELECT type, count(*), sum(bytes) FROM records WHERE sequence <= ? GROUP BY type"
            for kind, count, size in self._db.execute(counted, (sequence,)).fetchall():
                self._waiting[kind] -= count
                self._bytes -= size
            self._db.execute("DELETE FROM records WHERE sequence <= ?", (sequence,))

    def _write_notice(self, now: datetime) -> None:
        counts = self._dropped + self._unwritten
        with self._transaction(1):
            self._dropped.clear()
            self._set("dropped", "{}")
            self._insert(DropNotice(dropped=dict(counts)), now)
            self._keep_within_budget()
        self._unwritten.clear()

    def _oldest(self, limit_bytes: int) -> list[TelemetryRecord]:
        rows = self._db.execute("SELECT sequence, type, bytes, at, body FROM records ORDER BY sequence LIMIT 1000")
        found: list[TelemetryRecord] = []
        used = 0
        unreadable: list[tuple[int, str, str]] = []
        for sequence, kind, size, at, body in rows:
            used += size
            if found and used > limit_bytes:
                break
            try:
                record = _RECORD.validate_json(body)
                found.append(TelemetryRecord(sequence=sequence, at=datetime.fromisoformat(at), record=record))
            except ValueError:
                unreadable.append((sequence, kind, body))
        rows.close()
        if unreadable:
            self._drop_unreadable(unreadable)
        return found

    def _drop_unreadable(self, rows: list[tuple[int, str, str]]) -> None:
        _log.error("%d telemetry records on disk cannot be read and are dropped", len(rows))
        with self._transaction():
            for sequence, kind, body in rows:
                self._db.execute("DELETE FROM records WHERE sequence = ?", (sequence,))
                self._count_as_dropped(str(kind), body)
            self._tally()

    @contextlib.contextmanager
    def _transaction(self, numbers: int = 0, durable: bool = False) -> Iterator[None]:
        """One commit; `numbers` sequences are made sure of, `durable` waits for the disk.

        Raises:
            sqlite3.Error: nothing was written. A corrupt file has been replaced by a new one then.
        """
        with self._writing("spool"):
            yield from self._committed(numbers, durable)

    def _committed(self, numbers: int, durable: bool) -> Iterator[None]:
        reserve = self._next + numbers + _BLOCK if self._next + numbers >= self._reserved else None
        try:
            if durable or reserve:
                self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("BEGIN IMMEDIATE")
            if reserve:
                self._set("reserved", str(reserve))
            yield
            self._db.execute("COMMIT")
            self._reserved = reserve or self._reserved
            if durable or reserve:
                self._db.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.DatabaseError as error:
            self._undo(error)
            raise

    def _undo(self, error: sqlite3.DatabaseError) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._load()
        except sqlite3.DatabaseError as second:
            error = second
        if _is_corrupt(error):
            self._begin_again(str(error))

    # -- the file

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5)
        existed = self._path.exists() and self._path.stat().st_size > 0
        # Alone with it, SQLite makes no -shm file, for which a full disk would have no room at the next start.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA wal_autocheckpoint=256")
        self._db.execute(f"PRAGMA journal_size_limit={2**20}")
        self._db.execute("PRAGMA cache_size=-512")
        self._db.execute("PRAGMA synchronous=FULL")
        if existed and self._db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise _corrupt("its pages do not fit together")
        self._db.executescript(_SCHEMA)
        meta = dict(self._db.execute("SELECT key, value FROM meta"))
        if existed and not {"stream", "reserved"} <= meta.keys():
            raise _corrupt("it has no stream")
        self._stream = meta.get("stream") or str(uuid.uuid4())
        try:
            self._next = self._reserved = int(meta.get("reserved", "1"))
            self._load()
        except ValueError as error:
            raise _corrupt(f"it says {error}") from error
        if meta.get("clean") == "no" and meta.get("boot") != self._boot_id:
            self._dropped[UNSYNCED] += 1
        try:
            with self._transaction():
                for key, value in (("stream", self._stream), ("boot", self._boot_id), ("clean", "no")):
                    self._set(key, value)
                self._set("dropped", json.dumps(self._dropped))
        except sqlite3.OperationalError as error:
            if not meta:
                raise
            _log.error("spool %s cannot be written: %s", self._path, error)  # what waits in it can be sent all the same

    def _load(self) -> None:
        """Bring what memory knows in line with the file."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'dropped'").fetchone()
        self._dropped = Counter(json.loads(row[0]) if row else {})
        self._tally()

    def _tally(self) -> None:
        rows = list(self._db.execute("SELECT type, count(*), sum(bytes) FROM records GROUP BY type"))
        self._waiting = Counter({kind: count for kind, count, _ in rows})
        self._bytes = sum(size for _, _, size in rows)

    def _begin_again(self, reason: str) -> None:
        """Move an unusable file aside, count what was in it as lost, and begin a new stream."""
        _log.error("spool %s cannot be read (%s); it is moved aside and a new one begun", self._path, reason)
        lost = (+self._waiting or Counter({UNKNOWN: 1})) + self._dropped
        with contextlib.suppress(sqlite3.Error, AttributeError):
            self._db.close()
        try:
            self._path.replace(self._path.with_name(self._path.name + ".corrupt"))
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._offered = 0
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"spool {self._path}", f"cannot be begun again: {error}") from error
        self._unwritten.update(lost)


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(code, int) and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _corrupt(reason: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(reason)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
