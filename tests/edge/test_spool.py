"""The spool keeps its promises: nothing lost uncounted, never over budget, no number used twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from wherry.errors import StoreError
from wherry.messages import DeploymentEvent, DeploymentReport, DropNotice, HostSample, ReleaseRef, SlotSample
from wherry_agent.spool import MAX_RECORD_BYTES, OVERHEAD_BYTES, UNKNOWN, UNSYNCED, Spool

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def host(cpu=1.0):
    return HostSample(cpu_percent=cpu, memory_used_bytes=1, memory_total_bytes=2, disk_used_bytes=1, disk_total_bytes=2)


def slot(requests=1, latency=()):
    return SlotSample(
        slot="main", model="m", version="1", counter=1, seconds=15, requests=requests, latency=list(latency)
    )


def deployment(note="d"):
    release = ReleaseRef(model="m", version="1", counter=1, digest="sha256:" + "0" * 64)
    report = DeploymentReport(
        id=note, slot="main", release=release, sequence=1, phase="fetching", started=NOW, updated=NOW
    )
    return DeploymentEvent(deployment=report)


MAKE = {"host": host, "slot": slot, "deployment": deployment}


def size(record):
    return len(record.model_dump_json(exclude_none=True).encode()) + OVERHEAD_BYTES


@pytest.fixture
def spool(tmp_path):
    made = Spool(tmp_path / "spool.db", "dev-1")
    yield made
    made.close()


def types(batch):
    return [entry.record.type for entry in batch.records] if batch else []


def drain(spool):
    """Deliver everything as a server would; what arrived, by type, and what was reported dropped."""
    arrived, dropped, numbers = Counter(), Counter(), []
    while batch := spool.batch(NOW):
        for entry in batch.records:
            numbers.append(entry.sequence)
            if isinstance(entry.record, DropNotice):
                dropped.update(entry.record.dropped)
            else:
                arrived[entry.record.type] += 1
        spool.ack(batch.stream, batch.records[-1].sequence)
    return arrived, dropped, numbers


def test_records_come_back_in_order_with_their_times(spool):
    spool.append(host(), NOW)
    spool.extend([slot(), deployment()], NOW)
    batch = spool.batch(NOW)
    assert types(batch) == ["host", "slot", "deployment"]
    assert [entry.at for entry in batch.records] == [NOW] * 3
    assert (batch.device, batch.stream) == ("dev-1", spool.stream)


def test_a_batch_stays_until_it_is_acknowledged(spool):
    spool.append(host(), NOW)
    first = spool.batch(NOW)
    assert spool.batch(NOW) == first
    spool.ack(first.stream, first.records[-1].sequence)
    assert spool.batch(NOW) is None
    assert spool.waiting() == {}


def test_acknowledging_what_was_never_offered_deletes_nothing(spool):
    spool.append(host(), NOW)
    spool.ack(spool.stream, 2**62)
    spool.ack("another stream", 2**62)
    assert spool.waiting() == {"host": 1}


def test_an_acknowledgement_ends_at_what_was_offered(spool):
    spool.append(host(), NOW)
    spool.batch(NOW)
    spool.append(slot(), NOW)
    spool.ack(spool.stream, 2**62)
    assert spool.waiting() == {"slot": 1}


def test_batches_are_cut_by_size_and_hold_at_least_one_record(spool):
    spool.extend([slot(latency=[10**6] * 41) for _ in range(10)], NOW)
    assert len(spool.batch(NOW, limit_bytes=1).records) == 1
    assert 1 < len(spool.batch(NOW, limit_bytes=3 * size(slot(latency=[10**6] * 41))).records) < 10


def test_batch_bytes_stay_under_the_limit(spool):
    spool.extend([slot(latency=[n] * 41) for n in range(500)], NOW)
    assert len(spool.batch(NOW, limit_bytes=20_000).to_bytes()) <= 20_000


def test_least_important_and_oldest_go_first_and_are_counted(tmp_path):
    spool = Spool(tmp_path / "spool.db", "dev-1", budget_bytes=5 * size(deployment()))
    spool.append(deployment(), NOW)
    spool.extend([slot(n) for n in range(4)], NOW)
    for n in range(30):
        spool.append(host(float(n)), NOW)
    arrived, dropped, _ = drain(spool)
    assert arrived["deployment"] == 1
    assert arrived["slot"] == 4
    assert arrived["host"] + dropped["host"] == 30
    assert dropped["host"] > 0
    spool.close()


def test_a_record_larger_than_a_message_is_counted_not_kept(spool):
    spool.append(slot(latency=[10**9] * (MAX_RECORD_BYTES // 8)), NOW)
    assert drain(spool)[:2] == (Counter(), Counter({"slot": 1}))


def test_numbers_go_on_after_a_restart_and_are_never_used_twice(tmp_path):
    seen, streams = [], set()
    for _ in range(3):
        spool = Spool(tmp_path / "spool.db", "dev-1")
        streams.add(spool.stream)
        spool.extend([host(), host()], NOW)
        seen += drain(spool)[2]
        spool.close()
    assert len(streams) == 1
    assert seen == sorted(set(seen))
    assert len(seen) == 6


def test_numbers_survive_a_power_cut_that_undoes_the_last_commits(tmp_path):
    path = tmp_path / "spool.db"
    spool = Spool(path, "dev-1", boot_id="boot-1")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if not file.name.endswith("-shm")}
    spool.extend([host()] * 10, NOW)
    sent = drain(spool)[2]
    spool.close()
    for file in tmp_path.iterdir():
        file.unlink()
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    after = Spool(path, "dev-1", boot_id="boot-2")
    after.append(host(), NOW)
    arrived, dropped, numbers = drain(after)
    assert arrived == Counter(host=1)
    assert min(numbers) > max(sent)
    assert dropped == Counter({UNSYNCED: 1})
    after.close()


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        pytest.param(lambda data: b"\0" * len(data), {UNKNOWN: 1}, id="zeroed"),
        pytest.param(lambda data: data[: len(data) // 2 + 7], {UNKNOWN: 1}, id="cut off"),
        pytest.param(lambda data: data[:4096] + os.urandom(len(data) - 4096), {UNKNOWN: 1}, id="garbage pages"),
        pytest.param(lambda data: b"not a database", {UNKNOWN: 1}, id="another file"),
    ],
)
def test_a_damaged_file_is_moved_aside_and_its_loss_reported(tmp_path, damage, lost):
    path = tmp_path / "spool.db"
    spool = Spool(path, "dev-1")
    spool.extend([slot(latency=[7] * 41) for _ in range(100)], NOW)
    stream = spool.stream
    spool.close()
    path.write_bytes(damage(path.read_bytes()))
    again = Spool(path, "dev-1")
    assert again.stream != stream
    assert (tmp_path / "spool.db.corrupt").exists()
    again.append(host(), NOW)
    arrived, dropped, _ = drain(again)
    assert (arrived, dropped) == (Counter(host=1), Counter(lost))
    again.close()


def test_a_file_that_breaks_while_open_is_replaced_and_everything_in_it_counted(tmp_path):
    path = tmp_path / "spool.db"
    spool = Spool(path, "dev-1")
    spool.extend([slot(latency=[7] * 41) for _ in range(100)], NOW)
    spool.ack(spool.stream, 0)
    spool._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spool._db.execute("PRAGMA shrink_memory")
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    for _ in range(3):
        spool.append(host(), NOW)
    arrived, dropped, _ = drain(spool)
    assert arrived["host"] + dropped["host"] >= 3
    assert dropped["slot"] == 100
    spool.close()


def test_a_full_disk_is_no_exception_and_the_loss_is_counted(spool):
    pages = spool._db.execute("PRAGMA page_count").fetchone()[0]
    spool._db.execute(f"PRAGMA max_page_count={pages + 2}")
    for _ in range(60):
        spool.append(slot(latency=[7] * 41), NOW)
    kept = spool.waiting()["slot"]
    assert 0 < kept < 60
    spool._db.execute("PRAGMA max_page_count=1000000")
    arrived, dropped, _ = drain(spool)
    assert (arrived["slot"], dropped["slot"]) == (kept, 60 - kept)


def test_an_unreadable_row_is_dropped_and_counted_and_blocks_nothing(spool):
    spool.extend([host(), slot(), host()], NOW)
    spool._db.execute("UPDATE records SET body = '{\"type\": \"slot\"' WHERE type = 'slot'")
    arrived, dropped, _ = drain(spool)
    assert (arrived, dropped) == (Counter(host=2), Counter(slot=1))


def test_a_place_that_cannot_hold_a_file_is_an_error_in_words(tmp_path):
    with pytest.raises(StoreError, match="cannot be opened"):
        Spool(tmp_path / "missing" / "spool.db", "dev-1")


def test_threads_append_while_another_sends(tmp_path):
    spool = Spool(tmp_path / "spool.db", "dev-1")
    done = threading.Event()
    arrived = []

    def send():
        while not done.is_set() or spool.waiting():
            if batch := spool.batch(NOW, limit_bytes=2000):
                arrived.extend(entry.sequence for entry in batch.records)
                spool.ack(batch.stream, batch.records[-1].sequence)

    sender = threading.Thread(target=send)
    sender.start()
    writers = [threading.Thread(target=lambda: [spool.append(host(), NOW) for _ in range(50)]) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    sender.join()
    assert len(arrived) == len(set(arrived)) == 150
    spool.close()


def test_what_was_appended_survives_kill_9(tmp_path):
    program = textwrap.dedent(
        """
        import sys, time
        from datetime import UTC, datetime
        from pathlib import Path
        from wherry.messages import HostSample
        from wherry_agent.spool import Spool
        spool = Spool(Path(sys.argv[1]), "dev-1", boot_id="boot-1")
        sample = HostSample(cpu_percent=1, memory_used_bytes=1, memory_total_bytes=1, disk_used_bytes=1,
                            disk_total_bytes=1)
        while True:
            spool.append(sample, datetime.now(UTC))
            print("x", flush=True)
        """
    )
    path = tmp_path / "spool.db"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        lines = [process.stdout.readline() for _ in range(40)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    spool = Spool(path, "dev-1", boot_id="boot-1")
    arrived, dropped, _ = drain(spool)
    assert arrived["host"] >= len(lines)
    assert dropped == Counter()
    spool.close()


class SpoolAgainstServer(RuleBasedStateMachine):
    """Appends, sends, losses, acknowledgements, restarts and overflows, in any order."""

    def __init__(self):
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "spool.db"
        self.appended, self.server, self.last = Counter(), {}, None

    @initialize(budget=st.integers(600, 6000))
    def begin(self, budget):
        self.budget = budget
        self.spool = Spool(self.path, "dev-1", budget)

    @rule(kinds=st.lists(st.sampled_from(sorted(MAKE)), min_size=1, max_size=6))
    def append(self, kinds):
        self.appended.update(kinds)
        self.spool.extend([MAKE[kind]() for kind in kinds], NOW)

    @rule(limit=st.integers(1, 3000), arrives=st.booleans())
    def send(self, limit, arrives):
        batch = self.spool.batch(NOW, limit)
        if batch and arrives:
            self.last = batch
            self.server.update({entry.sequence: entry.record for entry in batch.records})

    @rule()
    def acknowledge(self):
        if self.last:
            self.spool.ack(self.last.stream, self.last.records[-1].sequence)

    @rule(clean=st.booleans())
    def restart(self, clean):
        self.spool.close() if clean else self.spool._db.close()
        self.spool = Spool(self.path, "dev-1", self.budget)

    @invariant()
    def within_budget(self):
        if hasattr(self, "spool"):
            (stored,) = self.spool._db.execute("SELECT coalesce(sum(bytes), 0) FROM records").fetchone()
            assert self.spool._bytes == stored <= self.budget

    def teardown(self):
        while batch := self.spool.batch(NOW):
            self.server.update({entry.sequence: entry.record for entry in batch.records})
            self.spool.ack(batch.stream, batch.records[-1].sequence)
        self.spool.close()
        self.folder.cleanup()
        notices = [record.dropped for record in self.server.values() if isinstance(record, DropNotice)]
        dropped = sum((Counter(notice) for notice in notices), Counter())
        arrived = Counter(record.type for record in self.server.values())
        for kind in MAKE:
            assert arrived[kind] <= self.appended[kind] <= arrived[kind] + dropped[kind], kind


TestSpoolAgainstServer = SpoolAgainstServer.TestCase
TestSpoolAgainstServer.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
