"""The main job on real parts, and what happens when a part dies in the middle of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from load import Load

from wherry.tensors import Tensor, tensor_from_values

pytestmark = [
    pytest.mark.docker,
    pytest.mark.broker,
    pytest.mark.registry,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

SAMPLE = tensor_from_values("x", "FP32", [1, 4], [1.0, 2.0, 3.0, 4.0])


def eventually(condition: Callable[[], Any], seconds: float, otherwise: str) -> Any:
    """Poll a condition until it holds; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


def load(fleet, *weights: float) -> Load:
    """Requests whose answers must be those of one of the given versions."""

    def judge(outputs: list[Tensor]) -> str | None:
        first = float(outputs[0].values()[0])
        return None if any(abs(first - weight) < 1e-5 for weight in weights) else f"wrong answer {first}"

    return Load("127.0.0.1", fleet.lab.ports.slot, "tiny", [SAMPLE], judge=judge, rate=40)


@pytest.fixture(scope="module")
def first(fleet):
    """Version 1 serves."""
    fleet.publish("1", 1.0)
    target = fleet.roll_out("1")
    assert target["state"] == "committed", target
    return fleet


def test_a_pushed_version_serves_and_a_swap_fails_no_request(first):
    fleet = first
    fleet.publish("2", 2.0)
    with load(fleet, 1.0, 2.0) as requests:
        target = fleet.roll_out("2")
        eventually(lambda: requests.versions.get("2"), 20, "version 2 never answered")
    assert target["state"] == "committed", target
    assert requests.problems == []
    assert requests.sent > 20


@pytest.mark.parametrize("phase", ["fetching", "starting", "probing", "switching", "soaking"])
def test_an_agent_killed_in_the_middle_of_a_swap_converges_when_it_starts_again(first, phase):
    fleet = first
    number = {"fetching": 11, "starting": 12, "probing": 13, "switching": 14, "soaking": 15}[phase]
    fleet.publish(str(number), float(number))
    before = fleet.serving()
    status = fleet.lab.device_state

    def in_phase() -> bool:
        shown = fleet.lab.json("wherry-agent", "status", "--state", str(status))
        deployment = (shown["slots"][0].get("deployment") or {}) if shown["slots"] else {}
        seen = [name for name, _ in deployment.get("phases", [])]
        return bool(deployment.get("release", {}).get("version") == str(number) and phase in seen)

    weights = [1.0, 2.0, *(float(n) for n in range(11, 16))]
    with load(fleet, *weights) as requests:
        fleet.start_rollout(str(number))
        eventually(in_phase, 60, f"never saw phase {phase}")
        os.kill(fleet.lab.pid("agent"), signal.SIGKILL)
        killed = requests.sent
        fleet.lab.kill("agent")
        eventually(lambda: requests.sent > killed + 20, 20, "the load stopped")
        fleet.lab.start_agent()
        eventually(lambda: (fleet.serving() or {}).get("version") == str(number), 90, f"did not converge from {before}")
        eventually(lambda: requests.versions.get(str(number)), 20, "the new version never answered")
    assert requests.problems == []


def test_a_broker_killed_during_a_rollout_delays_it_and_loses_nothing(first):
    fleet = first
    fleet.publish("21", 21.0)
    fleet.lab.kill("broker", signal.SIGKILL)
    fleet.start_rollout("21")
    fleet.lab.start_broker()
    eventually(lambda: (fleet.serving() or {}).get("version") == "21", 90, "the assignment never arrived")

    def counted() -> bool:
        summary = fleet.lab.json("wherry", "telemetry", "show", "--device", fleet.lab.device)
        return bool(summary["received"].get("deployment"))

    eventually(counted, 30, "no deployment record arrived")


def test_with_server_and_broker_gone_a_restarted_agent_serves_the_known_good(first):
    fleet = first
    before = fleet.serving()
    fleet.lab.kill("agent", signal.SIGKILL)
    for container in fleet.lab.run(
        "docker", "ps", "-q", "--filter", f"label=io.wherry.device={fleet.lab.device}"
    ).stdout.split():
        # One of them may just be standing down by itself: gone is what is wanted here.
        fleet.lab.run("docker", "kill", container, check=False)
    assert not fleet.lab.run("docker", "ps", "-q", "--filter", f"label=io.wherry.device={fleet.lab.device}").stdout
    fleet.lab.kill("server")
    fleet.lab.kill("broker", signal.SIGKILL)
    fleet.lab.start("agent", ["wherry-agent", "run", "--state", str(fleet.lab.device_state)], lambda: True)
    try:
        with load(fleet, float(before["version"])) as requests:
            eventually(lambda: requests.versions.get(before["version"]), 60, "the known-good did not come back")
    finally:
        fleet.lab.start_broker()
        fleet.lab.start_server()
    eventually(fleet.lab.online, 60, "the device did not come back online")
