"""A pretended device: engine, registry, routes, trust and server, which keep their state in one `World`.

The world can live in a file, so that it outlives an agent that is killed, as real containers do. After
every change it checks that a slot that once served serves still.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from wherry.errors import Conflict, EngineError, InferenceError, NotFound, RegistryError, Replayed, RouteError, Tampered
from wherry.identity import sha256_digest
from wherry.messages import StateReport, UpdateLock
from wherry.release import (
    GoldenCase,
    GoldenFile,
    GoldenGate,
    GoldenTensor,
    ReadyGate,
    ReleaseImage,
    RunSpec,
    Signature,
    SignatureGate,
    TensorSpec,
)
from wherry.tensors import Tensor, tensor_from_golden, tensor_from_values, tensor_to_golden
from wherry_agent.asking import Patience
from wherry_agent.assignment import Assignment, Marks, TrustedImage
from wherry_agent.entry import Limits, container_name
from wherry_agent.events import AssignmentReceived, Event, StepFinished, Tick
from wherry_agent.executor import Executor
from wherry_agent.golden_cases import GoldenCases
from wherry_agent.journal import Journal
from wherry_agent.maker import Settings
from wherry_agent.observed import Container, Recorded, Target, Way
from wherry_agent.own_version import Running
from wherry_agent.ports import Cancel
from wherry_agent.reconciler import Reconciler
from wherry_agent.trial import Examiner
from wherry_agent.world import Policy
from wherry_agent.world import World as Ports

START = datetime(2026, 1, 1, tzinfo=UTC)
DEVICE = "cam-1"
SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 2])],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 2])],
)


def golden_bytes() -> bytes:
    case = GoldenCase(
        name="first",
        inputs=[tensor_to_golden(tensor_from_values("x", "FP32", [1, 2], [1.0, 2.0]))],
        outputs=[tensor_to_golden(tensor_from_values("y", "FP32", [1, 2], [0.25, 0.75]))],
    )
    return GoldenFile(model="vision", cases=[case]).model_dump_json(by_alias=True).encode()


GOLDEN = golden_bytes()


def make_image(version: int, behaviour: str = "good", memory_mb: int = 100, **changes: Any) -> TrustedImage:
    """A signed release image. Its behaviour is in its environment, where the pretended engine finds it."""
    gates = [
        ReadyGate(deadline_seconds=1),
        SignatureGate(),
        GoldenGate(digest=sha256_digest(GOLDEN), cases=1),
    ]
    values: dict[str, Any] = {
        "model": "vision", "version": str(version), "profile": "generic-amd64", "platform": "linux/amd64",
        "counter": version, "repository": "127.0.0.1:5000/vision",
        "config_digest": sha256_digest(f"config {version} {behaviour}".encode()), "unpacked_bytes": 2_000_000,
        "download_bytes": 1_000_000, "runtime": "onnx", "provider": "CPUExecutionProvider", "precision": "fp32",
        "signature": SIGNATURE, "gates": gates,
        "run": RunSpec(memory_mb=memory_mb, env={"BEHAVIOUR": behaviour}, drain_seconds=0, start_seconds=1),
    }  # fmt: skip
    image = ReleaseImage(**(values | changes))
    digest = sha256_digest(f"manifest {version} {behaviour} {sorted(changes)}".encode())
    return TrustedImage(image.target_path(), digest, 500, image)


@dataclass
class World:
    """What outlives the agent."""

    path: Path | None = None
    containers: dict[str, Container] = field(default_factory=dict)
    behaviours: dict[str, str] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    images: dict[str, TrustedImage] = field(default_factory=dict)
    routes: dict[int, int] = field(default_factory=dict)
    served: set[int] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    boot: str = "boot-1"
    available_mb: int = 1000
    disk_free: int = 10**9
    inodes_free: int | None = None
    disk_fills: bool = False
    engine_down: bool = False
    registry: str = "good"
    route_broken: bool = False
    hold_allowed: bool = False
    can_wait: bool = True
    waiting: set[int] = field(default_factory=set)
    drained: list[int] = field(default_factory=list)
    counted: dict[int, Any] = field(default_factory=dict)
    temperatures: dict[str, float] = field(default_factory=dict)
    asked: int = 0
    tokens: bool = False
    statistics: dict[str, Any] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    layers_kept: bool = False  # all versions share the damaged layer: it stays as long as any of them has it
    verified: list[str] = field(default_factory=list)
    unread: int = 0
    unread_next: int = 0
    behaviours_of: dict[str, str] = field(default_factory=dict)
    together: tuple[int, ...] = ()

    def changed(self, what: str) -> None:
        self.history.append(what)
        self._watch()
        if self.path:
            fresh = self.path.with_suffix(".new")
            fresh.write_bytes(pickle.dumps(self))
            fresh.replace(self.path)

    def _watch(self) -> None:
        """A stable port that once led to a good container leads to one for ever."""
        for stable in {*self.routes, *self.served}:
            if self.answers(stable) is not None:
                self.served.add(stable)
            elif stable in self.served - self.waiting and not self.hold_allowed:
                self.violations.append(f"port {stable} answers nobody after: {self.history[-1]}")
        ports = {self.routes.get(stable) for stable in self.together}
        reached = {name.rpartition(".")[2] for name, c in self.containers.items() if c.running and c.port in ports}
        if len(reached) > 1:
            self.violations.append(f"mixed: {sorted(reached)} answer after: {self.history[-1]}")

    def answers(self, stable: int) -> str | None:
        """Name of the container that answers well at a stable port."""
        for name, container in self.containers.items():
            if container.port == self.routes.get(stable) and container.state == "running":
                return name if self.behaviours[name] in ("good", "custom") else None
        return None

    @staticmethod
    def load(path: Path) -> World:
        world: World = pickle.loads(path.read_bytes())
        return world

    def power_cut(self) -> None:
        """The device boots anew: routes are gone, the engine brings back what its policy says."""
        self.boot += "'"
        self.routes, self.served, self.waiting = {}, set(), set()
        for name, container in self.containers.items():
            up = container.running and container.restart == "unless-stopped"
            self.containers[name] = replace(container, state="running" if up else "exited")
        self.changed("power cut")


class FakeEngine:
    def __init__(self, world: World) -> None:
        self.world = world

    def _up(self) -> None:
        if self.world.engine_down:
            raise EngineError("containers", "the engine cannot be reached")

    def observe(self) -> Mapping[str, Container]:
        self._up()
        return {k: replace(v, image=None) for k, v in self.world.containers.items() if k not in self.world.foreign}

    def inspect(self, name: str) -> Container | None:
        self._up()
        if name in self.world.foreign:
            raise Conflict(f"container {name}", "exists and was not made by this agent")
        found = self.world.containers.get(name)
        return replace(found, token="secret") if found and self.world.tokens else found

    def has_image(self, image: TrustedImage) -> bool:
        self._up()
        return image.digest in self.world.images

    def verify_image(self, image: TrustedImage, cancel: Cancel) -> None:
        cancel.check()
        self._up()
        self.world.verified.append(image.image.version)
        if image.digest in self.world.damaged:
            raise Tampered(f"release {image.image.label()}", "its copy on this device's disk is damaged")

    def create(self, name: str, slot: str, image: TrustedImage, port: int, slot_port: int) -> None:
        if self.inspect(name) is not None:
            return
        if not self.has_image(image):
            raise EngineError(f"image of release {image.image.label()}", "is not on the device (any more)")
        self.world.containers[name] = Container(
            name, slot, image.digest, "created", port, slot_port, image=image, restart="no"
        )
        behaviour = image.image.run.env["BEHAVIOUR"]
        self.world.behaviours[name] = self.world.behaviours_of.get(image.image.version, behaviour)
        self.world.changed(f"create {name}")

    def _set(self, name: str, **changes: Any) -> None:
        self._up()
        if self.inspect(name) is None:
            raise EngineError(f"container {name}", "does not exist")
        self.world.containers[name] = replace(self.world.containers[name], **changes)
        self.world.changed(f"{changes} {name}")

    def start(self, name: str) -> None:
        found = self.inspect(name)
        if found and any(c.port == found.port and c.running and c.name != name for c in self.world.containers.values()):
            raise EngineError(f"container {name}", "port is already allocated")
        if found and self.world.behaviours[name] == "crash":
            self._set(name, state="exited", exit_code=1)
        else:
            self._set(name, state="running")

    def stop(self, name: str, drain_seconds: int) -> None:
        found = self.inspect(name)
        if found and found.running:
            self._set(name, state="exited", exit_code=0)

    def restart_policy(self, name: str, policy: str) -> None:
        self._set(name, restart=policy)

    def processor_share(self, name: str, share: str) -> None:
        self._set(name, share=share)

    def remove(self, name: str) -> None:
        if self.inspect(name) is not None:
            del self.world.containers[name]
            self.world.changed(f"remove {name}")

    def remove_image(self, image: TrustedImage) -> None:
        self._up()
        if not any(c.digest == image.digest for c in self.world.containers.values()):
            if self.world.images.pop(image.digest, None) and self.world.disk_fills:
                self.world.disk_free += image.image.unpacked_bytes
            self.world.changed(f"remove image {image.image.version}")

    def read_file(self, name: str, path: str, limit: int) -> bytes:
        if self.inspect(name) is None or not path.endswith("/vision/golden.json"):
            raise NotFound(f"file {path}", "does not exist")
        return GOLDEN if self.world.behaviours[name] != "forged" else GOLDEN + b" "

    def memory_bytes(self, name: str) -> int | None:
        return 99 << 20 if self.world.behaviours[name] == "fat" else 50 << 20

    def last_words(self, name: str) -> str:
        return "these are my last words"


class FakeFetcher:
    def __init__(self, world: World) -> None:
        self.world = world

    def fetch(self, image: TrustedImage, cancel: Cancel, progress: Callable[[int, int], None]) -> None:
        cancel.check()
        if image.digest in self.world.images:
            return
        if self.world.registry == "down":
            raise RegistryError("registry", "connection refused")
        if self.world.registry == "tampered":
            raise Tampered(f"release {image.image.label()}", "the registry sent something else")
        progress(500_000, 1_000_000)
        kept = self.world.layers_kept and self.world.damaged & self.world.images.keys()
        self.world.damaged -= set() if kept else {image.digest} - self.world.shared
        self.world.images[image.digest] = image
        if self.world.disk_fills:
            self.world.disk_free -= image.image.unpacked_bytes
        self.world.changed(f"fetch {image.image.version}")

    def offered(self, image: TrustedImage, cancel: Cancel) -> bool:
        return self.world.registry == "good"


class FakeRoute:
    def __init__(self, world: World) -> None:
        self.world = world

    def read(self) -> Mapping[int, int]:
        if self.world.route_broken or self.world.unread:
            self.world.unread = max(0, self.world.unread - 1)
            raise RouteError("nft", "cannot be run")
        return dict(self.world.routes)

    def apply(self, routes: Mapping[int, int], waiting: Collection[int] = ()) -> None:
        if self.world.route_broken:
            raise RouteError("nft", "cannot be run")
        if (dict(routes), set(waiting)) == (self.world.routes, self.world.waiting):
            return
        self.world.routes, self.world.waiting = dict(routes), set(waiting)
        self.world.unread, self.world.unread_next = self.world.unread_next, 0
        self.world.changed(f"routes {dict(routes)}" + (f", {sorted(waiting)} wait" if waiting else ""))

    def ways(self) -> Mapping[int, Way]:
        return dict.fromkeys(self.world.routes, "kernel")

    def turn(self, targets: Mapping[int, Target]) -> None:
        ports = {stable: target.port for stable, target in targets.items()}
        self.apply({**self.read(), **ports}, self.world.waiting - ports.keys())

    def hold(self, stable: int, image: TrustedImage) -> bool:
        if self.world.can_wait:
            self.apply(
                {known: to for known, to in self.read().items() if known != stable}, self.world.waiting | {stable}
            )
        return self.world.can_wait

    def held(self, stable: int) -> bool:
        return stable in self.world.waiting

    def drain(self, port: int, seconds: float) -> None:
        self.world.drained.append(port)

    def drop(self, stable: Collection[int]) -> None:
        kept = {known: to for known, to in self.read().items() if known not in stable}
        self.apply(kept, self.world.waiting - set(stable))

    def statistics(self, port: int, model: str) -> Any:
        return self.world.counted.get(port)


class FakeProber:
    def __init__(self, world: World) -> None:
        self.world = world

    def _behaviour(self, base_url: str) -> str:
        port = int(base_url.rpartition(":")[2])
        for name, container in self.world.containers.items():
            if container.port == port and container.state == "running":
                return self.world.behaviours[name]
        return "absent"

    def ready(self, base_url: str, model: str, timeout: float) -> bool:
        return self._behaviour(base_url) not in ("absent", "never_ready", "hung", "dead", "custom")

    def status(self, base_url: str, path: str, timeout: float) -> int | None:
        return 200 if path == "/up" and self._behaviour(base_url) == "custom" else None

    def metadata(self, base_url: str, model: str, timeout: float) -> dict[str, Any]:
        behaviour = self._behaviour(base_url)
        document = SIGNATURE.model_dump() | {"parameters": {"provider": "CPUExecutionProvider"}}
        if behaviour == "other_signature":
            document["inputs"][0]["shape"] = [-1, 3]
        return document

    def infer(self, base_url: str, model: str, case: GoldenCase, timeout: float) -> tuple[list[Tensor], float]:
        behaviour = self._behaviour(base_url)
        if behaviour in ("refuses", "dead"):
            raise InferenceError("model vision", "answered golden case 'first' with status 500: oops")
        outputs = [tensor_from_golden(GoldenTensor.model_validate(item.model_dump())) for item in case.outputs]
        if behaviour == "wrong":
            outputs = [tensor_from_values("y", "FP32", [1, 2], [0.75, 0.25])]
        return outputs, 0.5 if behaviour == "slow" else 0.004

    def keeps_connection(self, port: int, timeout: float) -> bool:
        return self._behaviour(f"http://127.0.0.1:{port}") == "tcp"

    def stats(self, base_url: str, model: str, timeout: float) -> Any:
        port = int(base_url.rpartition(":")[2])
        for name, container in self.world.containers.items():
            if container.port == port and name in self.world.statistics:
                return self.world.statistics[name]
        raise InferenceError("model vision", "counts nothing")

    def recent(self, base_url: str, token: str, model: str, timeout: float) -> list[int]:
        return list(range(1, self.world.asked + 1)) if token else []

    def recorded(self, base_url: str, token: str, number: int, timeout: float) -> Recorded | None:
        return Recorded(number, "tensors", b"", None, [tensor_from_values("y", "FP32", [1, 2], [0.25, 0.75])])

    def replay(self, base_url: str, model: str, recorded: Recorded, timeout: float) -> tuple[list[Tensor], float]:
        behaviour = self._behaviour(base_url)
        if behaviour == "silent":
            raise InferenceError("model vision", "answered recent request with status 500: oops")
        values = [0.75, 0.25] if behaviour == "estranged" else [0.25, 0.75]
        return [tensor_from_values("y", "FP32", [1, 2], values)], 0.5 if behaviour == "slow" else 0.004


class FakeHost:
    def __init__(self, world: World) -> None:
        self.world = world

    def boot_id(self) -> str:
        return self.world.boot

    def memory_available_mb(self) -> int:
        return self.world.available_mb

    def memory_total_mb(self) -> int:
        return 4000

    def disk_free_bytes(self) -> int:
        return self.world.disk_free

    def inodes_free(self) -> int | None:
        return self.world.inodes_free

    def temperatures(self) -> dict[str, float]:
        return self.world.temperatures

    def port_free(self, port: int) -> bool:
        return not any(c.port == port and c.running for c in self.world.containers.values())


class FakeTrust:
    """Payloads are JSON: {"sequence": n, "slots": {slot: catalogue key}, "together": [[slot, …], …]}."""

    def __init__(self, catalogue: dict[str, TrustedImage], stored_withdrawn: frozenset[str] | None) -> None:
        self.catalogue = catalogue
        self.withdrawn: frozenset[str] = frozenset()
        self.stored_withdrawn = stored_withdrawn

    def _read(self, payload: bytes) -> Assignment:
        body = json.loads(payload)
        slots = {slot: self.catalogue[key] for slot, key in body["slots"].items()}
        together = tuple(frozenset(group) for group in body.get("together", []))
        return Assignment(DEVICE, body["sequence"], START + timedelta(days=7), slots, together)

    def verify(
        self, payload: bytes, marks: Marks, now: datetime, online: bool = True, serving: Any = ()
    ) -> tuple[Assignment, Marks]:
        assignment = self._read(payload)
        if assignment.sequence <= marks.sequence:
            raise Replayed("assignment", f"sequence {assignment.sequence} is not above {marks.sequence}")
        revoked = marks.revoked | {d for image in assignment.slots.values() for d in image.image.revoked}
        return assignment, replace(marks, sequence=assignment.sequence, revoked=frozenset(revoked))

    def refresh(self, marks: Marks, now: datetime) -> Marks:
        return replace(marks, revoked=marks.revoked | self.withdrawn, floor=now)

    def withdrawals(self, marks: Marks) -> Marks:
        if self.stored_withdrawn is None:
            raise Tampered("release metadata", "is damaged")
        return replace(marks, revoked=marks.revoked | self.stored_withdrawn)

    def stored(self, payload: bytes, marks: Marks, now: datetime) -> Assignment:
        return self._read(payload)


class Recording:
    """Link, recorder and server in one."""

    def __init__(self) -> None:
        self.reports: list[StateReport] = []
        self.records: list[Any] = []
        self.assignment: bytes | None = None

    def report(self, state: StateReport) -> None:
        self.reports.append(state)

    def send_batch(self, batch: Any) -> bool:
        return True

    def append(self, record: Any, at: datetime) -> None:
        self.records.append(record)

    def fetch_assignment(self) -> bytes | None:
        return self.assignment


class FakeLock:
    """What an application left, if anything."""

    held: UpdateLock | None = None

    def read(self, now: datetime) -> UpdateLock | None:
        return self.held if self.held and self.held.expires > now else None


class InlineWorker:
    """Does a step at once, or keeps it until `finish` when held."""

    def __init__(self, executor: Executor, put: Callable[[Event], None]) -> None:
        self.executor = executor
        self.put = put
        self.step = None
        self.cancel_asked = False
        self.held = False
        self.hold_at: str | None = None

    def submit(self, step: Any) -> None:
        self.step, self.cancel_asked = step, False
        if not self.held and step.kind != self.hold_at:
            self.finish()

    def finish(self) -> None:
        cancel = Cancel()
        if self.cancel_asked:
            cancel.set()
        self.put(StepFinished(self.step, self.executor.run(self.step, cancel, self.put)))

    def cancel(self) -> None:
        self.cancel_asked = True

    def settle(self) -> None:
        self.step = None


class InlineAide:
    def submit(self, name: str, job: Callable[[], None]) -> None:
        job()


class Killer:
    """Wraps an object: SIGKILL of this process before or after its nth call, counted over all that share it."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.count = 0

    def _point(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, target: Any, names: set[str]) -> Any:
        killer = self

        class Wrapped:
            def __getattr__(self, name: str) -> Any:
                found = getattr(target, name)
                if name not in names:
                    return found

                def call(*arguments: Any, **options: Any) -> Any:
                    killer._point()
                    result = found(*arguments, **options)
                    killer._point()
                    return result

                return call

        return Wrapped()


class Device:
    """A whole agent on a pretended world."""

    worker_type: type[InlineWorker] = InlineWorker
    aide_type: type[InlineAide] = InlineAide

    def __init__(
        self,
        folder: Path,
        world: World | None = None,
        catalogue: dict[str, TrustedImage] | None = None,
        killer: Killer | None = None,
        limits: Limits | None = None,
        **policy: Any,
    ) -> None:
        self.folder = folder
        self.world = world if world is not None else World()
        self.catalogue = catalogue if catalogue is not None else {}
        self.killer = killer or Killer(None)
        self.limits = limits or Limits()
        self.policy = policy
        self.now = START
        self.hold_at: str | None = None
        self.stored_withdrawn: frozenset[str] | None = frozenset()
        self.lock = FakeLock()
        self.journal: Journal | None = None
        self.boot()

    def boot(self) -> None:
        """Start the agent (again) on what is left."""
        self._end()
        world, wrap = self.world, self.killer.wrap
        self.queue: deque[Event] = deque()
        engine = wrap(
            FakeEngine(world),
            {
                "create",
                "start",
                "stop",
                "restart_policy",
                "processor_share",
                "remove",
                "remove_image",
                "read_file",
                "inspect",
            },
        )
        route, prober = wrap(FakeRoute(world), {"apply"}), wrap(FakeProber(world), set())
        fetcher = wrap(FakeFetcher(world), {"fetch"})
        self.trust = self.make_trust()
        self.server = Recording()
        patience = Patience(soak_seconds=0, poll_seconds=0.05, alive_seconds=0)
        golden_cases = GoldenCases(engine, prober, 1_000_000)
        examiner = Examiner(engine, prober, patience, FakeHost(world), golden_cases, route.statistics)
        own, own_version = self.make_own(engine, fetcher)
        executor = Executor(
            Settings(DEVICE, range(18500, 18520)), engine, fetcher, route, examiner, FakeHost(world), own=own
        )
        journal = Journal(self.folder / "journal.db", DEVICE, self.limits)
        self.worker = self.worker_type(executor, self.queue.append)
        self.aide = self.aide_type()
        self.worker.hold_at = self.hold_at
        ports = Ports(
            engine, route, FakeHost(world), prober, self.trust, self.server, self.server, self.server, self.lock,
            lambda: self.now, self.queue.append, golden_cases.recheck, own_version,
        )  # fmt: skip
        policy = Policy("generic-amd64", limits=self.limits, **self.policy)
        self.statuses: list[StateReport] = []
        self.reconciler = Reconciler(
            wrap(journal, {"apply", "begin"}), ports, policy, self.worker, self.aide, self.statuses.append
        )
        self.journal = journal
        self.reconciler.start()
        self.put(Tick())

    def _end(self) -> None:
        """The process is gone without a word: its lock is free, its files are as they are."""
        if self.journal is None:
            return
        left = {path: path.read_bytes() for path in self.folder.glob("journal.db*")}
        self.journal.close()
        for path in self.folder.glob("journal.db*"):
            path.unlink()
        for path, content in left.items():
            path.write_bytes(content)

    def make_own(self, engine: Any, fetcher: Any) -> tuple[Any, Callable[[], Running]]:
        """What updates the agent itself, and tells which version runs: nothing, unless a test says otherwise."""
        return None, Running

    def make_trust(self) -> FakeTrust:
        return FakeTrust(self.catalogue, self.stored_withdrawn)

    def put(self, event: Event) -> None:
        self.worker.hold_at = self.hold_at
        self.queue.append(event)
        self.pump()

    def pump(self) -> None:
        for _ in range(500):
            if not self.queue:
                return
            self.reconciler.handle(self.queue.popleft())
        raise AssertionError("the agent does not come to rest")

    def assign(self, sequence: int, together: Iterable[Iterable[str]] = (), **slots: str) -> None:
        groups = [list(group) for group in together]
        joint = {"together": groups} if groups else {}
        body = json.dumps({"sequence": sequence, "slots": slots} | joint).encode()
        self.put(AssignmentReceived(body, "mqtt"))

    def tick(self, seconds: float = 5.0, times: int = 1) -> None:
        for _ in range(times):
            self.now += timedelta(seconds=seconds)
            self.put(Tick())

    def release(self, key: str, behaviour: str = "good", **changes: Any) -> TrustedImage:
        image = make_image(int(key), behaviour, **changes)
        self.catalogue[key] = image
        return image

    def name(self, image: TrustedImage, slot: str = "main") -> str:
        return container_name(DEVICE, slot, image)

    @property
    def state(self) -> StateReport:
        return self.server.reports[-1]

    def phases(self, slot: str = "main") -> list[str]:
        """Phases recorded for the server, in order, of the last deployment."""
        found = [record.deployment for record in self.server.records if record.deployment.slot == slot]
        return [name for name, _ in found[-1].phases] if found else []

    def serves(self, slot: str = "main") -> str | None:
        """Version that answers at the slot's stable port, in the world."""
        stable = self.journal.entry.slots[slot].port
        name = self.world.answers(stable)
        return name.rpartition(".")[2] if name else None
