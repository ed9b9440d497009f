"""Hostile and broken HTTP, and the CA that decides whom the device talks to."""

import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import IPv4Address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError

from wherry.errors import ServerError, TrustError
from wherry_agent.trust import Trust
from wherry_agent.tuf_updater import BoundedFetcher


def _answer(status, body=b"", length=None, headers=()):
    def handle(handler):
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return handle


@pytest.mark.parametrize("status", [301, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_every_other_status_is_a_server_error(world, device, name, status):
    payload = world.assign(1, {"main": world.release()})
    world.answers = {name: _answer(status, b"no", headers=[("Location", "timestamp.json")])}
    with pytest.raises(ServerError, match=str(status)):
        device.verify(payload)
    world.answers = {}
    device.verify(payload)


def test_truncated_body(world, device):
    payload = world.assign(1, {"main": world.release()})
    body = world.served["timestamp.json"]
    world.answers = {"timestamp.json": _answer(200, body[:-20], len(body))}
    with pytest.raises(ServerError):
        device.verify(payload)


def test_compressed_bomb_is_not_unpacked(world, device):
    payload = world.assign(1, {"main": world.release()})
    world.answers = {"timestamp.json": _answer(200, b"\x1f\x8b" + bytes(100), headers=[("Content-Encoding", "gzip")])}
    with pytest.raises(TrustError):
        device.verify(payload)


def test_no_server(world, device):
    payload = world.assign(1, {"main": world.release()})
    lonely = Trust(device.folder, "dev-1", "generic-amd64", "http://127.0.0.1:9/", None)
    with pytest.raises(ServerError):
        lonely.verify(payload, device.marks, world.clock)


def test_dripping_server_is_given_up(world):
    """The clock says that each chunk took ten seconds; no silence is ever long enough to time out."""
    world.served["big.json"] = bytes(500_000)
    ticks = iter(range(0, 10_000, 10))
    fetcher = BoundedFetcher(None, deadline=15, clock=lambda: next(ticks))
    with pytest.raises(SlowRetrievalError):
        fetcher.download_bytes(world.url + "big.json", 1_000_000)
    fetcher.close()


def test_silent_server_is_given_up(world):
    release = threading.Event()
    world.answers = {"timestamp.json": lambda handler: release.wait(10)}
    fetcher = BoundedFetcher(None, silence=0.05)
    with pytest.raises(DownloadError):
        fetcher.download_bytes(world.url + "timestamp.json", 1000)
    release.set()
    fetcher.close()


def test_connection_is_usable_after_a_refusal(world):
    world.served["a.json"] = b"a"
    fetcher = BoundedFetcher(None)
    for _ in range(3):
        with pytest.raises(DownloadHTTPError):
            fetcher.download_bytes(world.url + "none.json", 10)
        assert fetcher.download_bytes(world.url + "a.json", 10) == b"a"
        with pytest.raises(DownloadError):
            fetcher.download_bytes(world.url + "timestamp.json", 10)
    fetcher.close()


def _certificate(folder, name):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / f"{name}.key").write_bytes(pem)
    return folder / f"{name}.crt", folder / f"{name}.key"


@pytest.fixture
def https(world, tmp_path):
    """The world's files over HTTPS; yields the URL and the CA file."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = world.served.get(self.path.rsplit("/", 1)[1])
            _answer(404 if body is None else 200, body or b"")(self)

        def log_message(self, *_):
            pass

    certificate, key = _certificate(tmp_path, "server")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}/v1/tuf/metadata", certificate
    server.shutdown()
    server.server_close()
    thread.join()


def test_https_with_the_servers_ca(world, device, https, tmp_path):
    url, ca_file = https
    payload = world.assign(1, {"main": world.release()})
    trust = Trust(device.folder, "dev-1", "generic-amd64", url, ca_file)
    assert trust.verify(payload, device.marks, world.clock)[0].sequence == 1
    trust.close()
    other = _certificate(tmp_path, "other")[0]
    for stranger in (other, None, tmp_path / "missing.crt"):
        trust = Trust(device.folder, "dev-1", "generic-amd64", url, stranger)
        with pytest.raises(ServerError):
            trust.verify(payload, device.marks, world.clock)
        trust.close()
