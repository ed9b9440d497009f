"""Who signed the releases: read from the owner's metadata, each signature checked. Pure: bytes in, rows out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from tuf.api.metadata import Root, Targets

from wherry.errors import TrustError
from wherry.metadata import read_metadata
from wherry_server.dashboard import words

SOON = timedelta(days=14)
_KINDS = {"ed25519": "Ed25519", "ecdsa": "ECDSA", "rsa": "RSA"}


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


@lru_cache(maxsize=2)
def _read(root: bytes, targets: bytes) -> tuple[int, int, int, tuple[KeyRow, ...], bool, datetime]:
    """The slow part, once for each pair of files: the targets metadata of a large owner has megabytes."""
    trusted = read_metadata(Root, root, "root").signed
    found = read_metadata(Targets, targets, "targets")
    role = trusted.roles[Targets.type]
    result = trusted.get_verification_result(Targets.type, found.signed_bytes, found.signatures)
    keys = tuple(
        KeyRow(key, key[:12], _KINDS.get(trusted.keys[key].keytype, trusted.keys[key].keytype), key in result.signed)
        for key in role.keyids
        if key in trusted.keys
    )
    return found.signed.version, trusted.version, role.threshold, keys, bool(result), found.signed.expires


def signatures(root: bytes, targets: bytes, now: datetime) -> Signatures | None:
    """Check targets metadata against the root that names its keys; None when one of them is not readable."""
    try:
        version, root_version, threshold, keys, enough, expires = _read(root, targets)
    except TrustError:
        return None
    return Signatures(version, root_version, threshold, list(keys), enough, expiry("targets", expires, now))


def expiry(role: str, until: datetime, now: datetime) -> Expiry:
    """Until when metadata is good, and whether somebody must renew it soon."""
    left = until - now
    if left <= timedelta():
        return Expiry(role, f"{until:%Y-%m-%d}", f"expired {words.age(until, now)}", "bad")
    days = left.days
    text = f"in {days} days" if days > 1 else "within a day or two"
    return Expiry(role, f"{until:%Y-%m-%d}", text, "warn" if left < SOON else "good")
