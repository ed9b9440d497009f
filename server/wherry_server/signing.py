"""The server's online keys, and what it checks before it stores what the owner signed.

Two keys, one file each: `timestamp` says which snapshot is current, `director` says which device is to run
what. Neither can make a device run an image that the owner did not sign (docs/decisions/0002-tuf.md).
Pure but for the key files; metadata is stored by `wherry_server.store`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from wherry.api.repository import OnlineKeys, RepositoryInfo
from wherry.errors import RolledBack, StoreError, Tampered, Unsigned
from wherry.metadata import (
    Files,
    OwnerSet,
    SignedImage,
    newest,
    read_metadata,
    signed_images,
    verify_owner_set,
)
from wherry.roles import (
    ASSIGNMENT_DAYS,
    ASSIGNMENT_FIELD,
    ASSIGNMENT_SCHEMA,
    DIRECTOR,
    DIRECTOR_PATHS,
    TIMESTAMP_DAYS,
)

TIMESTAMP_FILE = "timestamp.json"
_KEYS = ("timestamp", "director")
_OWNER_ROLES = (Root.type, Targets.type, Snapshot.type)


@dataclass(frozen=True, slots=True)
class OnlineSigner:
    """The server's two signing keys."""

    timestamp: CryptoSigner
    director: CryptoSigner

    @classmethod
    def open(cls, folder: Path) -> OnlineSigner:
        """Read the keys `timestamp.pem` and `director.pem` of a folder; missing ones are made.

        Raises:
            StoreError: a key file cannot be read or written.
        """
        return cls(*(_open_key(folder / f"{name}.pem") for name in _KEYS))

    def online_keys(self) -> OnlineKeys:
        """The public halves, for the owner to delegate to."""
        return OnlineKeys(timestamp=_key_dict(self.timestamp), director=_key_dict(self.director))

    def sign_timestamp(self, snapshot: bytes, version: int, now: datetime) -> bytes:
        """`timestamp.json` that names this snapshot file.

        Args:
            snapshot: bytes of the newest `<n>.snapshot.json`, checked already.
            version: higher than that of every timestamp signed before.
            now: signing time.

        Raises:
            Tampered: `snapshot` is not snapshot metadata.
        """
        found = read_metadata(Snapshot, snapshot, "snapshot").signed.version
        signed = Timestamp(
            version=version,
            expires=_in_days(now, TIMESTAMP_DAYS),
            snapshot_meta=MetaFile.from_data(found, snapshot, ["sha256"]),
        )
        return _sign(signed, self.timestamp)

    def sign_assignment(
        self,
        device: str,
        sequence: int,
        slots: Mapping[str, SignedImage],
        now: datetime,
        together: Sequence[Sequence[str]] = (),
    ) -> bytes:
        """The signed desired state of one device.

        Args:
            device: its id.
            sequence: higher than that of every assignment signed for it before.
            slots: slot name to an image from `release_images`; a slot that is absent is to be emptied.
            now: signing time.
            together: groups of slots that take their images together or not at all.
        """
        field: dict[str, Any] = {
            "schema": ASSIGNMENT_SCHEMA,
            "device": device,
            "slots": {slot: image.path for slot, image in slots.items()},
        }
        if together:
            field["together"] = [sorted(group) for group in together]
        hexes = {image.path: (image.manifest_bytes, image.digest.removeprefix("sha256:")) for image in slots.values()}
        signed = Targets(
            version=sequence,
            expires=_in_days(now, ASSIGNMENT_DAYS),
            targets={path: TargetFile(length, {"sha256": sha}, path) for path, (length, sha) in hexes.items()},
            unrecognized_fields={ASSIGNMENT_FIELD: field},
        )
        return _sign(signed, self.director)

    def check_upload(self, current: Files, upload: Files) -> RepositoryInfo:
        """Decide whether the owner's upload may replace what the server holds.

        Args:
            current: every root, and the newest targets and snapshot that the server holds; empty at first.
            upload: the new files; roots that are missing in `current` must be among them.

        Returns:
            The versions after the upload; `timestamp` is 0, the caller knows it.

        Raises:
            Unsigned: a signature is missing, or a role is delegated to other keys than this server's.
            Tampered: files are changed, inconsistent, or a published path names another image now.
            RolledBack: a version is not above the one the server holds.
            ContractError: a release image is malformed.
        """
        before = verify_owner_set(current) if current else None
        _check_names(current, upload)
        after = verify_owner_set({**current, **upload})
        self._check_keys(after)
        if before is not None:
            _check_paths(before.targets, after.targets)
        signed_images(after.targets)
        return repository_info(after)

    def _check_keys(self, after: OwnerSet) -> None:
        if after.root.roles[Timestamp.type].keyids != [self.timestamp.public_key.keyid]:
            fix = "Name the keys that this server has now: `wherry keys replace server`"
            raise Unsigned("root", "does not name this server's timestamp key", fix)
        _check_key(after.root, self.timestamp.public_key)
        roles = (after.targets.delegations.roles if after.targets.delegations else None) or {}
        director = roles.get(DIRECTOR)
        if director is None or director.keyids != [self.director.public_key.keyid] or director.threshold != 1:
            raise Unsigned(
                "targets", "does not delegate to this server's director key", "Fetch the keys and sign again"
            )
        if director.paths != list(DIRECTOR_PATHS) or not director.terminating or set(roles) != {DIRECTOR}:
            raise Tampered("targets", "delegates more than assignments to the director")
        _check_key(after.targets, self.director.public_key)


def repository_info(found: OwnerSet) -> RepositoryInfo:
    """The versions and expiry dates of a verified set."""
    parts: dict[str, Signed] = {"root": found.root, "targets": found.targets, "snapshot": found.snapshot}
    return RepositoryInfo(
        root=found.root.version,
        targets=found.targets.version,
        snapshot=found.snapshot.version,
        timestamp=0,
        expires={name: signed.expires for name, signed in parts.items()},
    )


def release_images(targets: bytes) -> list[SignedImage]:
    """Every image in targets metadata that `check_upload` accepted, by path.

    Raises:
        TrustError, ContractError: the bytes are not what was checked.
    """
    return signed_images(read_metadata(Targets, targets, "targets").signed)


def _check_names(current: Files, upload: Files) -> None:
    """A version is written once, and nothing older than what stands is taken."""
    for name, data in upload.items():
        role = next((role for role in _OWNER_ROLES if newest({name: data}, role)), None)
        if role is None:
            raise Tampered(f"file {name[:80]!r}", "is not <n>.root.json, <n>.targets.json or <n>.snapshot.json")
        if name in current:
            if current[name] != data:
                raise Tampered(name, "the server holds other bytes under the same version")
        elif newest({name: data}, role) <= newest(current, role):
            raise RolledBack(name, f"the server holds version {newest(current, role)} already")


def _check_paths(before: Targets, after: Targets) -> None:
    """A published path names the same image for ever."""
    for path, target in before.targets.items():
        found = after.targets.get(path)
        if found is not None and (found.hashes, found.length) != (target.hashes, target.length):
            raise Tampered(f"release image {path}", "was published with another image before")


def _check_key(delegator: Root | Targets, ours: SSlibKey) -> None:
    """A key id is only a name: the key that stands under it must be ours, too."""
    found = delegator.get_key(ours.keyid)
    if (found.keytype, found.scheme, found.keyval) != (ours.keytype, ours.scheme, ours.keyval):
        raise Unsigned("metadata", f"another key stands under the id of this server's key {ours.keyid[:12]}")


def _in_days(now: datetime, days: int) -> datetime:
    return now.astimezone(UTC) + timedelta(days=days)


def _sign(signed: Timestamp | Targets, signer: CryptoSigner) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    metadata.sign(signer)
    return metadata.to_bytes()


def _key_dict(signer: CryptoSigner) -> dict[str, Any]:
    key = signer.public_key
    return {"keyid": key.keyid, **key.to_dict()}


def _open_key(path: Path) -> CryptoSigner:
    try:
        if not path.exists():
            _make_key(path)
        private = load_pem_private_key(path.read_bytes(), None)
        return CryptoSigner(private)
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"key file {path}", str(error)[:200], "Restore it from the backup") from error


def _make_key(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(CryptoSigner.generate_ecdsa().private_bytes)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
