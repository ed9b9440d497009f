"""The last requests that were answered, in memory, for the agent to rehearse the next version with.

Kept only when the release that is served consents (the agent then sets the environment), bounded in count and bytes,
never written anywhere, and given to nobody who does not know the token that the agent made for this container.
"""

from __future__ import annotations

import hmac
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from wherry.errors import ConfigError, NotFound

REQUESTS_VARIABLE = "WHERRY_REHEARSAL"
TOKEN_VARIABLE = "WHERRY_CONTROL_TOKEN"  # noqa: S105 - the name of a variable
_BYTES = 16 << 20
_MOST = 1000


@dataclass(frozen=True, slots=True)
class Recent:
    """A request as it came, and its answer. The bodies are those that were there anyway: nothing is copied.

    Attributes:
        number: counts up from 1 while the process lives.
        form: "tensors" or "picture".
    """

    number: int
    model: str
    form: str
    request: bytes
    request_header: int | None
    answer: bytes
    answer_header: int | None

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self.request) + len(self.answer)

    def to_bytes(self) -> bytes:
        """As the agent reads it: a line of JSON, the request, the answer."""
        head = {
            "number": self.number, "model": self.model, "form": self.form, "request_bytes": len(self.request),
            "request_header": self.request_header, "answer_header": self.answer_header,
        }  # fmt: skip
        return b"%s\n%s%s" % (orjson.dumps(head), self.request, self.answer)


class RecentRequests:
    """A ring of recent requests. The thread that infers adds, the event loop reads.

    Args:
        most: how many are kept.
        token: what a reader must know.
        limit: bytes that all of them may hold; a request larger than half of it is not kept.
    """

    def __init__(self, most: int, token: str, limit: int = _BYTES) -> None:
        self._most = most
        self._token = token.encode()
        self._limit = limit
        self._ring: deque[Recent] = deque()
        self._bytes = 0
        self._count = 0
        self._lock = threading.Lock()

    def add(
        self,
        model: str,
        form: str,
        request: bytes,
        request_header: int | None,
        answer: bytes,
        answer_header: int | None,
    ) -> None:
        """Keep a request that was answered; the oldest give way."""
        size = len(request) + len(answer)
        if 2 * size > self._limit:
            return
        with self._lock:
            self._count += 1
            self._ring.append(Recent(self._count, model, form, request, request_header, answer, answer_header))
            self._bytes += size
            while len(self._ring) > self._most or self._bytes > self._limit:
                self._bytes -= self._ring.popleft().size

    def check(self, token: str) -> None:
        """Raise for anybody but the agent, as if there were nothing here.

        Raises:
            NotFound: the token is another.
        """
        if not hmac.compare_digest(token.encode(), self._token):
            raise NotFound("path /wherry/recent", "is not part of the Open Inference Protocol")

    def index(self) -> dict[str, Any]:
        """What is kept, oldest first: number, model and bytes of each."""
        with self._lock:
            return {"recent": [[item.number, item.model, item.size] for item in self._ring]}

    def one(self, number: str) -> Recent:
        """A kept request.

        Raises:
            NotFound: it gave way, or never was.
        """
        with self._lock:
            found = next((item for item in self._ring if str(item.number) == number), None)
        if found is None:
            raise NotFound(f"recent request {number[:20]}", "is not kept (any more)")
        return found


def from_environment(environ: Mapping[str, str]) -> RecentRequests | None:
    """The ring that the agent asks for; None when it does not.

    Raises:
        ConfigError: a number that is none.
    """
    text, token = environ.get(REQUESTS_VARIABLE, ""), environ.get(TOKEN_VARIABLE, "")
    if not text or not token:
        return None
    if not text.isdigit():
        raise ConfigError(f"{REQUESTS_VARIABLE}={text[:20]}", "is not a number of requests")
    return RecentRequests(min(int(text), _MOST), token) if int(text) else None
