"""Swaps that need haproxy, on real parts: memory for one version only, and images that cannot drain."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab import Lab, Ports
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
# On a busy machine a model may take long to start.
NO_MEMORY_FOR_TWO = {"WHERRY_AGENT_RESERVE_MB": "1000000", "WHERRY_AGENT_HOLD_SECONDS": "200"}
SERVE = "/bin/busybox httpd -f -p 8080 -h /www & wait"


def eventually(condition: Callable[[], Any], seconds: float, otherwise: str) -> Any:
    """Poll a condition until it holds; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A whole installation, whose agent starts with each test's settings."""
    ports = Ports.free()
    found = Lab(tmp_path_factory.mktemp("waiting"), ports, device=f"waiting-{ports.slot}")
    try:
        found.start_site()
        found.enrol("generic-amd64")
        yield found
    finally:
        found.stop()


def roll_out(lab: Lab, model: str, version: str) -> dict[str, Any]:
    """Roll out to the end; this device's line."""
    done = lab.run("wherry", "rollout", "start", model, version, "--to", "all", "--watch", "--json", check=False)
    target: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["targets"][0]
    return target


def slot(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = lab.json("wherry-agent", "status", "--state", str(lab.device_state))["slots"][0]
    return found


def load(lab: Lab, *weights: float) -> Load:
    """100 requests a second; half of the callers keep their connection, and none tries anything twice."""

    def judge(outputs: list[Tensor]) -> str | None:
        first = float(outputs[0].values()[0])
        return None if any(abs(first - weight) < 1e-5 for weight in weights) else f"wrong answer {first}"

    return Load("127.0.0.1", lab.ports.slot, "tiny", [SAMPLE], judge=judge, rate=100, workers=24, patience=200)


@pytest.fixture(scope="module")
def tight(lab: Lab, publish: Any) -> Lab:
    """Version 1 serves on a device whose memory does not hold two."""
    lab.start_agent(NO_MEMORY_FOR_TWO)
    publish(lab, "1", 1.0)
    publish(lab, "2", 2.0)
    publish(lab, "3", 3.0, "--gate", "memory:ceiling_mb=1")
    target = roll_out(lab, "tiny", "1")
    assert target["state"] == "committed", target
    return lab


def test_where_memory_holds_one_version_callers_wait_and_none_fails(tight):
    with load(tight, 1.0, 2.0) as requests:
        eventually(lambda: requests.versions.get("1"), 20, "version 1 never answered")
        target = roll_out(tight, "tiny", "2")
        eventually(lambda: requests.versions.get("2", 0) > 50, 30, "version 2 never answered")
    assert target["state"] == "committed", target
    assert slot(tight)["deployment"]["mode"] == "replace"
    assert slot(tight)["route"] == "kernel"
    assert requests.problems == []


def test_a_candidate_that_fails_while_callers_wait_gives_them_back_to_the_known_good(tight):
    with load(tight, 2.0) as requests:
        eventually(lambda: requests.versions.get("2"), 20, "version 2 never answered")
        target = roll_out(tight, "tiny", "3")
        answered = requests.versions.get("2", 0)
        eventually(lambda: requests.versions.get("2", 0) > answered + 50, 60, "version 2 did not come back")
    assert target["state"] == "rejected", target
    assert requests.problems == []


def test_an_agent_killed_while_callers_wait_lets_them_go_on_when_it_starts_again(tight, publish):
    lab = tight
    publish(lab, "4", 4.0)
    with load(lab, 2.0, 4.0) as requests:
        log = lab.folder / "log/agent.log"
        held = log.read_text().count("callers wait")
        lab.json("wherry", "rollout", "start", "tiny", "4", "--to", "all")
        eventually(lambda: log.read_text().count("callers wait") > held, 60, "callers never waited")
        os.kill(lab.pid("agent"), signal.SIGKILL)
        lab.kill("agent")
        time.sleep(1.0)
        lab.start_agent(NO_MEMORY_FOR_TWO)
        eventually(lambda: requests.versions.get("4", 0) > 50, 90, "version 4 never answered")
    assert requests.problems == []


# -- an image that cannot drain ---------------------------------------------------------------------------


def own_image(lab: Lab, version: str) -> str:
    """A web server that drops its connections when it is told to end; its reference in the registry."""
    root, archive = lab.folder / f"own-{version}", lab.folder / f"own-{version}.tar"
    for folder in ("bin", "www/cgi-bin", "tmp"):
        (root / folder).mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), root / "bin/busybox")
    (root / "www/who").write_text(version)
    with tarfile.open(archive, "w") as tar:
        tar.add(root, arcname="/")
    tag = f"{lab.registry}/own/web:{version}"
    change = "ENTRYPOINT " + json.dumps(["/bin/busybox", "sh", "-c", SERVE])
    lab.run("docker", "import", "--change", change, "--change", "EXPOSE 8080", str(archive), tag)
    lab.run("docker", "push", "-q", tag)
    lab.run("docker", "rmi", tag)
    return tag


def get(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/who", timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def test_an_image_that_cannot_drain_goes_by_haproxy_is_counted_and_serves_on_without_the_agent(lab):
    """Runs last: it takes the slot over."""
    if lab.pid("agent") is None:
        lab.start_agent()
    port = slot(lab)["port"]
    for version in ("1", "2"):
        out = lab.folder / f"web-{version}"
        lab.run(
            "wherry", "package", "--from-image", own_image(lab, version), "--name", "web", "--version", version,
            "--profile", "generic-amd64", "--health-path", "/who", "--registry", lab.registry, "--output", str(out),
        )  # fmt: skip
        lab.run("wherry", "release", "publish", str(out / "package.json"))
        target = roll_out(lab, "web", version)
        assert target["state"] == "committed", target
        assert slot(lab)["route"] == "haproxy"
        assert [get(port) for _ in range(20)] == [version] * 20

    def counted() -> bool:
        usage = lab.json("wherry", "telemetry", "show", "--device", lab.device)
        return any(one.get("model") == "web" and one.get("requests", 0) >= 20 for one in usage.get("slots", []))

    eventually(counted, 60, "its requests were never counted")
    lab.kill("agent", signal.SIGKILL)
    assert get(port) == "2"
