"""The journal on disk."""

from __future__ import annotations

import json
import sqlite3
from datetime import timedelta

import pytest
from agent_fakes import DEVICE, START, make_image

from wherry.errors import StoreError
from wherry_agent import steps
from wherry_agent.assignment import Marks
from wherry_agent.entry import Limits
from wherry_agent.events import StepFinished, StepProgress
from wherry_agent.journal import Journal
from wherry_agent.progress import Accepted, Admitted, Booted

IMAGE = make_image(1)


def open_journal(path, device=DEVICE):
    return Journal(path / "journal.db", device, Limits())


def filled(path):
    journal = open_journal(path)
    journal.apply(Booted("boot-1"), START)
    marks = Marks(
        sequence=7, revoked=frozenset({"sha256:" + "a" * 64, "sha256:" + "b" * 64}), counters={"z": 1, "a": 2}
    )
    journal.apply(Accepted(b"payload", marks, {"main": 8500}), START)
    journal.apply(Admitted("main", IMAGE), START + timedelta(microseconds=1))
    journal.begin(steps.Fetch("main", IMAGE), START)
    return journal


def test_what_was_written_is_read_back(tmp_path):
    journal = filled(tmp_path)
    entry = journal.entry
    journal.close()
    assert open_journal(tmp_path).entry == entry


def test_durability_is_full(tmp_path):
    database = open_journal(tmp_path)._database
    assert database.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_what_need_not_last_is_not_written(tmp_path):
    journal = filled(tmp_path)
    writes = journal._database.total_changes
    fetch = steps.Fetch("main", IMAGE)
    journal.apply(StepProgress(fetch, 5, IMAGE.image.download_bytes), START)
    journal.apply(StepFinished(fetch), START)
    assert journal.entry.slots["main"].deployment.finished == "Fetch"
    assert journal._database.total_changes == writes
    journal.close()
    assert open_journal(tmp_path).entry.slots["main"].deployment.finished is None


def test_a_fact_is_written_whole_or_not_at_all(tmp_path):
    journal = filled(tmp_path)
    before, real = journal.entry, journal._database

    class Failing:
        def __getattr__(self, name):
            return getattr(real, name)

        def execute(self, statement, *arguments):
            if statement == "COMMIT":
                raise sqlite3.OperationalError("disk I/O error")
            return real.execute(statement, *arguments)

    journal._database = Failing()
    with pytest.raises(StoreError, match="disk I/O error"):
        journal.apply(Accepted(b"newer", Marks(sequence=8), {"other": 8501}), START)
    assert journal.entry == before
    journal._database = real
    journal.apply(Booted("boot-2"), START)
    journal.close()
    found = open_journal(tmp_path).entry
    assert (found.payload, found.marks.sequence, found.boot_id) == (b"payload", 7, "boot-2")


@pytest.mark.parametrize("damage", ["zeroes", "garbage", "half", "row"])
def test_a_damaged_journal_is_set_aside_and_begun_anew(tmp_path, damage):
    journal = filled(tmp_path)
    if damage == "row":
        journal._database.execute("UPDATE facts SET value = '{}' WHERE key = 'meta'")
    journal._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    journal.close()
    path = tmp_path / "journal.db"
    body = path.read_bytes()
    if damage == "zeroes":
        path.write_bytes(bytes(len(body)))
    elif damage == "garbage":
        path.write_bytes(body[:4096] + b"\xa5" * (len(body) - 4096))
    elif damage == "half":
        path.write_bytes(body[: len(body) // 2])
    anew = open_journal(tmp_path)
    assert anew.fresh
    assert "could not be read" in anew.rebuilt
    assert (tmp_path / "journal.db.corrupt").exists()


def test_an_empty_file_is_a_new_journal(tmp_path):
    (tmp_path / "journal.db").touch()
    journal = open_journal(tmp_path)
    assert journal.fresh
    assert journal.rebuilt is None
    assert len(journal.entry.stream) == 32


def test_a_journal_of_another_device_is_left_alone(tmp_path):
    filled(tmp_path).close()
    with pytest.raises(StoreError, match="belongs to device cam-1, this is cam-2"):
        open_journal(tmp_path, "cam-2")
    assert not (tmp_path / "journal.db.corrupt").exists()


@pytest.mark.parametrize(
    "strange", ["{}", '{"slot": "main", "port": 8500, "deployment": {"phase": "hovering"}}', "no JSON"]
)
@pytest.mark.parametrize("schema", [1, 99])
def test_the_journal_of_a_newer_agent_keeps_its_marks_and_finds_its_slots_again(tmp_path, schema, strange):
    before = filled(tmp_path)
    marks, stream, starts = before.entry.marks, before.entry.stream, before.entry.starts
    before.close()
    database = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    database.execute(f"PRAGMA user_version={schema}")
    database.execute("UPDATE facts SET value = ? WHERE key = 'slot/main'", (strange,))
    database.execute("INSERT INTO facts VALUES ('dreams', 'electric sheep')")
    database.close()
    journal = open_journal(tmp_path)
    assert (journal.entry.marks, journal.entry.stream, journal.entry.starts) == (marks, stream, starts)
    assert "main" not in journal.entry.slots
    assert ("newer agent" if schema > 1 else "another agent") in journal.rebuilt
    journal.apply(Booted("boot-3"), START)
    journal.close()
    again = open_journal(tmp_path)
    assert (again.rebuilt, again.entry.marks, again.entry.boot_id) == (None, marks, "boot-3")


def test_what_a_newer_agent_adds_to_a_slot_does_not_hinder_an_older_one(tmp_path):
    filled(tmp_path).close()
    database = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    row = json.loads(database.execute("SELECT value FROM facts WHERE key = 'slot/main'").fetchone()[0])
    row |= {"colour": "blue", "port": 8512}
    database.execute("UPDATE facts SET value = ? WHERE key = 'slot/main'", (json.dumps(row),))
    database.close()
    journal = open_journal(tmp_path)
    assert journal.rebuilt is None
    assert journal.entry.slots["main"].port == 8512


def test_a_journal_that_cannot_be_opened_is_not_thrown_away(tmp_path):
    (tmp_path / "journal.db").mkdir()
    with pytest.raises(StoreError, match="unable to open"):
        open_journal(tmp_path)


def test_a_full_disk_at_the_start_does_not_cost_the_journal(tmp_path, monkeypatch):
    filled(tmp_path).close()
    before = (tmp_path / "journal.db").read_bytes()
    scratch = sqlite3.connect(":memory:")
    scratch.execute("PRAGMA max_page_count=1")
    with pytest.raises(sqlite3.OperationalError) as full:
        scratch.execute("CREATE TABLE big (x)")
    scratch.close()

    def no_room(self):
        raise full.value

    monkeypatch.setattr(Journal, "_open", no_room)
    with pytest.raises(StoreError, match="disk is full"):
        open_journal(tmp_path)
    assert (tmp_path / "journal.db").read_bytes() == before
    assert not (tmp_path / "journal.db.corrupt").exists()


def test_deployments_are_numbered_for_ever(tmp_path):
    journal = filled(tmp_path)
    first = journal.entry.slots["main"].deployment.id
    assert first == f"{journal.entry.stream[:6]}-1"
    journal.close()
    assert len(open_journal(tmp_path).entry.slots["main"].deployment.phases) == 2
