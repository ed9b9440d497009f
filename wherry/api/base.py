"""What all of the API has in common: the body of errors, pages of lists."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from wherry.messages import Problem

DEFAULT_SLOT = "main"


class ApiModel(BaseModel):
    """What all bodies are: fields of a newer sender are ignored."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class ErrorBody(ApiModel):
    """Every error response."""

    error: Problem


class Page(ApiModel):
    """Paging of a list: pass `after` = `next` of the page before."""

    next: str | None = None
