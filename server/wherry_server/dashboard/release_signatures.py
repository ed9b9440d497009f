"""Who signed the releases: read from the owner's metadata, each signature checked. Pure: bytes in, rows out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from tuf.api.metadata import Root, Targets

from wherry.errors import TrustError
from wherry.metadata import read_metadata
from wherry_server.dashboard import words

SOON = timedelta(days=14)
_PATTERN = {"ed25519": "Ed25519", "ecdsa": "ECDSA", "rsa": "RSA"}


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key that may sign targets metadata, and whether its signature is there and good."""

    id: str
    short: str
    kind: str
    signed: bool


@dataclass(frozen=True, slots=True)
class Expiry:
    """How long a role's metadata is good."""

    role: str
    until: str
    left: str
    tone: str


@dataclass(frozen=True, slots=True)
class Signatures:
    """What the release page says about trust."""

    version: int
    root: int
    threshold: int
    keys: list[KeyRow]
    enough: bool
    expiry: Expiry


def signatures(root: bytes, targets: bytes, now: datetime) -> Signatures:
    """Check the newest targets metadata against the newest root.

    Raises:
        TrustError: one of them is not readable.
    """
    trusted = read_metadata(Root, root, "root").signed
    found = read_metadata(Targets, targets, "targets")
    role = trusted.roles[Targets.type]
    result = trusted.get_verification_result(Targets.type, found.signed_bytes, found.signatures)
    good = set(result.signed)
    return Signatures(
        version=found.signed.version,
        root=trusted.version,
        threshold=role.threshold,
        keys=[
            KeyRow(id=key, short=key[:12], kind=_kind(trusted.keys[key].keytype), signed=key in good)
            for key in role.keyids
            if key in trusted.keys
        ],
        enough=bool(result),
        expiry=expiry("targets", found.signed.expires, now),
    )


def try_signatures(root: bytes | None, targets: bytes | None, now: datetime) -> Signatures | None:
    """As `signatures`; None when the metadata is missing or unreadable, which the page says."""
    if root is None or targets is None:
        return None
    try:
        return signatures(root, targets, now)
    except TrustError:
        return None


def expiry(role: str, until: datetime, now: datetime) -> Expiry:
    """Until when metadata is good, and whether somebody must renew it soon."""
    left = until - now
    if left <= timedelta():
        return Expiry(role, f"{until:%Y-%m-%d}", f"expired {words.age(until, now)}", "bad")
    days = left.days
    text = f"in {days} days" if days > 1 else "within a day or two"
    return Expiry(role, f"{until:%Y-%m-%d}", text, "warn" if left < SOON else "good")


def _kind(keytype: str) -> str:
    return _PATTERN.get(keytype, keytype)
