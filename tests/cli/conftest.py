"""A small HTTPS server that speaks `wherry.api` from memory, and `wherry` run against it."""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from securesystemslib.signer import CryptoSigner
from typer.testing import CliRunner

from wherry.api.devices import DeviceView
from wherry.api.releases import ReleaseImageView, ReleaseView
from wherry.api.rollouts import RolloutPart, RolloutTargetView, RolloutView, Selector
from wherry.errors import Conflict, NotAllowed, NotFound, WherryError
from wherry.messages import DeploymentReport, GateResult, Problem, ReleaseRef, SlotReport
from wherry.metadata import newest, read_metadata, signed_images
from wherry_cli.main import app

TOKEN = "operator-token"
STARTED = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32


@dataclass
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """A stream: one document a line. Empty when the output is something else."""
        try:
            return [json.loads(line) for line in self.out.splitlines()]
        except ValueError:
            return []


@dataclass
class State:
    """What the fake server knows; tests change it."""

    ca_pem: bytes
    ca_sha256: str
    url: str = ""
    files: dict[str, str] = field(default_factory=dict)
    devices: dict[str, DeviceView] = field(default_factory=dict)
    releases: list[ReleaseView] = field(default_factory=list)
    rollouts: dict[int, RolloutView] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    script: list[RolloutView] = field(default_factory=list)
    telemetry: dict[str, Any] = field(default_factory=lambda: {"slots": [], "hosts": [], "received": {}, "dropped": {}})
    deployments: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    failing: list[int] = field(default_factory=list)  # statuses of the next answers, 0 for a good one
    keys: dict[str, Any] = field(default_factory=dict)
    queries: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)
    logs: list[Any] = field(default_factory=list)  # answers or errors, in turn; the last one stays
    checks: list[dict[str, str]] = field(default_factory=list)
    audit: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=lambda: ["admin", "ci"])
    versions: list[dict[str, Any]] = field(default_factory=list)

    def bodies(self, method: str, path: str) -> list[Any]:
        return [body for found, where, body in self.requests if (found, where) == (method, path)]


def _online_key() -> dict[str, Any]:
    key = CryptoSigner.generate_ecdsa().public_key
    return {"keyid": key.keyid, **key.to_dict()}


class Api:
    """The routes: method and pattern to a function of (state, match, body, query)."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "/v1/repository", lambda *_: self.info()),
            ("POST", "/v1/repository", self.upload),
            ("GET", "/v1/keys", lambda *_: state.keys),
            ("GET", "/v1/tuf/metadata/(.+)", lambda name, *_: self.file(name)),
            ("POST", "/v1/tokens", self.token),
            ("GET", "/v1/devices", self.devices),
            ("GET", "/v1/devices/([^/]+)", lambda name, *_: self.device(name)),
            ("PATCH", "/v1/devices/([^/]+)", self.label),
            ("DELETE", "/v1/devices/([^/]+)", lambda name, *_: self.device(name) and None),
            ("POST", "/v1/devices/([^/]+)/(poll|retry|remove)", lambda name, *_: self.device(name) and None),
            ("POST", "/v1/devices/([^/]+)/logs", self.logs),
            ("POST", "/v1/devices/([^/]+)/diagnose", self.diagnose),
            ("GET", "/v1/fleet", lambda *_: self.fleet()),
            ("GET", "/v1/audit", lambda *_: {"items": state.audit, "next": None}),
            ("GET", "/v1/api-tokens", lambda *_: {"items": [{"name": n, "created": _WHEN} for n in state.tokens]}),
            ("DELETE", "/v1/api-tokens/(.+)", lambda name, *_: state.tokens.remove(name)),
            ("DELETE", "/v1/devices/([^/]+)/slots/[^/]+", lambda name, *_: self.device(name) and None),
            ("GET", "/v1/releases", lambda *_: {"items": state.releases, "next": None}),
            ("GET", "/v1/releases/([^/]+)/([^/]+)", self.release),
            ("GET", "/v1/rollouts", lambda *_: {"items": list(state.rollouts.values()), "next": None}),
            ("POST", "/v1/rollouts/preview", lambda *_: {"devices": 1, "fit": 1, "notes": state.notes}),
            ("POST", "/v1/rollouts", self.start),
            ("GET", "/v1/rollouts/([0-9]+)", self.rollout),
            ("POST", "/v1/rollouts/([0-9]+)/(start|pause|abort|retry)", self.control),
            ("GET", "/v1/deployments", lambda *_: {"items": state.deployments, "next": None}),
            ("GET", "/v1/telemetry", lambda *_: state.telemetry),
        ]

    def call(self, method: str, path: str, body: Any, query: dict[str, str]) -> Any:
        for known, pattern, function in self.routes:
            match = re.fullmatch(pattern, path)
            if known == method and match:
                return function(*match.groups(), body, query)
        raise NotFound(f"path {path}", "does not exist")

    def info(self) -> dict[str, Any]:
        found = {name: newest(dict.fromkeys(self.state.files, b""), name) for name in ("root", "targets", "snapshot")}
        return {**found, "timestamp": 1, "expires": {"targets": (datetime.now(UTC) + timedelta(days=180)).isoformat()}}

    def upload(self, body: Any, _query: Any) -> Any:
        from tuf.api.metadata import Targets

        self.state.files.update(body["files"])
        files = {name: text.encode() for name, text in self.state.files.items()}
        data = files[f"{newest(files, 'targets')}.targets.json"]
        self.state.releases = [
            release_view(image.image.model, image.image.version, image.image.profile, image.image.counter, image.digest)
            for image in signed_images(read_metadata(Targets, data, "targets").signed)
        ]
        return self.info()

    def file(self, name: str) -> bytes:
        if name not in self.state.files:
            raise NotFound(name, "is not here")
        return self.state.files[name].encode()

    def token(self, body: Any, _query: Any) -> Any:
        expires = (datetime.now(UTC) + timedelta(hours=body["hours"])).isoformat()
        ca = self.state.ca_sha256
        return {"device": body["device"], "secret": "s3cret", "expires": expires, "server_ca_sha256": ca}

    def devices(self, _body: Any, query: dict[str, str]) -> Any:
        # Two devices a page, so that paging is exercised.
        names = sorted(name for name, view in self.state.devices.items() if _listed(view, query))
        first = names.index(query["after"]) + 1 if "after" in query else 0
        page = names[first : first + 2]
        more = page[-1] if first + 2 < len(names) else None
        return {"items": [self.state.devices[name] for name in page], "next": more}

    def device(self, name: str) -> DeviceView:
        if name not in self.state.devices:
            raise NotFound(f"device {name}", "is not enrolled")
        return self.state.devices[name]

    def logs(self, name: str, *_: Any) -> Any:
        self.device(name)
        answer = self.state.logs.pop(0) if len(self.state.logs) > 1 else self.state.logs[0]
        if isinstance(answer, WherryError):
            raise answer
        return answer

    def diagnose(self, name: str, *_: Any) -> Any:
        self.device(name)
        return {"checks": self.state.checks, "facts": {"kernel": "6.1"}}

    def fleet(self) -> Any:
        views = list(self.state.devices.values())
        return {
            "devices": len(views), "online": sum(view.online for view in views), "versions": self.state.versions,
            "drifting": sum(bool(view.drift) for view in views), "problems": sum(bool(view.problem) for view in views),
        }  # fmt: skip

    def label(self, name: str, body: Any, _query: Any) -> Any:
        self.device(name).labels = body["labels"]
        return self.device(name)

    def release(self, model: str, version: str, *_: Any) -> Any:
        for view in self.state.releases:
            if (view.model, view.version) == (model, version):
                return view
        raise NotFound(f"release {model} {version}", "was never published")

    def start(self, body: Any, _query: Any) -> Any:
        parts = body["together"] or [body]
        for part in parts:
            self.release(part["model"], part["version"])
        number, first = len(self.state.rollouts) + 1, parts[0]
        view = rollout_view(number, first["model"], first["version"], selector=Selector(**body["selector"]))
        view.slot, view.together = first["slot"], [RolloutPart(**part) for part in body["together"]]
        self.state.rollouts[number] = view
        return view

    def rollout(self, number: str, *_: Any) -> Any:
        if int(number) not in self.state.rollouts:
            raise NotFound(f"rollout {number}", "does not exist")
        if self.state.script:
            self.state.rollouts[int(number)] = self.state.script.pop(0)
        return self.state.rollouts[int(number)]

    def control(self, number: str, action: str, *_: Any) -> Any:
        view: RolloutView = self.rollout(number)
        if view.state == "completed" and action == "pause":
            raise Conflict(f"rollout {number}", "is completed")
        states: Any = {"start": "running", "pause": "paused", "abort": "aborted", "retry": "running"}
        view.state = states[action]
        return view


_WHEN = STARTED.isoformat()


def _listed(view: DeviceView, query: dict[str, str]) -> bool:
    states = {"problem": bool(view.problem), "drifting": bool(view.drift), "offline": not view.online}
    wanted = [query.get("search", "") in view.id, states.get(query.get("state", ""), True)]
    return all(wanted) and ("online" not in query or view.online == (query["online"] == "true"))


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _handler(api: Api) -> type[BaseHTTPRequestHandler]:
    state = api.state

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            url = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(raw) if raw else None
            state.requests.append((self.command, url.path, body))
            state.queries.append((url.path, parse_qs(url.query)))
            status = state.failing.pop(0) if state.failing else 0
            if status:
                self.reply(status, b"<html>bad gateway</html>")
            elif url.path == "/v1/ca":
                self.reply(200, state.ca_pem)
            else:
                self.reply(*self.result(url.path, body, {k: v[0] for k, v in parse_qs(url.query).items()}))

        def result(self, path: str, body: Any, query: dict[str, str]) -> tuple[int, bytes]:
            try:
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    raise NotAllowed("API token", "is not known")
                found = _plain(api.call(self.command, path, body, query))
            except WherryError as error:
                status = 401 if isinstance(error, NotAllowed) else 400
                return status, json.dumps({"error": error.as_dict()}).encode()
            return 200, found if isinstance(found, bytes) else json.dumps(found).encode()

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

    return Handler


def _certificates() -> tuple[bytes, bytes, bytes]:
    """PEM of a CA, and of a server certificate for 127.0.0.1 with its key."""

    def issue(name: str, key: Any, issuer: str, signer: Any, ca: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        )
        return builder.sign(signer, hashes.SHA256())

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = issue("test CA", ca_key, "test CA", ca_key, True)
    leaf = issue("server", key, "test CA", ca_key, False)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return ca.public_bytes(pem), leaf.public_bytes(pem), private


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> tuple[bytes, ssl.SSLContext]:
    ca, leaf, key = _certificates()
    folder = tmp_path_factory.mktemp("tls")
    (folder / "server.pem").write_bytes(leaf + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return ca, context


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is part of the tests."""


@pytest.fixture
def server(certificates) -> Iterator[State]:
    ca, context = certificates
    fingerprint = x509.load_pem_x509_certificate(ca).fingerprint(hashes.SHA256()).hex()
    state = State(ca, fingerprint, keys={"timestamp": _online_key(), "director": _online_key()})
    http = _QuietServer(("127.0.0.1", 0), _handler(Api(state)))
    http.socket = context.wrap_socket(http.socket, server_side=True)
    state.url = f"https://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    for name in ("SERVER", "TOKEN", "CA_FILE", "REGISTRY", "DEBUG", "KEY_PASSPHRASE"):
        monkeypatch.delenv(f"WHERRY_{name}", raising=False)
    folder = tmp_path / "home"
    monkeypatch.setenv("WHERRY_HOME", str(folder))
    return folder


@pytest.fixture
def wherry(home) -> Callable[..., Answer]:
    """Run a command line; every answer is checked for tracebacks, and its JSON for being JSON."""

    def run(*args: str, **more: Any) -> Answer:
        result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="wherry", **more)
        answer = Answer(result.exit_code, result.stdout, result.stderr)
        assert "Traceback" not in answer.out + answer.err
        if "--json" in args and not answer.lines:
            json.loads(answer.out)
        return answer

    return run


@pytest.fixture
def operator(wherry: Callable[..., Answer], server, tmp_path) -> Callable[..., Answer]:
    """`wherry`, logged in to the fake server."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(server.ca_pem)
    answer = wherry("login", "--server", server.url, "--token", TOKEN, "--ca-file", ca, "--registry", "127.0.0.1:5470")
    assert answer.code == 0, answer.err
    server.requests.clear()
    return wherry


# -- builders


def release_view(model: str, version: str, profile: str, counter: int, digest: str = DIGEST) -> ReleaseView:
    image = ReleaseImageView(
        profile=profile, counter=counter, digest=digest, repository=f"127.0.0.1:5470/wherry/{model}",
        download_bytes=3_400_000, unpacked_bytes=9_000_000, runtime="onnx", precision="fp32",
    )  # fmt: skip
    return ReleaseView(model=model, version=version, stage="prod", published=STARTED, images=[image])


def ref(version: str) -> ReleaseRef:
    return ReleaseRef(model="vision", version=version, counter=int(version), digest=DIGEST)


def deployment(device: str, phases: list[str], seconds: float = 3.2, **more: Any) -> DeploymentReport:
    times = [(phase, STARTED + timedelta(milliseconds=100 * number)) for number, phase in enumerate(phases)]
    return DeploymentReport(
        id=f"{device}-1", slot="main", release=ref("2"), sequence=7, phase=phases[-1], started=STARTED,
        updated=STARTED + timedelta(seconds=seconds), phases=times, **more,
    )  # fmt: skip


def target(device: str, state: str, report: DeploymentReport | None = None, problem: Any = None) -> RolloutTargetView:
    return RolloutTargetView(device=device, state=state, deployment=report, problem=problem)


def rollout_view(number: int, model: str, version: str, state: str = "running", **more: Any) -> RolloutView:
    more.setdefault("selector", Selector(everything=True))
    return RolloutView(id=number, model=model, version=version, slot="main", state=state, created=STARTED, **more)


def gate(kind: str, ok: bool, detail: str) -> GateResult:
    return GateResult(kind=kind, ok=ok, detail=detail, seconds=0.4)


def device_view(name: str, **more: Any) -> DeviceView:
    slot = SlotReport(slot="main", port=18080, serving=ref("1"), known_good=ref("1"), healthy=True)
    values: dict[str, Any] = {
        "id": name, "profile": "generic-amd64", "labels": {"site": "north"}, "online": True,
        "agent_version": "0.1.0", "enrolled": STARTED, "last_seen": STARTED, "sequence": 7, "reported_sequence": 7,
        "desired": {"main": ref("1")}, "slots": [slot],
    }  # fmt: skip
    return DeviceView(**{**values, **more})


@pytest.fixture
def make() -> Any:
    """The builders of this module, for test modules (which cannot import it)."""

    class Make:
        release = staticmethod(release_view)
        ref = staticmethod(ref)
        deployment = staticmethod(deployment)
        target = staticmethod(target)
        rollout = staticmethod(rollout_view)
        gate = staticmethod(gate)
        device = staticmethod(device_view)
        problem = staticmethod(lambda **more: Problem(**more))
        started = STARTED
        digest = DIGEST
        token = TOKEN

    return Make
