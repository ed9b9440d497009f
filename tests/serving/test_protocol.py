"""The Open Inference Protocol, driven by a client that others wrote."""

from __future__ import annotations

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


@pytest.fixture
def connect():
    clients = []

    def make(running):
        clients.append(triton.InferenceServerClient(running.address))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def tensor(name, array, datatype, binary=True):
    item = triton.InferInput(name, list(array.shape), datatype)
    item.set_data_from_numpy(array, binary_data=binary)
    return item


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_all_four_modes(shop, start, connect, numbers, binary_in, binary_out):
    shop.arithmetic()
    client = connect(start())
    a, b = numbers.random((2, 5, 3)).astype(np.float32)
    inputs = [tensor("a", a, "FP32", binary_in), tensor("b", b, "FP32", binary_in)]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("total", "difference")]
    result = client.infer("sums", inputs, outputs=outputs, request_id="r-1")
    np.testing.assert_array_equal(result.as_numpy("total"), a + b)
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("r-1", "sums", "1")


@pytest.mark.parametrize(
    ("datatype", "binary"),
    [(name, form) for name in DTYPES for form in (False, True) if (name, form) != ("FP16", False)],
)
def test_every_datatype(shop, start, connect, numbers, datatype, binary):
    shop.identity("same", datatype)
    client = connect(start())
    array = numbers.integers(0, 2, (3, 4)).astype(DTYPES[datatype])
    if datatype == "BYTES":
        array = np.array([[b"a", b"", "häßlich".encode(), b"x" * 300]] * 3, dtype=np.object_)
    outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
    found = client.infer("same", [tensor("x", array, datatype, binary)], outputs=outputs).as_numpy("y")
    if datatype == "BYTES" and not binary:
        found = np.array([[text.encode() for text in row] for row in found], dtype=np.object_)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True])
def test_compression_both_ways(shop, start, connect, numbers, coding, binary):
    shop.identity("same")
    client = connect(start())
    array = numbers.integers(0, 9, (500, 4)).astype(np.float32)
    result = client.infer(
        "same",
        [tensor("x", array, "FP32", binary)],
        outputs=[triton.InferRequestedOutput("y", binary_data=binary)],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_answers_are_really_compressed_when_asked_and_worth_it(shop, start):
    shop.identity("same")
    running = start()
    item = {"name": "x", "datatype": "FP32", "shape": [500, 4], "data": [0] * 2000}
    path, body = "/v2/models/same/infer", {"inputs": [item]}
    assert running.ask(path, body, Accept_Encoding="br, gzip;q=0.5")[2]["content-encoding"] == "gzip"
    assert running.ask(path, body, Accept_Encoding="gzip;q=0, deflate")[2]["content-encoding"] == "deflate"
    assert "content-encoding" not in running.ask(path, body, Accept_Encoding="br")[2]
    small = {"inputs": [{**item, "shape": [1, 4], "data": [0] * 4}]}
    assert "content-encoding" not in running.ask(path, small, Accept_Encoding="gzip")[2]


def test_all_outputs_come_when_none_is_named_and_one_when_one_is(shop, start, connect, numbers):
    shop.arithmetic()
    client = connect(start())
    inputs = [tensor(name, np.ones((1, 3), np.float32), "FP32") for name in "ab"]
    names = [output["name"] for output in client.infer("sums", inputs).get_response()["outputs"]]
    assert names == ["total", "difference"]
    only = client.infer("sums", inputs, outputs=[triton.InferRequestedOutput("difference")])
    assert [output["name"] for output in only.get_response()["outputs"]] == ["difference"]


def test_several_models_in_one_process(shop, start, connect):
    shop.identity("first", "UINT8", version="2")
    shop.identity("second", "INT64", [2, -1])
    client = connect(start())
    assert client.is_server_live()
    assert client.is_server_ready()
    for name, version in (("first", "2"), ("second", "1")):
        assert client.is_model_ready(name)
        assert client.is_model_ready(name, version)
        assert not client.is_model_ready(name, "9")
    index = client.get_model_repository_index()
    assert [(item["name"], item["version"], item["state"]) for item in index] == [
        ("first", "2", "READY"),
        ("second", "1", "READY"),
    ]
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    found = client.infer("second", [tensor("x", array, "INT64")], model_version="1").as_numpy("y")
    np.testing.assert_array_equal(found, array)


def test_metadata_says_what_the_session_really_uses(shop, start, connect):
    shop.identity("same", "BYTES", precision="int8")
    client = connect(start())
    assert client.get_model_metadata("same") == {
        "name": "same",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "BYTES", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "BYTES", "shape": [-1, 4]}],
        "parameters": {"provider": "CPUExecutionProvider", "runtime": "onnx", "precision": "int8"},
    }
    assert client.get_server_metadata()["name"] == "wherry-serving"
    config = client.get_model_config("same")
    assert config["input"] == [{"name": "x", "data_type": "TYPE_STRING", "dims": [-1, 4]}]


def test_statistics_count_successes_and_failures(shop, start, connect):
    shop.identity("same")
    shop.identity("other")
    running = start()
    client = connect(running)
    good = [tensor("x", np.ones((1, 4), np.float32), "FP32")]
    for _ in range(3):
        client.infer("same", good)
    with pytest.raises(InferenceServerException, match="expected FP32"):
        client.infer("same", [tensor("x", np.ones((1, 4), np.int32), "INT32")])
    [stats] = client.get_inference_statistics("same")["model_stats"]
    assert (stats["inference_count"], stats["execution_count"]) == (3, 3)
    parts = stats["inference_stats"]
    assert parts["success"]["count"] == 3
    assert parts["fail"]["count"] == 1
    spent = sum(parts[part]["ns"] for part in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert parts["success"]["ns"] == spent
    assert sum(stats["wherry"]["latency"]) == 3
    assert stats["wherry"]["memory_bytes"] > 10_000_000
    assert len(client.get_inference_statistics()["model_stats"]) == 2
    text = running.ask("/metrics")[1].decode()
    assert 'nv_inference_request_success{model="same",version="1"} 3' in text
    assert 'nv_inference_request_failure{model="same",version="1"} 1' in text
    assert 'wherry_inference_request_duration_seconds_count{model="same",version="1"} 3' in text
    assert 'nv_inference_count{model="other",version="1"} 0' in text


def test_content_type_and_slashes_do_not_matter(shop, start):
    shop.identity("same")
    running = start()
    item = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [[1, 2, 3, 4]]}
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        status, reply, _ = running.ask("/v2/models/same/infer", {"inputs": [item]}, Content_Type=kind)
        assert status == 200
        assert reply["outputs"][0]["data"] == [1, 2, 3, 4]
    assert running.ask("/v2/")[0] == 200
    assert running.ask("/v2/health/ready", method="HEAD")[0] == 200


def test_probes_are_answered_but_not_counted(shop, start):
    shop.identity("same")
    running, path = start(), "/v2/models/same"
    good = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    assert running.ask(f"{path}/infer", good, Wherry_Probe="1")[0] == 200
    assert running.ask(f"{path}/infer", {}, Wherry_Probe="1")[0] == 400
    assert running.ask(f"{path}/infer", b"x", Wherry_Probe="1", Content_Encoding="br")[0] == 415
    stats = running.ask(f"{path}/stats")[1]["model_stats"][0]
    assert (stats["inference_stats"]["success"]["count"], stats["inference_stats"]["fail"]["count"]) == (0, 0)
    assert sum(stats["wherry"]["latency"]) == 0
    running.ask(f"{path}/infer", good)
    assert running.ask(f"{path}/stats")[1]["model_stats"][0]["inference_stats"]["success"]["count"] == 1


def test_statistics_name_the_process_that_counts(shop, start):
    shop.identity("same")
    first, second = start(), start()
    names = [
        running.ask("/v2/models/same/stats")[1]["model_stats"][0]["wherry"]["instance"]
        for running in (first, first, second)
    ]
    assert names[0] == names[1] != names[2]
    assert all(names)
