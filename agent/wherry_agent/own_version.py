"""Which agent runs on this device, as the supervisor started it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Running:
    """The agent itself, as part of the observed world.

    Attributes:
        digest: of the release that it was started from; empty for the agent that was installed.
        supervised: whether a supervisor started it. Without one no release can take its place.
        verdicts: why the supervisor went back from a release, by digest.
    """

    digest: str = ""
    supervised: bool = False
    verdicts: Mapping[str, str] = field(default_factory=dict)
