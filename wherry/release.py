"""Releases: what the owner signs. One `ReleaseImage` per device profile, inside TUF targets metadata.

A target's path is `models/<model>/<profile>/<counter>.manifest.json`, its hash the digest of the OCI
image manifest, its `custom` field the `ReleaseImage`. TUF's canonical JSON allows integers and strings
only, so every fractional number (tolerances, CPUs) is a decimal string.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wherry.agent_release import AGENT_MODEL, AGENT_RUNTIME
from wherry.errors import MalformedMessage
from wherry.gates import DecimalText as DecimalText
from wherry.gates import Gate as Gate
from wherry.gates import GoldenGate as GoldenGate
from wherry.gates import HttpGate as HttpGate
from wherry.gates import LatencyGate as LatencyGate
from wherry.gates import MemoryGate as MemoryGate
from wherry.gates import ReadyGate as ReadyGate
from wherry.gates import RehearsalGate as RehearsalGate
from wherry.gates import ShadowGate as ShadowGate
from wherry.gates import SignatureGate as SignatureGate
from wherry.gates import SoakGate as SoakGate
from wherry.gates import TcpGate as TcpGate
from wherry.gates import TemperatureGate as TemperatureGate
from wherry.gates import UnknownGate as UnknownGate
from wherry.identity import Digest, ModelName, ModelVersion, ProfileName, SlotName
from wherry.schemas import parse_schema

RELEASE_SCHEMA = 1
GOLDEN_SCHEMA = 1
MODEL_SCHEMA = 1

Stage = Literal["dev", "qa", "uat", "prod"]
Precision = Literal["fp32", "fp16", "int8"]
Runtime = Literal["onnx", "litert", "tflite", "custom"]
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]

MODELS_FOLDER = "/opt/wherry/models"
"""In the image: one folder a model, holding `model.json`, `golden.json` and the model file."""
APP_FOLDER = "/opt/wherry/app"
"""In the image: the packages `wherry` and `wherry_serving`."""
RUNTIME_FOLDER = "/opt/wherry/runtime"
"""In the image: the wheels of the model runtime, unpacked."""
PICTURE_FOLDER = "/opt/wherry/picture"
"""In images whose model takes pictures: Pillow."""
STAGE_VARIABLE = "WHERRY_STAGE"
"""Environment of a model's image: its stage. Not in model.json, so that all stages share the model's layer."""
SERVING_PORT = 8080
LABEL = "io.wherry."
"""Prefix of image labels (model, version, stage, profile, runtime, provider, precision, l4t, sm, cuda, tensorrt) and of
container labels (also slot, release, role, device)."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class TensorSpec(_Model):
    """One input or output of a model. A dimension of -1 is dynamic."""

    name: str
    datatype: Datatype
    shape: list[int]


class Signature(_Model):
    """A model's inputs and outputs, in order."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class RunSpec(_Model):
    """How the engine runs the container. Run arguments are code: the owner signs them.

    Attributes:
        command: replaces the image's command; empty keeps it.
        env: environment, name to value.
        port: TCP port that the model server listens on inside the container.
        memory_mb: memory limit, MiB.
        cpus: CPU limit as a decimal string, "0" for none.
        pids: process limit.
        devices: device nodes to pass through, besides the profile's.
        start_seconds: time the container may take to become ready.
        drain_seconds: time given to open connections after SIGTERM.
        drains: after SIGTERM it answers what is under way and closes kept connections only with `Connection: close`;
            None: images of our model server do, others do not.
    """

    command: list[str] = []
    env: dict[str, str] = {}
    port: int = Field(default=SERVING_PORT, ge=1, le=65535)
    memory_mb: int = Field(default=512, ge=16)
    cpus: DecimalText = "0"
    pids: int = Field(default=128, ge=8)
    devices: list[str] = []
    start_seconds: int = Field(default=60, ge=1, le=3600)
    drain_seconds: int = Field(default=5, ge=0, le=300)
    drains: bool | None = None


class Needs(_Model):
    """What the image needs of the hardware beyond its profile's name.

    Attributes:
        l4t: L4T majors it was built for, any of them; sm: GPU architectures it holds code for.
        cuda, tensorrt: majors it was built against ("12", "10"), any of them.
        python: of the device itself ("3.11"), any of them; for releases of the agent.
        slots: other slots of the same device that its model calls: each must serve before it is started.
    """

    memory_mb: int = 0
    l4t: list[str] = []
    sm: list[str] = []
    cuda: list[str] = []
    tensorrt: list[str] = []
    python: list[str] = []
    slots: list[SlotName] = []


class ReleaseImage(_Model):
    """One signed target: a model version's image for one device profile.

    Attributes:
        counter: monotonic per (model, profile); orders releases, resists rollback.
        repository: registry and repository to pull from, without tag ("127.0.0.1:5470/wherry/vision").
        config_digest: digest of the OCI image config (the image id on Docker's classic store).
        unpacked_bytes: size of all layers unpacked.
        download_bytes: size of all layers as transferred.
        layers: bytes as transferred by layer ("base", "runtime", "serving", "model"), where the packager knows.
        breaking: callers of the version before must change; without it other inputs or outputs are refused.
        min_counter: images of this model and profile below it are withdrawn.
        revoked: manifest digests that must not run, not even as a rollback.
    """

    schema_: Annotated[int, Field(alias="schema")] = RELEASE_SCHEMA
    model: ModelName
    version: ModelVersion
    profile: ProfileName
    platform: str
    counter: int = Field(ge=1)
    stage: Stage = "prod"
    repository: str
    config_digest: Digest
    unpacked_bytes: int = Field(ge=0)
    download_bytes: int = Field(default=0, ge=0)
    layers: dict[str, int] = {}
    runtime: Runtime | Literal["agent"]
    provider: str
    precision: Precision
    signature: Signature | None = None
    needs: Needs = Needs()
    run: RunSpec = RunSpec()
    gates: list[Gate] = []
    breaking: bool = False
    min_counter: int = Field(default=0, ge=0)
    revoked: list[Digest] = []

    @model_validator(mode="after")
    def _agent_or_model(self) -> ReleaseImage:
        if (self.runtime == AGENT_RUNTIME) != (self.model == AGENT_MODEL):
            raise ValueError(f"{self.model} cannot have the runtime {self.runtime}")
        return self

    def to_custom(self) -> dict[str, Any]:
        """The value of the TUF target's `custom` field."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def from_custom(cls, custom: Any, name: str) -> ReleaseImage:
        """Read a TUF target's `custom` field; `name` is the target path, for the error.

        Raises:
            UnsupportedSchema: a schema version this program does not know.
            MalformedMessage: a field is missing or wrong.
        """
        return parse_schema(cls, custom, f"release image {name}", RELEASE_SCHEMA)

    def target_path(self) -> str:
        """Where this image stands in TUF targets metadata."""
        return target_path(self.model, self.profile, self.counter)

    def label(self) -> str:
        """The release as people say it: `vision 2`."""
        return f"{self.model} {self.version}"


class PictureInput(_Model):
    """How a posted picture (JPEG, PNG, PPM …) becomes the model's input tensor, with no code.

    The picture is turned upright, made `width` x `height`, and each channel becomes
    (value * scale - mean) / std, in the tensor's datatype.

    Attributes:
        input: the tensor it fills.
        layout: order of the tensor's axes.
        colour: order of the channels.
        fit: "stretch" to the size, "cover" it and cut the edges, or be "contain"ed in it with a border.
        pad: value of the border, 0 to 255.
        scale, mean, std: of the normalisation; mean and std have one number a channel, or none.
        fixed: values of the model's other inputs, row-major; one value fills the whole tensor, and a dynamic
            dimension counts as 1.
    """

    input: str
    width: int = Field(ge=1, le=8192)
    height: int = Field(ge=1, le=8192)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    colour: Literal["rgb", "bgr", "gray"] = "rgb"
    fit: Literal["stretch", "cover", "contain"] = "stretch"
    pad: int = Field(default=0, ge=0, le=255)
    scale: float = 1.0
    mean: list[float] = []
    std: list[float] = []
    fixed: dict[str, list[float]] = {}


class LabelledOutput(_Model):
    """What the numbers of an output mean.

    Attributes:
        output: the tensor with one score a class on its last axis.
        labels: names of the classes, in order.
        top: how many classes an answer names.
        softmax: turn scores into probabilities first.
    """

    output: str
    labels: list[str]
    top: int = Field(default=5, ge=1, le=100)
    softmax: bool = False


class ModelFile(_Model):
    """`model.json` beside a model in the image: all that the model server needs to know.

    Attributes:
        file: the model's file name in the same folder.
        reset: "each" resets the variables of a stateful TFLite model before each request.
        threads: intra-op threads of the runtime; 0 lets it choose.
        steady: what a request costs depends on the shapes of its tensors alone, not on what is in them.
        picture: how a posted picture becomes an input.
        labelled: what an output's numbers mean.
    """

    schema_: Annotated[int, Field(alias="schema")] = MODEL_SCHEMA
    name: ModelName
    version: ModelVersion
    file: str
    runtime: Literal["onnx", "litert", "tflite"]
    provider: str
    precision: Precision
    signature: Signature
    reset: Literal["each", "never"] = "never"
    threads: int = 0
    steady: bool = False
    picture: PictureInput | None = None
    labelled: LabelledOutput | None = None


class GoldenTensor(_Model):
    """A tensor of a golden case: base64 of its little-endian row-major bytes (BYTES: length-prefixed)."""

    name: str
    datatype: Datatype
    shape: list[int]
    raw: str


class GoldenCase(_Model):
    """A recorded request and its expected response."""

    name: str
    inputs: list[GoldenTensor]
    outputs: list[GoldenTensor]


class GoldenFile(_Model):
    """`golden.json` beside a model in the image."""

    schema_: Annotated[int, Field(alias="schema")] = GOLDEN_SCHEMA
    model: ModelName
    cases: list[GoldenCase]


TOLERANCES: dict[str, tuple[str, str]] = {
    "fp32": ("0.001", "0.999"),
    "fp16": ("0.02", "0.999"),
    "int8": ("0.05", "0.99"),
}
"""Precision class -> (tolerance, cosine) of its golden gate."""

_TARGET = re.compile(r"models/(?P<model>[^/]+)/(?P<profile>[^/]+)/(?P<counter>[1-9][0-9]{0,17})\.manifest\.json")


def target_path(model: str, profile: str, counter: int) -> str:
    """The TUF target path of an image."""
    return f"models/{model}/{profile}/{counter}.manifest.json"


def parse_target_path(path: str) -> tuple[str, str, int]:
    """Model, profile and counter of a TUF target path.

    Raises:
        MalformedMessage: not a path of an image.
    """
    match = _TARGET.fullmatch(path)
    if match is None:
        raise MalformedMessage(f"target path {path[:120]!r}", "is not models/MODEL/PROFILE/COUNTER.manifest.json")
    return match["model"], match["profile"], int(match["counter"])


def fraction(text: str) -> float:
    """The number in a decimal string of a signed field."""
    return float(Decimal(text))
