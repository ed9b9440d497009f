"""Two models on one device that go together: both swap without a failed request, or both stay where they are."""

from __future__ import annotations

import json

import pytest
from load import Load
from tiny_model import write_tiny

from wherry.tensors import tensor_from_values

pytestmark = [
    pytest.mark.docker,
    pytest.mark.broker,
    pytest.mark.registry,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

SAMPLE = tensor_from_values("x", "FP32", [1, 4], [1.0, 2.0, 3.0, 4.0])
SLOTS = {"main": "tiny", "second": "words"}


def publish(fleet, model: str, version: str, *options: str) -> None:
    path, out = fleet.lab.folder / f"{model}-{version}.onnx", fleet.lab.folder / f"package-{model}-{version}"
    write_tiny(path, float(version))
    fleet.lab.run(
        "wherry", "package", str(path), "--name", model, "--version", version, "--profile", "generic-amd64",
        "--registry", fleet.lab.registry, "--output", str(out), "--start-seconds", "240", *options,
    )  # fmt: skip
    fleet.lab.run("wherry", "release", "publish", str(out / "package.json"))


def together(fleet, **versions: str) -> dict:
    """Roll out to the end; the rollout as it ended."""
    releases = [part for slot, of in versions.items() for part in ("--together", f"{slot}={SLOTS[slot]}:{of}")]
    done = fleet.lab.run("wherry", "rollout", "start", *releases, "--to", "all", "--watch", "--json", check=False)
    return json.loads(done.stdout.splitlines()[-1])


def serving(fleet) -> dict[str, str]:
    slots = fleet.lab.json("wherry", "device", "show", fleet.lab.device)["slots"]
    return {slot["slot"]: slot["serving"]["version"] for slot in slots if slot["serving"]}


def load(fleet, slot: str) -> Load:
    port = {"main": fleet.lab.ports.slot, "second": fleet.lab.ports.second}[slot]

    def judge(outputs) -> str | None:
        first = float(outputs[0].values()[0])
        return None if first in (51.0, 52.0) else f"wrong answer {first}"

    return Load("127.0.0.1", port, SLOTS[slot], [SAMPLE], judge=judge, rate=25)


@pytest.fixture(scope="module")
def both(fleet):
    """Version 51 serves in both slots."""
    for model in SLOTS.values():
        publish(fleet, model, "51")
    ended = together(fleet, main="51", second="51")
    assert ended["counts"] == {"committed": 1}, ended
    assert serving(fleet) == {"main": "51", "second": "51"}
    yield fleet
    fleet.lab.run("wherry", "device", "clear", fleet.lab.device, "second", "--yes")


def test_two_slots_go_together_or_not_at_all_and_no_caller_notices(both):
    fleet = both
    publish(fleet, "tiny", "52")
    publish(fleet, "words", "53", "--gate", "memory:ceiling_mb=1")
    publish(fleet, "words", "52")
    with load(fleet, "main") as first, load(fleet, "second") as second:
        bad = together(fleet, main="52", second="53")
        stayed = serving(fleet)
        good = together(fleet, main="52", second="52")
    assert bad["counts"] == {"rejected": 1}, bad
    assert stayed == {"main": "51", "second": "51"}
    parts = {part["slot"]: part for part in bad["targets"][0]["parts"]}
    assert {part["state"] for part in parts.values()} == {"rejected"}
    assert parts["second"]["problem"]["code"] == "deployment.gate"
    assert "went back with slot second" in parts["main"]["problem"]["reason"]
    assert parts["main"]["deployment"]["culprit"] == "second"
    assert bad["targets"][0]["problem"] == parts["second"]["problem"], "the culprit speaks for the device"
    assert good["counts"] == {"committed": 1}, good
    assert serving(fleet) == {"main": "52", "second": "52"}
    for requests in (first, second):
        assert requests.problems == []
        assert requests.versions.keys() == {"51", "52"}
