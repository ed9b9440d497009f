"""How a device signs its HTTP requests: ECDSA P-256 over method, path, time and body digest.

Header: `Authorization: WherryDevice <device>:<unix seconds>:<base64url DER signature>`. It works with
an expired certificate too, so a device that was off for weeks can still renew.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from wherry.errors import IdentityError

SCHEME = "WherryDevice"
MAX_SKEW_SECONDS = 600
_VALUE = re.compile(r"WherryDevice (?P<device>[a-z0-9-]{1,64}):(?P<time>[0-9]{1,12}):(?P<signature>[A-Za-z0-9_=-]+)")


def _signed_bytes(device: str, method: str, path: str, seconds: int, body: bytes) -> bytes:
    digest = hashlib.sha256(body).hexdigest()
    return f"wherry-device-request\n{device}\n{method.upper()}\n{path}\n{seconds}\n{digest}".encode()


def sign_request(
    key: ec.EllipticCurvePrivateKey, device: str, method: str, path: str, body: bytes, seconds: int
) -> str:
    """The Authorization header value for a request.

    Args:
        key: the device's private key.
        device: its id.
        method: HTTP method.
        path: path and query as sent.
        body: the request body, empty for none.
        seconds: now, Unix seconds.
    """
    signature = key.sign(_signed_bytes(device, method, path, seconds, body), ec.ECDSA(hashes.SHA256()))
    return f"{SCHEME} {device}:{seconds}:{base64.urlsafe_b64encode(signature).decode()}"


def parse_authorization(header: str) -> tuple[str, int, bytes]:
    """Device id, time and signature of a header value; nothing is verified yet.

    Raises:
        IdentityError: not of the WherryDevice form.
    """
    match = _VALUE.fullmatch(header)
    if match is None:
        raise IdentityError("device authorization", "is not of the form WherryDevice DEVICE:TIME:SIGNATURE")
    try:
        return match["device"], int(match["time"]), base64.urlsafe_b64decode(match["signature"])
    except (binascii.Error, ValueError) as error:
        raise IdentityError("device authorization", "has a signature that is not base64url") from error


def verify_request(
    public_key: ec.EllipticCurvePublicKey, header: str, method: str, path: str, body: bytes, now: int
) -> str:
    """Check a request and return its device id.

    Raises:
        IdentityError: wrong form, wrong signature, or more than MAX_SKEW_SECONDS off `now`.
    """
    device, seconds, signature = parse_authorization(header)
    if abs(now - seconds) > MAX_SKEW_SECONDS:
        raise IdentityError(f"request of {device}", f"was signed {abs(now - seconds)} s off", "Set the device's clock")
    try:
        public_key.verify(signature, _signed_bytes(device, method, path, seconds, body), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise IdentityError(f"request of {device}", "is not signed by the device's key") from error
    return device
