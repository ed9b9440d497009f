"""The server's CA certificate: fetched before there is any trust, and told apart by its fingerprint."""

from __future__ import annotations

import ssl

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from wherry.errors import IdentityError, InputError, ServerError

CA_PATH = "/v1/ca"
MAX_PEM = 65536


def fetch_ca(server: str, transport: httpx.BaseTransport | None = None) -> bytes:
    """The CA certificate that a server shows, as PEM. Nothing is verified: compare the fingerprint.

    Raises:
        ServerError: no usable answer.
    """
    # The reply is worth nothing until its fingerprint was compared, so no certificate can help here.
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        with httpx.Client(verify=unverified, timeout=10.0, transport=transport) as http:
            response = http.get(server.rstrip("/") + CA_PATH)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ServerError(f"server {server}", f"cannot be reached ({error})") from error
    if response.status_code != 200 or len(response.content) > MAX_PEM:
        raise ServerError(
            f"server {server}", f"answered {response.status_code} to {CA_PATH}", "Check that this is a Wherry server"
        )
    return response.content


def fingerprint(pem: bytes, source: str) -> str:
    """Hex SHA-256 of the certificate's DER bytes.

    Raises:
        IdentityError: there is no certificate in the PEM text.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise IdentityError(f"CA certificate of {source}", "is not a PEM certificate", "Check the file") from error
    return certificate.fingerprint(hashes.SHA256()).hex()


def leaf_pem(pem: bytes) -> str:
    """The certificate alone, re-encoded: nothing else that stood in the file."""
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.PEM).decode()


def readable_fingerprint(hexadecimal: str) -> str:
    """In groups, for comparing by eye."""
    return ":".join(hexadecimal[i : i + 2] for i in range(0, len(hexadecimal), 2)).upper()


def compare_fingerprint(expected: str, found: str, server: str) -> None:
    """Check the fingerprint that the operator was told.

    Raises:
        InputError: it is not a SHA-256 fingerprint.
        IdentityError: the server shows another CA.
    """
    wanted = expected.replace(":", "").strip().lower()
    if len(wanted) != 64 or any(letter not in "0123456789abcdef" for letter in wanted):
        raise InputError(f"--ca-sha256 {expected}", "is not 64 hexadecimal digits")
    if wanted != found:
        raise IdentityError(
            f"server {server}",
            f"shows a CA with fingerprint {found}, not {wanted}",
            "Get the fingerprint from whoever runs the server; somebody may stand in between",
        )
