"""While the one inference thread works, the server still says how it is, and refuses what it cannot hold."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from wherry.errors import InferenceError
from wherry_serving.app import Options
from wherry_serving.bodies import Limits
from wherry_serving.dataplane import DataPlane

X = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}


@pytest.fixture
def clients():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def pending(running):
    text = running.ask("/metrics")[1].decode()
    return int(text.split("\nnv_inference_pending_request_count ")[1].split()[0])


def wait_pending(running, count):
    while pending(running) != count:  # pytest-timeout bounds this
        pass


def test_health_answers_during_an_inference(start, slow, clients):
    running = start(loader=slow.load)
    waiting = clients.submit(running.infer, "slow", X)
    assert slow.runtime.entered.acquire(timeout=10)
    assert running.ask("/v2/health/live")[0] == 200
    assert running.ready
    assert running.ask("/v2/models/slow")[0] == 200
    assert not waiting.done()
    slow.runtime.go.release()
    assert waiting.result(10)[0] == 200


def test_a_full_queue_answers_503_and_the_rest_is_served(start, slow, clients):
    running = start(Options(queue=2), slow.load)
    waiting = [clients.submit(running.infer, "slow", X)]
    assert slow.runtime.entered.acquire(timeout=10)
    waiting += [clients.submit(running.infer, "slow", X) for _ in range(2)]
    wait_pending(running, 3)
    status, reply, _ = running.infer("slow", X)
    assert status == 503
    assert reply["error"] == "inference queue is full with 2 requests"
    for _ in range(3):
        slow.runtime.go.release()
    assert [item.result(10)[0] for item in waiting] == [200, 200, 200]
    [stats] = running.ask("/v2/models/slow/stats")[1]["model_stats"]
    assert stats["inference_stats"]["success"]["count"] == 3
    assert stats["inference_stats"]["fail"]["count"] == 1


def test_bodies_that_do_not_fit_beside_the_others_answer_503(start, slow, clients):
    running = start(Options(limits=Limits(body_bytes=1000, inflight_bytes=1000)), slow.load)
    big = {**X, "shape": [20, 4], "data": [0] * 80}
    waiting = clients.submit(running.infer, "slow", big, id="x" * 400)
    assert slow.runtime.entered.acquire(timeout=10)
    status, reply, _ = running.infer("slow", big, id="x" * 400)
    assert status == 503
    assert "beside the others" in reply["error"]
    slow.runtime.go.release()
    assert waiting.result(10)[0] == 200


def test_a_failing_runtime_is_a_500_without_traceback(start, slow, clients):
    running = start(loader=slow.load)
    for problem in (InferenceError("model slow", "the device is lost"), ZeroDivisionError("secret/path.py line 3")):
        slow.runtime.problem = problem
        slow.runtime.go.release()
        status, reply, _ = running.infer("slow", X)
        assert status == 500
        assert "model slow" in reply["error"]
        assert "secret" not in reply["error"]
    slow.runtime.problem = None
    slow.runtime.go.release()
    assert running.infer("slow", X)[0] == 200


def test_what_nobody_thought_of_is_a_500_without_traceback(shop, start, monkeypatch, caplog):
    shop.identity("same")
    running = start()
    monkeypatch.setattr(DataPlane, "server_metadata", lambda plane: 1 / 0)
    status, reply, _ = running.ask("/v2")
    assert status == 500
    assert reply == {"error": "server: failed unexpectedly, its log says why"}
    assert "ZeroDivisionError" in caplog.text
    assert running.infer("same", X)[0] == 200


def test_not_ready_while_loading(shop, start):
    import threading

    shop.identity("same")
    gate = threading.Event()

    def load(source):
        from wherry_serving.models import load_model

        assert gate.wait(20)
        return load_model(source)

    running = start(loader=load, wait=False)
    status, reply, _ = running.ask("/v2/health/ready")
    assert (status, reply["reason"]) == (503, "loading")
    assert running.ask("/v2/health/live")[0] == 200
    assert running.ask("/v2/models/same/ready")[0] == 503
    assert running.infer("same", X)[0] == 503
    assert running.ask("/v2/repository/index", b"{}")[1][0]["state"] == "LOADING"
    assert running.ask("/v2/repository/index", b'{"ready": true}')[1] == []
    gate.set()
    while not running.ready:
        pass
    assert running.infer("same", X)[0] == 200
