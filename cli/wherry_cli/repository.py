"""The owner's signed metadata: making it, adding releases, withdrawing them, replacing keys.

Pure: files in, files out (`wherry.metadata.Files`); nothing is fetched, and what comes in is verified from the
root down before anything is built on it. `local_repository` keeps the owner's copy and compares it with what
the server says. Layout and reasons: docs/decisions/0002-tuf.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from wherry.api.repository import OnlineKeys
from wherry.errors import ConfigError, Conflict, InputError, MalformedMessage, NotFound
from wherry.metadata import TARGETS_LIMIT, Files, SignedImage, file_name, signed_images, verify_owner_set
from wherry.release import ReleaseImage
from wherry.roles import DIRECTOR, DIRECTOR_PATHS, ROOT_DAYS, SNAPSHOT_DAYS, TARGETS_DAYS


@dataclass(frozen=True, slots=True)
class OwnerKeys:
    """The owner's signing keys. Publishing needs no root key, so that it can stay in a safe."""

    targets: CryptoSigner
    snapshot: CryptoSigner
    root: tuple[CryptoSigner, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageToSign:
    """An image to be released: what it is, its manifest's digest and its manifest's length."""

    image: ReleaseImage
    digest: str
    manifest_bytes: int


def init_repository(keys: OwnerKeys, online: OnlineKeys, now: datetime, threshold: int = 1) -> dict[str, bytes]:
    """The first metadata: `1.root.json`, `1.targets.json`, `1.snapshot.json`.

    Args:
        keys: with every root key; their number is the number of root key holders.
        online: the server's public keys, from `GET /v1/keys`.
        now: signing time.
        threshold: how many root keys must sign a new root.

    Raises:
        InputError: fewer root keys than the threshold asks for.
        MalformedMessage: the server's keys are unusable.
    """
    root = _make_root(1, keys, read_key(online.timestamp), now, threshold)
    targets = Targets(1, None, _in_days(now, TARGETS_DAYS), {}, _delegations(read_key(online.director)))
    files = {file_name(Root.type, 1): _sign(root, keys.root)}
    files |= _sign_targets(targets, 1, keys, now)
    verify_owner_set(files)
    return files


def publish(current: Files, images: Sequence[ImageToSign], keys: OwnerKeys, now: datetime) -> dict[str, bytes]:
    """Add release images: the next targets and snapshot files. With no images it renews the expiry dates.

    Args:
        current: every root, and the newest targets and snapshot.
        images: each with a counter from `next_counter`; the owner's minimum counter is carried on.
        keys: targets and snapshot key.
        now: signing time.

    Raises:
        TrustError: `current` does not verify, or the keys are not those that its root names.
        Conflict: a counter is not above the newest one of its model and profile.
        InputError: a field cannot be signed, or the metadata becomes too large.
    """

    def add(targets: Targets) -> None:
        for entry in images:
            _check_counter(targets, entry.image)
            minimum = max(entry.image.min_counter, _min_counter(targets, entry.image))
            image = entry.image.model_copy(update={"min_counter": minimum})
            path = image.target_path()
            sha256 = entry.digest.removeprefix("sha256:")
            extra = {"custom": image.to_custom()}
            targets.targets[path] = TargetFile(entry.manifest_bytes, {"sha256": sha256}, path, extra)

    return _change_targets(current, add, keys, now)


def revoke(current: Files, digest: str, keys: OwnerKeys, now: datetime) -> dict[str, bytes]:
    """Withdraw an image for good: no device may run it, not even as a rollback.

    Raises:
        TrustError: as `publish`.
        NotFound: no release has this manifest digest.
    """

    def withdraw(targets: Targets) -> None:
        found = [target for target in targets.targets.values() if digest == _digest(target)]
        if not found:
            raise NotFound(f"image {digest}", "is in no release")
        for target in found:
            target.unrecognized_fields["custom"]["revoked"] = sorted({*target.custom.get("revoked", []), digest})

    return _change_targets(current, withdraw, keys, now)


def set_min_counter(
    current: Files, model: str, counter: int, keys: OwnerKeys, now: datetime, profile: str | None = None
) -> dict[str, bytes]:
    """Withdraw every image of a model below a counter, for one device profile or for all.

    Raises:
        TrustError: as `publish`.
        NotFound: the model has no release (for this profile).
        Conflict: the minimum would fall.
    """

    def raise_minimum(targets: Targets) -> None:
        newest = {found.image.profile: found for found in _of_model(targets, model)}
        chosen = {name: found for name, found in newest.items() if profile in (None, name)}
        if not chosen:
            raise NotFound(f"model {model}", "has no release" + (f" for {profile}" if profile else ""))
        for found in chosen.values():
            before = _min_counter(targets, found.image)
            if counter < before:
                raise Conflict(f"model {model}", f"its minimum counter is {before} already and never falls")
            targets.targets[found.path].unrecognized_fields["custom"]["min_counter"] = counter

    return _change_targets(current, raise_minimum, keys, now)


def rotate_root(
    current: Files,
    old: OwnerKeys,
    new: OwnerKeys,
    now: datetime,
    threshold: int | None = None,
    online: OnlineKeys | None = None,
    keep_roots: bool = False,
) -> dict[str, bytes]:
    """Replace keys, change the threshold or renew the root: root n+1, and targets and snapshot n+1 under it.

    Args:
        current: as for `publish`.
        old: enough of the present root keys.
        new: all keys from now on; the same object renews the expiry date.
        now: signing time.
        threshold: how many of the new root keys must sign; None keeps the number.
        online: the server's keys from now on; None keeps them.
        keep_roots: the root keys stay as they are, also those that do not sign this time.

    Raises:
        TrustError: `current` does not verify, or too few of the present root keys sign.
        InputError: fewer root keys than the threshold asks for.
    """
    before = verify_owner_set(current)
    needed = before.root.roles[Root.type].threshold if threshold is None else threshold
    timestamp = read_key(online.timestamp) if online else _only_key(before.root, Timestamp.type)
    kept = [before.root.get_key(keyid) for keyid in before.root.roles[Root.type].keyids] if keep_roots else None
    root = _make_root(before.root.version + 1, new, timestamp, now, needed, kept)
    signers = {signer.public_key.keyid: signer for signer in (*old.root, *new.root)}
    files = {file_name(Root.type, root.version): _sign(root, signers.values())}
    targets = before.targets
    if online:
        targets.delegations = _delegations(read_key(online.director))
    _advance(targets, now, TARGETS_DAYS)
    files |= _sign_targets(targets, before.snapshot.version + 1, new, now)
    verify_owner_set({**current, **files})
    return files


def read_targets(current: Files) -> Targets:
    """The newest targets metadata, verified from the root down.

    Raises:
        TrustError: it does not verify.
    """
    return verify_owner_set(current).targets


def released(current: Files) -> list[SignedImage]:
    """Every image the owner signed, by path.

    Raises:
        TrustError: the metadata does not verify.
    """
    return signed_images(read_targets(current))


def next_counter(targets: Targets, model: str) -> int:
    """The counter of a model's next release: one above its highest of any profile."""
    return max((found.image.counter for found in _of_model(targets, model)), default=0) + 1


def read_key(data: Mapping[str, Any]) -> Key:
    """A public key from its TUF dictionary with `keyid`, as `OnlineKeys` carries it.

    Raises:
        MalformedMessage: not such a dictionary.
    """
    fields = {name: value for name, value in data.items() if name != "keyid"}
    try:
        return Key.from_dict(str(data["keyid"]), fields)
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedMessage("public key", f"is not a usable key ({str(error)[:120]})") from error


def _make_root(
    version: int, keys: OwnerKeys, timestamp: Key, now: datetime, threshold: int, kept: list[Key] | None = None
) -> Root:
    root: list[Key] = [signer.public_key for signer in keys.root] if kept is None else kept
    if not 1 <= threshold <= len(root):
        raise InputError("root", f"{threshold} of {len(root)} root keys cannot be asked for")
    holders: dict[str, list[Key]] = {
        Root.type: root,
        Targets.type: [keys.targets.public_key],
        Snapshot.type: [keys.snapshot.public_key],
        Timestamp.type: [timestamp],
    }
    roles = {name: Role([key.keyid for key in found], 1) for name, found in holders.items()}
    roles[Root.type].threshold = threshold
    known = {key.keyid: key for found in holders.values() for key in found}
    return Root(version, None, _in_days(now, ROOT_DAYS), known, roles, consistent_snapshot=True)


def _delegations(director: Key) -> Delegations:
    role = DelegatedRole(DIRECTOR, [director.keyid], 1, terminating=True, paths=list(DIRECTOR_PATHS))
    return Delegations({director.keyid: director}, {DIRECTOR: role})


def _change_targets(
    current: Files, change: Callable[[Targets], None], keys: OwnerKeys, now: datetime
) -> dict[str, bytes]:
    before = verify_owner_set(current)
    change(before.targets)
    _advance(before.targets, now, TARGETS_DAYS)
    files = _sign_targets(before.targets, before.snapshot.version + 1, keys, now)
    verify_owner_set({**current, **files})
    return files


def _advance(signed: Targets, now: datetime, days: int) -> None:
    signed.version += 1
    signed.expires = _in_days(now, days)


def _sign_targets(targets: Targets, snapshot_version: int, keys: OwnerKeys, now: datetime) -> dict[str, bytes]:
    data = _sign(targets, [keys.targets])
    if len(data) > TARGETS_LIMIT:
        raise InputError("release metadata", f"would have {len(data)} bytes, devices accept {TARGETS_LIMIT}")
    meta = {"targets.json": MetaFile.from_data(targets.version, data, ["sha256"])}
    snapshot = Snapshot(snapshot_version, None, _in_days(now, SNAPSHOT_DAYS), meta)
    return {
        file_name(Targets.type, targets.version): data,
        file_name(Snapshot.type, snapshot_version): _sign(snapshot, [keys.snapshot]),
    }


def _sign(signed: Root | Targets | Snapshot, signers: Iterable[CryptoSigner]) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    try:
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()
    except RepositoryError as error:
        raise InputError(f"{signed.type} metadata", f"cannot be signed ({error.__cause__ or error})") from error


def _check_counter(targets: Targets, image: ReleaseImage) -> None:
    same = [found.image.counter for found in _of_model(targets, image.model) if found.image.profile == image.profile]
    if same and image.counter <= max(same):
        raise Conflict(
            f"release {image.label()} for {image.profile}",
            f"its counter {image.counter} is not above {max(same)}",
            "Publish it under the next counter",
        )


def _of_model(targets: Targets, model: str) -> list[SignedImage]:
    """Images of a model, by counter."""
    found = (image for image in signed_images(targets) if image.image.model == model)
    return sorted(found, key=lambda image: image.image.counter)


def _min_counter(targets: Targets, image: ReleaseImage) -> int:
    same = (found.image for found in _of_model(targets, image.model) if found.image.profile == image.profile)
    return max((found.min_counter for found in same), default=0)


def _digest(target: TargetFile) -> str:
    return f"sha256:{target.hashes.get('sha256', '')}"


def _only_key(root: Root, role: str) -> Key:
    keyids = root.roles[role].keyids
    if len(keyids) != 1:
        raise ConfigError(f"role {role}", f"has {len(keyids)} keys, Wherry uses one")
    return root.get_key(keyids[0])


def _in_days(now: datetime, days: int) -> datetime:
    return now.astimezone(UTC) + timedelta(days=days)
