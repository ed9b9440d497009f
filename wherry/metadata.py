"""Reading and verifying TUF metadata: the rules that the operator's tool, the server and the agent share.

Pure: bytes in, verified values or a `TrustError` out. Only `wherry_agent.trust` adds what a client needs
(fetching, expiry, high-water marks). No error of the `tuf` library leaves this module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, T, TargetFile, Targets

from wherry.errors import Expired, MalformedMessage, RolledBack, Tampered, TrustError, Unsigned
from wherry.release import ReleaseImage, parse_target_path

Files = Mapping[str, bytes]
"""Metadata by file name: `<n>.root.json`, `<n>.targets.json`, `<n>.snapshot.json`, `timestamp.json`."""

ROOT_LIMIT = 65_536
TIMESTAMP_LIMIT = 16_384
SNAPSHOT_LIMIT = 16_384
TARGETS_LIMIT = 4_194_304
"""Largest accepted file of each role, in bytes. About 1.5 kB of targets metadata a release image."""
MAX_VERSION = 2**53 - 1
"""Versions, counters and sequences above this are refused: they would not survive a JSON number or SQLite."""

LIMITS = {"root": ROOT_LIMIT, "timestamp": TIMESTAMP_LIMIT, "snapshot": SNAPSHOT_LIMIT, "targets": TARGETS_LIMIT}
_NAME = re.compile(r"(?P<version>[1-9][0-9]{0,15})\.(?P<role>root|targets|snapshot)\.json")


@dataclass(frozen=True, slots=True)
class SignedImage:
    """An image as the owner signed it.

    Attributes:
        path: its TUF target path.
        digest: digest of the OCI image manifest.
        manifest_bytes: length of the manifest.
        image: the signed custom field.
    """

    path: str
    digest: str
    manifest_bytes: int
    image: ReleaseImage


@dataclass(frozen=True, slots=True)
class OwnerSet:
    """The owner's newest metadata, verified from the root down."""

    root: Root
    targets: Targets
    snapshot: Snapshot


def newest(files: Files, role: str) -> int:
    """The highest version of a role among the files; 0 when there is none."""
    found = (_NAME.fullmatch(name) for name in files)
    return max((int(match["version"]) for match in found if match and match["role"] == role), default=0)


def file_name(role: str, version: int) -> str:
    """`<n>.<role>.json`."""
    return f"{version}.{role}.json"


def read_metadata(kind: type[T], data: bytes, name: str) -> Metadata[T]:
    """Parse metadata bytes, signatures unchecked.

    Raises:
        Tampered: too long, not TUF metadata, or of another role.
    """
    limit = LIMITS.get(kind.type, TARGETS_LIMIT)
    if len(data) > limit:
        raise Tampered(name, f"has {len(data)} bytes, the limit is {limit}")
    try:
        metadata = Metadata[T].from_bytes(data)
    except RepositoryError as error:
        raise Tampered(name, "is not readable as TUF metadata") from error
    if metadata.signed.type != kind.type:
        raise Tampered(name, f"holds {metadata.signed.type!r} metadata")
    version: Any = metadata.signed.version
    if isinstance(version, bool) or not isinstance(version, int) or version > MAX_VERSION:
        raise Tampered(name, "has a version that is not a number in range")
    return metadata


def verify_role(delegator: Root | Targets, role: str, metadata: Metadata[Any], name: str) -> None:
    """Check that metadata carries the signatures that its delegator asks for.

    Raises:
        Unsigned: too few signatures by the role's keys.
        Tampered: the role's keys signed, but other bytes than these.
    """
    try:
        payload = metadata.signed_bytes
        result = delegator.get_verification_result(role, payload, metadata.signatures)
    except RepositoryError as error:
        raise Tampered(name, "cannot be brought into canonical form") from error
    except ValueError as error:
        raise Unsigned(name, f"no key is trusted for role {role}") from error
    if result:
        return
    if any(keyid in metadata.signatures for keyid in result.unsigned):
        raise Tampered(name, f"a signature of role {role} does not match the content")
    raise Unsigned(name, f"has {len(result.signed)} of {result.threshold} signatures by the keys of role {role}")


def verify_root_step(trusted: Root, data: bytes) -> Metadata[Root]:
    """Verify the root that follows a trusted one.

    Raises:
        RolledBack: not the next version.
        Unsigned: not signed by both the old and the new root keys.
        Tampered: not readable, or changed.
    """
    name = f"root {trusted.version + 1}"
    following = read_metadata(Root, data, name)
    if following.signed.version != trusted.version + 1:
        raise RolledBack(name, f"calls itself version {following.signed.version}")
    verify_role(trusted, Root.type, following, name)
    verify_role(following.signed, Root.type, following, name)
    return following


def read_trusted_root(data: bytes, name: str = "root") -> Metadata[Root]:
    """Read a root that is trusted by itself (pinned, or the first one).

    Raises:
        Tampered: not readable.
        Unsigned: not signed by its own keys.
    """
    root = read_metadata(Root, data, name)
    verify_role(root.signed, Root.type, root, name)
    return root


def verify_root_chain(files: Files, pinned: bytes | None = None) -> Root:
    """Walk the owner's roots from the pinned one (or version 1) to the newest of the files.

    Raises:
        Unsigned: a root is missing or not signed by the one before.
        Tampered: a root is not readable or was changed.
        RolledBack: the files end before the pinned root.
    """
    first = pinned if pinned is not None else files.get(file_name("root", 1))
    if first is None:
        raise Unsigned("root 1", "is missing")
    root = read_trusted_root(first).signed
    last = newest(files, Root.type)
    if last < root.version:
        raise RolledBack(f"root {last}", f"is older than the trusted version {root.version}")
    while root.version < last:
        following = files.get(file_name("root", root.version + 1))
        if following is None:
            raise Unsigned(f"root {root.version + 1}", "is missing from the chain")
        root = verify_root_step(root, following).signed
    return root


def verify_owner_set(files: Files, pinned: bytes | None = None) -> OwnerSet:
    """Verify the newest root, targets and snapshot as one consistent set. Expiry is not looked at.

    Args:
        files: all roots after the pinned one, and at least the newest targets and snapshot.
        pinned: a root trusted already; None trusts `1.root.json`.

    Raises:
        TrustError: Unsigned, Tampered or RolledBack, naming the file.
    """
    root = verify_root_chain(files, pinned)
    snapshot = _verify_newest(files, Snapshot, root)
    targets = _verify_newest(files, Targets, root)
    listed = snapshot.meta.get("targets.json")
    if listed is None or listed.version != targets.version:
        found = listed.version if listed else "none"
        raise Tampered(f"snapshot {snapshot.version}", f"names targets {found}, the newest is {targets.version}")
    data = files[file_name(Targets.type, targets.version)]
    try:
        listed.verify_length_and_hashes(data)
    except RepositoryError as error:
        raise Tampered(f"targets {targets.version}", "has another length or hash than snapshot says") from error
    return OwnerSet(root, targets, snapshot)


def _verify_newest(files: Files, kind: type[T], root: Root) -> T:
    version = newest(files, kind.type)
    name = f"{kind.type} {version}"
    data = files.get(file_name(kind.type, version))
    if data is None:
        raise Unsigned(kind.type, "is missing")
    metadata = read_metadata(kind, data, name)
    verify_role(root, kind.type, metadata, name)
    if metadata.signed.version != version:
        raise RolledBack(name, f"calls itself version {metadata.signed.version}")
    return metadata.signed


def check_expiry(signed: Signed, now: datetime, name: str) -> None:
    """Refuse metadata whose time has come.

    Raises:
        Expired: `now` is not before its expiry.
    """
    if now >= signed.expires:
        raise Expired(name, f"expired at {signed.expires:%Y-%m-%dT%H:%M:%SZ}, it is {now:%Y-%m-%dT%H:%M:%SZ}")


def signed_image(target: TargetFile) -> SignedImage:
    """Read one target of owner-signed targets metadata and check that its name, hash and custom field agree.

    Raises:
        Tampered: path and custom field name different things, or the sha256 is missing.
        ContractError: the custom field is malformed or of an unknown schema version.
    """
    path = target.path
    model, profile, counter = parse_target_path(path)
    image = ReleaseImage.from_custom(target.custom, path)
    if (image.model, image.profile, image.counter) != (model, profile, counter):
        raise Tampered(f"release image {path}", "its path and its signed description differ")
    sha256 = target.hashes.get("sha256", "")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise Tampered(f"release image {path}", "has no sha256 of its image manifest")
    if not 0 < target.length <= MAX_VERSION:
        raise MalformedMessage(f"release image {path}", "has no usable length")
    return SignedImage(path, f"sha256:{sha256}", target.length, image)


def signed_images(targets: Targets) -> list[SignedImage]:
    """Every image of verified targets metadata, by path.

    Raises:
        TrustError, ContractError: as `signed_image`.
    """
    return [signed_image(targets.targets[path]) for path in sorted(targets.targets)]


__all__ = [
    "LIMITS",
    "MAX_VERSION",
    "Files",
    "OwnerSet",
    "SignedImage",
    "TrustError",
    "check_expiry",
    "file_name",
    "newest",
    "read_metadata",
    "read_trusted_root",
    "signed_image",
    "signed_images",
    "verify_owner_set",
    "verify_role",
    "verify_root_chain",
    "verify_root_step",
]
