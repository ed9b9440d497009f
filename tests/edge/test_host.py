"""Hardware facts of odd machines, and samples of this one. Known boards are in test_host_boards.py."""

from __future__ import annotations

import socket
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from wherry.errors import StoreError
from wherry.profile import HostFacts, Sensor
from wherry_agent.host import Host, read_facts
from wherry_agent.host.machine import busy_percent


def board(root, **files):
    """A root folder with the files of a board; keys are paths with __ for / and dots as they are."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, HostFacts(architecture="aarch64", memory_mb=0), id="nothing readable"),
        pytest.param(
            {
                "proc__device-tree__model": b"\xff\xfe\0",
                "usr__local__cuda__version.json": "[1]",
                "usr__lib__libnvinfer.so.x": "",
                "proc__meminfo": "?",
                "etc__os-release": "PRETTY_NAME=",
                "var__lib__dpkg__status": b"Package: libnvinfer10\nStatus: \xff installed\nVersion: new\nVersion",
            },
            HostFacts(architecture="aarch64", memory_mb=0, device_tree_model="\ufffd\ufffd"),
            id="nonsense in every file",
        ),
    ],
)
def test_facts_of_boards_that_tell_nothing(tmp_path, files, expected):
    assert read_facts(board(tmp_path, **files), architecture="aarch64") == expected


def test_facts_of_this_machine():
    facts = read_facts()
    assert facts.architecture
    assert facts.memory_mb > 100
    assert facts.kernel


def test_a_sample_of_this_machine(tmp_path):
    host = Host(tmp_path)
    sample = host.sample()
    assert 0 <= sample.cpu_percent <= 100
    assert 0 < sample.memory_used_bytes < sample.memory_total_bytes
    assert 0 < sample.disk_used_bytes < sample.disk_total_bytes
    assert sample.agent_rss_bytes > 1_000_000
    assert host.boot_id() != "unknown"
    assert 0 < host.memory_available_mb() <= host.memory_total_mb()
    assert host.disk_free_bytes() > 0


def test_temperatures_come_from_zones_and_from_the_profiles_sensors(tmp_path):
    zone = "sys__class__thermal__thermal_zone"
    root = board(
        tmp_path,
        **{
            f"{zone}0__type": "cpu-thermal\n",
            f"{zone}0__temp": "48312\n",
            f"{zone}1__type": "gpu-thermal\n",
            f"{zone}1__temp": "-256000\n",
            f"{zone}2__type": "broken\n",
            "sys__bus__i2c__hwmon7__temp1_input": "51500",
        },
    )
    sensors = [
        Sensor(name="board", path="/sys/bus/i2c/hwmon*/temp1_input"),
        Sensor(name="input", path="/sys/bus/i2c/hwmon*/temp1_input", unit="watt"),
        Sensor(name="absent", path="/sys/nowhere"),
    ]
    assert Host(tmp_path, sensors, root).sample().temperatures == {"cpu-thermal": 48.3, "board": 51.5}


def test_a_folder_that_is_not_there_is_a_store_error(tmp_path):
    host = Host(tmp_path / "gone")
    for question in (host.disk_free_bytes, host.sample):
        with pytest.raises(StoreError, match="cannot be examined"):
            question()


def test_a_port_in_use_is_not_free(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not Host(tmp_path).port_free(port)
    assert Host(tmp_path).port_free(port)


def test_load_is_what_all_processors_did_between_two_samples_whoever_takes_them():
    times = namedtuple("times", "user system idle iowait guest")  # noqa: PYI024  as psutil's own
    assert busy_percent(times(10, 5, 80, 5, 2), times(14, 6, 84, 6, 3)) == 50.0
    assert busy_percent(times(10, 5, 80, 5, 2), times(10, 5, 80, 5, 2)) == 0.0


def test_a_sample_by_another_thread_knows_the_sample_before(tmp_path, monkeypatch):
    seen = iter([(0.0, 0.0), (30.0, 70.0)])
    times = namedtuple("times", "user idle")  # noqa: PYI024
    monkeypatch.setattr(psutil, "cpu_times", lambda: times(*next(seen)))
    host = Host(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(host.sample).result().cpu_percent == 30.0
