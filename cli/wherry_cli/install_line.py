"""The one line that makes a machine a device: fetched from the server, whose key the line pins."""

from __future__ import annotations

import base64
import hashlib
import socket
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from wherry_cli.client import tls_context

_SECONDS = 5.0


def install_line(server: str, ca_file: Path, join: str) -> str:
    """What to paste into a root shell of the new device; empty when the server's key cannot be read now.

    Args:
        server: base URL of the server.
        ca_file: its CA: a key is pinned only after it was verified from here.
        join: the join token.
    """
    parts = urlsplit(server)
    try:
        with (
            closing(socket.create_connection((parts.hostname or "", parts.port or 443), _SECONDS)) as plain,
            tls_context(ca_file).wrap_socket(plain, server_hostname=parts.hostname) as secure,
        ):
            certificate = secure.getpeercert(binary_form=True) or b""
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (OSError, ValueError):
        return ""
    pin = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    # -k: the device does not know the CA yet; the pin is checked all the same.
    return (
        f"curl -fsSLk --pinnedpubkey 'sha256//{base64.b64encode(pin).decode()}' {server}/install.sh"
        f" | sudo sh -s -- {join}"
    )
