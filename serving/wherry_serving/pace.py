"""Which requests are so quick that handing them to the inference thread would cost more than they do.

Waking another thread and being woken by it takes 0.1 ms and more. A model that answers in less time than anybody
notices is therefore run on the event loop itself; health waits no longer than that. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

QUICK_NS = 2_000_000
"""A request that takes longer is not run on the event loop: health would wait for it."""
PROVEN = 16
"""So many quick requests in a row prove a model quick; one that is not takes it back."""


@dataclass(slots=True)
class Pace:
    """How quick a model's requests are.

    Attributes:
        quick: quick requests in a row.
        size: bytes of the largest of their bodies; larger ones are not known to be quick.
    """

    quick: int = 0
    size: int = 0

    def took(self, size: int, nanoseconds: int) -> None:
        """Learn from a request whose body had `size` bytes; 0 when it failed, which says nothing about its size."""
        if nanoseconds > QUICK_NS:
            self.quick = self.size = 0
            return
        self.quick += 1
        self.size = max(self.size, size)

    def is_quick(self, size: int) -> bool:
        """Whether a request with a body of `size` bytes may be run on the event loop."""
        return self.quick >= PROVEN and size <= self.size
