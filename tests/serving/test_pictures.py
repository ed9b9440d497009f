"""Pictures posted to a real server."""

from __future__ import annotations

import gzip
import io
import json
import threading

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from wherry.errors import ConfigError
from wherry.release import LabelledOutput, PictureInput, TensorSpec
from wherry_serving.app import Options
from wherry_serving.models import load_model, read_models
from wherry_serving.pictures import Pictures

PATH = "/v2/models/eye/infer"
PNG = {"Content_Type": "image/png"}


def picture(colour=(200, 100, 50), kind="PNG", size=(9, 7)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


def spec(name, datatype, shape):
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def eye(shop, datatype="FP32", layout="NCHW", **more):
    """The mean colour of a 4 x 4 picture, named."""
    shape, axes = ([-1, 3, 4, 4], [2, 3]) if layout == "NCHW" else ([1, 4, 4, 3], [1, 2])
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=1),
        helper.make_node("ReduceMean", ["f"], ["y"], axes=axes, keepdims=0),
    ]
    declared = PictureInput(input="x", width=4, height=4, layout=layout, **more)
    labelled = LabelledOutput(output="y", labels=["red", "green", "blue"], top=2)
    batch = shape[0]
    return shop.save(
        "eye",
        nodes,
        [spec("x", datatype, shape)],
        [spec("y", "FP32", [batch, 3])],
        picture=declared,
        labelled=labelled,
    )


@pytest.mark.parametrize(("datatype", "layout"), [("FP32", "NCHW"), ("UINT8", "NHWC"), ("FP16", "NHWC")])
def test_a_picture_gives_the_ordinary_answer_with_labels(shop, start, datatype, layout):
    eye(shop, datatype, layout)
    running = start()
    for path in (PATH, "/v2/models/eye/versions/1/infer"):
        status, reply, headers = running.ask(path, picture(), **PNG)
        assert (status, headers["content-type"]) == (200, "application/json")
        assert (reply["model_name"], reply["model_version"]) == ("eye", "1")
        assert reply["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [200, 100, 50]}]
        assert reply["parameters"]["labels"] == [
            {"label": "red", "index": 0, "score": 200.0},
            {"label": "green", "index": 1, "score": 100.0},
        ]


@pytest.mark.parametrize(
    ("kind", "content_type"),
    [
        ("JPEG", "image/jpeg"),
        ("WEBP", "image/webp"),
        ("BMP", "image/bmp"),
        ("PPM", "image/x-portable-pixmap"),
        ("PNG", "image/jpeg; charset=binary"),
    ],
)
def test_every_type_is_taken(shop, start, kind, content_type):
    eye(shop, scale=1 / 255)
    status, reply, _ = start().ask(PATH, picture(kind=kind), Content_Type=content_type)
    assert status == 200
    np.testing.assert_allclose(reply["outputs"][0]["data"], np.array([200, 100, 50]) / 255, atol=0.02)


def test_outputs_may_be_asked_for_in_binary_form_and_bodies_packed(shop, start):
    eye(shop)
    running = start()
    _, body, headers = running.ask(PATH, picture(), Accept="application/octet-stream", **PNG)
    length = int(headers["inference-header-content-length"])
    assert np.frombuffer(body[length:], np.float32).tolist() == [200, 100, 50]
    assert json.loads(body[:length])["parameters"]["labels"][0]["label"] == "red"
    assert running.ask(PATH, gzip.compress(picture()), Content_Encoding="gzip", **PNG)[0] == 200


@pytest.mark.parametrize(
    ("body", "content_type", "status", "said"),
    [
        (b"no picture", "image/png", 400, "picture is not a JPEG, PNG, WebP, BMP or PPM file"),
        (picture(size=(200, 200), kind="JPEG")[:400], "image/jpeg", 400, "picture is broken or cut off"),
        (
            b"P6 70000 70000 255\n",
            "image/x-portable-pixmap",
            400,
            "70000 x 70000 pixels (PPM, RGB), which take 19600 MB to decode",
        ),
        (b"GIF89a", "image/gif", 415, "is of type 'image/gif', expected one of image/jpeg"),
    ],
)
def test_what_cannot_be_used_is_refused_and_counted(shop, start, body, content_type, status, said):
    eye(shop)
    running = start()
    found, reply, _ = running.ask(PATH, body, Content_Type=content_type)
    assert (found, said in reply["error"]) == (status, True), reply
    stats = running.ask("/v2/models/eye/stats")[1]["model_stats"][0]["inference_stats"]
    assert (stats["fail"]["count"], stats["success"]["count"]) == (1, 0)
    assert running.ask(PATH, picture(), **PNG)[0] == 200


def test_a_model_that_takes_tensors_says_so(shop, start):
    shop.identity("plain")
    status, reply, _ = start().ask("/v2/models/plain/infer", picture(), **PNG)
    assert (status, "takes no pictures" in reply["error"]) == (400, True)


def test_tensors_are_still_taken(shop, start):
    eye(shop)
    item = {"name": "x", "datatype": "FP32", "shape": [1, 3, 4, 4], "data": [1] * 48}
    status, reply, _ = start().infer("eye", item)
    assert (status, reply["outputs"][0]["data"]) == (200, [1, 1, 1])


def test_metadata_tells_that_pictures_are_taken(shop, start):
    eye(shop, fit="contain")
    found = start().ask("/v2/models/eye")[1]["parameters"]["picture"]
    assert found["types"][0] == "image/jpeg"
    fields = ("input", "width", "height", "layout", "colour", "fit")
    assert [found[name] for name in fields] == ["x", 4, 4, "NCHW", "rgb", "contain"]


def test_decoding_counts_as_latency_and_leaves_health_free(shop, start, monkeypatch):
    eye(shop)
    entered, go = threading.Event(), threading.Event()
    decode = Pictures.inputs

    def slowly(self, data):
        entered.set()
        assert go.wait(20)
        return decode(self, data)

    monkeypatch.setattr(Pictures, "inputs", slowly)
    running = start(Options(queue=1))
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(running.ask(PATH, picture(), **PNG)[0])) for _ in range(2)
    ]
    threads[0].start()
    assert entered.wait(20)
    threads[1].start()
    assert running.ask("/v2/health/live")[0] == 200
    refused = 0
    while refused != 503:  # until the second waits in the queue, which is then full
        connection = running.ask("/metrics")[1].decode()
        if "pending_request_count 2" in connection:
            refused = running.ask(PATH, picture(), **PNG)[0]
    go.set()
    for thread in threads:
        thread.join(20)
    assert answers == [200, 200]
    times = running.ask("/v2/models/eye/stats")[1]["model_stats"][0]["inference_stats"]
    assert times["compute_input"]["ns"] > times["compute_infer"]["ns"]


def two_inputs(shop, datatype="INT64", **more):
    """y = mean of the picture + size."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Cast", ["size"], ["f"], to=1),
        helper.make_node("Add", ["m", "f"], ["y"]),
    ]
    inputs = [spec("x", "FP32", [1, 3, 4, 4]), spec("size", datatype, [-1, 2])]
    declared = PictureInput(input="x", width=4, height=4, **more)
    return shop.save("eye", nodes, inputs, [spec("y", "FP32", [-1, 2])], picture=declared)


@pytest.mark.parametrize(("values", "added"), [([640, 480], [640, 480]), ([7], [7, 7])])
def test_other_inputs_have_the_declared_values(shop, start, values, added):
    two_inputs(shop, fixed={"size": values})
    reply = start().ask(PATH, picture((9, 9, 9)), **PNG)[1]
    assert reply["outputs"][0]["data"] == [9 + value for value in added]
    assert "parameters" not in reply


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda shop: two_inputs(shop), "leaves input 'size' without a value, expected one under fixed"),
        (lambda shop: two_inputs(shop, fixed={"size": [1, 2, 3]}), "gives input 'size' 3 values, expected 2"),
        (lambda shop: eye(shop, colour="gray"), "gives [1, 1, 4, 4] (NCHW), input 'x' is [-1, 3, 4, 4]"),
        (lambda shop: eye(shop, "BOOL"), "fills input 'x', which is BOOL, expected numbers"),
        (lambda shop: eye(shop, mean=[1.0]), "has 1 numbers in mean, expected 3"),
        (lambda shop: eye(shop, std=[1.0, 0.0, 1.0]), "has a 0 in std"),
        (
            lambda shop: shop.identity("eye", picture=PictureInput(input="q", width=1, height=1)),
            "fills input 'q', the model has x",
        ),
    ],
)
def test_declarations_that_do_not_fit_are_refused_at_the_start(shop, make, said):
    make(shop)
    with pytest.raises(ConfigError) as caught:
        load_model(read_models(shop.folder)[0])
    assert said in str(caught.value)
