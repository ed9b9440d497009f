"""Releases as people and tools read them, from what the owner signed."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from wherry.api.releases import ReleaseImageView, ReleasePage, ReleaseView
from wherry.errors import InputError, NotFound
from wherry.release import ReleaseImage
from wherry_server.store.missing import no_release
from wherry_server.store.schema import Image


class _Signed(NamedTuple):
    row: Image
    image: ReleaseImage


def release_page(session: Session, after: str = "", limit: int = 100, model: str | None = None) -> ReleasePage:
    """Releases, newest first. The owner's metadata is bounded, so all of it may be sorted here."""
    query = select(Image) if model is None else select(Image).where(Image.model == model)
    found = _releases(session.scalars(query))
    keys = [f"{view.model}/{view.version}" for view in found]
    if after and after not in keys:
        raise InputError("parameter after", "names no release", "Start again without it")
    start = keys.index(after) + 1 if after else 0
    chosen = found[start : start + limit]
    return ReleasePage(items=chosen, next=keys[start + limit - 1] if start + limit < len(found) else None)


def release_view(session: Session, model: str, version: str) -> ReleaseView:
    """One release; also one that the owner no longer lists, for devices may serve it still.

    Raises:
        NotFound: no such release.
    """
    rows = list(session.scalars(select(Image).where(Image.model == model)))
    found = [view for view in _releases(rows, unlisted=True) if view.version == version]
    if not found:
        raise no_release(session, model, version)
    return found[0]


def signed_image(session: Session, model: str, version: str, profile: str) -> ReleaseImage:
    """All that the owner signed of an image: the newest of a release for a profile.

    Raises:
        NotFound: no such image.
    """
    query = select(Image.image).where(Image.model == model, Image.version == version, Image.profile == profile)
    text = session.scalar(query.order_by(Image.listed.desc(), Image.counter.desc()).limit(1))
    if text is None:
        raise NotFound(f"release {model} {version}", f"has no image for profile {profile}", "Look at its images")
    return ReleaseImage.model_validate_json(text)


def _releases(rows: Iterable[Image], unlisted: bool = False) -> list[ReleaseView]:
    found = [_Signed(row, ReleaseImage.model_validate_json(row.image)) for row in rows]
    withdrawn = _withdrawn(found)
    groups: dict[tuple[str, str], list[_Signed]] = {}
    for image in found:
        if image.row.listed or unlisted:
            groups.setdefault((image.row.model, image.row.version), []).append(image)
    views = [_release_view(group, withdrawn) for group in groups.values()]
    return sorted(
        views, key=lambda view: (view.published, max(i.counter for i in view.images), view.model), reverse=True
    )


def _withdrawn(found: Iterable[_Signed]) -> set[str]:
    """Paths of images that the owner took back: by digest, by a lowest counter, or by leaving them out."""
    images = list(found)
    lowest: dict[tuple[str, str], int] = {}
    digests: set[str] = set()
    for row, image in images:
        if row.listed:
            key = (row.model, row.profile)
            lowest[key] = max(lowest.get(key, 0), image.min_counter)
            digests.update(image.revoked)
    return {
        row.path
        for row, _ in images
        if not row.listed or row.digest in digests or row.counter < lowest.get((row.model, row.profile), 0)
    }


def _release_view(images: Sequence[_Signed], withdrawn: Container[str]) -> ReleaseView:
    ordered = sorted(images, key=lambda image: (image.row.profile, image.row.counter))
    return ReleaseView(
        model=ordered[0].row.model,
        version=ordered[0].row.version,
        stage=ordered[-1].image.stage,
        published=max(row.published for row, _ in ordered),
        images=[_image_view(row, image, row.path in withdrawn) for row, image in ordered],
    )


def _image_view(row: Image, image: ReleaseImage, withdrawn: bool) -> ReleaseImageView:
    return ReleaseImageView(
        profile=row.profile,
        counter=row.counter,
        digest=row.digest,
        repository=image.repository,
        download_bytes=image.download_bytes,
        unpacked_bytes=image.unpacked_bytes,
        layers=image.layers,
        runtime=image.runtime,
        provider=image.provider,
        precision=image.precision,
        withdrawn=withdrawn,
    )
