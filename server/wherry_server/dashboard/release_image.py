"""One image of a release as its page shows it: gates, needs, run arguments and layers in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wherry.release import (
    Gate,
    GoldenGate,
    HttpGate,
    LatencyGate,
    Needs,
    ReadyGate,
    ReleaseImage,
    RunSpec,
    SignatureGate,
    TensorSpec,
)
from wherry_server.dashboard import words

LAYER_WORDS = {
    "base": "system",
    "runtime": "model runtime",
    "serving": "model server",
    "picture": "picture decoder",
    "page": "try-it page",
    "model": "model",
}
"""Kinds of layers in the order they are stacked, and what is in them."""


@dataclass(frozen=True, slots=True)
class LayerPart:
    """One layer of the drawn bar; `x` and `width` are percent of its length."""

    kind: str
    what: str
    bytes: str
    share: str
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class GateRow:
    """A health gate and its settings."""

    kind: str
    asks: str
    settings: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ImageCard:
    """One profile's image."""

    profile: str
    digest: str
    short: str
    reference: str
    counter: int
    platform: str
    runtime: str
    provider: str
    precision: str
    download: str
    unpacked: str
    layers: list[LayerPart]
    needs: list[tuple[str, str]]
    run: list[tuple[str, str]]
    tensors: list[tuple[str, str, str]]
    gates: list[GateRow]
    withdrawn: bool
    misfits: list[str]
    again: str


def image_card(
    image: ReleaseImage, digest: str, withdrawn: bool, misfits: Sequence[str], again: Sequence[str] = ()
) -> ImageCard:
    """An image as its page shows it.

    Args:
        image: what the owner signed.
        digest: of the image's manifest.
        withdrawn: whether the owner took it back.
        misfits: why it does not fit the profile that it is made for.
        again: counters under which the same release was signed before.
    """
    return ImageCard(
        profile=image.profile,
        digest=digest,
        short=short_digest(digest),
        reference=f"{image.repository}@{digest}",
        counter=image.counter,
        platform=image.platform,
        runtime=image.runtime,
        provider=image.provider,
        precision=image.precision,
        download=words.size(image.download_bytes) if image.download_bytes else words.NOTHING,
        unpacked=words.size(image.unpacked_bytes),
        layers=layer_parts(image.layers),
        needs=needs_words(image.needs),
        run=run_words(image.run),
        tensors=_tensors(image),
        gates=[gate_row(gate) for gate in image.gates],
        withdrawn=withdrawn,
        misfits=list(misfits),
        again=", ".join(again),
    )


def short_digest(digest: str) -> str:
    """Enough of a digest to recognise it."""
    return digest.removeprefix("sha256:")[:12]


def layer_parts(layers: Mapping[str, int]) -> list[LayerPart]:
    """Layers from the bottom of the image up, with their place on a bar of 100."""
    total = sum(layers.values())
    order = [*LAYER_WORDS, *sorted(set(layers) - LAYER_WORDS.keys())]
    parts, x = [], 0.0
    for kind in order:
        count = layers.get(kind, 0)
        if not count:
            continue
        width = 100 * count / total
        parts.append(
            LayerPart(
                kind=kind,
                what=LAYER_WORDS.get(kind, kind),
                bytes=words.size(count),
                share=f"{width:.0f} %" if width >= 1 else "< 1 %",
                x=round(x, 3),
                width=round(width, 3),
            )
        )
        x += width
    return parts


def needs_words(needs: Needs) -> list[tuple[str, str]]:
    """What the device must have, as name and value; empty for nothing in particular."""
    found = [("memory", f"{words.number(needs.memory_mb)} MB" if needs.memory_mb else "")]
    found += [("L4T", " or ".join(needs.l4t)), ("GPU", " or ".join(f"sm_{one}" for one in needs.sm))]
    found += [("CUDA", " or ".join(needs.cuda)), ("TensorRT", " or ".join(needs.tensorrt))]
    found.append(("other slots", " and ".join(needs.slots)))
    return [(name, value) for name, value in found if value]


def run_words(run: RunSpec) -> list[tuple[str, str]]:
    """How the engine runs the container."""
    found = [
        ("memory limit", f"{words.number(run.memory_mb)} MB"),
        ("CPU limit", "none" if run.cpus in ("", "0") else run.cpus),
        ("processes", str(run.pids)),
        ("port in the container", str(run.port)),
        ("time to start", f"{run.start_seconds} s"),
        ("time to drain", f"{run.drain_seconds} s"),
        ("devices", ", ".join(run.devices)),
        ("command", " ".join(run.command)),
        ("environment", ", ".join(f"{name}={value}" for name, value in sorted(run.env.items()))),
    ]
    return [(name, value) for name, value in found if value]


def gate_row(gate: Gate) -> GateRow:
    """A gate as a sentence and its settings."""
    asks, settings = _gate(gate)
    deadline = getattr(gate, "deadline_seconds", None)  # a gate that this program does not know may have none
    return GateRow(gate.kind, asks, [*settings, ("deadline", f"{deadline} s")] if deadline else settings)


def _gate(gate: Gate) -> tuple[str, list[tuple[str, str]]]:
    match gate:
        case ReadyGate():
            return "The container runs and the model says it is ready", []
        case SignatureGate():
            return "Inputs, outputs and execution provider are those that the release declares", []
        case GoldenGate():
            some = "1 recorded request gives its" if gate.cases == 1 else f"{gate.cases} recorded requests give their"
            settings = [("tolerance", gate.tolerance), ("cosine at least", gate.cosine)]
            settings.append(("best class", "must be the same" if gate.argmax == "equal" else "may differ"))
            return f"{some} expected answer", [*settings, ("cases", short_digest(gate.digest))]
        case LatencyGate():
            bounds = [("p50 at most", gate.p50_ms), ("p95 at most", gate.p95_ms)]
            settings = [(name, f"{bound} ms") for name, bound in bounds if bound]
            if gate.factor != "0":
                settings.append(
                    (
                        "beside the version that serves",
                        f"at most {gate.factor} times its time, or {gate.floor_ms} ms more",
                    )
                )
            return "The golden cases are answered fast enough", settings
        case HttpGate():
            return f"GET {gate.path} answers {gate.status}", []
        case _:
            return _ASKS.get(gate.kind, "This server does not know what it asks"), _fields(gate)


_ASKS = {
    "memory": "The container holds no more memory than this after the golden cases",
    "temperature": "No sensor of the device is warmer than this after the candidate worked",
    "tcp": "The port takes a connection and keeps it",
    "rehearsal": "Answers to the last requests of callers agree with those of the version that serves",
    "shadow": "Answers to what callers ask meanwhile agree with those of the version that serves",
    "soak": "Real traffic after the switch crashes, fails and slows no more than before",
}


def _fields(gate: Gate) -> list[tuple[str, str]]:
    """Settings as they were signed; zeros and empty ones leave it to the device."""
    signed = gate.model_dump(exclude={"kind", "deadline_seconds"})
    return [(name.replace("_", " "), str(value)) for name, value in signed.items() if value not in (0, "0", "", None)]


def _tensors(image: ReleaseImage) -> list[tuple[str, str, str]]:
    if image.signature is None:
        return []
    inputs = [("input", one.name, _shape(one)) for one in image.signature.inputs]
    outputs = [("output", one.name, _shape(one)) for one in image.signature.outputs]
    breaking = [("callers", "breaking", "those of the version before must change")] if image.breaking else []
    return [*inputs, *outputs, *breaking]


def _shape(tensor: TensorSpec) -> str:
    sizes = " \N{MULTIPLICATION SIGN} ".join("any" if size < 0 else str(size) for size in tensor.shape)
    return f"{tensor.datatype} {sizes}".strip()
