"""How a device gets, renews and loses its identity."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from wherry.api.devices import EnrolReply, EnrolRequest, RenewRequest, TokenCreated, TokenRequest
from wherry.device_auth import parse_authorization, verify_request
from wherry.errors import IdentityError, InputError, NotAllowed, NotFound, WherryError
from wherry.topics import Kind
from wherry_server import broker, pki
from wherry_server.services import outbox
from wherry_server.services.access import hash_secret
from wherry_server.services.changes import FLEET, ROLLOUTS, device_topic
from wherry_server.services.context import Context
from wherry_server.services.devices import set_labels
from wherry_server.services.targets import settle_all
from wherry_server.store.schema import Device, DeviceKey, EnrolToken, RemovedDevice, ServingSlot


@dataclass(frozen=True, slots=True)
class Caller:
    """A device whose request signature was verified, and the key that made it."""

    device: str
    key_sha256: str


def create_enrol_token(context: Context, request: TokenRequest) -> TokenCreated:
    """Make a single-use join token for a device; unused older ones of the device end.

    Raises:
        InputError: the profile does not exist.
    """
    _check_profile(context, request.profile)
    now = context.clock()
    secret, expires = secrets.token_urlsafe(32), now + timedelta(hours=request.hours)
    with context.store.write() as session:
        session.execute(delete(EnrolToken).where(EnrolToken.device == request.device, EnrolToken.used.is_(None)))
        session.add(
            EnrolToken(
                hash=hash_secret(secret),
                device=request.device,
                profile=request.profile,
                labels=json.dumps(request.labels, sort_keys=True),
                created=now,
                expires=expires,
            )
        )
        context.record(session, "enrol.token", request.device)
    return TokenCreated(
        device=request.device, secret=secret, expires=expires, server_ca_sha256=context.authority.ca_sha256
    )


def enrol(context: Context, request: EnrolRequest) -> EnrolReply:
    """Turn a token and a CSR into a certificate. The same token and key give the same certificate again.

    Raises:
        IdentityError: the token or the CSR is not usable.
        InputError: the device profile does not exist.
    """
    context = context.acting_as(f"device {request.device}")
    key = pki.read_csr(request.csr_pem)
    _check_profile(context, request.profile)
    now = context.clock()
    with context.store.write() as session:
        token = session.scalar(
            select(EnrolToken).where(EnrolToken.hash == hash_secret(request.secret)).with_for_update()
        )
        refusal = _refusal(token, request, pki.fingerprint(key), now)
        if refusal is not None or token is None:
            context.record_refusal(session, "enrol.refused", request.device, str(refusal))
        elif token.used is None:
            issued = context.authority.issue_device(request.device, key, now, context.config.device_days)
            token.used, token.key_sha256 = now, pki.fingerprint(key)
            token.certificate, token.certificate_expires = issued.pem, issued.expires
            back = _store_device(session, token, request, now)
            session.execute(delete(DeviceKey).where(DeviceKey.device == request.device))
            _store_key(session, request.device, token.key_sha256, pki.public_pem(key), now, issued.expires)
            context.record(session, "enrol", request.device, token.key_sha256)
            context.announce(session, device_topic(request.device), FLEET)
        else:
            back = False
    if refusal is not None or token is None or token.certificate is None or token.certificate_expires is None:
        raise refusal or IdentityError("join token", "is not known")
    if back:
        refresh_acl(context)
    return _reply(context, token.certificate, token.certificate_expires)


def authenticate(context: Context, header: str, method: str, path: str, body: bytes) -> Caller:
    """Which device signed a request. An expired certificate's key counts during the days of grace.

    Raises:
        IdentityError: the header is malformed, or no key of the device made the signature.
        NotAllowed: the device is revoked.
    """
    device = parse_authorization(header)[0]
    now = context.clock()
    oldest = now - timedelta(days=context.config.renew_grace_days)
    with context.store.read() as session:
        row = session.get(Device, device)
        keys = list(session.scalars(select(DeviceKey).where(DeviceKey.device == device, DeviceKey.expires > oldest)))
    problem: WherryError = IdentityError(f"request of {device}", "comes from a device without a usable key")
    for key in keys:
        try:
            verify_request(pki.read_public_key(key.pem), header, method, path, body, int(now.timestamp()))
        except IdentityError as error:
            problem = error
            continue
        if row is None or row.revoked is not None:
            raise NotAllowed(f"device {device}", "is revoked", "Enrol it again if it is to come back")
        return Caller(device, key.sha256)
    raise problem


def renew(context: Context, caller: Caller, request: RenewRequest) -> EnrolReply:
    """A certificate for a device's next key. Its present key stays good until the next one renews.

    Raises:
        IdentityError: the CSR is not usable.
        NotFound: the device is gone.
    """
    context = context.acting_as(f"device {caller.device}")
    key = pki.read_csr(request.csr_pem)
    now, sha256 = context.clock(), pki.fingerprint(key)
    issued = context.authority.issue_device(caller.device, key, now, context.config.device_days)
    with context.store.write() as session:
        if session.get(Device, caller.device, with_for_update=True) is None:
            raise NotFound(f"device {caller.device}", "does not exist")
        kept = (caller.key_sha256, sha256)
        session.execute(delete(DeviceKey).where(DeviceKey.device == caller.device, DeviceKey.sha256.not_in(kept)))
        _store_key(session, caller.device, sha256, pki.public_pem(key), now, issued.expires)
        context.record(session, "renew", caller.device, sha256)
    return _reply(context, issued.pem, issued.expires)


def revoke(context: Context, device: str) -> None:
    """Shut a device out: no renewal, no requests, a deny rule at the broker; its retained assignment is cleared.

    Raises:
        NotFound: no such device.
        StoreError: the broker's acl cannot be written; the device is revoked all the same.
    """
    now = context.clock()
    with context.store.write() as session:
        row = session.get(Device, device, with_for_update=True)
        if row is None:
            raise NotFound(f"device {device}", "does not exist")
        row.revoked = row.revoked or now
        row.online = False
        session.execute(delete(ServingSlot).where(ServingSlot.device == device))  # nobody knows any more
        settle_all(session, device, "superseded", f"device {device}", "was revoked")
        outbox.put_cleared(session, device, Kind.ASSIGN, now)
        context.record(session, "revoke", device)
        context.announce(session, device_topic(device), FLEET, ROLLOUTS)
    try:
        refresh_acl(context)  # before a message: the broker denies the device by then
    finally:
        context.wake()


def denied_devices(context: Context) -> list[str]:
    """Ids that the broker must not let in: revoked, or removed while their certificate has not ended."""
    revoked = select(Device.id).where(Device.revoked.is_not(None))
    removed = select(RemovedDevice.id).where(RemovedDevice.denied_until > context.clock())
    with context.store.read() as session:
        return sorted({*session.scalars(revoked), *session.scalars(removed)})


def refresh_acl(context: Context) -> None:
    """Write the broker's acl anew, if this server looks after the broker's folder.

    Raises:
        StoreError: it cannot be written.
    """
    if context.config.broker_folder is not None:
        broker.rewrite_acl(context.config.broker_folder, denied_devices(context))


def _refusal(token: EnrolToken | None, request: EnrolRequest, key_sha256: str, now: datetime) -> IdentityError | None:
    if token is None or token.device != request.device:
        return IdentityError("join token", f"is not known for device {request.device}")
    if token.profile is not None and token.profile != request.profile:
        reason = f"is for profile {token.profile}, this device says {request.profile}"
        return IdentityError("join token", reason, "Create a token for the device's profile")
    if token.used is not None and token.key_sha256 != key_sha256:
        return IdentityError("join token", "was already used with another key")
    ends = token.certificate_expires if token.used is not None else token.expires
    if ends is None or ends <= now:
        return IdentityError("join token", "has expired")
    return None


def _check_profile(context: Context, profile: str | None) -> None:
    if profile is not None and context.profiles and profile not in context.profiles:
        raise InputError(
            f"device profile {profile}", "does not exist", f"Use one of: {', '.join(sorted(context.profiles))}"
        )


def _store_device(session: Session, token: EnrolToken, request: EnrolRequest, now: datetime) -> bool:
    """Create the device, or take back one that was there; whether it had been revoked or removed.

    Older certificates of the id count at the broker again, which denies ids only: the operator is advised to give a
    device another id if the one before may be in wrong hands.
    """
    labels: dict[str, str] = json.loads(token.labels)
    row = session.get(Device, request.device, with_for_update=True)
    removed = session.get(RemovedDevice, request.device, with_for_update=True)
    if row is None:
        # One that comes back with its old state folder takes no assignment at or below its last one.
        sequence = removed.sequence if removed else 0
        row = Device(id=request.device, profile=request.profile, labels="{}", enrolled=now, sequence=sequence)
        session.add(row)
    if removed is not None:
        session.delete(removed)
    was_denied = row.revoked is not None or removed is not None
    row.profile, row.agent_version = request.profile, request.agent_version[:64]
    row.enrolled, row.revoked = now, None
    session.flush()
    set_labels(session, row, {**json.loads(row.labels), **labels})
    return was_denied


def _store_key(session: Session, device: str, sha256: str, pem: str, now: datetime, expires: datetime) -> None:
    session.merge(DeviceKey(device=device, sha256=sha256, pem=pem, issued=now, expires=expires))


def _reply(context: Context, certificate: str, expires: datetime) -> EnrolReply:
    return EnrolReply(
        certificate_pem=certificate,
        ca_pem=context.authority.ca_pem,
        broker_host=context.config.broker,
        broker_port=context.config.broker_port,
        expires=expires,
    )
