"""Probabilities, best classes and their names."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wherry.errors import ConfigError, MalformedMessage
from wherry.release import LabelledOutput
from wherry_serving.labels import Labels, best, check_labelled, softmax
from wherry_serving.models import read_models

SCORES = arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**99), 2.0**99, width=32))
ANIMALS = ["cat", "dog", "wherry", "œuf"]


def labels(**more):
    return Labels(LabelledOutput(output="y", labels=ANIMALS, **more))


@given(SCORES)
def test_softmax_is_what_its_definition_says(scores):
    top = max(map(float, scores))
    powers = [math.exp(float(score) - top) for score in scores]
    wanted = [power / math.fsum(powers) for power in powers]
    np.testing.assert_allclose(softmax(scores), wanted, rtol=1e-9)


@given(SCORES, st.integers(1, 50))
def test_best_is_sorted_and_ties_go_to_the_lower_index(scores, count):
    wanted = sorted(range(len(scores)), key=lambda index: (-float(scores[index]), index))[:count]
    assert best(scores, count).tolist() == wanted


def test_rows_are_taken_apart():
    found = labels(top=2).readable({"y": np.array([[0, 3, 1, 2]], np.float32)})
    assert found == {"labels": [{"label": "dog", "index": 1, "score": 3.0}, {"label": "œuf", "index": 3, "score": 2.0}]}
    two = labels(top=1).readable({"y": np.eye(4, dtype=np.uint8)[1:3]})["labels"]
    assert [[item["label"] for item in row] for row in two] == [["dog"], ["wherry"]]
    assert labels().readable({"z": np.zeros(4)}) == {}
    assert labels().readable({"y": np.zeros((1001, 4))}) == {}
    assert Labels().readable({"y": np.zeros(4)}) == {}


def test_softmax_is_declared():
    found = labels(softmax=True).readable({"y": np.array([1, 1, 1, 1], np.float32)})["labels"]
    assert [item["score"] for item in found] == [0.25] * 4


@pytest.mark.parametrize("array", [np.array(["a"], object), np.array([True]), np.zeros((1, 0)), np.array(3.0)])
def test_what_has_no_classes_is_refused(array):
    with pytest.raises(MalformedMessage, match="holds no scores"):
        labels().classify("y", array, 1)


@pytest.mark.parametrize("binary", [True, False])
def test_the_classification_extension(shop, start, binary):
    spec = LabelledOutput(output="y", labels=ANIMALS, softmax=True)
    shop.identity("named", labelled=spec)
    shop.identity("plain")
    address = start().address
    rows = np.array([[0, 3, 1, 2], [9, 0, 0, 0]], np.float32)
    item = triton.InferInput("x", [2, 4], "FP32")
    item.set_data_from_numpy(rows)
    with triton.InferenceServerClient(address) as client:
        wanted = [triton.InferRequestedOutput("y", binary_data=binary, class_count=2)]
        found = client.infer("named", [item], outputs=wanted).as_numpy("y")
        text = [[value.decode() if isinstance(value, bytes) else value for value in row] for row in found]
        probability = softmax(rows)[0]
        assert text[0] == [f"{probability[1]:f}:1:dog", f"{probability[3]:f}:3:œuf"]
        assert text[1][0].endswith(":0:cat")
        found = client.infer("plain", [item], outputs=wanted).as_numpy("y")
        text = [[value.decode() if isinstance(value, bytes) else value for value in row] for row in found]
        assert text == [["3.000000:1", "2.000000:3"], ["9.000000:0", "0.000000:1"]]
        many = client.infer("plain", [item], outputs=[triton.InferRequestedOutput("y", class_count=99)])
        assert many.as_numpy("y").shape == (2, 4)


def test_tensors_stay_as_they_are_and_labels_come_when_asked(shop, start):
    shop.identity("named", labelled=LabelledOutput(output="y", labels=ANIMALS, softmax=True, top=1))
    running = start()
    item = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 3, 1, 2]}
    plain = running.infer("named", item)[1]
    assert plain["outputs"][0]["data"] == [0, 3, 1, 2]
    assert "parameters" not in plain
    asked = running.infer("named", item, parameters={"labels": True})[1]
    assert asked["outputs"] == plain["outputs"]
    assert [(item["label"], item["index"]) for item in asked["parameters"]["labels"]] == [("dog", 1)]
    metadata = running.ask("/v2/models/named")[1]["parameters"]
    assert metadata["labelled"] == {"output": "y", "classes": 4, "top": 1}


@pytest.mark.parametrize("asked", [-1, "3", True, 1.5])
def test_a_count_of_classes_must_be_one(shop, start, asked):
    shop.identity("same")
    item = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}
    status, reply, _ = start().infer("same", item, outputs=[{"name": "y", "parameters": {"classification": asked}}])
    assert (status, "classification" in reply["error"]) == (400, True)


@pytest.mark.parametrize(
    ("labelled", "said"),
    [
        (LabelledOutput(output="q", labels=ANIMALS), "are for output 'q', the model has y"),
        (LabelledOutput(output="y", labels=["one"]), "are 1, output 'y' has 4 classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused_at_the_start(shop, labelled, said):
    shop.identity("same", labelled=labelled)
    with pytest.raises(ConfigError) as caught:
        check_labelled(read_models(shop.folder)[0].file)
    assert said in str(caught.value)


def test_a_text_output_has_no_scores(shop):
    shop.identity("same", "BYTES", labelled=LabelledOutput(output="y", labels=ANIMALS))
    with pytest.raises(ConfigError, match="holds no scores"):
        check_labelled(read_models(shop.folder)[0].file)
