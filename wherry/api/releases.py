"""Releases and their images."""

from __future__ import annotations

from datetime import datetime

from wherry.api.base import ApiModel, Page
from wherry.identity import Digest, ModelName, ModelVersion, ProfileName


class ReleaseImageView(ApiModel):
    """One image of a release."""

    profile: ProfileName
    counter: int
    digest: Digest
    repository: str
    download_bytes: int
    unpacked_bytes: int
    layers: dict[str, int] = {}
    runtime: str
    provider: str = ""
    precision: str
    withdrawn: bool = False


class ReleaseView(ApiModel):
    """A release: a model's version and its images."""

    model: ModelName
    version: ModelVersion
    stage: str
    published: datetime
    images: list[ReleaseImageView]


class ReleasePage(Page):
    """`GET /v1/releases?after=&limit=&model=`."""

    items: list[ReleaseView]
