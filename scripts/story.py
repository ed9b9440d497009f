"""Tells a story chapter by chapter: shows each as it goes, and keeps what it found for a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lab import Lab, LabError
from rich.console import Console


class StoryError(Exception):
    """A chapter did not go as the story says."""


def expect(condition: object, otherwise: str) -> None:
    """Stop the chapter unless the condition holds."""
    if not condition:
        raise StoryError(otherwise)


@dataclass
class Story:
    """Runs chapters, shows them as they go and keeps what build/demo.json reports."""

    lab: Lab
    console: Console
    chapters: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def chapter(self, name: str, title: str) -> Iterator[Callable[[str], None]]:
        """One chapter: its heading, its seconds, and what it found."""
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            self.console.print(f"     {text}", highlight=False, soft_wrap=True)

        began = time.monotonic()
        self.console.print(f"\n[bold]{len(self.chapters) + 1:>2}. {title}[/]", highlight=False)
        error: BaseException | None = None
        try:
            yield say
        except (StoryError, LabError, OSError, ValueError, KeyError) as problem:
            error = problem
            said.append(f"{type(problem).__name__}: {problem}")
        seconds = round(time.monotonic() - began, 2)
        self.chapters.append({"name": name, "ok": error is None, "seconds": seconds, "detail": " | ".join(said)})
        if error is None:
            self.console.print(f"     [green]done[/] [dim]in {seconds:.1f} s[/]", highlight=False)
            return
        self.console.print(f"     [red]failed[/] after {seconds:.1f} s: {error}", highlight=False, soft_wrap=True)
        raise StoryError(f"chapter {name!r} failed") from error
