"""The shipped device profiles: each board finds its own, and a misfit is said in words before anything is fetched."""

import tomllib

import pytest

from wherry.errors import ConfigError, InputError, UnsupportedSchema
from wherry.profile import (
    HostFacts,
    detect_profile,
    get_profile,
    load_profile,
    load_profiles,
    misfits,
    profiles_folder,
)
from wherry.release import Needs, ReleaseImage

PROFILES = load_profiles()
NAMES = [
    "generic-amd64",
    "generic-arm64",
    "jetson-nano",
    "jetson-orin",
    "jetson-thor",
    "jetson-xavier",
    "raspberry-pi-4",
    "raspberry-pi-5",
]
DIGEST = "sha256:" + "0" * 64

BOARDS = [
    # (/proc/device-tree/model, uname -m, MemTotal MiB, L4T, profile)
    (None, "x86_64", 7944, None, "generic-amd64"),
    (None, "aarch64", 3920, None, "generic-arm64"),
    ("Radxa ROCK 5B", "aarch64", 15939, None, "generic-arm64"),
    ("Raspberry Pi 3 Model B Plus Rev 1.3", "aarch64", 906, None, "generic-arm64"),
    ("Raspberry Pi 4 Model B Rev 1.4", "aarch64", 3794, None, "raspberry-pi-4"),
    ("Raspberry Pi 400 Rev 1.0", "aarch64", 3794, None, "raspberry-pi-4"),
    ("Raspberry Pi Compute Module 4 Rev 1.1", "aarch64", 7820, None, "raspberry-pi-4"),
    ("Raspberry Pi 5 Model B Rev 1.0", "aarch64", 8053, None, "raspberry-pi-5"),
    ("Raspberry Pi 500 Rev 1.0", "aarch64", 8053, None, "raspberry-pi-5"),
    ("Raspberry Pi Compute Module 5 Rev 1.0", "aarch64", 4045, None, "raspberry-pi-5"),
    ("NVIDIA Jetson Nano Developer Kit", "aarch64", 3956, "32.7.1", "jetson-nano"),
    ("NVIDIA Jetson Nano 2GB Developer Kit", "aarch64", 1979, "32.7.1", "jetson-nano"),
    ("NVIDIA Jetson Nano Developer Kit", "aarch64", 3956, None, "generic-arm64"),
    ("NVIDIA Jetson Xavier NX Developer Kit", "aarch64", 6846, "35.4.1", "jetson-xavier"),
    ("Jetson-AGX", "aarch64", 31920, "35.1", "jetson-xavier"),
    ("NVIDIA Jetson AGX Orin Developer Kit", "aarch64", 62841, "36.4.0", "jetson-orin"),
    ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "aarch64", 7620, "36.4.3", "jetson-orin"),
    ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "aarch64", 15656, "35.4.1", "jetson-orin"),
    ("NVIDIA Jetson AGX Thor Developer Kit", "aarch64", 125771, "38.2.0", "jetson-thor"),
    (None, "riscv64", 8000, None, None),
    ("Raspberry Pi 4 Model B Rev 1.4", "armv7l", 3794, None, None),
]


def image(**changes):
    fields = {
        "model": "vision",
        "version": "2",
        "profile": "raspberry-pi-4",
        "platform": "linux/arm64",
        "counter": 1,
        "repository": "127.0.0.1:5000/wherry/vision",
        "config_digest": DIGEST,
        "unpacked_bytes": 1,
        "runtime": "onnx",
        "provider": "CPUExecutionProvider",
        "precision": "fp32",
    }
    return ReleaseImage.model_validate(fields | changes)


def test_every_hardware_class_of_the_plan_is_shipped():
    assert sorted(PROFILES) == NAMES


@pytest.mark.parametrize(("tree", "machine", "memory", "l4t", "expected"), BOARDS)
def test_each_board_finds_its_profile(tree, machine, memory, l4t, expected):
    facts = HostFacts(architecture=machine, memory_mb=memory, device_tree_model=tree, l4t_release=l4t)
    found = detect_profile(facts, PROFILES.values())
    assert (found.name if found else None) == expected


def test_detection_does_not_depend_on_the_order_of_the_profiles():
    facts = HostFacts(architecture="aarch64", memory_mb=8053, device_tree_model="Raspberry Pi 5 Model B Rev 1.0")
    for profiles in (list(PROFILES.values()), list(PROFILES.values())[::-1]):
        assert detect_profile(facts, profiles) == PROFILES["raspberry-pi-5"]


def test_memory_decides_where_a_profile_says_so():
    small = PROFILES["raspberry-pi-4"].model_copy(
        update={
            "name": "pi-4-small",
            "detect": PROFILES["raspberry-pi-4"].detect.model_copy(update={"priority": 20, "max_memory_mb": 2048}),
        }
    )
    candidates = [*PROFILES.values(), small]
    board = {"architecture": "aarch64", "device_tree_model": "Raspberry Pi 4 Model B Rev 1.4"}
    assert detect_profile(HostFacts(memory_mb=1848, **board), candidates) == small
    assert detect_profile(HostFacts(memory_mb=3794, **board), candidates) == PROFILES["raspberry-pi-4"]


@pytest.mark.parametrize("name", NAMES)
def test_profiles_say_what_they_need_to(name):
    profile = PROFILES[name]
    raw = tomllib.loads((profiles_folder() / f"{name}.toml").read_text())
    known = set(type(profile).model_fields) - {"schema_"} | {"schema"}
    assert set(raw) <= known, "a misspelt field would be ignored silently"
    for part in ("detect", "run", "capabilities", "base"):
        assert set(raw.get(part, {})) <= set(type(getattr(profile, part)).model_fields)
    assert "CPUExecutionProvider" in profile.capabilities.providers
    assert (profile.base.kind == "registry") == (profile.base.reference is not None)
    assert profile.platform == ("linux/amd64" if name.endswith("amd64") else "linux/arm64")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("jetson")])
def test_a_jetson_declares_its_gpu_and_its_l4t(name):
    profile = PROFILES[name]
    assert profile.run.runtime == "nvidia"
    assert profile.run.env["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert profile.capabilities.l4t
    assert len(profile.capabilities.sm) == 1
    assert profile.capabilities.cuda
    assert profile.capabilities.tensorrt
    assert profile.base.kind == "registry"


def test_an_image_for_the_profile_fits():
    assert misfits(image(), PROFILES["raspberry-pi-4"]) == []


def test_another_profile_and_platform_are_named():
    assert misfits(image(), PROFILES["generic-amd64"]) == [
        "the image is made for profile raspberry-pi-4, this device is generic-amd64",
        "the image is for linux/arm64, this device runs linux/amd64",
    ]


def test_a_missing_provider_is_named_with_what_there_is():
    reasons = misfits(image(provider="CUDAExecutionProvider"), PROFILES["raspberry-pi-4"])
    assert reasons == [
        "execution provider CUDAExecutionProvider is not among this device's: CPUExecutionProvider",
    ]


def test_memory_is_compared_with_the_device_when_known():
    needy = image(needs=Needs(memory_mb=4000))
    profile = PROFILES["raspberry-pi-4"]
    assert misfits(needy, profile) == ["needs 4000 MB of memory, this device has 900 MB"]
    assert misfits(needy, profile, HostFacts(architecture="aarch64", memory_mb=7820)) == []


def test_l4t_and_gpu_architecture_are_compared_with_the_device():
    orin = image(profile="jetson-orin", provider="TensorrtExecutionProvider", needs=Needs(l4t=["36"], sm=["87"]))
    profile = PROFILES["jetson-orin"]
    facts = HostFacts(architecture="aarch64", memory_mb=15656, l4t_release="36.4.3", sm="87")
    assert misfits(orin, profile, facts) == []
    older = facts.model_copy(update={"l4t_release": "35.4.1"})
    assert misfits(orin, profile, older) == ["needs L4T 36, this device has 35"]
    newer = image(profile="jetson-orin", needs=Needs(cuda=["13"], tensorrt=["10"]))
    assert misfits(newer, profile) == [], "an Orin may have it"
    exact = facts.model_copy(update={"cuda": "12.6.11", "tensorrt": "8.6.2"})
    assert misfits(newer, profile, exact) == [
        "needs CUDA 13, this device has 12",
        "needs TensorRT 10, this device has 8",
    ]
    xavier = PROFILES["jetson-xavier"]
    assert "needs GPU architecture sm_87, this device has 72" in misfits(orin, xavier)


def test_an_unknown_profile_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="raspberry-pi-4"):
        get_profile("raspberry-pi-6", PROFILES)


def test_broken_profiles_are_refused_in_words(tmp_path):
    good = (profiles_folder() / "generic-amd64.toml").read_text()
    with pytest.raises(UnsupportedSchema, match="has schema 9"):
        load_profile(good.replace("schema = 1", "schema = 9"))
    with pytest.raises(ConfigError, match=r"field capabilities\.runtimes"):
        load_profile(good.replace("runtimes =", "runtime ="))
    with pytest.raises(ConfigError, match="is not TOML"):
        load_profile("name = ")
    (tmp_path / "other.toml").write_text(good)
    with pytest.raises(ConfigError, match="calls itself 'generic-amd64'"):
        load_profiles(tmp_path)
