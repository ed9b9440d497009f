"""The chapters of the main job. Each works through the public commands; only the attack is done by hand."""

from __future__ import annotations

import itertools
import json
import math
import sqlite3
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

from demo_models import break_model, labels, magika_input
from fetch_models import fetch_models
from lab import ROOT, LabError
from load import Load
from story import Story, expect

from wherry.tensors import Tensor, decode_response, encode_request

MODEL = "magika"
PROFILE = "generic-amd64"
SAMPLE = ROOT / "scripts" / "lab.py"
"""A real file for the real model to recognise: Magika names the content type of a file's bytes."""


class Demo:
    """The chapters of the main job."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.lab = story.lab
        self.folder = story.lab.folder
        self.models: dict[str, Path] = {}
        self.sample = magika_input(SAMPLE.read_bytes())
        self.truth: dict[str, int] = {}

    # -- small helpers ---------------------------------------------------------------------------

    def infer(self) -> tuple[list[float], str]:
        """Ask the slot's stable endpoint; the probabilities and the version that answered."""
        body, header = encode_request([self.sample])
        headers = {"Inference-Header-Content-Length": str(header)} if header else {}
        request = urllib.request.Request(f"{self.lab.slot_url}/v2/models/{MODEL}/infer", data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as reply:
            length = reply.headers.get("Inference-Header-Content-Length")
            answer = decode_response(reply.read(), int(length) if length else None)
        return [float(value) for value in answer.outputs[0].values()], answer.version

    def judge(self, outputs: list[Tensor]) -> str | None:
        """Whether an answer names the sample's content type."""
        values = [float(value) for value in outputs[0].values()]
        best = max(range(len(values)), key=values.__getitem__)
        if any(math.isnan(value) for value in values) or best not in self.truth.values():
            return f"wrong answer: class {best}, right are {sorted(set(self.truth.values()))}"
        return None

    def rollout(self, *argv: str) -> dict[str, Any]:
        """Run a command that ends in a rollout with `--watch --json`; the rollout as it ended."""
        done = self.lab.run(*argv, "--watch", "--json", check=False)
        if not done.stdout.strip():
            raise LabError(f"`{' '.join(argv)}` printed nothing:\n{done.stderr[-1500:]}")
        result = json.loads(done.stdout.splitlines()[-1])
        if "error" in result:
            raise LabError(f"`{' '.join(argv)}`: {result['error']}")
        found: dict[str, Any] = result.get("rollout", result)
        return found

    def target(self, rollout: dict[str, Any]) -> dict[str, Any]:
        """This device's line of a rollout."""
        mine = [target for target in rollout["targets"] if target["device"] == self.lab.device]
        expect(mine, f"the rollout does not name {self.lab.device}")
        found: dict[str, Any] = mine[0]
        return found

    def phases(self, target: dict[str, Any]) -> str:
        """The deployment's phases with their seconds, as one line."""
        deployment = target.get("deployment") or {}
        steps = deployment.get("phases") or []
        times = [datetime.fromisoformat(at) for _, at in steps]
        spans = [f"{(later - sooner).total_seconds():.1f}" for sooner, later in itertools.pairwise(times)]
        return " -> ".join(f"{name} {span}".strip() for (name, _), span in zip(steps, [*spans, ""], strict=False))

    def package(self, version: str, model: Path, folder: str, *more: str) -> dict[str, Any]:
        """`wherry package` for this machine's profile; its package.json."""
        self.lab.run(
            "wherry", "package", str(model), "--name", MODEL, "--version", version, "--profile", PROFILE,
            "--output", str(self.folder / folder), *more,
        )  # fmt: skip
        found: dict[str, Any] = json.loads((self.folder / folder / "package.json").read_text())
        return found

    # -- chapters --------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Real models, as their packages ship them."""
        with self.story.chapter("models", "Get a real model in two versions, and spoil a third") as say:
            files = fetch_models(projects=[MODEL])
            self.models = {
                "1": files["magika-0.6.1"],
                "2": files["magika-1.0.3"],
                "3": self.folder / "magika-3.onnx",
            }
            self.folder.mkdir(parents=True, exist_ok=True)
            break_model(self.models["2"], self.models["3"])
            for version, why in {
                "1": "magika 0.6.1",
                "2": "magika 1.0.3, newer",
                "3": "classes shifted by one",
            }.items():
                say(f"version {version}: {why}, {self.models[version].stat().st_size / 1e6:.2f} MB of ONNX")

    def start(self) -> None:
        """Registry, server and broker, and the owner's keys."""
        with self.story.chapter("start", "Start registry, server and broker; make the owner's keys") as say:
            self.lab.check_ports()
            self.lab.start_site()
            say(f"server {self.lab.server_url}, broker on port {self.lab.ports.broker} (TLS 1.3, client certificates)")
            say(f"the owner's keys are in {self.lab.home.relative_to(ROOT)}/keys, where no server can reach them")

    def publish(self) -> None:
        """Version 1 as a signed release."""
        with self.story.chapter("package", "Package and sign version 1: no Dockerfile, no Docker, no code") as say:
            made = self.package("1", self.models["1"], "v1", "--registry", self.lab.registry)
            self.lab.run("wherry", "release", "publish", str(self.folder / "v1" / "package.json"))
            for layer in made["images"][0]["layers"]:
                say(f"{layer['kind']:<8} {layer['size'] / 1e6:8.2f} MB  {layer['digest'][:19]}…")

    def enrol(self) -> None:
        """This machine becomes a device."""
        with self.story.chapter("enrol", "Enrol this machine with a single-use token and start its agent") as say:
            self.lab.enrol(PROFILE, {"site": "demo"})
            self.lab.start_agent()
            shown = self.lab.json("wherry", "device", "show", self.lab.device)
            say(f"{self.lab.device}: online, profile {shown['profile']}, agent {shown['agent_version']}")

    def first(self) -> None:
        """The first deployment."""
        with self.story.chapter("rollout-v1", "Roll out version 1") as say:
            target = self.target(self.rollout("wherry", "rollout", "start", MODEL, "1", "--to", "all"))
            expect(target["state"] == "committed", f"version 1 ended {target['state']}: {target.get('problem')}")
            say(self.phases(target))

    def answer(self) -> None:
        """An application asks."""
        with self.story.chapter("inference", "Ask it: what is this file?") as say:
            values, version = self.infer()
            best = max(range(len(values)), key=values.__getitem__)
            name = labels("0.6.1")[best]
            expect(name == "python", f"{SAMPLE.name} was taken for {name}")
            self.truth["1"] = best
            self.truth["2"] = labels("1.0.3").index("python")
            say(f"{SAMPLE.relative_to(ROOT)} is {name} ({values[best]:.1%}), says version {version}")

    def second(self, load: Load) -> None:
        """A real newer version, under load."""
        with self.story.chapter("rollout-v2", "Push version 2 while requests keep coming") as say:
            before, began = load.sent, time.monotonic()
            rollout = self.rollout(
                "wherry", "push", str(self.models["2"]), "--name", MODEL, "--version", "2", "--profile", PROFILE,
                "--output", str(self.folder / "v2"), "--to", "all",
            )  # fmt: skip
            target = self.target(rollout)
            expect(target["state"] == "committed", f"version 2 ended {target['state']}: {target.get('problem')}")
            say(self.phases(target))
            deadline = time.monotonic() + 20
            while self.infer()[1] != "2":
                expect(time.monotonic() < deadline, "the slot still answers with version 1")
                time.sleep(0.2)
            say(f"{load.sent - before} requests in {time.monotonic() - began:.0f} s, {len(load.problems)} failed")
            expect(not load.problems, f"requests failed: {load.problems[:3]}")

    def third(self, load: Load) -> None:
        """Healthy by its own word, wrong in fact."""
        title = "Push version 3: it starts, says it is healthy, and answers wrongly"
        with self.story.chapter("rollout-v3-wrong", title) as say:
            before = len(load.problems)
            made = self.package("3", self.models["3"], "v3-image", "--registry", self.lab.registry)
            image = made["images"][0]
            reference = f"{image['repository']}@{image['digest']}"
            say("the image comes ready-made (--from-image), the golden cases are the owner's, recorded from version 2")
            rollout = self.rollout(
                "wherry", "push", "--from-image", reference, "--name", MODEL, "--version", "3", "--profile", PROFILE,
                "--golden", str(self.folder / "v2" / "golden.json"), "--output", str(self.folder / "v3"), "--to", "all",
            )  # fmt: skip
            target = self.target(rollout)
            expect(target["state"] == "rejected", f"version 3 ended {target['state']}, it should be rejected")
            gates = (target.get("deployment") or {}).get("gates") or []
            golden = [gate for gate in gates if gate["kind"] == "golden"]
            expect(golden and not golden[-1]["ok"], f"it was not the golden gate that refused it: {gates}")
            say(f"golden gate: {golden[-1]['detail']}")
            say("gates before it: " + ", ".join(gate["kind"] for gate in gates if gate["ok"]) + " (all ok)")
            expect(self.infer()[1] == "2", "version 2 does not answer any more")
            expect(len(load.problems) == before, f"requests failed meanwhile: {load.problems[before:][:3]}")
            say("version 2 never stopped")

    def fourth(self, load: Load) -> None:
        """The server is not trusted either."""
        title = "Version 4 is tampered with on the server after the owner signed it"
        with self.story.chapter("rollout-v4-tampered", title) as say:
            before = len(load.problems)
            made = self.package("4", self.models["1"], "v4", "--registry", self.lab.registry)
            self.lab.run("wherry", "release", "publish", str(self.folder / "v4" / "package.json"))
            digest = made["images"][0]["digest"].removeprefix("sha256:")
            name = self.tamper(digest)
            say(f"somebody with the server's database points version 4 at another image in {name}")
            target = self.target(self.rollout("wherry", "rollout", "start", MODEL, "4", "--to", "all"))
            expect(target["state"] == "refused", f"version 4 ended {target['state']}, it should be refused")
            problem = target.get("problem") or (target.get("deployment") or {}).get("problem") or {}
            expect(problem.get("code", "").startswith("trust."), f"it was refused for another reason: {problem}")
            say(f"{problem['code']}: {problem['thing']}: {problem['reason']}")
            expect(self.infer()[1] == "2", "version 2 does not answer any more")
            expect(len(load.problems) == before, f"requests failed meanwhile: {load.problems[before:][:3]}")

    def tamper(self, digest: str) -> str:
        """Change one digest in the server's newest targets metadata, as an intruder would; the file's name."""
        with sqlite3.connect(self.folder / "server" / "server.db") as database:
            rows = database.execute(
                "SELECT name, data FROM repository_file WHERE name LIKE '%.targets.json'"
            ).fetchall()
            name, content = max(rows, key=lambda row: int(str(row[0]).split(".")[0]))
            text = bytes(content).decode()
            expect(digest in text, f"{name} does not name version 4")
            changed = text.replace(digest, digest[::-1]).encode()
            database.execute("UPDATE repository_file SET data = ? WHERE name = ?", (changed, name))
        database.close()
        self.story.facts["untampered"] = (name, content)
        return str(name)

    def mend(self) -> None:
        """Put the owner's bytes back, so that what is left running is whole."""
        name, content = self.story.facts.pop("untampered")
        with sqlite3.connect(self.folder / "server" / "server.db") as database:
            database.execute("UPDATE repository_file SET data = ? WHERE name = ?", (content, name))
        database.close()

    def home_again(self) -> None:
        """The operator decides: version 2 stays."""
        with self.story.chapter("back-to-v2", "Put the metadata right and say that version 2 stays") as say:
            self.mend()
            target = self.target(self.rollout("wherry", "rollout", "start", MODEL, "2", "--to", "all"))
            expect(target["state"] == "committed", f"version 2 ended {target['state']}: {target.get('problem')}")
            say("desired and reported agree again")

    def telemetry(self, load: Load) -> None:
        """What the server knows of it."""
        with self.story.chapter("telemetry", "Read all of it back from the server") as say:
            deadline = time.monotonic() + 45
            while True:
                summary = self.lab.json("wherry", "telemetry", "show", "--device", self.lab.device)
                counts = {slot["version"]: slot["requests"] for slot in summary["slots"]}
                if {"1", "2"} <= counts.keys() and sum(counts.values()) >= 0.99 * load.sent and summary["hosts"]:
                    break
                expect(time.monotonic() < deadline, f"the server has {counts} of {load.sent} requests")
                time.sleep(0.5)
            for slot in summary["slots"]:
                say(
                    f"version {slot['version']}: {slot['requests']} requests, {slot['failures']} failures, "
                    f"p50 {slot['p50_us'] / 1000:.1f} ms, p95 {slot['p95_us'] / 1000:.1f} ms"
                )
            host = summary["hosts"][0]
            say(f"host: CPU {host['cpu_percent']:.0f} %, memory {host['memory_used_bytes'] / 2**30:.1f} GiB")
            expect(not any(summary["dropped"].values()), f"telemetry was dropped: {summary['dropped']}")
            self.story.facts["telemetry"] = summary

    def tell(self) -> None:
        """All chapters in order."""
        self.fetch()
        self.start()
        self.publish()
        self.enrol()
        self.first()
        self.answer()
        with Load("127.0.0.1", self.lab.ports.slot, MODEL, [self.sample], judge=self.judge, rate=50) as load:
            try:
                self.second(load)
                self.third(load)
                self.fourth(load)
                self.home_again()
            finally:
                self.story.facts["requests"] = {"sent": load.sent, "failed": len(load.problems)}
        self.story.facts["requests"] = {
            "sent": load.sent,
            "failed": len(load.problems),
            "by_version": load.versions,
            "longest_gap_ms": round(load.longest_gap() * 1000),
            "p99_ms": round(load.percentile(0.99) * 1000, 1),
        }
        self.telemetry(load)
