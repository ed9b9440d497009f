"""Whom this device believes: release metadata refreshed and checked, assignments accepted or refused.

Pure rules are in `trust_rules`, `tuf.ngclient` is wrapped in `tuf_updater`; this module puts them in order and
turns every foreign error into one of ours. Not for use by several threads at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from wherry.errors import Expired, IdentityError, RolledBack, ServerError, StoreError, Tampered, TrustError, Unsigned
from wherry.metadata import (
    ROOT_LIMIT,
    TARGETS_LIMIT,
    read_metadata,
    read_trusted_root,
    verify_role,
    verify_root_step,
)
from wherry.roles import DIRECTOR
from wherry_agent.assignment import Assignment, Marks
from wherry_agent.trust_rules import (
    Verified,
    check_assignment,
    check_new,
    check_versions,
    fingerprints,
    raise_accepted,
    raise_versions,
    raise_withdrawn,
    read_assignment,
)
from wherry_agent.tuf_files import FIRST_ROOT, HISTORY, read_bounded, remove_metadata, write_durably
from wherry_agent.tuf_updater import BoundedFetcher, StagedUpdater

_KINDS = {kind.type: kind for kind in (Root, Timestamp, Snapshot, Targets)}


class Trust:
    """The TUF folder of one device.

    Args:
        folder: `STATE/tuf`.
        device: this device's id.
        profile: this device's profile.
        metadata_url: where the server serves metadata, `https://…/v1/tuf/metadata/`.
        ca_file: the server's CA certificate; None uses the system's.
    """

    def __init__(self, folder: Path, device: str, profile: str, metadata_url: str, ca_file: Path | None) -> None:
        self._folder = folder
        self._device = device
        self._profile = profile
        self._url = metadata_url
        self._fetcher = BoundedFetcher(ca_file)

    def install_root(self, root: bytes) -> None:
        """Pin the owner's root at enrolment. Another root than the pinned one replaces all metadata.

        Raises:
            TrustError: it is not a root that its own keys signed.
            StoreError: it cannot be written.
        """
        read_trusted_root(root)
        first = self._folder / FIRST_ROOT
        with _writing(self._folder):
            if first.exists() and read_bounded(first, ROOT_LIMIT) == root:
                return
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_metadata(self._folder)
            write_durably(first, root)

    def verify(
        self,
        payload: bytes,
        marks: Marks,
        now: datetime,
        online: bool = True,
        serving: Mapping[str, str] | None = None,
    ) -> tuple[Assignment, Marks]:
        """Accept an assignment, or refuse it and change nothing but files of verified metadata.

        Args:
            payload: the assignment as it came, from whom does not matter.
            marks: the journal's high-water marks.
            now: the clock; before `marks.floor` it is not believed.
            online: False uses the metadata on disk, which must still be valid.
            serving: slot to the digest of its known-good image; a slot that is told to keep it takes no step back,
                whatever newer release it was given and refused since. Another slot's image does not count.

        Returns:
            The assignment and the marks to journal, both before anything is done about it.

        Raises:
            TrustError: refused, with the reason.
            ContractError: not an assignment that this program understands.
            ServerError: the metadata could not be fetched.
            StoreError: the folder cannot be read or written.
            IdentityError: no root is pinned, or it was damaged together with its copy.
        """
        received = read_assignment(payload)
        reference = max(now, marks.floor)
        found = self._refresh(marks, reference, online)
        assignment = check_assignment(received, found, self._device, self._profile)
        back = check_new(received, assignment, found, marks, reference, serving or {})
        return assignment, raise_accepted(assignment, raise_versions(found, marks, reference), back)

    def refresh(self, marks: Marks, now: datetime) -> Marks:
        """Fetch the newest metadata without an assignment: this is how a withdrawn release becomes known.

        Raises:
            TrustError, ContractError, ServerError, StoreError: as `verify`.
        """
        reference = max(now, marks.floor)
        return raise_versions(self._refresh(marks, reference, online=True), marks, reference)

    def withdrawals(self, marks: Marks) -> Marks:
        """The marks with what the stored targets withdraw: no network, and expiry does not matter.

        Raises:
            TrustError: nobody we trust signed the files.
            ContractError: they cannot be understood.
            StoreError: the folder cannot be read.
            IdentityError: as `verify`.
        """
        found = self._stored_metadata()
        keys = {**marks.keys, Targets.type: found.keys[Targets.type]}
        return replace(raise_withdrawn(found, marks), keys=keys)

    def stored(self, payload: bytes, marks: Marks, now: datetime) -> Assignment:  # noqa: ARG002
        """Read an assignment again that was accepted before: no network, and expiry does not matter.

        Args:
            payload: from the journal.
            marks: from the journal.
            now: not looked at, since what was accepted stays accepted.

        Raises:
            TrustError: the files do not bear it out.
            ContractError: not an assignment.
            StoreError: the folder cannot be read.
        """
        received = read_assignment(payload)
        found = self._stored_metadata()
        check_versions(found, marks)
        return check_assignment(received, found, self._device, self._profile)

    def close(self) -> None:
        """Drop the connection to the server."""
        self._fetcher.close()

    def _refresh(self, marks: Marks, reference: datetime, online: bool) -> Verified:
        _, root = self._newest_root()
        with _writing(self._folder):
            updater = StagedUpdater(self._folder, self._url, self._fetcher, root, reference)
        with _translated(updater):
            (updater.refresh if online else updater.load_local)()
        versions = {
            "root": updater.root.version,
            "timestamp": updater.timestamp.version,
            "snapshot": updater.snapshot.version,
            "targets": updater.targets.version,
        }
        found = Verified(versions, _keys(updater.root, updater.targets), updater.targets)
        check_versions(found, marks)
        with _writing(self._folder):
            updater.commit()
        return found

    def _stored_metadata(self) -> Verified:
        try:
            data = read_bounded(self._folder / "targets.json", TARGETS_LIMIT)
        except OSError as error:
            raise StoreError(f"folder {self._folder}", f"holds no targets ({error.strerror or error})") from error
        name = "targets metadata"
        targets = read_metadata(Targets, data, name)
        newest = self._newest_root()[0]
        signer = next((root for root in self._earlier_roots(newest) if _signed_by(root, targets)), newest)
        verify_role(signer, Targets.type, targets, name)
        versions = {"root": newest.version, "targets": targets.signed.version}
        return Verified(versions, _keys(signer, targets.signed), targets.signed)

    def _earlier_roots(self, newest: Root) -> Iterator[Root]:
        """The newest root and those before it: a power cut may leave a new root beside targets of the last one."""
        yield newest
        for version in range(newest.version - 1, max(0, newest.version - 9), -1):
            with suppress(OSError, TrustError):
                data = read_bounded(self._folder / HISTORY / f"{version}.root.json", ROOT_LIMIT)
                yield read_trusted_root(data).signed

    def _newest_root(self) -> tuple[Root, bytes]:
        """The newest root on disk; from the pinned one forward if `root.json` was lost."""
        try:
            data = read_bounded(self._folder / "root.json", ROOT_LIMIT)
            return read_trusted_root(data).signed, data
        except (OSError, TrustError):
            return self._walk_roots()

    def _walk_roots(self) -> tuple[Root, bytes]:
        try:
            data = read_bounded(self._folder / FIRST_ROOT, ROOT_LIMIT)
            root = read_trusted_root(data, "pinned root").signed
        except (OSError, TrustError) as error:
            raise IdentityError("pinned root", f"cannot be used ({error})", "Enrol this device again") from error
        while True:
            try:
                following = read_bounded(self._folder / HISTORY / f"{root.version + 1}.root.json", ROOT_LIMIT)
                root, data = verify_root_step(root, following).signed, following
            except (OSError, TrustError):
                return root, data


def _keys(root: Root, targets: Targets) -> dict[str, str]:
    keys = {role: fingerprints(root, role) for role in (Timestamp.type, Snapshot.type, Targets.type)}
    return keys | {DIRECTOR: fingerprints(targets, DIRECTOR)}


def _signed_by(root: Root, targets: Metadata[Targets]) -> bool:
    try:
        verify_role(root, Targets.type, targets, "targets metadata")
    except TrustError:
        return False
    return True


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"folder {folder}", f"cannot be used ({error.strerror or error})") from error


@contextmanager
def _translated(updater: StagedUpdater) -> Iterator[None]:
    """Turn what `tuf` raises into our errors; nothing else may leave, not even for metadata built to break it."""
    try:
        yield
    except DownloadLengthMismatchError as error:
        raise Tampered("release metadata", str(error)) from error
    except DownloadError as error:
        raise ServerError("release metadata", f"cannot be fetched ({_cause(error)})") from error
    except ExpiredMetadataError as error:
        raise Expired("release metadata", str(error)) from error
    except BadVersionNumberError as error:
        raise RolledBack("release metadata", str(error)) from error
    except UnsignedMetadataError as error:
        raise _unsigned(updater, error) from error
    except (
        RepositoryError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
    ) as error:
        raise Tampered("release metadata", str(error) or type(error).__name__) from error
    except OSError as error:
        raise StoreError(f"folder {error.filename or 'tuf'}", f"cannot be used ({error.strerror or error})") from error


def _unsigned(updater: StagedUpdater, error: Exception) -> TrustError:
    """Unsigned or Tampered? Decided by whether a trusted key claims to have signed."""
    role, data = updater.last or ("root", b"")
    name = f"{role} metadata"
    try:
        verify_role(updater.root, role, read_metadata(_KINDS[role], data, name), name)
    except TrustError as found:
        return found
    return Unsigned(name, str(error))


def _cause(error: BaseException) -> str:
    """The innermost reason, in one line."""
    return (str(error.__cause__ or error) or type(error).__name__)[:200]
