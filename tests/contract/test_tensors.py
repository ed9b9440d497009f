"""Tensors survive the wire in both forms, and what is wrong with them is said by name."""

from __future__ import annotations

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.elements import FLOATS, pack_bytes, unpack_bytes
from wherry.errors import InferenceError, MalformedMessage
from wherry.release import GoldenTensor
from wherry.tensors import (
    ELEMENT_SIZE,
    InferResponse,
    Tensor,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    make_tensor,
    tensor_from_golden,
    tensor_from_json,
    tensor_from_values,
    tensor_to_golden,
    tensor_to_json,
)

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
NAMES = st.text(min_size=1, max_size=12)


@st.composite
def raw_tensors(draw):
    """Any bytes of any datatype: NaN, Inf and every bit pattern included."""
    datatype, shape = draw(st.sampled_from([*ELEMENT_SIZE, "BYTES"])), draw(SHAPES)
    count = math.prod(shape)
    if datatype == "BYTES":
        data = pack_bytes(draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count)))
    elif datatype == "BOOL":
        data = bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    else:
        size = count * ELEMENT_SIZE[datatype]
        data = draw(st.binary(min_size=size, max_size=size))
    return make_tensor(draw(NAMES), datatype, shape, data)


def has_json_form(tensor: Tensor) -> bool:
    if tensor.datatype == "FP16":
        return False
    if tensor.datatype == "BYTES":
        try:
            return all(item.decode() is not None for item in unpack_bytes(tensor.data))
        except UnicodeDecodeError:
            return False
    return tensor.datatype not in FLOATS or all(math.isfinite(float(value)) for value in tensor.values())


def unique(tensors):
    return list({tensor.name: tensor for tensor in tensors}.values())


@given(st.lists(raw_tensors(), max_size=4).map(unique), st.none() | st.lists(NAMES, max_size=3), st.none() | st.text())
def test_a_binary_request_comes_back_as_it_was_sent(inputs, outputs, request_id):
    body, length = encode_request(inputs, outputs, request_id)
    request = decode_request(body, length)
    assert list(request.inputs) == inputs
    assert [output.name for output in request.outputs] == (outputs or [])
    assert all(output.binary for output in request.outputs)
    assert request.binary_output == (outputs is None)
    assert request.id == (request_id or "")


@given(st.lists(raw_tensors().filter(has_json_form), max_size=4).map(unique))
def test_a_json_request_comes_back_bit_for_bit(inputs):
    body, length = encode_request(inputs, binary=False)
    assert length is None
    assert list(decode_request(body, None).inputs) == inputs


@given(st.lists(raw_tensors(), max_size=4).map(unique), st.data())
def test_a_response_mixes_both_forms(outputs, data):
    binary = {tensor.name: not has_json_form(tensor) or data.draw(st.booleans()) for tensor in outputs}
    sent = InferResponse("vision", "2", "7", tuple(outputs))
    body, length = encode_response(sent, binary.__getitem__)
    assert decode_response(body, length) == sent


@given(raw_tensors())
def test_a_golden_tensor_keeps_every_bit(tensor):
    again = GoldenTensor.model_validate_json(tensor_to_golden(tensor).model_dump_json())
    assert tensor_from_golden(again) == tensor


@given(st.binary(max_size=200), st.none() | st.integers(0, 250))
def test_no_body_breaks_the_decoder(body, length):
    for decode in (decode_request, decode_response):
        with pytest.raises((MalformedMessage, InferenceError)):
            decode(body, length)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=20))
def test_no_json_data_breaks_the_decoder(data):
    for datatype in ("FP32", "INT8", "BOOL", "BYTES", "FP16", "nonsense"):
        try:
            tensor = tensor_from_json({"name": "x", "datatype": datatype, "shape": [2], "data": data})
        except MalformedMessage as error:
            assert "'x'" in error.thing  # noqa: PT017
        else:
            assert len(tensor.values()) == 2


def test_a_request_carries_parameters():
    for outputs in (None, ["y"]):
        body, length = encode_request([], outputs, parameters={"sequence_start": True})
        assert decode_request(body, length).parameters["sequence_start"] is True


def test_values_are_little_endian():
    assert list(make_tensor("x", "INT16", [2], b"\x01\x00\xff\xff").values()) == [1, -1]
    assert list(make_tensor("x", "FP16", [1], struct.pack("<e", 1.5)).values()) == [1.5]
    assert make_tensor("x", "BYTES", [2], b"\x01\x00\x00\x00a\x00\x00\x00\x00").values() == [b"a", b""]
    assert list(make_tensor("x", "BOOL", [2], b"\x00\x01").values()) == [False, True]


def test_nested_and_flat_data_are_the_same():
    flat = {"name": "x", "datatype": "INT32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}
    assert tensor_from_json(flat) == tensor_from_json({**flat, "data": [[1, 2, 3], [4, 5, 6]]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": [1, 2]}, "2 values, expected 4"),
        ({"data": [1, 2, 3, "4"]}, "not FP32"),
        ({"data": [[1, 2], 3, 4]}, "mixes rows and values"),
        ({"data": None}, "no data"),
        ({"datatype": "FLOAT"}, "expected one of BOOL"),
        ({"datatype": None}, "no datatype"),
        ({"shape": [-1, 4]}, "shape"),
        ({"shape": [True, 4]}, "shape"),
        ({"shape": "4"}, "shape"),
        ({"datatype": "FP16"}, "no JSON form"),
        ({"datatype": "UINT8", "data": [1, 2, 3, 256]}, "not UINT8"),
        ({"datatype": "INT32", "data": [1, 2, 3, 1.5]}, "not INT32"),
        ({"datatype": "BOOL", "data": [True, 0, 1, 2]}, "not BOOL"),
        ({"datatype": "BYTES", "data": ["a", "b", "c", 4]}, "not BYTES"),
        ({"parameters": 3}, "parameters"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_said_by_name(change, said):
    item = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4], **change}
    with pytest.raises(MalformedMessage, match=said) as caught:
        decode_request(json.dumps({"inputs": [item]}).encode(), None)
    assert "'x'" in caught.value.thing


@pytest.mark.parametrize(
    ("head", "tail", "said"),
    [
        ({"inputs": [{"name": "x", "parameters": {"binary_data_size": 8}}]}, b"1234", "expected 0 to 4"),
        ({"inputs": [{"name": "x", "parameters": {"binary_data_size": -1}}]}, b"1234", "binary_data_size -1"),
        ({"inputs": [{"name": "x", "parameters": {"binary_data_size": True}}]}, b"1234", "binary_data_size True"),
        ({"inputs": [{"name": "x", "parameters": {"binary_data_size": 3}}]}, b"123", "3 bytes, expected 4"),
        ({"inputs": [{"name": "x", "parameters": {"binary_data_size": 4}}]}, b"12345", "uses 4 bytes"),
        ({"inputs": [{"name": "x", "data": [1]}, {"name": "x", "data": [1]}]}, b"", "given twice"),
    ],
)
def test_binary_sizes_must_add_up(head, tail, said):
    for item in head["inputs"]:
        item |= {"datatype": "FP32", "shape": [1]}
    text = json.dumps(head).encode()
    with pytest.raises(MalformedMessage, match=said):
        decode_request(text + tail, len(text))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"inputs": 3}', b'{"inputs": [3]}', b'{"inputs": [], "id": 3}'])
def test_bodies_that_are_not_requests(body):
    with pytest.raises(MalformedMessage):
        decode_request(body, None)


def test_bytes_that_run_past_the_end():
    for data in (b"\x05\x00\x00\x00abc", b"\x05\x00"):
        with pytest.raises(MalformedMessage, match="runs past the end"):
            unpack_bytes(data)


def test_no_json_form_for_nan_fp16_and_bytes_that_are_not_text():
    for tensor in (
        tensor_from_values("x", "FP32", [1], [math.nan]),
        tensor_from_values("x", "FP16", [1], [1.0]),
        tensor_from_values("x", "BYTES", [1], [b"\xff"]),
    ):
        with pytest.raises(MalformedMessage, match="binary"):
            tensor_to_json(tensor)


def test_an_error_answer_is_an_inference_error():
    with pytest.raises(InferenceError, match="queue is full"):
        decode_response(b'{"error": "the queue is full"}', None)


def test_a_response_gives_its_outputs_by_name():
    tensor = tensor_from_values("y", "INT64", [1], [2**62])
    response = InferResponse("m", "1", "", (tensor,))
    assert response.output("y") is tensor
    with pytest.raises(InferenceError, match="no output 'z'"):
        response.output("z")
