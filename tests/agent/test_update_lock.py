"""The update lock: what a file of an application says, and what the whole agent makes of it."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from agent_fakes import START

from wherry.errors import InputError, StoreError
from wherry.messages import UpdateLock
from wherry_agent.reporter import status_text
from wherry_agent.update_lock import LONGEST, LockFile, UnusableLock, parse_lock

HOUR = timedelta(hours=1)


def body(expires=START + HOUR, **changes) -> bytes:
    return json.dumps({"holder": "inspection", "expires": expires.isoformat()} | changes).encode()


def test_a_lock_holds_until_it_expires():
    assert parse_lock(body(), START, START) == UpdateLock(holder="inspection", expires=START + HOUR)
    assert parse_lock(body(), START, START + HOUR) is None


def test_no_lock_holds_longer_than_a_day_whatever_it_says():
    lock = parse_lock(body(START + timedelta(days=400)), START, START + HOUR)
    assert lock is not None
    assert lock.expires == START + LONGEST
    assert parse_lock(body(START + timedelta(days=400)), START, START + LONGEST) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[]", b'{"holder": 7, "expires": "2030-01-01T00:00:00Z"}', b'{"holder": "x"}',
     b'{"holder": "x", "expires": "soon"}', b'{"holder": "x", "expires": "2030-01-01T00:00:00"}', b" " * 5000],
)  # fmt: skip
def test_what_cannot_be_read_holds_nothing_off(content):
    with pytest.raises(UnusableLock):
        parse_lock(content, START, START)


def test_a_lock_from_what_is_the_future_now_holds_nothing_off():
    with pytest.raises(UnusableLock, match="in the future"):
        parse_lock(body(START + timedelta(days=2)), START + timedelta(days=1), START)


class TestFile:
    def test_it_is_held_read_and_released(self, tmp_path):
        lock = LockFile(tmp_path)
        now = START.now(START.tzinfo)
        assert lock.read(now) is None
        held = lock.hold("inspection", "the belt runs", HOUR, now)
        assert lock.read(now) == held
        assert lock.read(now + 2 * HOUR) is None
        assert lock.release()
        assert not lock.release()
        assert lock.read(now) is None

    @pytest.mark.parametrize("length", [timedelta(0), LONGEST + timedelta(seconds=1)])
    def test_a_length_that_is_none_or_too_long_is_refused(self, tmp_path, length):
        with pytest.raises(InputError, match="24 hours"):
            LockFile(tmp_path).hold("x", "", length, START)

    def test_a_folder_that_cannot_be_written_is_a_store_error(self, tmp_path):
        with pytest.raises(StoreError):
            LockFile(tmp_path / "absent").hold("x", "", HOUR, START)

    def test_garbage_is_said_once_and_holds_nothing_off(self, tmp_path, caplog):
        (tmp_path / "update.lock").write_text("garbage")
        lock = LockFile(tmp_path)
        now = START.now(START.tzinfo)
        assert [lock.read(now), lock.read(now)] == [None, None]
        assert [record.message for record in caplog.records if "holds nothing off" in record.message] == [
            caplog.records[0].message
        ]

    def test_a_folder_in_its_place_and_a_clock_of_1970_hold_nothing_off(self, tmp_path):
        lock = LockFile(tmp_path)
        lock.hold("x", "", HOUR, START.now(START.tzinfo))
        assert lock.read(START.fromtimestamp(0, START.tzinfo)) is None
        (tmp_path / "update.lock").unlink()
        (tmp_path / "update.lock").mkdir()
        assert lock.read(START) is None


def test_an_agent_holds_off_a_swap_says_so_and_goes_on_by_itself_when_the_lock_ends(device):
    device.assign(1, main="1")
    assert device.serves() == "1"
    device.lock.held = UpdateLock(
        holder="inspection", reason="the belt runs", expires=device.now + timedelta(seconds=60)
    )
    device.assign(2, main="2")
    device.tick(times=3)
    assert device.serves() == "1"
    assert device.state.lock == device.lock.held
    assert device.catalogue["2"].digest in device.world.images, "it is fetched ahead"
    assert "swaps held off until 2026-01-01 00:01:00Z by inspection: the belt runs" in status_text(device.state, True)
    assert device.reconciler.summary == "1 of 1 slots serve; main fetching; swaps held off by inspection"
    sent = len(device.server.reports)
    device.tick(1.0, times=5)
    assert len(device.server.reports) == sent, "a lock that stays is not news"
    device.tick(60)
    assert (device.serves(), device.state.lock) == ("2", None)
    assert device.world.violations == []


def test_a_rollback_happens_under_a_lock(device):
    device.assign(1, main="1")
    device.release("4", "wrong")
    device.hold_at = "Probe"
    device.assign(2, main="4")
    device.lock.held = UpdateLock(holder="inspection", expires=device.now + timedelta(hours=1))
    device.hold_at = None
    device.worker.finish()
    device.pump()
    device.tick()
    assert device.serves() == "1"
    assert device.phases()[-1] == "rejected"
    assert device.world.violations == []
