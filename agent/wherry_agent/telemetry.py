"""From counters to samples, from the spool to the server.

Sampler: reads each serving model's counters and spools what changed since. Flusher: sends the spool a batch
at a time, each until the server says that it stored it, because the broker forgets what it acknowledged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Protocol

import urllib3
from urllib3.exceptions import HTTPError

from wherry.errors import InferenceError, MalformedMessage, WherryError
from wherry.messages import HostSample, SlotSample, TelemetryAck, TelemetryBatch
from wherry.schemas import load_json
from wherry_agent.counters import NOTHING, Counters, change, read_counters, slot_sample
from wherry_agent.observed import ActiveSlot
from wherry_agent.spool import Spool

MAX_STATS_BYTES = 262_144
_KNOWN_MODELS = 16
_FAREWELL_SECONDS = 30.0
_FAREWELL_INTERVAL = 0.25
_log = logging.getLogger(__name__)


class StatsReader:
    """Asks model servers for their counters, bounded in time and size.

    Args:
        proxied: what the route counted of a container that does not count itself (see `ports.Route.statistics`).
        timeout: for connecting and for reading, each.
    """

    def __init__(self, proxied: Callable[[int, str], Any] = lambda *_: None, timeout: float = 2.0) -> None:
        self._proxied = proxied
        self._timeout = urllib3.Timeout(connect=timeout, read=timeout)
        self._pool = urllib3.PoolManager(num_pools=8, maxsize=1, retries=False)

    def __call__(self, slot: ActiveSlot) -> Counters:
        """The counters of a slot's model.

        Raises:
            InferenceError: no usable answer.
            MalformedMessage: the answer is not a statistics document.
        """
        model = slot.release.model
        counted = None if slot.counts else self._proxied(int(slot.base_url.rpartition(":")[2]), model)
        if counted is not None:
            return read_counters(counted, model)
        url = f"{slot.base_url}/v2/models/{model}/stats"
        try:
            # An idle connection of ours would keep a draining model server waiting for it.
            response = self._pool.request(
                "GET",
                url,
                headers={"Connection": "close"},
                timeout=self._timeout,
                preload_content=False,
                redirect=False,
            )
            body = response.read(MAX_STATS_BYTES + 1)
            if len(body) > MAX_STATS_BYTES:
                response.close()
            response.release_conn()
        except (HTTPError, OSError, ValueError) as error:
            raise InferenceError(f"statistics of {slot.slot}", f"cannot be read: {error}") from error
        if response.status != 200:
            raise InferenceError(f"statistics of {slot.slot}", f"status {response.status}")
        return read_counters(load_json(body, f"statistics of {slot.slot}", MAX_STATS_BYTES), model)


@dataclass(slots=True)
class _Seen:
    """How far one model process has been read, and since when its next window runs."""

    counters: Counters
    since: float


class Sampler:
    """Spools what each serving model did, and how the device is.

    How far each model was read is written in the same commit as the sample, so that a restart of the agent
    neither repeats nor forgets requests. A model that has left is read for as long as it answers.

    Args:
        active: the slots that serve now.
        read: a slot's counters; raises InferenceError or MalformedMessage.
        host: a host sample; raises StoreError.
        spool: where samples go.
        clock: the time now.
        steady: seconds that nobody sets.
        idle_seconds: a model that nobody asks is reported this often.
        host_seconds: so is the device.
    """

    def __init__(
        self,
        active: Callable[[], Sequence[ActiveSlot]],
        read: Callable[[ActiveSlot], Counters],
        host: Callable[[], HostSample],
        spool: Spool,
        clock: Callable[[], datetime],
        steady: Callable[[], float] = time.monotonic,
        idle_seconds: float = 300.0,
        host_seconds: float = 60.0,
    ) -> None:
        self._active = active
        self._read = read
        self._host = host
        self._spool = spool
        self._clock = clock
        self._steady = steady
        self._idle_seconds = idle_seconds
        self._host_seconds = host_seconds
        self._lock = threading.Lock()
        self._last: Mapping[str, ActiveSlot] = {}
        self._host_at: float | None = None
        self._previous = steady()
        self._seen = _load_bookmark(spool.bookmark(), self._previous)

    def sample(self) -> None:
        """Read everything once and spool it. May be called from any thread, also just before a model stops.

        Raises:
            WherryError: the first thing that could not be read; the others were.
        """
        with self._lock:
            now = self._steady()
            current = {_key(slot): slot for slot in self._active()}
            problems: list[WherryError] = []
            records: list[SlotSample | HostSample] = []
            answering = dict(current)
            for key, slot in {**self._last, **current}.items():
                try:
                    records += self._slot_records(key, slot, now)
                    answering[key] = slot
                except (InferenceError, MalformedMessage) as error:
                    if key in current:
                        problems.append(error)
            self._last, self._previous = answering, now
            bookmark = self._bookmark(current) if records else None
            try:
                records += self._host_records(now)
            except WherryError as error:
                problems.append(error)
            if records:
                self._spool.extend(records, self._clock(), bookmark)
            if problems:
                raise problems[0]

    def farewell(self) -> None:
        """Sample, and go on while a model that has left still answers: it drains, and counts what it answers.

        Returns after the first sample; raises as `sample` does.
        """
        try:
            self.sample()
        finally:
            threading.Thread(target=self._see_off, name="farewell", daemon=True).start()

    def _see_off(self) -> None:
        until = self._steady() + _FAREWELL_SECONDS
        while self._steady() < until:
            with contextlib.suppress(WherryError):
                self.sample()
            with self._lock:
                current = {_key(slot) for slot in self._active()}
                if current.issuperset(self._last):
                    return
            time.sleep(_FAREWELL_INTERVAL)

    def _slot_records(self, key: str, slot: ActiveSlot, now: float) -> list[SlotSample]:
        after = self._read(slot)
        seen = self._seen.get(key) or _Seen(NOTHING, self._previous)
        changed = change(seen.counters, after)
        known = key in self._seen
        self._seen.pop(key, None)  # put back last: the least recently seen is forgotten first
        if known and changed.idle and now - seen.since < self._idle_seconds:
            self._seen[key] = seen
            return []
        self._seen[key] = _Seen(after, now)
        return [slot_sample(slot, now - seen.since, changed)]

    def _host_records(self, now: float) -> list[HostSample]:
        if self._host_at is not None and now - self._host_at < self._host_seconds:
            return []
        self._host_at = now
        return [self._host()]

    def _bookmark(self, current: Mapping[str, ActiveSlot]) -> str:
        for key in list(self._seen)[: max(0, len(self._seen) - max(_KNOWN_MODELS, 2 * len(current)))]:
            del self._seen[key]
        return json.dumps({key: asdict(seen.counters) for key, seen in self._seen.items()}, separators=(",", ":"))


def _key(slot: ActiveSlot) -> str:
    return f"{slot.slot} {slot.release.digest} {slot.base_url}"


def _load_bookmark(text: str | None, now: float) -> dict[str, _Seen]:
    try:
        found = json.loads(text) if text else {}
        return {
            key: _Seen(Counters(**(value | {"latency": tuple(value["latency"])})), now) for key, value in found.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


class Uplink(Protocol):
    """What the flusher needs of the link."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""

    @property
    def connects(self) -> int:
        """How often it has connected so far."""

    def send_batch(self, batch: TelemetryBatch) -> bool:
        """Send; False when it was not even queued."""


@dataclass(frozen=True, slots=True)
class _Underway:
    stream: str
    last: int
    sent_at: float
    connects: int


class Flusher:
    """Sends the spool, one batch at a time, each again until it is acknowledged.

    Args:
        spool: what to send.
        link: the way to the server.
        clock: the time now.
        batch_bytes: about how long a message gets.
        resend_seconds: how long to wait for an acknowledgement before sending again.
        busy_seconds: how long one `flush` may go on while there is more to send.
    """

    def __init__(
        self,
        spool: Spool,
        link: Uplink,
        clock: Callable[[], datetime],
        batch_bytes: int = 65_536,
        resend_seconds: float = 30.0,
        busy_seconds: float = 4.0,
    ) -> None:
        self._spool = spool
        self._link = link
        self._clock = clock
        self._batch_bytes = batch_bytes
        self._resend_seconds = resend_seconds
        self._busy_seconds = busy_seconds
        self._acks: queue.SimpleQueue[TelemetryAck | None] = queue.SimpleQueue()
        self._underway: _Underway | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def on_ack(self, ack: TelemetryAck) -> None:
        """Take an acknowledgement; cheap enough for the MQTT thread."""
        self._acks.put(ack)

    def stop(self) -> None:
        """Make a `flush` that waits return."""
        self._stopped = True
        self._acks.put(None)

    def flush(self) -> None:
        """Send and wait for acknowledgements until nothing is left, nothing moves, or time is up."""
        with self._lock:
            until = time.monotonic() + self._busy_seconds
            while self._take_acks():
                pass
            while not self._stopped and self._send_next():
                if not self._take_acks(max(0.0, until - time.monotonic())) and self._underway is not None:
                    return

    def _send_next(self) -> bool:
        """Whether a batch is underway now."""
        if not self._link.connected:
            return False
        underway, now = self._underway, time.monotonic()
        if (
            underway is not None
            and underway.connects == self._link.connects
            and now - underway.sent_at < self._resend_seconds
        ):
            return True
        connects = self._link.connects
        batch = self._spool.batch(self._clock(), self._batch_bytes)
        if batch is None or not self._link.send_batch(batch):
            self._underway = None
            return False
        self._underway = _Underway(batch.stream, batch.records[-1].sequence, now, connects)
        return True

    def _take_acks(self, wait: float = 0.0) -> bool:
        """Whether an acknowledgement was there, or came in time."""
        try:
            ack = self._acks.get(timeout=wait) if wait > 0 else self._acks.get_nowait()
        except queue.Empty:
            return False
        if ack is not None:
            self._spool.ack(ack.stream, ack.sequence)
            underway = self._underway
            if underway is not None and ack.stream == underway.stream and ack.sequence >= underway.last:
                self._underway = None
        return True
