"""What the agent writes to flash: counted by the kernel, by writer, and little on an idle day."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from wherry.messages import HostSample, ReleaseRef
from wherry_agent.counters import NOTHING
from wherry_agent.host.flash import ALL, FlashMeter
from wherry_agent.observed import ActiveSlot
from wherry_agent.spool import Spool
from wherry_agent.state_folder import write_status
from wherry_agent.telemetry import Sampler

IDLE_DAY_BYTES = 24 * 2**20
"""The bound that ARCHITECTURE.md names, for two slots that nobody asks and a server that takes what it is sent."""
SAMPLE = HostSample(
    cpu_percent=12.5, memory_used_bytes=10**9, memory_total_bytes=4 * 10**9, disk_used_bytes=10**10,
    disk_total_bytes=3 * 10**10, temperatures={"cpu": 51.2, "gpu": 48.0}, agent_rss_bytes=65 << 20,
    agent_written_bytes={"all": 10**7, "journal": 0, "spool": 9 * 10**6, "status": 10**6},
)  # fmt: skip


class Kernel:
    """/proc of a pretended machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seconds = 0.0
        for process in ("self", "thread-self"):
            (root / "proc" / process).mkdir(parents=True)
        self.writes(0)

    def writes(self, total: int) -> None:
        for process in ("self", "thread-self"):
            (self.root / "proc" / process / "io").write_text(f"wchar: 9\nwrite_bytes: {total}\n")


def test_bytes_are_counted_for_their_writer_and_for_all(tmp_path):
    kernel = Kernel(tmp_path)
    kernel.writes(1000)
    meter = FlashMeter(tmp_path, lambda: kernel.seconds)
    with meter.writing("journal"):
        kernel.writes(1500)
    kernel.writes(1700)
    assert meter.last_day() == {ALL: 700, "journal": 500}


def test_only_the_last_24_hours_count(tmp_path):
    kernel = Kernel(tmp_path)
    meter = FlashMeter(tmp_path, lambda: kernel.seconds)
    for hour in range(1, 49):
        kernel.seconds = hour * 3600.0
        with meter.writing("spool"):
            kernel.writes(hour * 100)
        assert meter.last_day()["spool"] == min(hour, 24) * 100
    assert meter.last_day() == {ALL: 2400, "spool": 2400}


def test_a_kernel_that_does_not_count_counts_nothing(tmp_path):
    meter = FlashMeter(tmp_path)
    with meter.writing("journal"):
        pass
    assert meter.last_day() == {ALL: 0, "journal": 0}


def written() -> int:
    """Bytes that this process has given to write calls, to any file: the same on every filesystem."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("wchar")).split()[1])


@pytest.fixture
def spool(tmp_path):
    found = Spool(tmp_path / "spool.db", "cam-1", 16 << 20, "boot-1")
    yield found
    found.close()


def test_an_idle_day_writes_less_than_its_bound(device, spool, tmp_path):
    """A whole day by a pretended clock: ticks, samples, their way to the server, reports."""
    device.assign(1, main="1", other="2")
    device.tick(700, times=3)
    ref = ReleaseRef(model="vision", version="1", counter=1, digest="sha256:" + "0" * 64)
    slots = [ActiveSlot(name, ref, f"http://127.0.0.1:{port}") for port, name in enumerate(("main", "other"), 18501)]
    seconds = [0.0]
    sampler = Sampler(
        lambda: slots, lambda _: NOTHING, lambda: SAMPLE, spool, lambda: device.now, lambda: seconds[0]
    )  # fmt: skip
    publish, said, journal = write_status(tmp_path), len(device.statuses), device.journal._database.total_changes
    before = written()
    for second in range(15, 86_400, 15):
        seconds[0] = float(second)
        if second % 300 == 0:
            device.tick(300)
        sampler.sample()
        batch = spool.batch(device.now)
        if batch is not None:
            spool.ack(batch.stream, batch.records[-1].sequence)
        for report in device.statuses[said:]:
            publish(report)
        said = len(device.statuses)
    assert device.journal._database.total_changes == journal
    assert 2**20 < written() - before < IDLE_DAY_BYTES, written() - before


def test_a_release_that_can_never_run_here_does_not_wear_the_flash_out(device):
    """It is asked about again and again, ever more rarely; each time is one small row of the journal."""
    device.assign(1, main="1")
    device.release("4", memory_mb=9000)
    device.assign(2, main="4")
    journal = device.journal._database.total_changes
    end = device.now + timedelta(days=1)
    while device.now < end:
        device.tick(300)
    assert device.journal._database.total_changes - journal < 200
    row = device.journal._rows["slot/main"]
    assert len(row) < 20_000
    assert json.loads(row)["deployment"]["phase"] == "refused"
