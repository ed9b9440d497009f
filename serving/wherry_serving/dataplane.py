"""What the server can do, without HTTP: the Open Inference Protocol over loaded models."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from wherry import __version__
from wherry.errors import AdmissionError, InferenceError, MalformedMessage, NotFound, WherryError
from wherry.release import TensorSpec
from wherry.tensors import InferRequest, InferResponse, Tensor, decode_request, encode_response
from wherry_serving.arrays import check_inputs, fast_json_values, from_array, to_array
from wherry_serving.metrics import ModelCounters
from wherry_serving.models import Model, ModelSource, load_model
from wherry_serving.pace import Work
from wherry_serving.recent import RecentRequests
from wherry_serving.runtimes import Array
from wherry_serving.stats import ModelStats, Timing, statistics_json

EXTENSIONS = ("binary_tensor_data", "classification", "statistics", "model_configuration", "model_repository")
_CPU = "CPUExecutionProvider"
_WITH_LABELS = {"labels": True}
_BACKENDS = {"onnx": "onnxruntime", "litert": "litert", "tflite": "tflite"}
_CONFIG_TYPES = {"BYTES": "STRING"}


@dataclass(frozen=True, slots=True)
class Inference:
    """An inference request as it came, and when (`time.perf_counter_ns`).

    Attributes:
        form: what the body is: "tensors" in the protocol's form, or a "picture" file.
        binary: for a picture, whether the outputs go out in binary form.
        counted: whether it counts in the statistics; a probe does not.
    """

    body: bytes
    header_length: int | None
    submitted_ns: int
    form: Literal["tensors", "picture"] = "tensors"
    binary: bool = False
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """An encoded inference response; `header_length` is None when it is JSON alone."""

    body: bytes
    header_length: int | None


class NotQuick(Exception):
    """A request that turned out, once read, to belong on the inference thread; nothing was run or counted."""


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class DataPlane:
    """The models of this process.

    Args:
        sources: what to load.
        clock_ms: Unix milliseconds, for "last inference".
        loader: makes a model of a source.
        recent: keeps the latest requests; None keeps none.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        clock_ms: Callable[[], int] = now_ms,
        loader: Callable[[ModelSource], Model] = load_model,
        recent: RecentRequests | None = None,
    ) -> None:
        self.recent = recent
        self._sources = {source.file.name: source for source in sources}
        self._clock_ms = clock_ms
        self._loader = loader
        self._models: dict[str, Model] = {}
        self._probes = ModelStats()
        self._instance = secrets.token_hex(8)
        self._reported: int | None = None

    def load(self) -> None:
        """Load and warm every model. Blocks; call it on the inference thread.

        Raises:
            ConfigError: see `load_model`.
            ModelError: see `load_model`.
        """
        for name, source in self._sources.items():
            self._models[name] = self._loader(source)

    @property
    def ready(self) -> bool:
        """Whether every model has run once with its declared provider."""
        return len(self._models) == len(self._sources)

    @property
    def models(self) -> Sequence[Model]:
        """The loaded models."""
        return tuple(self._models.values())

    def model(self, name: str, version: str = "") -> Model:
        """A loaded model; an empty version means the one there is.

        Raises:
            NotFound: no such model or version.
            AdmissionError: it is still loading.
        """
        source = self._sources.get(name)
        if source is None:
            raise NotFound(f"model {name[:120]!r}", f"is not here, this server has {', '.join(self._sources)}")
        if version and version != source.file.version:
            raise NotFound(
                f"model {name} {version[:120]}", f"is not here, this server has version {source.file.version}"
            )
        model = self._models.get(name)
        if model is None:
            raise AdmissionError(f"model {name}", "is still loading", "Ask again when it is ready")
        return model

    def infer(self, model: Model, inference: Inference, at_once: bool = False) -> Answer:
        """Decode, run, encode, count. Blocks; call it on the inference thread, or `at_once` on the event loop.

        The request parameter `sequence_start` makes a stateful model forget its state first, `labels` adds the named
        classes to the response's parameters (see `wherry_serving.labels`). A picture is a request for all outputs
        with their labels.

        Raises:
            MalformedMessage: the request is wrong.
            InferenceError: the runtime failed.
            NotQuick: only with `at_once`.
        """
        started = time.perf_counter_ns()
        stats = model.stats if inference.counted else self._probes
        try:
            request = _read_request(model, inference)
            wanted = _wanted(model, request)
            arrays = _read_inputs(model, inference, request)
            asked = _work(model, arrays, wanted)
            begins = request.parameters.get("sequence_start") is True
            if at_once:
                _only_quick(model, asked, begins)
            if begins:
                model.runtime.reset()
            ready = time.perf_counter_ns()
            results = model.runtime.run(arrays, list(wanted))
            done = time.perf_counter_ns()
            outputs, parameters = _results(model, request, wanted, results)
            response = InferResponse(model.name, model.file.version, request.id, outputs, parameters)
            body, header_length = encode_response(response, wanted.__getitem__, _dumps, fast_json_values)
        except NotQuick:
            raise
        except Exception as error:
            end = time.perf_counter_ns()
            stats.failed(end - inference.submitted_ns)
            self._learn(model, inference, None, end - started)
            if isinstance(error, WherryError):
                raise
            raise InferenceError(f"model {model.name}", f"failed with {type(error).__name__}") from error
        end = time.perf_counter_ns()
        timing = Timing(started - inference.submitted_ns, ready - started, done - ready, end - done)
        stats.succeeded(timing, self._clock_ms())
        self._learn(model, inference, asked, end - started)
        if self.recent is not None and inference.counted:
            self.recent.add(model.name, inference.form, inference.body, inference.header_length, body, header_length)
        return Answer(body, header_length)

    def runs_at_once(self, model: Model, inference: Inference) -> bool:
        """Whether the event loop may try a request, when the inference thread is idle; see `wherry_serving.pace`.

        Only on the CPU: GPU providers keep things for each thread that uses them.
        """
        quick = inference.form == "tensors" and model.pace.may_be_quick(len(inference.body))
        return quick and model.file.steady and model.runtime.provider == _CPU

    @staticmethod
    def _learn(model: Model, inference: Inference, work: Work | None, nanoseconds: int) -> None:
        if inference.form == "tensors":  # a picture is never run at once, and decoding one says nothing of the model
            model.pace.took(work, len(inference.body), nanoseconds)

    def server_metadata(self) -> dict[str, Any]:
        """`GET v2`."""
        return {"name": "wherry-serving", "version": __version__, "extensions": list(EXTENSIONS)}

    def metadata(self, model: Model) -> dict[str, Any]:
        """`GET v2/models/M`, with what the session really uses as parameters."""
        file = model.file
        return {
            "name": file.name,
            "versions": [file.version],
            "platform": model.runtime.platform,
            "inputs": [spec.model_dump() for spec in file.signature.inputs],
            "outputs": [spec.model_dump() for spec in file.signature.outputs],
            "parameters": {
                "provider": model.runtime.provider,
                "runtime": file.runtime,
                "precision": file.precision,
                **({"keeps_state": True} if model.runtime.keeps_state else {}),
                **({"picture": model.pictures.describe()} if model.pictures else {}),
                **model.labels.describe(),
            },
        }

    def config(self, model: Model) -> dict[str, Any]:
        """`GET v2/models/M/config`: the part of Triton's model configuration that has a meaning here."""
        signature = model.file.signature
        return {
            "name": model.name,
            "platform": model.runtime.platform,
            "backend": _BACKENDS[model.file.runtime],
            "max_batch_size": 0,
            "input": [_config_tensor(spec) for spec in signature.inputs],
            "output": [_config_tensor(spec) for spec in signature.outputs],
        }

    def stats(self, models: Sequence[Model], memory_bytes: int) -> dict[str, Any]:
        """`GET v2/models[/M]/stats`."""
        self._reported = self._answered()
        return {
            "model_stats": [
                statistics_json(model.name, model.file.version, model.stats.read(), memory_bytes, self._instance)
                for model in models
            ]
        }

    @property
    def unread(self) -> bool:
        """Whether something was counted since a reader of the statistics last came; never, where none ever came."""
        return self._reported is not None and self._reported != self._answered()

    def _answered(self) -> int:
        found = [model.stats.read() for model in self.models]
        return sum(counters.successes + counters.failures for counters in found)

    def counters(self) -> list[ModelCounters]:
        """What `metrics` shows."""
        return [ModelCounters(model.name, model.file.version, model.stats.read()) for model in self.models]

    def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """`POST v2/repository/index`."""
        return [
            {
                "name": name,
                "version": source.file.version,
                "state": "READY" if name in self._models else "LOADING",
                "reason": "",
            }
            for name, source in self._sources.items()
            if name in self._models or not ready_only
        ]


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    data_type = _CONFIG_TYPES.get(spec.datatype, spec.datatype)
    return {"name": spec.name, "data_type": f"TYPE_{data_type}", "dims": spec.shape}


def _read_request(model: Model, inference: Inference) -> InferRequest:
    if inference.form == "tensors":
        return decode_request(inference.body, inference.header_length, orjson.loads)
    if model.pictures is None:
        raise MalformedMessage(f"model {model.name}", "takes no pictures, expected tensors in JSON or binary form")
    return InferRequest("", (), binary_output=inference.binary, parameters=_WITH_LABELS)


def _read_inputs(model: Model, inference: Inference, request: InferRequest) -> dict[str, Array]:
    """The inputs as arrays, checked."""
    if inference.form == "picture" and model.pictures is not None:
        return model.pictures.inputs(inference.body)
    check_inputs(model.inputs, request.inputs)
    return {tensor.name: to_array(tensor) for tensor in request.inputs}


def _work(model: Model, arrays: Mapping[str, Array], wanted: Mapping[str, bool]) -> Work:
    return Work(tuple(wanted), tuple(arrays[name].shape for name in model.inputs))


def _only_quick(model: Model, asked: Work, begins: bool) -> None:
    if begins or not model.pace.most.covers(asked):
        raise NotQuick


def _results(
    model: Model, request: InferRequest, wanted: Mapping[str, bool], results: Sequence[Array]
) -> tuple[tuple[Tensor, ...], Mapping[str, Any]]:
    """The response's outputs and parameters."""
    parameters: Mapping[str, Any] = {}
    if request.parameters.get("labels") is True:
        parameters = model.labels.readable(dict(zip(wanted, results, strict=True)))
    outputs = tuple(map(from_array, wanted, results))
    classes = {output.name: output.classes for output in request.outputs if output.classes}
    if classes:
        named = zip(outputs, results, strict=True)
        outputs = tuple(
            model.labels.classify(out.name, array, classes[out.name]) if out.name in classes else out
            for out, array in named
        )
    return outputs, parameters


def _wanted(model: Model, request: InferRequest) -> dict[str, bool]:
    """The outputs to compute, and for each whether it goes out in binary form."""
    if not request.outputs:
        return dict.fromkeys(model.outputs, request.binary_output)
    for output in request.outputs:
        if output.name not in model.outputs:
            reason = f"is not an output of this model, expected {', '.join(model.outputs)}"
            raise MalformedMessage(f"requested output {output.name[:120]!r}", reason)
    return {output.name: output.binary for output in request.outputs}
