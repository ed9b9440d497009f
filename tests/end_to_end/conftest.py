"""One lab for all end-to-end tests: real registry, broker, server and agent, on free ports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from lab import Lab, Ports  # noqa: E402
from tiny_model import write_tiny  # noqa: E402

MODEL, PROFILE = "tiny", "generic-amd64"


def publish_tiny(lab: Lab, version: str, weight: float, *options: str) -> dict[str, Any]:
    """Package, sign and publish a version of the tiny model; its image."""
    model = lab.folder / f"tiny-{version}.onnx"
    write_tiny(model, weight)
    out = lab.folder / f"package-{version}"
    lab.run(
        "wherry", "package", str(model), "--name", MODEL, "--version", version, "--profile", PROFILE,
        "--registry", lab.registry, "--output", str(out), *options,
    )  # fmt: skip
    lab.run("wherry", "release", "publish", str(out / "package.json"))
    found: dict[str, Any] = json.loads((out / "package.json").read_text())["images"][0]
    return found


@pytest.fixture(name="publish", scope="session")
def publish_fixture() -> Callable[..., dict[str, Any]]:
    return publish_tiny


class Fleet:
    """A lab with published versions of one tiny model."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.published: dict[str, dict[str, Any]] = {}

    def publish(self, version: str, weight: float) -> dict[str, Any]:
        """Package, sign and publish a version; its image."""
        self.published[version] = publish_tiny(self.lab, version, weight)
        return self.published[version]

    def roll_out(self, version: str) -> dict[str, Any]:
        """Roll out to the end; this device's line."""
        done = self.lab.run(
            "wherry", "rollout", "start", MODEL, version, "--to", "all", "--watch", "--json", check=False
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["targets"][0]
        return found

    def start_rollout(self, version: str) -> int:
        """Start a rollout and return at once with its id."""
        started = self.lab.json("wherry", "rollout", "start", MODEL, version, "--to", "all")
        return int(started["id"])

    def serving(self) -> dict[str, Any] | None:
        """What the device's slot serves, as the server knows it."""
        slots = self.lab.json("wherry", "device", "show", self.lab.device)["slots"]
        found: dict[str, Any] | None = slots[0].get("serving") if slots else None
        return found


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The lab, with one device enrolled and its agent running."""
    ports = Ports.free()
    lab = Lab(tmp_path_factory.mktemp("lab"), ports, device=f"end-to-end-{ports.slot}")
    try:
        lab.start_site()
        lab.enrol(PROFILE)
        lab.start_agent()
        yield Fleet(lab)
    finally:
        lab.stop()
