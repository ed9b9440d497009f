"""A whole trust world in memory: an owner, a server that serves its metadata over HTTP, a device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from wherry.metadata import SignedImage, newest
from wherry.release import ReleaseImage
from wherry_agent.assignment import Assignment, Marks
from wherry_agent.trust import Trust
from wherry_cli.repository import ImageToSign, OwnerKeys, init_repository, next_counter, publish, read_targets
from wherry_server.signing import OnlineSigner, release_images

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
DEVICE, PROFILE = "dev-1", "generic-amd64"


def new_signer() -> OnlineSigner:
    return OnlineSigner(CryptoSigner.generate_ecdsa(), CryptoSigner.generate_ecdsa())


def new_owner(roots: int = 1) -> OwnerKeys:
    root = tuple(CryptoSigner.generate_ecdsa() for _ in range(roots))
    return OwnerKeys(CryptoSigner.generate_ecdsa(), CryptoSigner.generate_ecdsa(), root)


class QuietServer(ThreadingHTTPServer):
    """Clients that hang up are what these tests are about."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@dataclass
class World:
    """Everything but the device. `files` is what the owner signed, `served` what the HTTP server answers."""

    keys: OwnerKeys = field(default_factory=new_owner)
    online: OnlineSigner = field(default_factory=new_signer)
    files: dict[str, bytes] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    answers: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    clock: datetime = NOW
    timestamp: int = 0

    def start(self) -> None:
        self.files = init_repository(self.keys, self.online.online_keys(), self.clock, len(self.keys.root))
        self.serve()

    def serve(self) -> None:
        """Sign a timestamp for the newest snapshot and serve everything."""
        self.timestamp += 1
        snapshot = self.files[f"{newest(self.files, 'snapshot')}.snapshot.json"]
        self.served.update(self.files)
        self.served["timestamp.json"] = self.online.sign_timestamp(snapshot, self.timestamp, self.clock)

    def take(self, files: dict[str, bytes]) -> None:
        self.files.update(files)
        self.serve()

    def release(self, model: str = "vision", profile: str = PROFILE, **fields: Any) -> SignedImage:
        """Publish the model's next version for one profile."""
        counter = fields.pop("counter", None) or next_counter(read_targets(self.files), model)
        image = ReleaseImage(
            model=model,
            version=str(counter),
            profile=profile,
            platform="linux/amd64",
            counter=counter,
            repository=f"127.0.0.1:5000/wherry/{model}",
            config_digest="sha256:" + "c" * 64,
            unpacked_bytes=1000,
            runtime="onnx",
            provider="CPUExecutionProvider",
            precision="fp32",
            **fields,
        )
        digest = "sha256:" + sha256(image.target_path().encode()).hexdigest()
        self.take(publish(self.files, [ImageToSign(image, digest, 500 + counter)], self.keys, self.clock))
        return self.image(image.target_path())

    def image(self, path: str) -> SignedImage:
        targets = self.files[f"{newest(self.files, 'targets')}.targets.json"]
        return next(found for found in release_images(targets) if found.path == path)

    def assign(self, sequence: int, slots: dict[str, SignedImage], device: str = DEVICE) -> bytes:
        return self.online.sign_assignment(device, sequence, slots, self.clock)


@dataclass
class Device:
    """One device: its folder, and the marks that its journal would hold."""

    world: World
    folder: Path
    marks: Marks = field(default_factory=Marks)
    trust: Trust = field(init=False)

    def __post_init__(self) -> None:
        self.trust = Trust(self.folder, DEVICE, PROFILE, self.world.url, None)
        self.trust.install_root(self.world.files["1.root.json"])

    def verify(
        self, payload: bytes, now: datetime | None = None, online: bool = True, serving: dict[str, str] | None = None
    ) -> Assignment:
        assignment, self.marks = self.trust.verify(payload, self.marks, now or self.world.clock, online, serving)
        return assignment

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()
        }


@pytest.fixture
def world() -> Iterator[World]:
    """An owner with one root key and no releases, served over HTTP on a free port."""
    found = World()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[1]
            found.asked.append(name)
            if name in found.answers:
                found.answers[name](self)
                return
            body = found.served.get(name)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = QuietServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}/v1/tuf/metadata/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    found.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def device(world: World, tmp_path: Path) -> Iterator[Device]:
    """A device enrolled in the world."""
    found = Device(world, tmp_path / "tuf")
    yield found
    found.trust.close()


@pytest.fixture
def later() -> Callable[[int], datetime]:
    """Days after the world's first moment."""
    return lambda days: NOW + timedelta(days=days)


@pytest.fixture
def make_signer() -> Callable[[], OnlineSigner]:
    """A server's keys that the owner does not know."""
    return new_signer


@pytest.fixture
def make_owner() -> Callable[..., OwnerKeys]:
    """An owner's keys."""
    return new_owner


@pytest.fixture
def make_device() -> Callable[..., Device]:
    """A further device."""
    return Device
