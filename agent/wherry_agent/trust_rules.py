"""What a device accepts, as pure rules: high-water marks, and an assignment against what the owner signed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from wherry.errors import (
    ContractError,
    MalformedMessage,
    Replayed,
    RolledBack,
    Tampered,
    TrustError,
    Unsigned,
    WherryError,
    WrongDevice,
    WrongProfile,
)
from wherry.identity import DeviceId, SlotName
from wherry.metadata import MAX_VERSION, check_expiry, read_metadata, signed_image, verify_role
from wherry.release import parse_target_path
from wherry.roles import ASSIGNMENT_FIELD, ASSIGNMENT_SCHEMA, DIRECTOR
from wherry.schemas import load_json, parse_schema
from wherry_agent.assignment import Assignment, Marks, TrustedImage, mark_above, model_key, slot_key
from wherry_agent.entry import withdrawn

ASSIGNMENT_LIMIT = 262_144
MAX_SLOTS = 64
VERSIONED = ("root", "timestamp", "snapshot", "targets")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class AssignmentField(BaseModel):
    """The signed extra field of an assignment (`wherry.roles.ASSIGNMENT_FIELD`)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    device: DeviceId
    slots: Annotated[dict[SlotName, str], Field(max_length=MAX_SLOTS)]
    together: Annotated[list[Annotated[list[SlotName], Field(min_length=2)]], Field(max_length=MAX_SLOTS)] = []

    @model_validator(mode="after")
    def _apart(self) -> Self:
        named = [slot for group in self.together for slot in group]
        if len(named) != len(set(named)) or not set(named) <= self.slots.keys():
            raise ValueError("together names a slot twice, or one that has no image")
        return self


@dataclass(frozen=True, slots=True)
class Received:
    """An assignment as it came, parsed; nothing in it is verified."""

    metadata: Metadata[Targets]
    field: AssignmentField

    @property
    def sequence(self) -> int:
        """The per-device sequence."""
        return self.metadata.signed.version


@dataclass(frozen=True, slots=True)
class Verified:
    """One verified set of release metadata.

    Attributes:
        versions: role to version.
        keys: role to the fingerprints of its keys, `director` included.
        targets: the owner's targets.
    """

    versions: Mapping[str, int]
    keys: Mapping[str, str]
    targets: Targets


def read_assignment(payload: bytes) -> Received:
    """Parse an assignment.

    Raises:
        ContractError: not an assignment, or of an unknown schema version.
        Tampered: not readable as TUF metadata.
    """
    document = load_json(payload, "assignment", ASSIGNMENT_LIMIT)
    if not isinstance(document, dict) or not isinstance(document.get("signed"), dict):
        raise MalformedMessage("assignment", "is not a signed JSON object")
    metadata = read_metadata(Targets, payload, "assignment")
    if len(metadata.signed.targets) > MAX_SLOTS:
        raise MalformedMessage("assignment", f"names more than {MAX_SLOTS} images")
    field = metadata.signed.unrecognized_fields.get(ASSIGNMENT_FIELD)
    return Received(metadata, parse_schema(AssignmentField, field, "assignment", ASSIGNMENT_SCHEMA))


def refused_sequence(payload: bytes, error: WherryError) -> int:
    """The sequence of an assignment that was refused for good, by its own words; 0 when it was not, or has none.

    One made for another device says nothing of this device's sequences.
    """
    if not isinstance(error, TrustError | ContractError) or isinstance(error, WrongDevice):
        return 0
    try:
        return min(read_assignment(payload).sequence, MAX_VERSION)
    except WherryError:
        return 0


def fingerprints(delegator: Root | Targets, role: str) -> str:
    """Which keys hold a role, as text; by the keys themselves, since a key id is only a name."""
    if isinstance(delegator, Root):
        keyids = delegator.roles[role].keyids
    else:
        roles = (delegator.delegations.roles if delegator.delegations else None) or {}
        keyids = roles[role].keyids if role in roles else []
    keys = (str(delegator.get_key(keyid).keyval.get("public")) for keyid in keyids)
    return ",".join(sorted(hashlib.sha256(key.encode()).hexdigest()[:32] for key in keys))


def check_versions(found: Verified, marks: Marks) -> None:
    """Refuse release metadata older than what this device has seen, whatever the files on disk say.

    Raises:
        RolledBack: a version is below its mark.
        Tampered: a version is out of range.
    """
    for role, version in found.versions.items():
        mark = effective_marks(found, marks)[role]
        if version < mark:
            raise RolledBack(f"{role} metadata", f"is version {version}, this device has seen {mark}")
        if version > MAX_VERSION:
            raise Tampered(f"{role} metadata", "has a version out of range")


def effective_marks(found: Verified, marks: Marks) -> dict[str, int]:
    """Role to mark; 0 where the owner replaced every key that signed under the mark (recovery from a stolen key)."""
    values = {role: getattr(marks, role) for role in VERSIONED} | {DIRECTOR: marks.sequence}
    return {role: 0 if role != "root" and _replaced(role, found, marks) else value for role, value in values.items()}


def check_assignment(received: Received, found: Verified, device: str, profile: str) -> Assignment:
    """Check who signed an assignment, for whom, and that the owner signed each image for this device's profile.

    Expiry, sequence and counters are left to `check_new`, so that an accepted assignment can be read again. That
    the owner withdrew an image is left to admission, which refuses it for its slot: the other slots go on.

    Raises:
        Unsigned, Tampered: as `wherry.metadata.verify_role`; Unsigned also for an image that the owner did not sign.
        WrongDevice, WrongProfile: see the error tree.
        ContractError: a path or a signed description is malformed.
    """
    metadata = received.metadata
    verify_role(found.targets, DIRECTOR, metadata, "assignment")
    if received.field.device != device:
        raise WrongDevice("assignment", f"is for device {received.field.device}, this is {device}")
    slots = {slot: _image(path, metadata.signed, found.targets) for slot, path in received.field.slots.items()}
    for image in slots.values():
        if image.image.profile != profile:
            raise WrongProfile(_name(image), f"is made for {image.image.profile}, this device is {profile}")
    together = tuple(frozenset(group) for group in received.field.together)
    return Assignment(device, received.sequence, metadata.signed.expires, slots, together)


def check_new(
    received: Received,
    assignment: Assignment,
    found: Verified,
    marks: Marks,
    reference: datetime,
    serving: Mapping[str, str],
) -> frozenset[str]:
    """Refuse an assignment that is not the newest word of the server; the slots that it would take back in time.

    These raise no mark, and admission refuses them: the other slots go on. An image that serves in the same slot
    anyway (`serving`, slot to digest) takes nothing back.

    Raises:
        Replayed: its sequence is not above the mark.
        Expired: its time has come.
    """
    mark = effective_marks(found, marks)[DIRECTOR]
    if assignment.sequence <= mark:
        raise Replayed("assignment", f"has sequence {assignment.sequence}, this device has accepted {mark}")
    check_expiry(received.metadata.signed, reference, "assignment")
    counters, newest = effective_counters(found, marks), raise_withdrawn(found, marks)
    return frozenset(
        slot
        for slot, image in assignment.slots.items()
        # What is withdrawn does not run anyway, so it takes nothing back.
        if not withdrawn(image, newest) and serving.get(slot) != image.digest and mark_above(slot, image, counters)
    )


def effective_counters(found: Verified, marks: Marks) -> dict[str, int]:
    """Counters under which this device takes nothing; capped at what is released if the targets keys were replaced."""
    if not _replaced("targets", found, marks):
        return dict(marks.counters)
    released: dict[str, int] = {}
    for model, counter, _ in _releases(found.targets):
        released[model] = max(counter, released.get(model, 0))
    return {key: min(mark, released.get(key.partition(":")[2] or key, 0)) for key, mark in marks.counters.items()}


def raise_withdrawn(found: Verified, marks: Marks) -> Marks:
    """The marks with what the owner withdrew by now: minimum counters and revoked digests."""
    keep = not _replaced("targets", found, marks)
    minimum = dict(marks.min_counters) if keep else {}
    revoked = set(marks.revoked) if keep else set()
    for model, _, target in _releases(found.targets):
        custom: Any = target.custom if isinstance(target.custom, dict) else {}
        minimum[model] = max(minimum.get(model, 0), _count(custom.get("min_counter", 0), target.path))
        revoked.update(_digests(custom.get("revoked", []), target.path))
    return replace(
        marks, min_counters={key: value for key, value in minimum.items() if value}, revoked=frozenset(revoked)
    )


def raise_versions(found: Verified, marks: Marks, reference: datetime) -> Marks:
    """The marks after a refresh. They rise; one falls only where `effective_marks` dropped it."""
    before = effective_marks(found, marks)
    seen = {role: max(before[role], found.versions.get(role, 0)) for role in VERSIONED}
    return replace(
        raise_withdrawn(found, marks),
        root=seen["root"],
        timestamp=seen["timestamp"],
        snapshot=seen["snapshot"],
        targets=seen["targets"],
        sequence=before[DIRECTOR],
        counters=effective_counters(found, marks),
        keys={**marks.keys, **{role: keys for role, keys in found.keys.items() if keys}},
        floor=max(marks.floor, reference),
    )


def raise_accepted(assignment: Assignment, marks: Marks, stepping_back: Container[str] = ()) -> Marks:
    """The marks after an assignment was accepted; slots that are no longer used lose their own mark.

    An image that is withdrawn or steps back raises none, since it does not run; nor does it give its slot a mark of
    its own, which would free the slot from the model's.
    """
    counters = {key: value for key, value in marks.counters.items() if ":" not in key}
    for slot, image in assignment.slots.items():
        own, model = slot_key(slot, image), model_key(image)
        if not withdrawn(image, marks) and slot not in stepping_back:
            counters[own] = max(marks.counters.get(own, 0), image.image.counter)
            counters[model] = max(counters.get(model, 0), image.image.counter)
        elif own in marks.counters:
            counters[own] = marks.counters[own]
    return replace(marks, sequence=assignment.sequence, counters=counters)


def _replaced(role: str, found: Verified, marks: Marks) -> bool:
    known = marks.keys.get(role, "")
    present = found.keys.get(role, "")
    return bool(known and present) and set(known.split(",")).isdisjoint(present.split(","))


def _releases(targets: Targets) -> Iterator[tuple[str, int, TargetFile]]:
    """Key in marks, counter and target of each release image; other kinds of targets are left alone."""
    for path, target in targets.targets.items():
        try:
            model, profile, counter = parse_target_path(path)
        except MalformedMessage:
            continue
        yield f"{model}/{profile}", counter, target


def _image(path: str, assigned: Targets, owned: Targets) -> TrustedImage:
    target, wanted = owned.targets.get(path), assigned.targets.get(path)
    parse_target_path(path)
    if target is None:
        raise Unsigned(f"release image {path}", "is not in the owner's signed metadata")
    if wanted is None:
        raise MalformedMessage("assignment", f"has no length and hash for {path}")
    if (wanted.length, wanted.hashes) != (target.length, target.hashes):
        raise Unsigned(f"release image {path}", "the assignment names another image than the owner signed")
    found = signed_image(target)
    return TrustedImage(path, found.digest, found.manifest_bytes, found.image)


def _count(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_VERSION:
        raise MalformedMessage(f"release image {path}", "field min_counter is not a count")
    return value


def _digests(value: Any, path: str) -> Iterable[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and _DIGEST.fullmatch(item) for item in value):
        raise MalformedMessage(f"release image {path}", "field revoked is not a list of digests")
    return value


def _name(image: TrustedImage) -> str:
    return f"release {image.image.label()}"
