"""The owner's signed metadata: checked, stored, indexed and stamped in one transaction."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from wherry.api.repository import RepositoryInfo, RepositoryUpload
from wherry.errors import InputError, NotFound
from wherry.metadata import file_name
from wherry_server.services.changes import RELEASES
from wherry_server.services.context import Context
from wherry_server.signing import TIMESTAMP_FILE, release_images
from wherry_server.store.documents import write
from wherry_server.store.schema import Image, RepositoryFile, RepositoryState

_ROW = 1


def publish(context: Context, upload: RepositoryUpload) -> RepositoryInfo:
    """Take over what the owner signed; everything, or nothing.

    Raises:
        TrustError: the upload is not properly signed, inconsistent or older than what stands.
        ContractError: a release image is malformed.
        InputError: the upload is empty.
    """
    if not upload.files:
        raise InputError("repository upload", "holds no files")
    now = context.clock()
    files = {name: text.encode() for name, text in upload.files.items()}
    with context.store.write() as session:
        state = session.get(RepositoryState, _ROW, with_for_update=True)
        info = context.signer.check_upload(_current(session, state), files)
        for name, data in files.items():
            session.merge(RepositoryFile(name=name, data=data, stored=now))
        session.flush()
        if state is None or info.targets != state.targets:
            _index(session, _file(session, file_name("targets", info.targets)), now)
        stamped = _stamp(context, session, info, state.timestamp if state else 0, now)
        context.record(session, "repository.publish", f"targets {info.targets}", ", ".join(sorted(files)))
        context.announce(session, RELEASES)
    return stamped


def repository_info(context: Context) -> RepositoryInfo:
    """The versions that are current; zeros before the first publication."""
    with context.store.read() as session:
        state = session.get(RepositoryState, _ROW)
        return _info(state) if state else RepositoryInfo(root=0, targets=0, snapshot=0, timestamp=0)


def metadata_file(context: Context, name: str) -> bytes:
    """One metadata file, as TUF clients fetch it.

    Raises:
        NotFound: there is none of that name.
    """
    with context.store.read() as session:
        row = session.get(RepositoryFile, name) if len(name) <= 64 else None
        if row is None:
            raise NotFound(f"metadata {name[:80]}", "does not exist")
        return row.data


def stamp_due(context: Context) -> bool:
    """Sign the timestamp again when it is older than the setting says; whether that was done."""
    now = context.clock()
    with context.store.write() as session:
        state = session.get(RepositoryState, _ROW, with_for_update=True)
        stamp = session.get(RepositoryFile, TIMESTAMP_FILE)
        if state is None or (stamp and stamp.stored > now - timedelta(hours=context.config.timestamp_hours)):
            return False
        _stamp(context, session, _info(state), state.timestamp, now)
        return True


def _stamp(context: Context, session: Session, info: RepositoryInfo, last: int, now: datetime) -> RepositoryInfo:
    snapshot = _file(session, file_name("snapshot", info.snapshot))
    stamp = context.signer.sign_timestamp(snapshot, last + 1, now)
    session.merge(RepositoryFile(name=TIMESTAMP_FILE, data=stamp, stored=now))
    stamped = info.model_copy(update={"timestamp": last + 1})
    expires = json.dumps({name: when.isoformat() for name, when in stamped.expires.items()})
    session.merge(
        RepositoryState(
            id=_ROW,
            root=stamped.root,
            targets=stamped.targets,
            snapshot=stamped.snapshot,
            timestamp=stamped.timestamp,
            expires=expires,
        )
    )
    return stamped


def _current(session: Session, state: RepositoryState | None) -> dict[str, bytes]:
    """Every root, and the newest targets and snapshot."""
    if state is None:
        return {}
    names = [file_name("root", version) for version in range(1, state.root + 1)]
    names += [file_name("targets", state.targets), file_name("snapshot", state.snapshot)]
    rows = session.scalars(select(RepositoryFile).where(RepositoryFile.name.in_(names)))
    return {row.name: row.data for row in rows}


def _file(session: Session, name: str) -> bytes:
    row = session.get(RepositoryFile, name)
    if row is None:
        raise NotFound(f"metadata {name}", "is missing in the database", "Publish the repository again")
    return row.data


def _index(session: Session, targets: bytes, now: datetime) -> None:
    """Rows for all images of new targets metadata; those it leaves out are no longer listed."""
    known = {row.path: row for row in session.scalars(select(Image))}
    session.execute(update(Image).values(listed=False))
    for signed in release_images(targets):
        image, row = signed.image, known.get(signed.path)
        if row is None:
            row = Image(
                path=signed.path,
                model=image.model,
                version=image.version,
                profile=image.profile,
                counter=image.counter,
                digest=signed.digest,
                manifest_bytes=signed.manifest_bytes,
                published=now,
            )
            session.add(row)
        row.image, row.listed = write(image) or "", True


def _info(state: RepositoryState) -> RepositoryInfo:
    return RepositoryInfo(
        root=state.root,
        targets=state.targets,
        snapshot=state.snapshot,
        timestamp=state.timestamp,
        expires=json.loads(state.expires),
    )
