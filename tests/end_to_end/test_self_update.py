"""The agent updates itself on a whole installation, while a model answers every request."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
from lab import Lab, Ports

ROOT = Path(__file__).parent.parent.parent
PROFILE = "generic-amd64"
REQUEST = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()
Change = tuple[str, Callable[[str], str]]

pytestmark = [pytest.mark.docker, pytest.mark.registry, pytest.mark.broker, pytest.mark.slow]


def make_wheel(path: Path, version: str, change: Change | None = None) -> Path:
    """A wheel of this checkout under another version, and with a change in one file."""
    parts = {"wherry": "wherry", "agent/wherry_agent": "wherry_agent", "device_profiles": "wherry/device_profiles"}
    with zipfile.ZipFile(path, "w") as wheel:
        for folder, name in parts.items():
            for file in sorted((ROOT / folder).rglob("*")):
                inside = f"{name}/{file.relative_to(ROOT / folder)}"
                if not file.is_file() or "__pycache__" in inside:
                    continue
                text = file.read_text()
                if inside == "wherry/__init__.py":
                    text = re.sub('__version__ = ".*"', f'__version__ = "{version}"', text)
                if change and inside == change[0]:
                    changed = change[1](text)
                    assert changed != text
                    text = changed
                wheel.writestr(inside, text)
        wheel.write(ROOT / "requirements/agent.txt", "wherry_cli/requirements/agent.txt")
    return path


class Load:
    """Somebody who asks the model again and again, on a connection that is kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._end = threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._end.wait(0.02):
            try:
                connection.request("POST", "/v2/models/tiny/infer", REQUEST, {"Content-Type": "application/json"})
                answer = json.loads(connection.getresponse().read())
                assert answer["outputs"][0]["data"] == [2.0, 4.0, 6.0, 8.0]
                self.answered += 1
            except (OSError, http.client.HTTPException, AssertionError, KeyError) as error:
                self.failures.append(repr(error))
                connection.close()
        connection.close()


class Site:
    """A device whose agent a supervisor looks after, and which serves a model."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def push(self, version: str, change: Change | None = None, start_seconds: int = 60) -> bool:
        """Bring an agent to the device and follow it to its end; whether it was committed."""
        wheel = make_wheel(self.lab.folder / f"wherry-{version}.whl", version, change)
        done = self.lab.run(
            "wherry", "agent", "push", "--profile", PROFILE, "--from", str(wheel), "--to", "all", "--watch",
            "--start-seconds", str(start_seconds), "--json", check=False,
        )  # fmt: skip
        return done.returncode == 0

    def device(self) -> dict[str, Any]:
        found: dict[str, Any] = self.lab.json("wherry", "device", "show", self.lab.device)
        return found

    def slot(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(slot for slot in self.device()["slots"] if slot["slot"] == name)
        return found

    def model_container(self) -> str:
        flt = f"label=io.wherry.device={self.lab.device}"
        return self.lab.run("docker", "ps", "--format", "{{.ID}} {{.Names}}", "--filter", flt).stdout

    def wait_until(self, true: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + 90
        while not true():
            assert time.monotonic() < until, f"{what}: {json.dumps(self.device(), indent=1)}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, publish: Callable[[Lab, str, float], dict[str, Any]]
) -> Iterator[Site]:
    ports = Ports.free()
    lab = Lab(tmp_path_factory.mktemp("lab"), ports, device=f"self-update-{ports.slot}")
    try:
        lab.start_site()
        lab.enrol(PROFILE)
        with (lab.device_state / "agent.toml").open("r+") as settings:
            rest = settings.read()
            settings.seek(0)
            settings.write(f"agent_soak_seconds = 1\n{rest}")
        lab.start_agent(command="supervise")
        publish(lab, "1", 2.0)
        lab.run("wherry", "rollout", "start", "tiny", "1", "--to", "all", "--watch")
        yield Site(lab)
    finally:
        lab.stop()


def test_a_good_agent_takes_over_and_no_request_fails(site: Site) -> None:
    before = site.model_container()
    with Load(site.lab.ports.slot) as load:
        assert site.push("0.2.0")
    assert load.failures == []
    assert load.answered > 50
    assert site.device()["agent_version"] == "0.2.0"
    slot = site.slot("agent")
    assert (slot["serving"]["version"], slot["known_good"]["version"], slot["healthy"]) == ("0.2.0", "0.2.0", True)
    assert [gate["kind"] for gate in slot["deployment"]["gates"]] == ["agent", "soak"]
    assert site.model_container() == before
    told = site.lab.run("wherry-agent", "status", "--state", str(site.lab.device_state)).stdout
    assert "slot agent runs wherry-agent 0.2.0" in told


BROKEN: dict[str, tuple[str, Change, str]] = {
    "raises": (
        "0.3.1",
        ("wherry_agent/compose.py", lambda text: text.replace("import logging", "import logging, courage", 1)),
        "No module named 'courage'",
    ),
    "hangs": (
        "0.3.2",
        ("wherry_agent/control.py", lambda text: text.replace("reconciler.start()", "__import__('time').sleep(9999)")),
        "did not prove itself within",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_agent_is_taken_back_and_rejected_and_no_request_fails(site: Site, how: str) -> None:
    version, change, reason = BROKEN[how]
    running = site.device()["agent_version"]
    with Load(site.lab.ports.slot) as load:
        assert not site.push(version, change, start_seconds=5)
    assert load.failures == []
    slot = site.slot("agent")
    assert slot["deployment"]["phase"] == "rejected"
    assert reason in slot["deployment"]["problem"]["reason"]
    assert site.device()["agent_version"] == running
    assert slot["deployment"]["release"]["digest"] in site.lab.json("wherry-agent", "status", "--state",
                                                                   str(site.lab.device_state))["rejected"]  # fmt: skip


def dies_when_it_is_trusted(text: str) -> str:
    """Proves itself as asked, and ends at every start after that."""
    return text.replace(
        "    reconciler.start()\n",
        "    reconciler.start()\n"
        "    slot = reconciler.entry.slots.get('agent')\n"
        "    if slot and slot.known_good and slot.known_good.image.version == '0.3.3':\n"
        "        raise SystemExit('I had them fooled')\n",
    ).replace(
        "        manager.alive(reconciler.summary)\n",
        "        manager.alive(reconciler.summary)\n"
        "        slot = reconciler.entry.slots.get('agent')\n"
        "        if slot and slot.known_good and slot.known_good.image.version == '0.3.3':\n"
        "            raise SystemExit('I had them fooled')\n",
    )


def test_an_agent_that_dies_after_it_was_committed_gives_way_to_the_one_before(site: Site) -> None:
    running = site.device()["agent_version"]
    with Load(site.lab.ports.slot) as load:
        with suppress(AssertionError):
            site.push("0.3.3", ("wherry_agent/control.py", dies_when_it_is_trusted))
        site.wait_until(lambda: site.slot("agent")["deployment"]["phase"] == "rejected", "it is not rejected")
        site.wait_until(lambda: site.device()["online"], "it is not online again")
    assert load.failures == []
    problem = site.slot("agent")["deployment"]["problem"]["reason"]
    assert "after it was committed: ended 3 times soon after its start" in problem
    assert "I had them fooled" in problem
    assert site.device()["agent_version"] == running
