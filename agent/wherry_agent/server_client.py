"""The server's HTTPS API as a device uses it: enrol, renew, poll the assignment.

Every request is bounded in time and every answer in size, whatever the other end does.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import ssl
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError
from urllib3.exceptions import HTTPError, InsecureRequestWarning

from wherry.api.base import ErrorBody
from wherry.api.devices import EnrolReply, EnrolRequest, RenewRequest
from wherry.device_auth import sign_request
from wherry.errors import IdentityError, ServerError

MAX_ANSWER_BYTES = 262_144
MAX_METADATA_BYTES = 512_000
_REFUSED = (401, 403)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class ServerClient:
    """One device's way to the server.

    Args:
        server_url: base URL, https.
        ca_file: the server's CA, PEM.
        device: the device's id, for signed requests.
        keys: gives the keys to sign with, the likeliest first; the next is tried when one is refused,
            because after a lost reply only the server knows which one counts.
        clock: the time now.
        timeout: seconds for connecting and for each wait; an answer may take four times that as a whole.

    Raises:
        IdentityError: the address is not https.
    """

    def __init__(
        self,
        server_url: str,
        ca_file: Path,
        device: str,
        keys: Callable[[], Sequence[ec.EllipticCurvePrivateKey]],
        clock: Callable[[], datetime],
        timeout: float = 15.0,
    ) -> None:
        self._url = _checked_url(server_url)
        self._ca_file = ca_file
        self._device = device
        self._keys = keys
        self._clock = clock
        self._timeout = timeout
        self._offset = 0
        self._pool: urllib3.PoolManager | None = None

    def fetch_assignment(self) -> bytes | None:
        """The signed assignment of this device, or None when it has none.

        Raises:
            ServerError: no usable answer.
        """
        answer = self._signed("GET", f"/v1/devices/{self._device}/assignment", b"")
        if answer.status == 404:
            return None
        return _body_of(answer, self._url)

    def enrol(self, request: EnrolRequest) -> EnrolReply:
        """Exchange a join token's secret for a certificate.

        Raises:
            ServerError: refused, with the server's reason, or no usable answer.
        """
        body = request.model_dump_json().encode()
        return _reply(_body_of(self._request("POST", "/v1/enrol", body), self._url), self._url)

    def renew(self, request: RenewRequest) -> EnrolReply:
        """Ask for a new certificate, with a certificate that may have expired.

        Raises:
            ServerError: refused, with the server's reason, or no usable answer.
        """
        body = request.model_dump_json().encode()
        return _reply(_body_of(self._signed("POST", "/v1/renew", body), self._url), self._url)

    def fetch_metadata(self, name: str) -> bytes:
        """A TUF metadata file.

        Raises:
            ServerError: no usable answer.
        """
        return _body_of(self._request("GET", f"/v1/tuf/metadata/{name}", limit=MAX_METADATA_BYTES), self._url)

    def close(self) -> None:
        """Close idle connections; the next request opens new ones with what the CA file holds then."""
        if self._pool is not None:
            self._pool.clear()
            self._pool = None

    def _signed(self, method: str, path: str, body: bytes) -> _Answer:
        keys = list(self._keys())
        if not keys:
            raise IdentityError("this device", "has no key to sign requests with")
        for key in keys:
            answer = self._signed_with(key, method, path, body)
            if answer.status in _REFUSED and self._learn_time(answer):
                answer = self._signed_with(key, method, path, body)
            if answer.status not in _REFUSED:
                break
        return answer

    def _signed_with(self, key: ec.EllipticCurvePrivateKey, method: str, path: str, body: bytes) -> _Answer:
        seconds = int(self._clock().timestamp()) + self._offset
        header = sign_request(key, self._device, method, path, body, seconds)
        return self._request(method, path, body, {"Authorization": header})

    def _learn_time(self, answer: _Answer) -> bool:
        """Whether our clock is so far off that the signature's time may be why it was refused.

        The server's time is used in signatures alone; nothing that expires is judged by it.
        """
        with contextlib.suppress(ValueError, TypeError):
            theirs = parsedate_to_datetime(answer.headers.get("Date", ""))
            offset = int((theirs - self._clock()).total_seconds())
            if abs(offset - self._offset) > 60:
                self._offset = offset
                return True
        return False

    def _request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        limit: int = MAX_ANSWER_BYTES,
    ) -> _Answer:
        if self._pool is None:
            context = _tls_context(self._ca_file, self._url)
            self._pool = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False, ssl_context=context)
        sent = dict(headers or {})
        if body:
            sent["Content-Type"] = "application/json"
        return _exchange(self._pool, method, self._url + path, body, sent, self._timeout, limit)


def fetch_ca(server_url: str, sha256: str, timeout: float = 15.0) -> str:
    """The server's CA certificate, PEM, believed only because its fingerprint is in the join token.

    Args:
        server_url: base URL, https.
        sha256: hex SHA-256 of the certificate's DER bytes.
        timeout: seconds for each wait.

    Raises:
        ServerError: no usable answer.
        IdentityError: no certificate with that fingerprint was in it.
    """
    url = _checked_url(server_url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with urllib3.PoolManager(retries=False, ssl_context=context) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureRequestWarning)
        answer = _exchange(pool, "GET", url + "/v1/ca", b"", {}, timeout, MAX_ANSWER_BYTES)
    try:
        certificates = x509.load_pem_x509_certificates(_body_of(answer, url))
    except ValueError as error:
        raise ServerError(f"server {url}", "sent no certificate where its CA was asked for") from error
    for certificate in certificates:
        der = certificate.public_bytes(serialization.Encoding.DER)
        if hmac.compare_digest(hashlib.sha256(der).hexdigest().encode(), sha256.lower().encode()):
            return certificate.public_bytes(serialization.Encoding.PEM).decode()
    raise IdentityError(
        f"server {url}",
        "does not have the CA that the join token names",
        "Check the address; if it is right, somebody is in between: do not enrol on this network",
    )


def _checked_url(server_url: str) -> str:
    url = server_url.rstrip("/")
    if not url.startswith("https://"):
        raise IdentityError(f"server {url!r}", "is not an https address")
    return url


def _tls_context(ca_file: Path, url: str) -> ssl.SSLContext:
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(ca_file)
    except (OSError, ValueError) as error:
        raise ServerError(f"server {url}", f"its CA file {ca_file} cannot be used ({error})") from error
    return context


def _exchange(
    pool: urllib3.PoolManager,
    method: str,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    timeout: float,
    limit: int,
) -> _Answer:
    deadline = time.monotonic() + 4 * timeout
    try:
        response = pool.request(
            method,
            url,
            body=body or None,
            headers=dict(headers),
            timeout=urllib3.Timeout(connect=timeout, read=timeout),
            preload_content=False,
            decode_content=False,
            redirect=False,
        )
        try:
            content = _read_bounded(response, url, limit, deadline)
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return _Answer(response.status, response.headers, content)
    except (HTTPError, OSError, ValueError) as error:
        raise ServerError(f"server {url}", f"cannot be reached: {_root_cause(error)}") from error


def _read_bounded(response: urllib3.BaseHTTPResponse, url: str, limit: int, deadline: float) -> bytes:
    content = b""
    while chunk := response.read1(16_384):
        content += chunk
        if len(content) > limit:
            raise ServerError(f"server {url}", f"answers with more than {limit} bytes")
        if time.monotonic() > deadline:
            raise ServerError(f"server {url}", "answers too slowly")
    return content


def _root_cause(error: BaseException) -> str:
    while isinstance(error, HTTPError) and isinstance(getattr(error, "reason", None), BaseException):
        error = error.reason  # type: ignore[attr-defined]
    return str(error)[:300]


def _body_of(answer: _Answer, url: str) -> bytes:
    if 200 <= answer.status < 300:
        return answer.body
    try:
        problem = ErrorBody.model_validate(json.loads(answer.body)).error
    except (ValueError, ValidationError):
        raise ServerError(f"server {url}", f"answers with status {answer.status}") from None
    raise ServerError(problem.thing, problem.reason, problem.fix)


def _reply(body: bytes, url: str) -> EnrolReply:
    try:
        reply = EnrolReply.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ServerError(f"server {url}", f"sent an unusable reply: {first['loc']} {first['msg']}") from error
    if reply.expires.tzinfo is None:
        return reply.model_copy(update={"expires": reply.expires.replace(tzinfo=UTC)})
    return reply
