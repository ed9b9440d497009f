"""How a device gets its identity, and how it keeps it: enrolment by join token, renewal at half of life."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from wherry.api.devices import EnrolRequest, RenewRequest
from wherry.errors import IdentityError, WherryError
from wherry.join import JoinToken
from wherry.mqtt import BrokerSettings
from wherry_agent.identity_store import Identity, IdentityFile, IdentityStore
from wherry_agent.server_client import ServerClient, fetch_ca

ROOT_FILE = "1.root.json"
TRIAL_SECONDS = 900.0
"""How long a renewed certificate may fail to connect before the old one is used again."""
_log = logging.getLogger(__name__)


def make_csr(key: ec.EllipticCurvePrivateKey, device: str) -> str:
    """A certificate signing request, PEM. The server copies nothing from it but the public key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def enrol(
    state: Path,
    token_line: str,
    profile: str,
    agent_version: str,
    install_root: Callable[[bytes], None],
    clock: Callable[[], datetime],
) -> Identity:
    """Make this device a member: key, certificate, broker address, and the owner's TUF root.

    Nothing is trusted by first use: the server's CA and the owner's root must have the fingerprints in the
    token. May be repeated after any failure with the same token: the key is kept until a certificate for it
    is on the disk.

    Args:
        state: the agent's state folder.
        token_line: the line that `wherry device token` printed.
        profile: the device profile that this machine has.
        agent_version: of this program.
        install_root: gets the checked root metadata (`Trust.install_root`).
        clock: the time now.

    Raises:
        IdentityError: the token, the CA, the root or the certificate is not what it must be.
        ServerError: the server refuses, with its reason, or gives no usable answer.
        StoreError: the state folder cannot be written.
    """
    token = JoinToken.decode(token_line)
    fingerprint = hashlib.sha256(token_line.strip().encode()).hexdigest()
    store = IdentityStore(state)
    present = _already(store, fingerprint)
    if present is not None:
        return present
    ca_pem = fetch_ca(token.server, token.ca_sha256)
    key = store.asked_key()
    with TemporaryDirectory(prefix="wherry-") as folder:
        ca_file = Path(folder) / "ca.crt"
        ca_file.write_text(ca_pem)
        client = ServerClient(token.server, ca_file, token.device, lambda: [key], clock)
        root = _fetch_root(client, token)
        reply = client.enrol(
            EnrolRequest(
                device=token.device,
                secret=token.secret,
                profile=profile,
                agent_version=agent_version,
                csr_pem=make_csr(key, token.device),
            )
        )
        client.close()
    install_root(root)
    about = IdentityFile(
        device=token.device,
        profile=profile,
        server_url=token.server.rstrip("/"),
        broker_host=reply.broker_host,
        broker_port=reply.broker_port,
        token_sha256=fingerprint,
    )
    return store.save(about, key, reply.certificate_pem, reply.ca_pem)


def _already(store: IdentityStore, fingerprint: str) -> Identity | None:
    try:
        identity = store.load()
    except IdentityError:
        return None
    return identity if identity.token_sha256 == fingerprint else None


def _fetch_root(client: ServerClient, token: JoinToken) -> bytes:
    root = client.fetch_metadata(ROOT_FILE)
    if not hmac.compare_digest(hashlib.sha256(root).hexdigest().encode(), token.root_sha256.lower().encode()):
        raise IdentityError(
            f"root metadata of {token.server}",
            "is not the one that the join token names",
            "Ask the owner of the models which root is theirs and create a new token",
        )
    return root


def renewal_due(identity: Identity, now: datetime) -> bool:
    """Whether to renew: at half of the certificate's life, up to a tenth of it later, fixed per certificate.

    So that a fleet enrolled in one minute does not renew in one minute.
    """
    seed = f"{identity.device} {identity.expires.isoformat()}".encode()
    jitter = int.from_bytes(hashlib.sha256(seed).digest()[:4]) / 2**32
    life = identity.expires - identity.begins
    return now >= identity.begins + life * (0.5 + 0.1 * jitter)


class Renewer:
    """Renews the certificate and changes over to it. `check` is called now and then and may be killed anywhere.

    A renewed pair is staged, the link connects with it, and only when that worked it replaces the old one.

    Args:
        store: the identity's files.
        client: the server, signed requests.
        use: makes the link connect with these settings.
        connects: how often the link has connected so far.
        clock: the time now.
        monotonic: seconds that no clock change touches.
    """

    def __init__(
        self,
        store: IdentityStore,
        client: ServerClient,
        use: Callable[[BrokerSettings], None],
        connects: Callable[[], int],
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._client = client
        self._use = use
        self._connects = connects
        self._connects_before = 0
        self._clock = clock
        self._monotonic = monotonic
        self._trial_began: float | None = None

    def check(self) -> None:
        """Renew when due; commit or take back a renewal that is on trial.

        Raises:
            WherryError: what went wrong this time; the next call tries again.
        """
        staged = self._store.load_next()
        if staged is None:
            identity = self._store.load()
            if not renewal_due(identity, self._clock()):
                return
            staged = self._renew(identity)
        if self._trial_began is None:
            self._trial_began = self._monotonic()
            self._connects_before = self._connects()
            self._use(staged.broker_settings())
        elif self._connects() > self._connects_before:
            identity = self._store.commit()
            self._trial_began = None
            self._client.close()
            self._use(identity.broker_settings())
            _log.info("certificate renewed, valid until %s", identity.expires.isoformat())
        elif self._monotonic() - self._trial_began > TRIAL_SECONDS:
            self._take_back()

    def _renew(self, identity: Identity) -> Identity:
        key = self._store.asked_key()
        try:
            reply = self._client.renew(RenewRequest(csr_pem=make_csr(key, identity.device)))
        except WherryError as error:
            if self._clock() > identity.expires:
                _log.error("the certificate expired on %s and cannot be renewed", identity.expires.isoformat())
            raise error from None
        return self._store.stage(key, reply.certificate_pem, reply.ca_pem)

    def _take_back(self) -> None:
        self._trial_began = None
        identity = self._store.load()
        if identity.expires <= self._clock():
            return  # the old one cannot connect either: go on trying the new one
        _log.error("the renewed certificate did not connect; the old one is used again")
        self._store.discard()
        self._use(identity.broker_settings())
