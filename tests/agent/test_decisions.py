"""Admission and gates: numbers in, verdicts with numbers out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from agent_fakes import SIGNATURE, START, make_image

from wherry.golden import Comparison
from wherry.messages import GateResult, Problem
from wherry.profile import HostFacts, load_profiles
from wherry.release import GoldenGate, HttpGate, LatencyGate, ReadyGate
from wherry_agent import gates, trial
from wherry_agent.admission import admit
from wherry_agent.assignment import Marks
from wherry_agent.entry import Rejection
from wherry_agent.observed import Room

ROOMY = Room(disk_free_bytes=10**10, memory_total_mb=8000, image_present=False)
PROFILE = load_profiles(Path(__file__).parent.parent.parent / "device_profiles")["generic-amd64"]
GOLDEN = GoldenGate(digest="sha256:" + "0" * 64, cases=2)


def ask(image, room=ROOMY, rejected=None, marks=None, watermark=0, profile=None, facts=None):
    return admit(image, profile, facts, room, rejected or {}, marks or Marks(), watermark)


def test_a_release_with_room_is_admitted():
    assert ask(make_image(1), profile=PROFILE) is None


def test_a_release_that_does_not_fit_is_refused_before_anything_is_fetched():
    found = ask(make_image(1, profile="jetson-orin", runtime="litert", provider="TensorRT"), profile=PROFILE)
    assert found.code == "fit"
    assert "made for profile jetson-orin, this device is generic-amd64" in found.reason
    assert "TensorRT" in found.reason
    big = ask(
        make_image(1, needs={"memory_mb": 9000}), profile=PROFILE, facts=HostFacts(architecture="x", memory_mb=900)
    )
    assert "needs 9000 MB of memory, this device has 900 MB" in big.reason


def test_a_rejected_or_withdrawn_digest_is_refused_with_the_first_reason():
    image = make_image(1)
    why = Problem(code="deployment.gate", thing="release vision 1", reason="golden gate: wrong", fix="correct it")
    found = ask(image, rejected={image.digest: Rejection(image.digest, "main", why, START)})
    assert (found.code, found.reason) == ("trust.rejected", "failed here before: golden gate: wrong")
    assert ask(image, marks=Marks(revoked=frozenset({image.digest}))).code == "trust.revoked"
    assert ask(image, marks=Marks(min_counters={"vision/generic-amd64": 2})).code == "trust.revoked"
    assert ask(image, marks=Marks(min_counters={"vision/generic-amd64": 1})) is None


def test_disk_is_counted_with_the_watermark_and_not_for_an_image_that_is_there():
    image = make_image(1)
    exact = Room(4_000_000, 8000, image_present=False)
    assert ask(image, exact, watermark=1_000_000) is None
    found = ask(image, Room(3_999_999, 8000, image_present=False), watermark=1_000_000)
    assert found.code == "admission"
    assert "needs 3.0 MB of disk" in found.reason
    assert "1.0 MB must stay free, but 4.0 MB are free" in found.reason
    assert ask(image, Room(0, 8000, image_present=True), watermark=1_000_000) is None


def test_a_memory_limit_above_the_device_is_refused():
    found = ask(make_image(1, memory_mb=9000))
    assert (found.code, found.reason) == ("admission", "its memory limit is 9000 MB, this device has 8000 MB")


def test_a_ready_gate_carries_its_numbers_and_the_containers_last_words():
    passed = gates.ready(ReadyGate(deadline_seconds=9), True, 1.25)
    assert (passed.ok, passed.numbers) == (True, {"seconds": 1.25, "deadline": 9.0})
    failed = gates.ready(ReadyGate(), False, 60.0, "no such file")
    assert (failed.ok, failed.detail) == (False, "not ready after 60.0 s: no such file")


def document(**changes):
    return SIGNATURE.model_dump() | {"parameters": {"provider": "CPUExecutionProvider"}} | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": []}, "input 'x' is missing"),
        (
            {"inputs": [{"name": "x", "datatype": "INT8", "shape": [-1, 2]}]},
            "input 'x' is INT8[-1, 2], released as FP32",
        ),
        ({"outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 9]}]}, "output 'y' is FP32[-1, 9]"),
        ({"outputs": [*SIGNATURE.model_dump()["outputs"], {"name": "z"}]}, "output 'z' is not in the release"),
        ({"outputs": "none"}, "the model names no outputs"),
        ({"outputs": [{"name": "y", "datatype": "FP32", "shape": "wide"}]}, "output 'y' is FP32"),
        (
            {"parameters": {"provider": "CUDAExecutionProvider"}},
            "runs on CUDAExecutionProvider, the release declares CPU",
        ),
    ],
)
def test_a_signature_that_differs_is_named(changes, words):
    found = gates.signature(SIGNATURE, "CPUExecutionProvider", document(**changes), 0.1)
    assert not found.ok
    assert words in found.detail


def test_a_signature_as_released_passes():
    assert gates.signature(SIGNATURE, "CPUExecutionProvider", document(), 0.1).ok
    assert gates.signature(None, "CPUExecutionProvider", document(), 0.1).ok


def test_one_wrong_golden_case_fails_the_gate_and_is_named():
    good = Comparison(True, 1e-5, 0.9999, 0.01, "fine")
    bad = Comparison(False, math.inf, math.nan, math.inf, "Output 'y' holds NaN")
    found = gates.golden(GOLDEN, ["a", "b"], [good, bad], 0.2)
    assert not found.ok
    assert found.detail == "1 of 2 golden cases answered wrongly: case 'b': Output 'y' holds NaN"
    assert (found.numbers["failed"], found.numbers["tolerance"]) == (1.0, 0.001)
    assert GateResult.model_validate_json(found.model_dump_json()) == found
    passed = gates.golden(GOLDEN, ["a", "b"], [good, good], 0.2)
    assert (passed.ok, passed.numbers["worst_error"], passed.numbers["margin"]) == (True, 1e-5, 0.01)


def test_latency_is_judged_at_the_95th_of_100():
    gate = LatencyGate(p95_ms=10)
    assert gates.latency(gate, [0.009] * 19 + [0.5], [], 1.0).ok
    found = gates.latency(gate, [0.009] * 18 + [0.5] * 2, [], 1.0)
    assert (found.ok, found.numbers["p95_ms"]) == (False, 500.0)
    assert not gates.latency(gate, [], [], 1.0).ok


def test_an_http_gate_wants_its_status():
    assert gates.http(HttpGate(path="/up", status=204), 204, 0.1).ok
    assert gates.http(HttpGate(path="/up"), 500, 0.1).detail == "GET /up: status 500, wanted 200"
    assert gates.http(HttpGate(path="/up"), None, 0.1).detail == "GET /up: no answer, wanted 200"


def test_a_container_killed_for_memory_is_not_said_to_have_exited_and_needs_more_memory():
    killed = gates.exited("ready", 1.0, 137, True, "")
    failure = trial.failure(make_image(1), killed)
    assert "--memory" in failure.fix
    assert "--quantize" in failure.fix
    assert "--memory" not in trial.failure(make_image(1), gates.exited("ready", 1.0, 3, False, "boom")).fix
    assert "more memory than its limit" in gates.exited("ready", 1.0, 137, True, "").detail
    assert gates.exited("ready", 1.0, 3, False, "boom").detail == "the container exited with code 3: boom"
