"""A certificate authority and a real Mosquitto, as small as they can be."""

from __future__ import annotations

import datetime as dt
import getpass
import ipaddress
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ports import free_port

from wherry.mqtt import BrokerSettings

BROKER = """
user {user}
per_listener_settings false
allow_anonymous false
allow_zero_length_clientid false
acl_file {folder}/acl
persistence true
persistence_location {folder}/
autosave_interval 30
max_packet_size 262144
max_inflight_messages 20
max_queued_messages 200
listener {port} 127.0.0.1
cafile {folder}/ca.crt
certfile {folder}/broker.crt
keyfile {folder}/broker.key
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
use_username_as_clientid true
max_qos 1
"""
ACL = """
user wherryd
topic write wherry/v1/d/+/cmd
topic write wherry/v1/d/+/assign
topic read wherry/v1/d/+/up/#
pattern read wherry/v1/d/%u/cmd
pattern read wherry/v1/d/%u/assign
pattern write wherry/v1/d/%u/up/#
"""


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Authority:
    """A CA that issues what a test needs into a folder."""

    def __init__(self, folder: Path, name: str = "test CA") -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self.build(name, self.key.public_key(), issuer=name, ca=True)
        self.ca_file = folder / "ca.crt"
        self.ca_file.write_bytes(self.pem(self.certificate))

    @staticmethod
    def pem(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(serialization.Encoding.PEM)

    def build(
        self,
        name: str,
        public_key: ec.EllipticCurvePublicKey,
        issuer: str | None = None,
        ca: bool = False,
        begins: dt.datetime | None = None,
        days: float = 7,
    ) -> x509.Certificate:
        begins = begins or dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)
        issuer_name = (
            self.certificate.subject if issuer is None else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])
        )
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer_name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def issue(self, name: str, as_name: str | None = None, **options: object) -> tuple[Path, Path]:
        """Certificate and key file of a new identity."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.build(name, key.public_key(), **options)  # type: ignore[arg-type]
        stem = as_name or name
        certificate_file, key_file = self.folder / f"{stem}.crt", self.folder / f"{stem}.key"
        certificate_file.write_bytes(self.pem(certificate))
        key_file.write_bytes(_pem(key))
        return certificate_file, key_file


@dataclass
class Broker:
    """A Mosquitto of our own: started, killed -9 and started again at the same port."""

    authority: Authority
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        return self.authority.folder

    def start(self) -> None:
        config = self.folder / "mosquitto.conf"
        config.write_text(BROKER.format(folder=self.folder, port=self.port, user=getpass.getuser()))
        (self.folder / "acl").write_text(ACL)
        with (self.folder / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen(["/usr/sbin/mosquitto", "-c", str(config)], stderr=log, stdout=log)
        wait_until(self._listens, "mosquitto listens")

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def settings(self, name: str, **changes: object) -> BrokerSettings:
        certificate_file, key_file = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        if not certificate_file.exists():
            self.authority.issue(name)
        values: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.port,
            "client_id": name,
            "ca_file": str(self.authority.ca_file),
            "certificate_file": str(certificate_file),
            "key_file": str(key_file),
            "reconnect_min": 0.05,
            "reconnect_max": 0.3,
            "connect_timeout": 5.0,
        }
        return BrokerSettings(**(values | changes))  # type: ignore[arg-type]


def wait_until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Poll a condition until it holds; fail with its name when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.02)


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    return wait_until


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "broker"
    folder.mkdir()
    return Authority(folder)


@pytest.fixture
def broker(authority: Authority) -> Iterator[Broker]:
    """A running broker with the access rules of production."""
    authority.issue("broker")
    broker = Broker(authority, free_port())
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()
