"""Tensors on the wire: the Open Inference Protocol v2 in JSON and with its binary extension.

A body is JSON, or JSON followed by the raw bytes of its binary tensors in listed order; the header
`Inference-Header-Content-Length` then says where the JSON ends. FP16 has no JSON form. Values and raw bytes are in
`wherry.elements`, requests and responses in `wherry.inference`; their names are public here too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, get_args

from wherry.elements import (
    ELEMENT_SIZE,
    Data,
    Tensor,
    json_values,
    make_tensor,
    tensor_from_golden,
    tensor_from_values,
    tensor_to_golden,
)
from wherry.errors import InferenceError, MalformedMessage
from wherry.inference import InferRequest, InferResponse, RequestedOutput
from wherry.release import Datatype

__all__ = [
    "ELEMENT_SIZE",
    "HEADER_LENGTH",
    "PROBE",
    "TOKEN",
    "InferRequest",
    "InferResponse",
    "RequestedOutput",
    "Tensor",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
    "json_values",
    "make_tensor",
    "tensor_from_golden",
    "tensor_from_json",
    "tensor_from_values",
    "tensor_to_golden",
    "tensor_to_json",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
PROBE = "Wherry-Probe"
"""Header of a request that tries the model out (value "1"): it is answered as any other, but not counted."""
TOKEN = "Wherry-Token"  # noqa: S105 - the name of a header
"""Header by which the agent shows a model server that it may read the requests of its callers."""

Loads = Callable[[Data], Any]
Dumps = Callable[[Any], bytes]


def _flat(name: str, data: Any) -> list[Any]:
    """JSON data may be nested by row or flat."""
    while isinstance(data, list) and data and isinstance(data[0], list):
        if not all(isinstance(row, list) for row in data):
            raise MalformedMessage(f"tensor {name[:120]!r}", "has data that mixes rows and values, expected one depth")
        data = list(chain.from_iterable(data))
    if not isinstance(data, list):
        raise MalformedMessage(f"tensor {name[:120]!r}", "has no data, expected a JSON list or binary_data_size")
    return data


def _head(item: Any, kind: str) -> tuple[str, str, list[int], Mapping[str, Any]]:
    """Name, datatype, shape and parameters of a tensor in JSON, checked."""
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise MalformedMessage(kind, "has no name, expected {name, datatype, shape, data}")
    name, datatype, shape = item["name"], item.get("datatype"), item.get("shape")
    thing = f"{kind} {name[:120]!r}"
    if not isinstance(datatype, str):
        raise MalformedMessage(thing, f"has no datatype, expected one of {', '.join(get_args(Datatype))}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise MalformedMessage(thing, "has no usable shape, expected a list of whole numbers from 0 up")
    return name, datatype, shape, _object(item.get("parameters"), thing)


def _object(value: Any, thing: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedMessage(thing, "has parameters that are not a JSON object")
    return value


def tensor_from_json(item: Any, kind: str = "tensor") -> Tensor:
    """A tensor from its JSON form, `data` flat or nested.

    Raises:
        MalformedMessage: naming the tensor and what is wrong with it.
    """
    name, datatype, shape, _ = _head(item, kind)
    if datatype == "FP16":
        raise MalformedMessage(f"{kind} {name!r}", "is FP16, which has no JSON form, expected binary data")
    return tensor_from_values(name, datatype, shape, _flat(name, item.get("data")))


def tensor_to_json(tensor: Tensor) -> dict[str, Any]:
    """The JSON form of a tensor; raises as `json_values` does."""
    return _json_head(tensor, json_values)


def _json_head(tensor: Tensor, values: Callable[[Tensor], Any]) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "data": values(tensor)}


def _binary_head(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": tensor.shape,
        "parameters": {"binary_data_size": len(tensor.data)},
    }


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _loads(data: Data) -> Any:
    return json.loads(bytes(data))


def _join(head: Mapping[str, Any], tails: list[Data], dumps: Dumps) -> tuple[bytes, int | None]:
    text = dumps(head)
    return (b"".join([text, *tails]), len(text)) if tails else (text, None)


def encode_request(
    inputs: Sequence[Tensor],
    outputs: Sequence[str] | None = None,
    request_id: str | None = None,
    binary: bool = True,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[bytes, int | None]:
    """The body of an inference request and the value for the `HEADER_LENGTH` header (None: do not send it).

    Args:
        inputs: the input tensors.
        outputs: names of the outputs wanted; None for all.
        request_id: the server echoes it.
        binary: send the inputs, and ask for the outputs, in binary form; otherwise JSON.
        parameters: of the request; `sequence_start` true makes a stateful model forget its state first.
    """
    extra = dict(parameters or {})
    head: dict[str, Any] = {} if request_id is None else {"id": request_id}
    head["inputs"] = [_binary_head(tensor) if binary else tensor_to_json(tensor) for tensor in inputs]
    if outputs is None:
        extra["binary_data_output"] = binary
    else:
        head["outputs"] = [{"name": name, "parameters": {"binary_data": binary}} for name in outputs]
    if extra:
        head["parameters"] = extra
    return _join(head, [tensor.data for tensor in inputs] if binary else [], _dumps)


def encode_response(
    response: InferResponse,
    binary: Callable[[str], bool],
    dumps: Dumps = _dumps,
    values: Callable[[Tensor], Any] = json_values,
) -> tuple[bytes, int | None]:
    """The body of an inference response and the value for the `HEADER_LENGTH` header (None: do not send it).

    Args:
        response: what to send.
        binary: output name -> whether it was asked for in binary form.
        dumps: JSON writer, for a faster one than the standard library's.
        values: what `dumps` is given for the elements of a tensor in JSON form.
    """
    outputs: list[dict[str, Any]] = []
    tails: list[Data] = []
    for tensor in response.outputs:
        if binary(tensor.name):
            outputs.append(_binary_head(tensor))
            tails.append(tensor.data)
        else:
            outputs.append(_json_head(tensor, values))
    head: dict[str, Any] = {"model_name": response.model, "model_version": response.version, "outputs": outputs}
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = dict(response.parameters)
    return _join(head, tails, dumps)


def _split(body: Data, header_length: int | None, kind: str, loads: Loads) -> tuple[dict[str, Any], memoryview]:
    end = len(body) if header_length is None else header_length
    if not 0 <= end <= len(body):
        raise MalformedMessage(kind, f"{HEADER_LENGTH} is {end}, expected 0 to {len(body)}, the length of the body")
    try:
        head = loads(memoryview(body)[:end])
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(kind, f"is not usable JSON ({str(error)[:120]})") from error
    if not isinstance(head, dict):
        raise MalformedMessage(kind, "is not a JSON object")
    return head, memoryview(body)[end:]


def _tensors(items: Any, tail: memoryview, kind: str) -> tuple[Tensor, ...]:
    """The tensors of a message: JSON ones from their `data`, binary ones from the tail, in order."""
    if not isinstance(items, list):
        raise MalformedMessage(kind, f"list is missing, expected {kind}s: [...]")
    found: dict[str, Tensor] = {}
    at = 0
    for item in items:
        name, datatype, shape, parameters = _head(item, kind)
        size = parameters.get("binary_data_size")
        if size is None:
            tensor = tensor_from_json(item, kind)
        else:
            if type(size) is not int or not 0 <= size <= len(tail) - at:
                reason = f"has binary_data_size {size!r}, expected 0 to {len(tail) - at}, the bytes that are left"
                raise MalformedMessage(f"{kind} {name[:120]!r}", reason)
            tensor = make_tensor(name, datatype, shape, tail[at : at + size])
            at += size
        if name in found:
            raise MalformedMessage(f"{kind} {name[:120]!r}", "is given twice, expected once")
        found[name] = tensor
    if at != len(tail):
        raise MalformedMessage(kind, f"list uses {at} bytes of binary data, but the body holds {len(tail)}")
    return tuple(found.values())


def _requested(items: Any, default: bool) -> tuple[RequestedOutput, ...]:
    if items is None:
        return ()
    if not isinstance(items, list):
        raise MalformedMessage("inference request", "has outputs that are not a list")
    found = []
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise MalformedMessage("requested output", "has no name, expected {name, parameters}")
        thing = f"requested output {item['name'][:120]!r}"
        parameters = _object(item.get("parameters"), thing)
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise MalformedMessage(thing, f"has classification {str(classes)[:40]!r}, expected how many classes")
        found.append(RequestedOutput(item["name"], bool(parameters.get("binary_data", default)), classes))
    return tuple(found)


def _text(head: Mapping[str, Any], key: str, kind: str) -> str:
    value = head.get(key, "")
    if not isinstance(value, str):
        raise MalformedMessage(kind, f"has a field {key} that is not a string")
    return value


def decode_request(body: Data, header_length: int | None, loads: Loads = _loads) -> InferRequest:
    """Read an inference request. Binary tensors are views into `body`: nothing is copied.

    Args:
        body: the whole body.
        header_length: value of the `HEADER_LENGTH` header, None without it.
        loads: JSON reader, for a faster one than the standard library's.

    Raises:
        MalformedMessage: naming the tensor, what is wrong and what was expected.
    """
    kind = "inference request"
    head, tail = _split(body, header_length, kind, loads)
    parameters = _object(head.get("parameters"), kind)
    default = bool(parameters.get("binary_data_output", False))
    return InferRequest(
        id=_text(head, "id", kind),
        inputs=_tensors(head.get("inputs"), tail, "input"),
        outputs=_requested(head.get("outputs"), default),
        binary_output=default,
        parameters=parameters,
    )


def decode_response(body: Data, header_length: int | None, loads: Loads = _loads) -> InferResponse:
    """Read an inference response; arguments as for `decode_request`.

    Raises:
        InferenceError: the body is an error response of the protocol.
        MalformedMessage: the body is not an inference response.
    """
    kind = "inference response"
    head, tail = _split(body, header_length, kind, loads)
    if "error" in head:
        raise InferenceError("model server", str(head["error"])[:500])
    return InferResponse(
        model=_text(head, "model_name", kind),
        version=_text(head, "model_version", kind),
        id=_text(head, "id", kind),
        outputs=_tensors(head.get("outputs"), tail, "output"),
        parameters=_object(head.get("parameters"), kind),
    )
