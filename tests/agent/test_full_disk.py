"""The agent begins on a disk that takes nothing: a limit on the size of files does as a full disk does."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from agent_fakes import START

from wherry.messages import HostSample
from wherry_agent.assignment import Marks
from wherry_agent.compose import open_spool
from wherry_agent.config import AgentConfig
from wherry_agent.entry import Limits
from wherry_agent.host import Host
from wherry_agent.journal import Journal
from wherry_agent.progress import Accepted
from wherry_agent.spool import Spool

SAMPLE = HostSample(
    cpu_percent=1, memory_used_bytes=1, memory_total_bytes=1, disk_used_bytes=1, disk_total_bytes=1
)  # fmt: skip
BEGINS = textwrap.dedent(
    """
    import json, resource, sys
    from datetime import UTC, datetime
    from pathlib import Path
    from wherry.messages import HostSample
    from wherry_agent.entry import Limits
    from wherry_agent.journal import Journal
    from wherry_agent.spool import Spool
    folder, limit = Path(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    journal = Journal(folder / "journal.db", "cam-1", Limits())
    spool = Spool(folder / "spool.db", "cam-1", boot_id="boot-2")
    batch = spool.batch(datetime.now(UTC))
    print(json.dumps([
        journal.rebuilt, journal.entry.stream, journal.entry.marks.sequence, spool.stream, len(batch.records)
    ]))
    """
)


def begun(folder: Path, limit: int) -> list[object]:
    """What an agent finds in the state folder where no file can grow beyond a size."""
    done = subprocess.run(
        [sys.executable, "-c", BEGINS, str(folder), str(limit)], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("end", ["told to stop", "killed"])
@pytest.mark.parametrize("limit", [0, 8192])
def test_a_full_disk_costs_neither_the_marks_nor_what_waits(tmp_path, end, limit):
    journal, spool = Journal(tmp_path / "journal.db", "cam-1", Limits()), Spool(tmp_path / "spool.db", "cam-1")
    journal.apply(Accepted(b"payload", Marks(sequence=7), {"main": 8500}), START)
    spool.append(SAMPLE, START)
    assert sorted(path.name for path in tmp_path.glob("*-shm")) == []
    place = tmp_path
    if end == "killed":
        place = tmp_path / "after"
        place.mkdir()
        subprocess.run(["cp", *tmp_path.glob("*.db*"), place], check=True)
    stream, waiting = journal.entry.stream, spool.stream
    journal.close()
    spool.close()
    assert begun(place, limit) == [None, stream, 7, waiting, 1]
    assert not list(place.glob("*.corrupt"))
    with_room = Journal(place / "journal.db", "cam-1", Limits())
    assert (with_room.entry.stream, with_room.entry.marks.sequence) == (stream, 7)
    with_room.close()


def test_telemetry_waits_in_memory_where_the_disk_takes_no_spool(tmp_path):
    (tmp_path / "spool.db").mkdir()
    host = Host(tmp_path)
    spool = open_spool(tmp_path, "cam-1", AgentConfig(), host)
    spool.append(SAMPLE, START)
    batch = spool.batch(START)
    assert [record.record for record in batch.records] == [SAMPLE]
    spool.ack(batch.stream, batch.records[-1].sequence)
    assert spool.batch(START) is None
    spool.close()
