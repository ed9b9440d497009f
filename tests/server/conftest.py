"""A server's parts over a real database, an owner who signs, devices with keys, and a client for the API."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from ports import free_port
from securesystemslib.signer import CryptoSigner
from sqlalchemy import create_engine, text
from starlette.datastructures import State

from wherry.api.repository import RepositoryUpload
from wherry.device_auth import sign_request
from wherry.identity import sha256_digest
from wherry.messages import DeploymentReport, Problem, ReleaseRef, SlotReport, StateReport
from wherry.metadata import OwnerSet, verify_owner_set
from wherry.profile import BaseImage, Capabilities, Detect, DeviceProfile
from wherry.release import ReleaseImage
from wherry_cli.repository import ImageToSign, OwnerKeys, init_repository, publish
from wherry_server.app import make_application
from wherry_server.broker import write_broker_folder
from wherry_server.config import ServerConfig
from wherry_server.dashboard.frame import Frame
from wherry_server.pki import Authority
from wherry_server.services import repository
from wherry_server.services.access import create_token
from wherry_server.services.context import Context
from wherry_server.signing import OnlineSigner
from wherry_server.store.database import Store

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
POSTGRES = Path("/usr/lib/postgresql")


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def pass_time(self, **duration: float) -> None:
        self.now += timedelta(**duration)


class Wakes:
    """Counts how often the link was woken."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


# -- databases


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a private PostgreSQL cluster, without the database name."""
    folders = sorted(POSTGRES.glob("*/bin/initdb"))
    if not folders:
        pytest.skip("PostgreSQL is not installed")
    binaries, user = folders[-1].parent, "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="wherry-postgres-"))
    if user:
        shutil.chown(folder, user)
    port = free_port()
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c full_page_writes=off"
    run: dict[str, Any] = {
        "user": user,
        "cwd": "/",
        "check": True,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.STDOUT,
    }
    data = folder / "data"
    try:
        subprocess.run([binaries / "initdb", "-D", data, "-A", "trust", "-U", "wherry", "--no-sync"], **run)
        subprocess.run([binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start"], **run)
        yield f"postgresql://wherry@127.0.0.1:{port}"
    finally:
        subprocess.run([binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **(run | {"check": False}))
        shutil.rmtree(folder)


@contextlib.contextmanager
def made_postgres(server: str, template: str = "template0") -> Iterator[str]:
    """URL of a new PostgreSQL database, a copy of another one; it is dropped in the end."""
    name = "w" + secrets.token_hex(4)
    admin = create_engine(
        server.replace("postgresql://", "postgresql+psycopg://") + "/postgres", isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        yield f"{server}/{name}"
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def new_postgres(postgres_server: str) -> Iterator[str]:
    """URL of a new, empty PostgreSQL database."""
    with made_postgres(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: str) -> Iterator[str]:
    """Name of a database to copy: migrating one for each test took longer than most tests."""
    with made_postgres(postgres_server) as url:
        migrate(url)
        yield url.rpartition("/")[2]


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database to copy."""
    path = tmp_path_factory.mktemp("migrated") / "test.db"
    migrate(f"sqlite:///{path}")
    return path


def migrate(url: str) -> None:
    store = Store(url)
    store.migrate()
    store.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of each kind, migrated and without a row."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
        return
    server, template = request.getfixturevalue("postgres_server"), request.getfixturevalue("migrated_postgres")
    with made_postgres(server, template) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind without a table."""
    url: str = (
        request.getfixturevalue("new_postgres") if request.param == "postgres" else f"sqlite:///{tmp_path}/new.db"
    )
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_sqlite: Path) -> str:
    """A SQLite database, migrated and without a row."""
    shutil.copy(migrated_sqlite, tmp_path / "test.db")
    return f"sqlite:///{tmp_path}/test.db"


# -- the server's parts


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def keys_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CA and online keys, made once."""
    folder = tmp_path_factory.mktemp("keys")
    Authority.create(folder / "pki", "test", START - timedelta(days=1))
    OnlineSigner.open(folder / "keys")
    return folder


def make_profile(name: str, architecture: str, runtimes: list[str]) -> DeviceProfile:
    return DeviceProfile(
        name=name,
        title=name,
        platform=f"linux/{architecture}",
        detect=Detect(),
        capabilities=Capabilities(
            runtimes=runtimes, providers=["CPUExecutionProvider"], precisions=["fp32"], memory_mb=4096
        ),
        base=BaseImage(kind="debian"),
    )


PROFILES = {
    profile.name: profile
    for profile in (make_profile("generic-amd64", "amd64", ["onnx"]), make_profile("generic-arm64", "arm64", ["onnx"]))
}


@pytest.fixture
def make_context(tmp_path: Path, clock: Clock, keys_folder: Path) -> Iterator[Callable[..., Context]]:
    """Makes a server's parts over a database; more than one over the same database, if asked."""
    made: list[Context] = []

    def make(url: str, **settings: Any) -> Context:
        data = tmp_path / "data"
        if not data.exists():
            shutil.copytree(keys_folder, data)
        store = Store(url)
        store.migrate()
        context = Context(
            config=ServerConfig(data=data, host="localhost", **settings),
            store=store,
            authority=Authority.open(data / "pki"),
            signer=OnlineSigner.open(data / "keys"),
            profiles=PROFILES,
            clock=clock,
            wake=Wakes(),
        )
        made.append(context)
        return context

    yield make
    for context in made:
        context.store.close()


@pytest.fixture
def context(make_context: Callable[..., Context], database_url: str) -> Context:
    """A server's parts over an empty database, of each kind."""
    return make_context(database_url)


@pytest.fixture
def sqlite_context(make_context: Callable[..., Context], sqlite_url: str) -> Context:
    """A server's parts over SQLite: for what does not depend on the database."""
    return make_context(sqlite_url)


# -- the owner


class Owner:
    """Who signs releases."""

    def __init__(self, context: Context) -> None:
        self.context = context
        root, targets, snapshot = (CryptoSigner.generate_ecdsa() for _ in range(3))
        self.keys = OwnerKeys(targets=targets, snapshot=snapshot, root=(root,))
        self.files = init_repository(self.keys, context.signer.online_keys(), context.clock())
        self.upload(self.files)

    def upload(self, files: dict[str, bytes]) -> None:
        repository.publish(self.context, RepositoryUpload(files={name: data.decode() for name, data in files.items()}))

    @property
    def set(self) -> OwnerSet:
        return verify_owner_set(self.files)

    def release(self, version: str, profile: str = "generic-amd64", model: str = "vision", **fields: Any) -> ReleaseRef:
        """Sign and publish an image of a version; a counter above all others of the model and profile."""
        known = [
            int(path.split("/")[-1].split(".")[0])
            for path in self.set.targets.targets
            if path.startswith(f"models/{model}/{profile}/")
        ]
        image = ReleaseImage(
            model=model,
            version=version,
            profile=profile,
            platform=f"linux/{profile.rpartition('-')[2]}",
            counter=max(known, default=0) + 1,
            repository=f"127.0.0.1:5000/wherry/{model}",
            config_digest=sha256_digest(b"config"),
            unpacked_bytes=1000,
            download_bytes=500,
            runtime=fields.pop("runtime", "onnx"),
            provider="CPUExecutionProvider",
            precision="fp32",
            **fields,
        )
        digest = sha256_digest(f"{model} {version} {profile} {image.counter}".encode())
        new = publish(self.files, [ImageToSign(image, digest, 700)], self.keys, self.context.clock())
        self.upload(new)
        self.files = _newest({**self.files, **new})
        return ReleaseRef(model=model, version=version, counter=image.counter, digest=digest)


def _newest(files: dict[str, bytes]) -> dict[str, bytes]:
    found = {name: data for name, data in files.items() if name.endswith("root.json")}
    for role in ("targets", "snapshot"):
        name = max((name for name in files if f".{role}." in name), key=lambda name: int(name.split(".")[0]))
        found[name] = files[name]
    return found


@pytest.fixture
def owner(context: Context) -> Owner:
    return Owner(context)


@pytest.fixture
def make_owner() -> type[Owner]:
    return Owner


# -- the API


_MADE: list[FastAPI] = []


def application(context: Context) -> FastAPI:
    """A server's application. Its routes know no context and take longer to make than most tests: once is enough."""
    if not _MADE:
        _MADE.append(make_application(context))
    app = copy.copy(_MADE[0])
    app.state, app.middleware_stack = State(), None
    app.state.context, app.state.frame = context, Frame(context)
    return app


class ApiClient:
    """Calls the application in this process, as an operator unless told otherwise."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.app = application(context)
        self.token = create_token(context, "test")

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"} | options.pop("headers", {})

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="https://server") as client:
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return (
            self.request("POST", path, json=body, **options)
            if body is not None
            else self.request("POST", path, **options)
        )


@pytest.fixture
def api(context: Context) -> ApiClient:
    return ApiClient(context)


@pytest.fixture
def make_api() -> type[ApiClient]:
    return ApiClient


# -- devices


class FakeDevice:
    """A device as the server meets it: a key, a certificate, and what it says."""

    def __init__(self, api: ApiClient, name: str, profile: str = "generic-amd64") -> None:
        self.api = api
        self.name = name
        self.profile = profile
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = ""
        self.number = 0
        self.sequence = 0
        self.slots: dict[str, SlotReport] = {}
        self.rejected: list[str] = []
        self.problem: Problem | None = None
        self.refused = 0

    def csr(self, key: ec.EllipticCurvePrivateKey | None = None, name: str | None = None) -> str:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name or self.name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key or self.key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def get_token(self, **fields: Any) -> str:
        reply = self.api.post("/v1/tokens", {"device": self.name, "profile": self.profile, **fields})
        assert reply.status_code == 200, reply.text
        secret: str = reply.json()["secret"]
        return secret

    def enrol_with(self, secret: str, **fields: Any) -> httpx.Response:
        body = {
            "device": self.name,
            "secret": secret,
            "profile": self.profile,
            "agent_version": "0.1.0",
            "csr_pem": self.csr(),
        }
        return self.api.post("/v1/enrol", body | fields, headers={"Authorization": ""})

    def enrol(self, **token_fields: Any) -> FakeDevice:
        reply = self.enrol_with(self.get_token(**token_fields))
        assert reply.status_code == 200, reply.text
        self.certificate = reply.json()["certificate_pem"]
        return self

    def signed(
        self,
        method: str,
        path: str,
        body: Any = None,
        key: ec.EllipticCurvePrivateKey | None = None,
        at: datetime | None = None,
    ) -> httpx.Response:
        data = b"" if body is None else json.dumps(body).encode()
        seconds = int((at or self.api.context.clock()).timestamp())
        header = sign_request(key or self.key, self.name, method, path, data, seconds)
        return self.api.request(
            method, path, content=data, headers={"Authorization": header, "Content-Type": "application/json"}
        )

    def report(self) -> StateReport:
        """Its state, under the next number."""
        self.number += 1
        return StateReport(
            device=self.name,
            profile=self.profile,
            agent_version="0.1.0",
            stream="s1",
            number=self.number,
            at=self.api.context.clock(),
            boot_id="b1",
            sequence=self.sequence,
            slots=list(self.slots.values()),
            rejected=self.rejected,
            problem=self.problem,
            refused=self.refused,
        )

    def deployment(
        self, release: ReleaseRef, phase: str, slot: str = "main", problem: Problem | None = None, id_: str = ""
    ) -> DeploymentReport:
        now = self.api.context.clock()
        return DeploymentReport(
            id=id_ or f"{slot}-{self.sequence}",
            slot=slot,
            release=release,
            sequence=self.sequence,
            phase=phase,
            started=now,
            updated=now,
            problem=problem,
        )

    def runs(self, release: ReleaseRef, phase: str = "committed", **fields: Any) -> StateReport:
        """It took the newest assignment and stands at a phase; committed means that it serves."""
        deployment = self.deployment(release, phase, **fields)
        slot, before = deployment.slot, self.slots.get(deployment.slot)
        serving = release if phase == "committed" else (before.serving if before else None)
        self.slots[slot] = SlotReport(
            slot=slot,
            port=8500,
            serving=serving,
            known_good=serving,
            desired=release,
            healthy=serving is not None,
            deployment=deployment,
        )
        return self.report()


@pytest.fixture
def device_class() -> type[FakeDevice]:
    return FakeDevice


@pytest.fixture
def make_device(api: ApiClient) -> Callable[..., FakeDevice]:
    """Makes a device of that name; `.enrol()` lets it in."""

    def make(name: str = "dev-1", profile: str = "generic-amd64") -> FakeDevice:
        return FakeDevice(api, name, profile)

    return make


@pytest.fixture
def device(make_device: Callable[..., FakeDevice]) -> FakeDevice:
    """One enrolled device, `dev-1`."""
    return make_device().enrol()


# -- a whole fleet


@pytest.fixture(scope="session")
def seed_fleet() -> Callable[..., Any]:
    """`scripts/seed.py`'s function."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "seed.py"
    spec = importlib.util.spec_from_file_location("seed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.seed


# -- waiting


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Poll until a condition holds; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


@pytest.fixture
def wait() -> Callable[..., Any]:
    return wait_until


def with_settings(context: Context, **settings: Any) -> Context:
    return dataclasses.replace(context, config=context.config.model_copy(update=settings))


@pytest.fixture
def change_settings() -> Callable[..., Context]:
    return with_settings


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- the broker


class Broker:
    """A real Mosquitto with the configuration that `wherry-server broker-config` writes."""

    def __init__(self, context: Context, folder: Path) -> None:
        self.context = context
        self.folder = folder
        self.port = context.config.broker_port
        self.config = write_broker_folder(context.config, context.authority, folder, [], datetime.now(UTC))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(["mosquitto", "-c", self.config], stdout=log, stderr=log)
        wait_until(self._listens)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self, forget: bool = False) -> None:
        """SIGKILL; with `forget` also its disk is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if forget:
            (self.folder / "mosquitto.db").unlink(missing_ok=True)


@pytest.fixture
def live_clock() -> Callable[[], datetime]:
    return lambda: datetime.now(UTC)


@pytest.fixture
def live_context(tmp_path: Path, sqlite_context: Context, live_clock: Callable[[], datetime]) -> Context:
    """A server's parts with the real time, for TLS peers that look at the clock."""
    live = Authority.create(tmp_path / "live-pki", "live", live_clock())
    changed = with_settings(
        sqlite_context, broker_port=free_port(), broker_host="127.0.0.1", broker_folder=tmp_path / "broker"
    )
    return dataclasses.replace(changed, authority=live, clock=live_clock)


@pytest.fixture
def broker(live_context: Context, tmp_path: Path) -> Iterator[Broker]:
    found = Broker(live_context, tmp_path / "broker")
    found.start()
    yield found
    found.kill()
