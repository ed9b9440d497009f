"""One trial: package the model, run it in every way this machine can, ask all of them in turn, clean up."""

from __future__ import annotations

import fcntl
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from wherry.elements import tensor_from_golden
from wherry.errors import BuildError, FitError, InputError, StoreError
from wherry.release import GoldenFile
from wherry_cli.costs import machine
from wherry_cli.costs.layout import Image, read_image, unpack
from wherry_cli.costs.measure import Client, Figures, Question, first_answer, memory_of, throughput
from wherry_cli.costs.ways import Bare, Container, Way, need_root, start_deadline
from wherry_cli.packaging.command import GOLDEN_FILE_NAME, PackageOrder, package
from wherry_cli.packaging.progress import Report
from wherry_cli.packaging.store import Store, cache_folder

_NAME = "bench"
_PROFILES = {"x86_64": "generic-amd64", "aarch64": "generic-arm64"}
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        starts: starts of each way.
        rounds: times that each way gets its turn.
        requests: inferences of a turn, one after the other.
        load_seconds: length of a turn with several connections.
        connections: how many.
    """

    starts: int = 3
    rounds: int = 6
    requests: int = 100
    load_seconds: float = 1.0
    connections: int = 2


def try_all(model: Path, base: str | None, effort: Effort, report: Report, tell: Tell) -> tuple[list[Figures], str]:
    """Measure a model bare, in a container and, where possible, in a virtual machine.

    Args:
        model: an ONNX or TFLite file.
        base: base image, as for `wherry package`.
        effort: how much is measured.
        report: told of packaging's progress.
        tell: told of the trial's progress.

    Returns:
        What was found, bare first, and why no virtual machine was measured (empty when one was).

    Raises:
        WherryError: the model is unusable, or a tool or a way failed; nothing is left behind.
    """
    need_root()
    profile = _PROFILES.get(platform.machine())
    if profile is None:
        raise FitError("this machine", f"is a {platform.machine()}; images for it cannot be made")
    with alone(cache_folder()):
        return _try_all(PackageOrder(_NAME, "1", (profile,), model=model, base=base), effort, report, tell)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the trial's lock: two would disturb each other's figures, and share an address and an image's name.

    Raises:
        BuildError: another trial runs.
        StoreError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "bench.lock").open("wb")
    except OSError as error:
        raise StoreError(
            f"cache folder {folder}", f"cannot be written ({error.strerror})", "Check its owner"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BuildError(
                "wherry bench", "runs on this machine already", "Wait until the other has ended"
            ) from error
        yield


def _try_all(order: PackageOrder, effort: Effort, report: Report, tell: Tell) -> tuple[list[Figures], str]:
    scratch = Store(cache_folder()).scratch()
    ways: list[Way] = []
    try:
        package(replace(order, output=scratch), report)
        image, question = read_image(scratch / order.profiles[0]), _question(scratch / GOLDEN_FILE_NAME)
        root = scratch / "root"
        size = unpack(image, root)
        left_out = machine.why_not()
        found = _ways(image, root, size, scratch, left_out, ways)
        _measure_starts(found, question.request(), effort, tell)
        _measure_answers(found, question.request(), effort, tell)
        return [figures for _, figures in found], left_out
    finally:
        for way in ways:
            way.stop()
            if isinstance(way, Container):
                way.remove()
        shutil.rmtree(scratch, ignore_errors=True)


def _question(golden: Path) -> Question:
    if not golden.exists():
        raise InputError("model", "has no golden case to ask", "Package it with --golden to see why")
    case = GoldenFile.model_validate_json(golden.read_bytes()).cases[0]
    return Question(_NAME, tuple(tensor_from_golden(tensor) for tensor in case.inputs))


def _ways(
    image: Image, root: Path, size: int, scratch: Path, left_out: str, ways: list[Way]
) -> list[tuple[Way, Figures]]:
    """Every way this machine can, each put into `ways` at once so that it is cleaned up whatever happens."""
    bare = Bare(image, root, scratch / "bare.log")
    ways.append(bare)
    model = image.model_bytes
    first = image.download_bytes
    found: list[tuple[Way, Figures]] = [
        (bare, Figures(bare.name, bare.note, disk_bytes=size, first_bytes=first, next_bytes=model))
    ]
    container = Container(image, scratch)
    ways.append(container)
    found.append(
        (container, Figures(container.name, container.note, disk_bytes=size, first_bytes=first, next_bytes=model))
    )
    if not left_out:
        virtual = machine.Machine(image, root, size, scratch, cache_folder())
        ways.append(virtual)
        whole = virtual.download_bytes(scratch)
        figures = Figures(
            virtual.name, virtual.note, disk_bytes=virtual.disk_bytes, first_bytes=whole, next_bytes=whole
        )
        found.append((virtual, figures))
    return found


def _measure_starts(found: Sequence[tuple[Way, Figures]], request: bytes, effort: Effort, tell: Tell) -> None:
    for number in range(effort.starts):
        for way, figures in found:
            if way.emulated and number:
                continue
            tell(f"start {number + 1} of {effort.starts}: {way.name}")
            began = time.monotonic()
            way.start()
            figures.starts.append(first_answer(way.host, way.port, request, began, start_deadline()))
            way.stop()


def _measure_answers(found: Sequence[tuple[Way, Figures]], request: bytes, effort: Effort, tell: Tell) -> None:
    """All run at once and are asked in turn, so that a noisy machine disturbs all of them alike."""
    for way, _ in found:
        way.start()
        first_answer(way.host, way.port, request, time.monotonic(), start_deadline())
    clients = [Client(way.host, way.port, request) for way, _ in found]
    for number in range(effort.rounds):
        tell(f"round {number + 1} of {effort.rounds}")
        for client, (way, figures) in zip(clients, found, strict=True):
            times = [client.ask() for _ in range(max(2, effort.requests // (50 if way.emulated else 1)))]
            if number:  # the first round only warms up
                figures.latencies += times
        for way, figures in found:
            figures.throughputs.append(throughput(way.host, way.port, request, effort.connections, effort.load_seconds))
    for client in clients:
        client.close()
    for way, figures in found:
        figures.memory_bytes = memory_of(way.processes())
        way.stop()
