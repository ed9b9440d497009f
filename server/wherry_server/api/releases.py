"""Routes of the owner's metadata and of releases."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from wherry.api.releases import ReleasePage, ReleaseView
from wherry.api.repository import OnlineKeys, RepositoryInfo, RepositoryUpload
from wherry.identity import ModelName, ModelVersion
from wherry_server.api.auth import ActingDep, ContextDep, NeedsOperator
from wherry_server.api.params import After, Limit
from wherry_server.services import repository
from wherry_server.store import release_views

router = APIRouter(prefix="/v1", tags=["releases"])


@router.get("/keys", summary="The server's online keys", dependencies=[NeedsOperator])
def online_keys(context: ContextDep) -> OnlineKeys:
    """Public keys for the owner's root and targets metadata to name."""
    return context.signer.online_keys()


@router.get("/repository", summary="Versions of the owner's metadata", dependencies=[NeedsOperator])
def get_repository(context: ContextDep) -> RepositoryInfo:
    """Zeros before the first publication."""
    return repository.repository_info(context)


@router.post("/repository", summary="Publish the owner's metadata")
def post_repository(upload: RepositoryUpload, context: ActingDep) -> RepositoryInfo:
    """All files are checked and stored, or none; the timestamp is signed in the same transaction."""
    return repository.publish(context, upload)


@router.get("/tuf/metadata/{name}", summary="A TUF metadata file")
def metadata_file(name: str, context: ContextDep) -> Response:
    """Signed and public: what TUF clients fetch."""
    return Response(
        repository.metadata_file(context, name), media_type="application/json", headers={"Cache-Control": "no-cache"}
    )


@router.get("/releases", summary="List releases", dependencies=[NeedsOperator])
def list_releases(
    context: ContextDep,
    after: After = "",
    limit: Limit = 100,
    model: Annotated[str | None, Query(max_length=64)] = None,
) -> ReleasePage:
    """Newest first."""
    with context.store.read() as session:
        return release_views.release_page(session, after, limit, model)


@router.get("/releases/{model}/{version}", summary="One release", dependencies=[NeedsOperator])
def get_release(model: ModelName, version: ModelVersion, context: ContextDep) -> ReleaseView:
    """With its images by device profile."""
    with context.store.read() as session:
        return release_views.release_view(session, model, version)
