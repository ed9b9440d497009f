"""The sample of the fault sweep: a fault of each group against real daemons, and what the sweep itself is made of."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import faults.__main__  # noqa: E402, F401  it puts every fault into the table
from faults import checks, lost_writes  # noqa: E402
from faults.results import GROUPS  # noqa: E402
from faults.sweep import FAULTS  # noqa: E402

SYNCED = """\
7 openat(AT_FDCWD</>, "{a}", O_WRONLY|O_CREAT|O_TRUNC, 0600) = 3<{raw}>
7 write(3<{raw}>, "\\x6f\\x6e\\x65", 3) = 3
7 fsync(3<{raw}> <unfinished ...>
8 pwrite64(4<{other}>, "\\x74\\x77\\x6f", 3, 1) = 3
7 <... fsync resumed>) = 0
7 write(3<{raw}>, "\\x6c\\x6f\\x73\\x74", 4) = ?
"""


def escaped(text: str) -> str:
    return "".join(f"\\x{ord(letter):02x}" for letter in text)


@pytest.mark.docker
@pytest.mark.broker
@pytest.mark.registry
@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.timeout(900)
def test_a_sample_of_every_group_converges_and_serves_no_wrong_answer(tmp_path):
    out = tmp_path / "faults.json"
    done = subprocess.run(
        [sys.executable, "-m", "faults", "--sample", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=880, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    rows = json.loads(out.read_text())["faults"]
    assert {row["group"] for row in rows} == set(GROUPS)
    assert all(row["ok"] and row["injections"] and row["checks"] for row in rows)
    assert sum(row["kill_points"] for row in rows) >= 2
    assert sum(row["wrong_answers"] for row in rows) == 0
    assert "the journal's known-good is 1" in done.stdout, "a broken agent was not noticed"


def test_the_table_has_every_row_of_its_groups():
    numbers = {one.number for one in FAULTS}
    covered = {*range(1, 48), 50, *range(60, 64)}
    assert covered <= numbers, covered - numbers
    assert len({(one.number, one.name) for one in FAULTS}) == len(FAULTS) >= 50
    assert all(one.means for one in FAULTS), "each says by what means it comes about"


def test_a_power_cut_keeps_what_was_synced_and_may_lose_the_rest(tmp_path):
    state = tmp_path / "state"
    trace = tmp_path / "trace"
    raw, other = state / "a", state / "b"
    trace.write_text(SYNCED.format(a=escaped(str(raw)), raw=escaped(str(raw)), other=escaped(str(other))))
    record = lost_writes.Record(state)
    record.read(trace)
    assert [(change.kind, change.path.name, change.synced) for change in record.changes] == [
        ("open", "a", True), ("write", "a", True), ("write", "b", False)
    ]  # fmt: skip
    state.mkdir()
    other.write_text("....")
    device = SimpleNamespace(state=state, name="d", rig=SimpleNamespace(folder=tmp_path))
    (tmp_path / "d.strace").write_text(trace.read_text())
    (tmp_path / "d.before").mkdir()
    (tmp_path / "d.before" / "b").write_text("....")
    outcomes = set()
    for seed in range(20):
        cut = lost_writes.PowerCut(device, False, random.Random(seed))
        cut.lose()
        assert raw.read_text() == "one"
        outcomes.add(other.read_text())
    assert outcomes == {"....", ".two"}


def test_a_mark_that_fell_is_seen():
    before = {"sequence": 4, "counters": {"m/p": 2}, "floor": "2026-01-01T00:00:00Z", "keys": {"root": "a"}}
    assert checks.fell(before, before | {"sequence": 5, "keys": {"root": "b"}}) == []
    assert checks.fell(before, before | {"sequence": 3}) == ["sequence"]
    assert checks.fell(before, before | {"counters": {"m/p": 1}}) == ["counters.m/p"]
    assert checks.fell(before, before | {"counters": {}}) == ["counters.m/p"]
    assert checks.fell(before, before | {"floor": "1970-01-01T00:00:00Z"}) == ["floor"]


def test_an_agent_holds_its_folder_on_a_full_disk(tmp_path, monkeypatch):
    from wherry_agent import state_folder

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_folder.os, "pwrite", full)
    with state_folder.only_agent(tmp_path / "state"):
        assert state_folder.running_agent(tmp_path / "state") == 0
