"""Wherry as it is installed: registry, broker, server and agent; releases signed beforehand, swapped by rollouts."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from demo_models import break_model
from fleet import MODEL, PROFILE, make_versions, publish, roll_out
from lab import Lab
from swap_methods import answering, wait_until

BAD = "bad"


class Wherry:
    """A lab with one device and a few releases of the tiny model, the last of which answers wrongly.

    Args:
        lab: not started yet.
        versions: how many good ones; "0" is the first.
    """

    name = "wherry"
    how = "wherry rollout start --watch; registry, broker, server, agent and operator's tool on this machine"

    settle = 6.0
    """The old version drains after the new one is committed, for 5 seconds at most."""

    def __init__(self, lab: Lab, versions: int) -> None:
        self.lab, self.port = lab, lab.ports.slot
        self.gates: list[dict[str, Any]] = []
        self._versions = versions

    def prepare(self) -> Mapping[str, str]:
        """Start everything, publish every release; image reference by version."""
        lab = self.lab
        shutil.rmtree(lab.folder, ignore_errors=True)
        lab.start_site()
        models = make_versions(lab.folder, self._versions)
        images = {str(number): publish(lab, model, str(number)) for number, model in enumerate(models)}
        references = {version: f"{image['repository']}@{image['digest']}" for version, image in images.items()}
        references[BAD] = self._publish_bad()
        lab.enrol(PROFILE)
        lab.start_agent()
        return references

    def _publish_bad(self) -> str:
        """Sign a release that starts, says it is healthy and answers wrongly; the golden cases are version 0's."""
        lab = self.lab
        model = lab.folder / "bad.onnx"
        break_model(lab.folder / "tiny-0.onnx", model)
        common = ("--name", MODEL, "--version", BAD, "--profile", PROFILE, "--registry", lab.registry)
        lab.run("wherry", "package", str(model), *common, "--output", str(lab.folder / "bad-image"))
        image = json.loads((lab.folder / "bad-image" / "package.json").read_text())["images"][0]
        reference = f"{image['repository']}@{image['digest']}"
        golden = str(lab.folder / "package-0" / "golden.json")
        out = lab.folder / "package-bad"
        lab.run("wherry", "package", "--from-image", reference, *common, "--golden", golden, "--output", str(out))
        lab.run("wherry", "release", "publish", str(out / "package.json"))
        return reference

    def up(self, version: str) -> None:
        """Have a version committed and answering."""
        roll_out(self.lab, version)
        wait_until(lambda: self.answers(version), f"wherry: version {version} does not answer")

    def swap(self, version: str) -> None:
        """A rollout, until it is committed."""
        roll_out(self.lab, version)

    def answers(self, version: str) -> bool:
        """By the version in an answer."""
        return answering(self.port) == version

    def bad(self, version: str) -> float | None:
        """A rollout that the device rejects; when it did, by its own report."""
        done = self.lab.run(
            "wherry", "rollout", "start", MODEL, version, "--to", "all", "--watch", "--json", check=False
        )
        target = json.loads(done.stdout.splitlines()[-1])["targets"][0]
        if target["state"] != "rejected":
            return None
        self.gates = target["deployment"]["gates"]
        rejected = dict(map(tuple, target["deployment"]["phases"]))["rejected"]
        return time.monotonic() - (time.time() - datetime.fromisoformat(rejected).timestamp())

    def down(self) -> None:
        """Nothing: the device keeps serving, idle, until the lab is stopped."""
