"""Which requests are so quick that handing them to the inference thread would cost more than they do.

Waking another thread and being woken by it takes 0.1 ms and more. A model that answers in less time than anybody
notices is therefore run on the event loop itself, and health waits no longer than that. Nothing may ever take long
there: a watch that waits two seconds for health would start the server again. So

- only models are taken whose model.json says `steady`: what a request costs depends on the shapes of its tensors and
  on nothing in them (packaging looks at every operator; without its word the answer is no);
- a row of quick requests proves only requests for the same outputs that are in no dimension and no byte larger;
- a request that holds up a proven model all the same ends it for good: the word was wrong, or this machine stalls.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

QUICK_NS = 2_000_000
"""A request that takes longer is not run on the event loop: health would wait for it."""
STALL_NS = 50_000_000
"""Longer than a busy machine's scheduler or the garbage collector takes a quick request's time away."""
PROVEN = 16
"""So many quick requests in a row prove a model quick; one that is not takes it back."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks of a model: all that the cost of a `steady` one depends on.

    Attributes:
        outputs: names of those wanted.
        shapes: of the inputs, in the model's order.
    """

    outputs: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()

    def covers(self, other: Work) -> bool:
        """Whether the other asks for nothing that this one did not."""
        if self == other:
            return True
        return self.outputs == other.outputs and all(map(_covers, self.shapes, other.shapes))


def _covers(known: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(known) == len(other) and all(size <= most for most, size in zip(known, other, strict=True))


@dataclass(slots=True)
class Pace:
    """How quick a model's requests are.

    Attributes:
        quick: quick requests in a row, each covered by `most`.
        most: the largest work of the row.
        size: bytes of the largest body of the row.
        stalled: a proven model took long: it is not proven again.
    """

    quick: int = 0
    most: Work = field(default_factory=Work)
    size: int = 0
    stalled: bool = False

    def took(self, work: Work | None, size: int, nanoseconds: int) -> None:
        """Learn from a request whose body had `size` bytes; its work is None when it failed, which proves nothing."""
        if nanoseconds > QUICK_NS:
            self.stalled |= nanoseconds > STALL_NS and self.quick >= PROVEN
            self.quick = 0
        elif work is None:
            return
        elif self.quick and self.most.covers(work):
            self.quick += 1
            self.size = max(self.size, size)
        else:
            self.quick, self.most, self.size = 1, work, size

    def may_be_quick(self, size: int) -> bool:
        """Whether a body of `size` bytes may be read on the event loop, to ask `covers` of what it holds."""
        return self.quick >= PROVEN and size <= self.size and not self.stalled
