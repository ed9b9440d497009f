"""The device's identity on disk: `STATE/identity/`, folder 0700, files 0600.

`device.pem` holds key and certificate together, so that one rename changes both and a power cut never
leaves a key without its certificate. `device.json`, written last, says that the device is enrolled.
A renewed pair waits in `next.pem` until it is known to work; the key that a certificate was asked for
waits in `asked.key`, so that the same question can be put again when the answer was lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import BaseModel, ConfigDict

from wherry.errors import ContractError, IdentityError, StoreError
from wherry.identity import DeviceId, ProfileName
from wherry.mqtt import BrokerSettings
from wherry.schemas import load_json, parse_schema

_SCHEMA = 1
_NOT_ENROLLED = "Run `wherry-agent enroll` with a join token"


class IdentityFile(BaseModel):
    """Contents of device.json.

    Attributes:
        token_sha256: of the join token, so that the same command again is recognised.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = _SCHEMA
    device: DeviceId
    profile: ProfileName
    server_url: str
    broker_host: str
    broker_port: int
    token_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this device is and where it belongs.

    Attributes:
        ca_file: the server's CA, PEM.
        credentials_file: private key, certificate and intermediates, PEM.
        begins, expires: validity of the certificate.
    """

    device: str
    profile: str
    server_url: str
    broker_host: str
    broker_port: int
    ca_file: Path
    credentials_file: Path
    begins: datetime
    expires: datetime
    token_sha256: str = ""

    def broker_settings(self) -> BrokerSettings:
        """How to connect to the broker as this device."""
        pem = str(self.credentials_file)
        return BrokerSettings(self.broker_host, self.broker_port, self.device, str(self.ca_file), pem, pem)

    def key(self) -> ec.EllipticCurvePrivateKey:
        """The private key.

        Raises:
            IdentityError: the file is not readable as one.
        """
        return _read_key(self.credentials_file)


class IdentityStore:
    """The files. Every write is atomic and on the disk when the call returns.

    Args:
        state: the agent's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / "identity"

    def load(self) -> Identity:
        """The identity in use; a renewed one takes over when the one in use is damaged.

        Raises:
            IdentityError: not enrolled, or the files are damaged.
        """
        try:
            return self._read("ca.crt", "device.pem")
        except IdentityError:
            if self.load_next() is None:
                raise
            return self.commit()

    def load_next(self) -> Identity | None:
        """The renewed identity that is not in use yet, or None."""
        ca = "next-ca.crt" if (self._folder / "next-ca.crt").exists() else "ca.crt"
        try:
            return self._read(ca, "next.pem")
        except IdentityError:
            return None

    def asked_key(self) -> ec.EllipticCurvePrivateKey:
        """The key to ask a certificate for: the one asked for before when no answer came, else a new one."""
        path = self._folder / "asked.key"
        with contextlib.suppress(IdentityError):
            return _read_key(path)
        key = ec.generate_private_key(ec.SECP256R1())
        self._write("asked.key", _key_pem(key))
        return key

    def keys(self) -> list[ec.EllipticCurvePrivateKey]:
        """Keys that the server may know this device by, the likeliest first."""
        found = []
        for name in ("next.pem", "device.pem", "asked.key"):
            with contextlib.suppress(IdentityError):
                found.append(_read_key(self._folder / name))
        return found

    def save(self, about: IdentityFile, key: ec.EllipticCurvePrivateKey, certificate_pem: str, ca_pem: str) -> Identity:
        """Store a fresh enrolment; it takes the place of any other.

        Raises:
            IdentityError: the certificate is not one for this device and key; nothing was changed.
            StoreError: the disk refused.
        """
        _check_certificate(about.device, key, certificate_pem)
        self._remove("device.json", "next.pem", "next-ca.crt")
        self._write("ca.crt", ca_pem.encode())
        self._write("device.pem", _key_pem(key) + certificate_pem.encode())
        self._write("device.json", json.dumps({"schema": _SCHEMA, **about.model_dump()}, indent=1).encode())
        self._remove("asked.key")
        return self.load()

    def stage(self, key: ec.EllipticCurvePrivateKey, certificate_pem: str, ca_pem: str) -> Identity:
        """Store a renewed pair beside the one in use.

        Raises:
            IdentityError: the certificate is not one for this device and key.
            StoreError: the disk refused.
        """
        _check_certificate(self.load().device, key, certificate_pem)
        self._write("next-ca.crt", ca_pem.encode())
        self._write("next.pem", _key_pem(key) + certificate_pem.encode())
        self._remove("asked.key")
        staged = self.load_next()
        if staged is None:
            raise StoreError(f"identity in {self._folder}", "does not hold what was just written")
        return staged

    def commit(self) -> Identity:
        """Put the renewed pair in use for good."""
        with _disk(self._folder):
            for source, target in (("next-ca.crt", "ca.crt"), ("next.pem", "device.pem")):
                if (self._folder / source).exists():
                    (self._folder / source).replace(self._folder / target)
            _sync(self._folder)
        return self.load()

    def discard(self) -> None:
        """Forget the renewed pair."""
        self._remove("next.pem", "next-ca.crt")

    def _read(self, ca: str, credentials: str) -> Identity:
        path = self._folder / "device.json"
        try:
            data = load_json(path.read_bytes(), str(path))
            about = parse_schema(IdentityFile, data, str(path), _SCHEMA)
        except FileNotFoundError as error:
            raise IdentityError("this device", "is not enrolled", _NOT_ENROLLED) from error
        except (OSError, ContractError) as error:
            raise IdentityError(f"identity in {self._folder}", f"cannot be read: {error}") from error
        certificate = _certificate_of(self._folder / credentials)
        return Identity(
            about.device, about.profile, about.server_url, about.broker_host, about.broker_port,
            self._folder / ca, self._folder / credentials,
            certificate.not_valid_before_utc, certificate.not_valid_after_utc, about.token_sha256,
        )  # fmt: skip

    def _write(self, name: str, content: bytes) -> None:
        with _disk(self._folder):
            self._folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
            temporary = self._folder / f".{name}.new"
            temporary.unlink(missing_ok=True)
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._folder / name)
            _sync(self._folder)

    def _remove(self, *names: str) -> None:
        with _disk(self._folder):
            for name in names:
                (self._folder / name).unlink(missing_ok=True)
            if self._folder.is_dir():
                _sync(self._folder)


def load_identity(state: Path) -> Identity:
    """The identity of the device whose state folder this is.

    Raises:
        IdentityError: not enrolled, or the files are damaged.
    """
    return IdentityStore(state).load()


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"identity in {folder}", f"cannot be written: {error}") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise IdentityError(f"key {path.name}", f"cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"key {path.name}", "is not an EC key")
    return key


def _certificate_of(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IdentityError(f"certificate {path.name}", f"cannot be read: {error}") from error


def _check_certificate(device: str, key: ec.EllipticCurvePrivateKey, pem: str) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise IdentityError(f"certificate of {device}", f"cannot be read: {error}") from error
    names = [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [device]:
        raise IdentityError(f"certificate of {device}", f"is made out to {names}")
    if certificate.public_key() != key.public_key():
        raise IdentityError(f"certificate of {device}", "is for another key")
