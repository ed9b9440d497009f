"""One line makes a machine a device, another leaves nothing of it. On a real server, engine and packet filter."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lab import Lab, Ports

pytestmark = [
    pytest.mark.docker,
    pytest.mark.broker,
    pytest.mark.registry,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


@dataclass
class Site:
    """A server, and the place where install.sh is to make a device."""

    lab: Lab
    device: str
    place: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.place / "state"

    @property
    def prefix(self) -> Path:
        return self.place / "prefix"

    def script(self) -> str:
        """install.sh, fetched as its users do."""
        ca = str(self.lab.folder / "server/pki/ca.crt")
        return self.lab.run("curl", "-fsSL", "--cacert", ca, f"{self.lab.server_url}/install.sh").stdout

    def install(self, *arguments: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
        places = ["--prefix", str(self.prefix), "--no-service"]
        if not self.state.exists():  # from then on it is known
            places += ["--state", str(self.state)]
        return subprocess.run(
            ["sh", "-s", "--", *arguments, *places],
            input=script or self.script(), capture_output=True, text=True, check=False, timeout=400,
            env=self.lab.environment | self.environment,
        )  # fmt: skip

    def agent(self, *arguments: str) -> str:
        return self.lab.run(str(self.prefix / "bin/wherry-agent"), *arguments).stdout


def left_behind(site: Site) -> dict[str, list[str]]:
    """All that a device could leave on this machine."""
    label = f"label=io.wherry.device={site.device}"
    images = site.lab.run("docker", "images", "--digests", "--format", "{{.Repository}}").stdout.split()
    tables = site.lab.run("nft", "list", "tables").stdout
    return {
        "containers": site.lab.run("docker", "ps", "-aq", "--filter", label).stdout.split(),
        "images": [name for name in images if name.startswith(site.lab.registry)],
        "tables": [line for line in tables.splitlines() if site.device.replace("-", "_") in line],
        "files": [path.name for path in site.place.iterdir()],
        "processes": [line for line in site.lab.run("ps", "axww").stdout.splitlines() if str(site.state) in line],
    }


NOTHING: dict[str, list[str]] = {"containers": [], "images": [], "tables": [], "files": [], "processes": []}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    ports = Ports.free()
    device = f"installed-{ports.slot}"
    lab = Lab(tmp_path_factory.mktemp("lab"), ports, device=device)
    place = tmp_path_factory.mktemp("machine")
    made = Site(lab, device, place, {"WHERRY_AGENT_SLOTS": json.dumps({"main": ports.slot})})
    try:
        lab.start_site()
        yield made
    finally:
        if (made.prefix / "bin/wherry-agent").exists():
            made.install("--uninstall", "--yes")
        lab.stop()
        shutil.rmtree(place, ignore_errors=True)


def test_a_download_that_is_not_what_the_script_pins_changes_nothing(site):
    lines = site.script().splitlines()
    broken = "\n".join("AGENT_SHA256='0'" if line.startswith("AGENT_SHA256=") else line for line in lines)
    done = site.install("wherry1.x", script=broken + "\n")
    assert done.returncode == 1
    assert "is not what this script expects" in done.stderr
    assert left_behind(site) == NOTHING


def test_a_server_with_another_key_than_the_line_pins_is_not_listened_to(site):
    line = site.lab.json("wherry", "device", "token", f"{site.device}-x")["install"]
    download = line.partition(" | ")[0]
    assert "install.sh" in site.lab.run("sh", "-c", download).stdout
    other = re.sub("sha256//....", "sha256//AAAA", download)
    assert site.lab.run("sh", "-c", other, check=False).stdout == ""


def test_packages_that_cannot_be_installed_change_nothing(site):
    site.environment["PIP_NO_INDEX"], site.environment["PIP_FIND_LINKS"] = "1", "/nonexistent"
    try:
        done = site.install("wherry1.x")
    finally:
        del site.environment["PIP_NO_INDEX"], site.environment["PIP_FIND_LINKS"]
    assert done.returncode == 1
    assert "Nothing was changed" in done.stderr
    assert left_behind(site) == NOTHING


def test_one_line_makes_a_device_again_upgrades_it_and_uninstall_leaves_nothing(site, publish):
    made = site.lab.json("wherry", "device", "token", site.device)
    download, _, shell = made["install"].partition(" | ")
    assert shell == f"sudo sh -s -- {made['join']}"
    done = site.install(made["join"], script=site.lab.run("sh", "-c", download).stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accepts this device's certificate" in done.stdout, "the doctor looked at the broker"
    publish(site.lab, "1", 1.0)
    rollout = site.lab.run("wherry", "rollout", "start", "tiny", "1", "--to", "all", "--watch", check=False)
    assert rollout.returncode == 0, rollout.stdout + rollout.stderr
    assert ready(site.lab.slot_url)
    process, identity = (site.state / "lock").read_text(), (site.state / "identity/device.pem").read_bytes()

    again = site.install()
    assert again.returncode == 0, again.stdout + again.stderr
    assert "the agent is up to date" in again.stdout
    assert "keeps its identity" in again.stdout
    assert (site.state / "identity/device.pem").read_bytes() == identity
    assert (site.state / "lock").read_text() != process, "the agent was started anew"
    assert ready(site.lab.slot_url), "the model served all the while"
    assert json.loads(site.agent("status", "--json"))["slots"][0]["serving"]["version"] == "1"

    gone = site.install("--uninstall", "--yes")
    assert gone.returncode == 0, gone.stdout + gone.stderr
    assert f"Next, where you are the operator: wherry device remove {site.device}" in gone.stdout
    assert left_behind(site) == NOTHING
    site.lab.run("wherry", "device", "remove", site.device, "--force", "--yes")
    assert site.lab.json("wherry", "device", "list")["items"] == []
    assert not ready(site.lab.slot_url)


def ready(url: str) -> bool:
    """Whether the slot's model answers; asked twice, for a busy machine."""
    for _ in range(2):
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            time.sleep(0.5)
    return False
