"""A release that this hardware cannot run is refused before a byte is fetched, and the report says why."""

import pytest
from agent_fakes import Device

from wherry.profile import HostFacts, load_profiles

PROFILE = load_profiles()["jetson-orin"]
ORIN = HostFacts(
    architecture="aarch64", memory_mb=7620, l4t_release="36.4.3", cuda="12.6.11", tensorrt="10.3.0", sm="87"
)
IMAGE = {"profile": "jetson-orin", "platform": "linux/arm64"}
FITTING = {"l4t": ["36"], "sm": ["87"], "cuda": ["12"], "tensorrt": ["10"], "memory_mb": 7000}


@pytest.fixture
def orin(tmp_path):
    return Device(tmp_path, profile=PROFILE, facts=ORIN)


def told(device):
    deployment = device.state.slots[0].deployment
    return deployment.problem.reason


def test_what_fits_is_fetched(orin):
    orin.release("1", **IMAGE, needs=FITTING)
    orin.assign(1, main="1")
    assert orin.phases()[-1] == "committed"
    assert "fetch 1" in orin.world.history


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"needs": FITTING | {"l4t": ["35"]}}, "needs L4T 35, this device has 36"),
        ({"needs": FITTING | {"sm": ["72", "110"]}}, "needs GPU architecture sm_72 or 110, this device has 87"),
        ({"needs": FITTING | {"cuda": ["13"]}}, "needs CUDA 13, this device has 12"),
        ({"needs": FITTING | {"tensorrt": ["8"]}}, "needs TensorRT 8, this device has 10"),
        ({"needs": FITTING | {"memory_mb": 16000}}, "needs 16000 MB of memory, this device has 7620 MB"),
        ({"provider": "ROCMExecutionProvider"}, "execution provider ROCMExecutionProvider is not among this device's"),
        ({"profile": "jetson-thor"}, "the image is made for profile jetson-thor, this device is jetson-orin"),
    ],
)
def test_what_does_not_fit_is_refused_unfetched(orin, changes, words):
    orin.release("1", **(IMAGE | {"needs": FITTING} | changes))
    orin.assign(1, main="1")
    orin.tick(times=3)
    assert orin.phases()[-1] == "refused"
    assert words in told(orin)
    assert orin.world.history == []
    assert orin.world.images == {}


def test_a_precision_the_device_cannot_compute_is_refused_unfetched(tmp_path):
    able = PROFILE.capabilities.model_copy(update={"precisions": ["fp32"]})
    device = Device(tmp_path, profile=PROFILE.model_copy(update={"capabilities": able}), facts=ORIN)
    device.release("1", **IMAGE, precision="int8")
    device.assign(1, main="1")
    assert told(device) == "precision int8 is not among this device's: fp32"
    assert device.world.history == []
