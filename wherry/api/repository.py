"""Signed metadata: what the owner uploads, and the server's own keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from wherry.api.base import ApiModel


class OnlineKeys(ApiModel):
    """`GET /v1/keys`: the server's public keys, as TUF key dictionaries with their key ids."""

    timestamp: dict[str, Any]
    director: dict[str, Any]


class RepositoryUpload(ApiModel):
    """`POST /v1/repository`: owner-signed TUF metadata, file name to its JSON text.

    Names are `<n>.root.json`, `<n>.targets.json`, `<n>.snapshot.json`. All of them are checked and
    stored, or none.
    """

    files: dict[str, str]


class RepositoryInfo(ApiModel):
    """`GET /v1/repository`: the versions of the metadata that the server holds; 0 for none."""

    root: int
    targets: int
    snapshot: int
    timestamp: int
    expires: dict[str, datetime] = {}
