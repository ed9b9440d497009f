"""The server's certificate authority: one P-256 root that issues server, broker, link and device certificates.

A device's certificate names the device (CN) and carries its public key; nothing else of a CSR is believed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wherry.errors import IdentityError, StoreError

CA_YEARS = 10
SERVER_DAYS = 397
LINK_NAME = "wherryd"
"""CN of the server's own MQTT client certificate, and its user name in the broker's acl."""
MAX_CSR_CHARACTERS = 8192
_BACKDATE = timedelta(hours=1)  # devices and servers whose clocks differ a little


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate as PEM, and when it ends."""

    pem: str
    expires: datetime


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Hex SHA-256 of a public key's DER bytes: how keys are compared and stored."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """A public key as PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def read_public_key(pem: str) -> ec.EllipticCurvePublicKey:
    """A public key from PEM that this server wrote."""
    key = load_pem_public_key(pem.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101  only such keys are stored
    return key


def read_csr(pem: str) -> ec.EllipticCurvePublicKey:
    """The public key of a certificate signing request, after checking that its sender holds the private key.

    Raises:
        IdentityError: not a CSR, not P-256, or not signed by its own key.
    """
    if len(pem) > MAX_CSR_CHARACTERS:
        raise IdentityError("certificate signing request", f"is longer than {MAX_CSR_CHARACTERS} characters")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise IdentityError("certificate signing request", "cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("certificate signing request", "does not hold a P-256 key")
    if not valid:
        raise IdentityError("certificate signing request", "is not signed by the key it names")
    return key


class Authority:
    """The CA of one server.

    Args:
        folder: holds `ca.crt`, `ca.key` and what is issued for the server itself.
        key, certificate: the root.
    """

    def __init__(self, folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._folder = folder
        self._key = key
        self._certificate = certificate

    @classmethod
    def create(cls, folder: Path, name: str, now: datetime) -> Authority:
        """Make a new root and keep it in a folder.

        Raises:
            StoreError: the folder cannot be written, or holds a root already.
        """
        if (folder / "ca.key").exists():
            raise StoreError(f"certificate authority {folder}", "exists already", "Keep it: devices trust it")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Wherry CA {name}"[:64])])
        builder = _builder(subject, subject, key.public_key(), now, now + timedelta(days=365 * CA_YEARS))
        usage = _key_usage(signs_certificates=True)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write_pair(folder, "ca", key, certificate.public_bytes(Encoding.PEM))
        return cls(folder, key, certificate)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Read the root of a folder.

        Raises:
            StoreError: it is missing or unreadable.
        """
        try:
            key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(
                f"certificate authority {folder}", str(error)[:200], "Restore it from the backup"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StoreError(f"certificate authority {folder}", "holds a key of another type")
        return cls(folder, key, certificate)

    @property
    def ca_file(self) -> Path:
        """The root certificate's file."""
        return self._folder / "ca.crt"

    @property
    def ca_pem(self) -> str:
        """The root certificate."""
        return self._certificate.public_bytes(Encoding.PEM).decode()

    @property
    def ca_sha256(self) -> str:
        """Hex SHA-256 of the root certificate's DER bytes, as join tokens carry it."""
        return hashlib.sha256(self._certificate.public_bytes(Encoding.DER)).hexdigest()

    def issue_device(self, device: str, key: ec.EllipticCurvePublicKey, now: datetime, days: int) -> Issued:
        """A client certificate for a device: its id and its key, and nothing else that it asked for."""
        expires = now + timedelta(days=days)
        return Issued(self._issue(device, key, now, expires, ExtendedKeyUsageOID.CLIENT_AUTH, ()), expires)

    def ensure_own(self, name: str, common_name: str, names: Sequence[str], now: datetime) -> tuple[Path, Path]:
        """Certificate and key files of the server itself, issued again when names changed or a third of life is left.

        Args:
            name: file name without suffix: `server`, `broker`, or `wherryd`, the only client.
            common_name: CN.
            names: DNS names and addresses for the certificate; empty makes a client certificate.
            now: time of issue.
        """
        certificate, key_file = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        if not self._still_good(certificate, key_file, names, now):
            key = ec.generate_private_key(ec.SECP256R1())
            usage = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
            pem = self._issue(common_name, key.public_key(), now, now + timedelta(days=SERVER_DAYS), usage, names)
            _write_pair(self._folder, name, key, pem.encode())
        return certificate, key_file

    def _still_good(self, certificate: Path, key_file: Path, names: Sequence[str], now: datetime) -> bool:
        try:
            found = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (OSError, ValueError):
            return False
        if not key_file.exists() or found.issuer != self._certificate.subject:
            return False
        if found.not_valid_after_utc - now < timedelta(days=SERVER_DAYS / 3):
            return False
        wanted = x509.SubjectAlternativeName([_general_name(name) for name in names])
        try:
            return found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == wanted
        except x509.ExtensionNotFound:
            return not names

    def _issue(
        self,
        common_name: str,
        key: ec.EllipticCurvePublicKey,
        now: datetime,
        expires: datetime,
        usage: x509.ObjectIdentifier,
        names: Sequence[str],
    ) -> str:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
        builder = (
            _builder(subject, self._certificate.subject, key, now, expires)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if names:
            general = [_general_name(name) for name in names]
            builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, expires: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(expires)
    )


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_pair(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: bytes) -> None:
    """Key first, then certificate: a certificate whose key is missing is issued again."""
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / f"{name}.crt").unlink(missing_ok=True)
        for path, data, mode in (
            (folder / f"{name}.key", private, 0o600),
            (folder / f"{name}.crt", certificate, 0o644),
        ):
            fresh = path.with_suffix(path.suffix + ".new")
            fresh.unlink(missing_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(path)
    except OSError as error:
        raise StoreError(f"certificate files {folder / name}", str(error)) from error
