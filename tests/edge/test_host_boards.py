"""Every board of the plan, from its files: what it is, and what a sample tells of heat, power, GPU and wear."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry.profile import HostFacts, detect_profile, load_profiles
from wherry_agent.host import Host, read_facts
from wherry_agent.host.heat import Throttling
from wherry_agent.host.power import PowerReader, read_tegrastats
from wherry_agent.host.programs import Program
from wherry_agent.host.wear import Wear, emmc_used, nvme_used

RECORDINGS = Path(__file__).parent / "recordings"
BOOKWORM = "Debian GNU/Linux 12 (bookworm)"
UNDER_VOLTAGE = ["under-voltage", "throttled"]


@pytest.fixture
def board(tmp_path):
    """Lays the files of a recorded board below a folder and gives that."""

    def lay(name: str) -> Path:
        for part in (RECORDINGS / f"{name}.txt").read_text().removeprefix("==> /").split("\n==> /"):
            path, _, content = part.partition(" <==\n")
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content.replace("\u2400", "\0"))
            file.chmod(0o755 if content.startswith("#!") else 0o644)
        return tmp_path

    return lay


def pi(model: str, memory: int, kernel: str) -> HostFacts:
    return HostFacts(
        architecture="aarch64",
        memory_mb=memory,
        device_tree_model=f"Raspberry Pi {model}",
        system=BOOKWORM,
        kernel=kernel,
    )


def jetson(model: str, memory: int, kernel: str, ubuntu: str, **more: str) -> HostFacts:
    return HostFacts(
        architecture="aarch64", memory_mb=memory, device_tree_model=model, kernel=kernel, system=f"Ubuntu {ubuntu} LTS",
        **more,
    )  # fmt: skip


FACTS = {
    "raspberry-pi-4": ("raspberry-pi-4", pi("4 Model B Rev 1.4", 3793, "6.6.51+rpt-rpi-v8")),
    "raspberry-pi-5": ("raspberry-pi-5", pi("5 Model B Rev 1.0", 8053, "6.6.51+rpt-rpi-2712")),
    "raspberry-pi-cm4": ("raspberry-pi-4", pi("Compute Module 4 Rev 1.1", 1847, "6.1.0-26-arm64")),
    "jetson-nano-r32": (
        "jetson-nano",
        jetson(
            "NVIDIA Jetson Nano Developer Kit", 3964, "4.9.253-tegra", "18.04.6",
            l4t_release="32.7.1", cuda="10.2.300", tensorrt="8.2.1", sm="53",
        ),
    ),
    "jetson-xavier-r35": (
        "jetson-xavier",
        jetson(
            "Jetson-AGX", 30619, "5.10.120-tegra", "20.04.6",
            l4t_release="35.4.1", cuda="11.4.19", tensorrt="8.5.2", sm="72",
        ),
    ),
    "jetson-orin-r36": (
        "jetson-orin",
        jetson(
            "NVIDIA Jetson AGX Orin Developer Kit", 62841, "5.15.148-tegra", "22.04.5",
            l4t_release="36.4.3", cuda="12.6.11", tensorrt="10.3.0", sm="87",
        ),
    ),
    "jetson-thor-r38": (
        "jetson-thor",
        jetson(
            "NVIDIA Jetson AGX Thor Developer Kit", 125771, "6.8.12-tegra", "24.04.3",
            l4t_release="38.4.0", cuda="13.0.48", tensorrt="10.13.3.9", sm="110",
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FACTS)
def test_a_board_is_known_for_what_it_is(board, name):
    profile, expected = FACTS[name]
    facts = read_facts(board(name), architecture="aarch64")
    assert facts == expected
    assert detect_profile(facts, load_profiles().values()).name == profile


SAMPLES = {
    "raspberry-pi-4": {
        "temperatures": {"cpu-thermal": 61.8},
        "throttled": UNDER_VOLTAGE,
        "throttled_since_boot": UNDER_VOLTAGE,
    },
    "raspberry-pi-5": {
        "temperatures": {"cpu-thermal": 49.0},
        "throttled": [],
        "wear_percent": {"nvme0": 3.0},
    },
    "raspberry-pi-cm4": {
        "temperatures": {"cpu-thermal": 81.8},
        "throttled": ["soft temperature limit"],
        "throttled_since_boot": ["soft temperature limit"],
        "wear_percent": {"mmcblk0": 40.0},
    },
    "jetson-nano-r32": {
        # The PMIC's 100 degrees are no measurement.
        "temperatures": {
            "AO-therm": 40.0, "CPU-therm": 34.5, "GPU-therm": 34.0, "PLL-therm": 32.5, "thermal-fan-est": 34.2,
        },
        "watts": {"POM_5V_IN": 2.046, "POM_5V_GPU": 0.039, "POM_5V_CPU": 0.472},
        "throttled": [],
        "gpu_percent": 13.7,
        "gpu_memory_used_bytes": 39_432 * 1024,
    },
    "jetson-xavier-r35": {
        "temperatures": {
            "CPU-therm": 37.5, "GPU-therm": 37.5, "AUX-therm": 36.0, "AO-therm": 37.5, "Tboard_tegra": 37.0,
            "Tdiode_tegra": 40.0, "thermal-fan-est": 36.9,
        },
        "watts": {"GPU": 0.929, "CPU": 0.619, "SOC": 0.929, "CV": 0.0, "VDDRQ": 0.619, "SYS5V": 2.474},
        "throttled": ["temperature"],
        "gpu_percent": 48.2,
        "gpu_memory_used_bytes": 37_144 * 1024,
        "wear_percent": {"mmcblk0": 10.0},
    },
    "jetson-orin-r36": {
        # The GPU sleeps and says -256; the alert of a hot surface slows nothing.
        "temperatures": {
            "cpu-thermal": 52.6, "soc0-thermal": 49.1, "soc1-thermal": 49.7, "soc2-thermal": 48.4, "tj-thermal": 52.6,
        },
        "watts": {"VDD_GPU_SOC": 2.413, "VDD_CPU_CV": 1.608, "VIN_SYS_5V0": 4.705, "VDDQ_VDD2_1V8AO": 0.303},
        "throttled": [],
        "throttled_since_boot": ["over-current"],
        "gpu_percent": 0.0,
        "gpu_memory_used_bytes": 805_068 * 1024,
        "wear_percent": {"mmcblk0": 20.0},
    },
    "jetson-thor-r38": {
        "temperatures": {"tj-thermal": 55.1, "soc012-thermal": 55.1, "cpu-thermal": 53.7, "soc345-thermal": 53.7},
        "watts": {"VDD_GPU": 0.0, "VDD_CPU_SOC_MSS": 6.506, "VIN_SYS_5V0": 6.521, "VIN": 24.012},
        "throttled": [],
        "throttled_since_boot": ["over-current"],
    },
}  # fmt: skip
NOTHING = {
    "watts": {}, "throttled_since_boot": [], "gpu_percent": None, "gpu_memory_used_bytes": None, "wear_percent": {},
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_tells_what_the_board_tells(board, tmp_path, name):
    sample = Host(tmp_path, root=board(name)).sample()
    assert {field: getattr(sample, field) for field in (*NOTHING, "temperatures", "throttled")} == NOTHING | SAMPLES[
        name
    ]


def test_a_machine_without_sensors_tells_nothing_and_does_not_claim_to_be_fast(tmp_path):
    sample = Host(tmp_path, root=tmp_path).sample()
    assert {field: getattr(sample, field) for field in NOTHING} == NOTHING
    assert sample.temperatures == {}
    assert sample.throttled is None


def test_over_current_is_told_when_it_happens_and_remembered_after(board):
    root = board("jetson-thor-r38")
    throttling = Throttling(root)
    assert throttling.look().now == []
    (root / "sys/class/hwmon/hwmon5/oc2_event_cnt").write_text("4\n")
    assert throttling.look().now == ["over-current"]
    after = throttling.look()
    assert (after.now, after.since_boot) == ([], ["over-current"])


def test_all_bits_of_the_raspberry_pi_have_words(board):
    root = board("raspberry-pi-4")
    bits = root / "sys/devices/platform/soc/soc:firmware/get_throttled"
    bits.write_text("f\n")
    look = Throttling(root).look()
    assert look.now == ["under-voltage", "frequency capped", "throttled", "soft temperature limit"]
    assert look.since_boot == []
    bits.write_text("nonsense")
    assert Throttling(root).look().now is None


LINES = (RECORDINGS / "tegrastats.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("line", "watts", "load"),
    [
        (LINES[0], {"POM_5V_IN": 1.022, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.204}, 0.0),
        (LINES[1], {"GPU": 0.0, "CPU": 0.311, "SOC": 0.932, "CV": 0.0, "VDDRQ": 0.621, "SYS5V": 1.482}, 7.0),
        (LINES[2], {"VDD_GPU_SOC": 2.412, "VDD_CPU_CV": 1.607, "VIN_SYS_5V0": 4.707}, 0.0),
        ("", {}, None),
    ],
)
def test_a_line_of_tegrastats(line, watts, load):
    assert read_tegrastats(line) == (watts, load)


def test_tegrastats_is_asked_only_where_no_file_tells_and_is_ended(board):
    root = board("jetson-thor-r38")
    program = root / "usr/bin/tegrastats"
    program.parent.mkdir(parents=True)
    pid = root / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {pid}\necho '{LINES[1]}'\nexec sleep 600\n")
    program.chmod(0o755)
    power = PowerReader(root).look()
    assert power.gpu_percent == 7.0
    assert "VDD_GPU" in power.watts, "what the files tell is kept"
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_a_program_is_not_started_again_before_its_time(tmp_path):
    (tmp_path / "usr/bin").mkdir(parents=True)
    program, now = tmp_path / "usr/bin/tell", [0.0]
    asked = Program(tmp_path, "tell", [], every=60, steady=lambda: now[0])
    assert asked.text() == ""
    program.write_text("#!/bin/sh\necho told\n")
    program.chmod(0o755)
    assert asked.text() == ""
    now[0] = 60.0
    assert asked.text() == "told\n"
    program.write_text("no program")
    now[0] = 120.0
    assert asked.text() == "", "one that cannot be started tells nothing"


def test_wear_is_read_once_an_hour(board):
    root, now = board("raspberry-pi-cm4"), [0.0]
    wear = Wear(root, lambda: now[0])
    assert wear.look() == {"mmcblk0": 40.0}
    (root / "sys/block/mmcblk0/device/life_time").write_text("0x0a 0x0b\n")
    assert wear.look() == {"mmcblk0": 40.0}
    now[0] = 3600.0
    assert wear.look() == {"mmcblk0": 100.0}


@pytest.mark.parametrize(
    ("life", "reserve", "used"),
    [
        ("0x01 0x01", "0x01", 10.0),
        ("0x00 0x00", "0x00", None),
        ("0x01 0x01", "0x03", 90.0),
        ("0x00 0x00", "0x02", 80.0),
        ("", "", None),
        ("what", "0x01", None),
    ],
)
def test_the_registers_of_an_emmc(life, reserve, used):
    assert emmc_used(life, reserve) == used


@pytest.mark.parametrize(
    ("log", "used"),
    [('{"percentage_used": 7}', 7.0), ('{"percent_used": 255}', 100.0), ("{}", None), ("[]", None), ("oops", None)],
)
def test_the_log_of_an_nvme_drive(log, used):
    assert nvme_used(log) == used
