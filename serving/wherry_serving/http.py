"""HTTP: raw ASGI in, data plane calls, protocol answers out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from wherry.errors import AdmissionError, ContractError, InputError, NotFound, WherryError
from wherry.tensors import HEADER_LENGTH, PROBE, TOKEN
from wherry_serving import metrics
from wherry_serving.bodies import Bodies, BodyRefused, ClientGone, Hold, Limits, Receive, header_length
from wherry_serving.codings import COMPRESS_FROM, choose, compress
from wherry_serving.dataplane import DataPlane, Inference, NotQuick
from wherry_serving.decoding import PICTURE_TYPES
from wherry_serving.dev_page import Headers, Page
from wherry_serving.models import Model
from wherry_serving.recent import RecentRequests
from wherry_serving.worker import Worker

Send = Callable[[dict[str, Any]], Awaitable[None]]
Scope = Mapping[str, Any]

_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_PROBE = PROBE.lower().encode()
_HEADER_LENGTH = HEADER_LENGTH.lower().encode()
_TOKEN = TOKEN.lower().encode()
_READS = ("GET", "HEAD")
_log = logging.getLogger("wherry_serving")


@dataclass(frozen=True, slots=True)
class Reply:
    """A response before it is sent."""

    status: int
    body: bytes
    headers: Headers = (_JSON,)


class MethodRefused(WherryError):
    """The path exists, with another method."""

    code = "serving.method"
    hint = "Use the method that the protocol names"


_STATUS: tuple[tuple[type[WherryError], int], ...] = (
    (NotFound, 404),
    (MethodRefused, 405),
    (ContractError, 400),
    (InputError, 400),
    (AdmissionError, 503),
)


class HttpApp:
    """The ASGI application.

    Args:
        plane: the models.
        worker: the inference thread.
        limits: bounds on bodies.
        executor: runs compression.
        memory_bytes: resident memory of this process, now.
        page: of `wherry_serving.dev_page`, in stage dev.
    """

    def __init__(
        self,
        plane: DataPlane,
        worker: Worker,
        limits: Limits,
        executor: Executor,
        memory_bytes: Callable[[], int],
        page: Page | None = None,
    ) -> None:
        self.draining = False
        self._plane = plane
        self._worker = worker
        self._bodies = Bodies(limits, executor)
        self._executor = executor
        self._memory_bytes = memory_bytes
        self._page = page or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever happens, as the protocol says it."""
        if scope["type"] != "http":
            return
        try:
            reply = await self._reply(scope, receive)
        except ClientGone:
            return
        except WherryError as error:
            reply = error_reply(error)
        except asyncio.CancelledError:  # the drain time is over
            reply = _error(503, "server: is shutting down")
        except Exception:
            _log.exception("a request failed unexpectedly")
            reply = _error(500, "server: failed unexpectedly, its log says why")
        headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
        if self.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def _reply(self, scope: Scope, receive: Receive) -> Reply:
        path, method = scope["path"].strip("/").split("/"), scope["method"]
        if path[:2] == ["v2", "models"] and path[-1] == "infer":
            return await self._infer(_model_path(path[2:-1]), method, dict(scope["headers"]), receive)
        if path == ["v2", "repository", "index"]:
            _allow(method, "POST")
            with Hold(self._bodies) as hold:
                body = await self._bodies.read(dict(scope["headers"]), receive, hold)
            return _json(self._plane.index(_ready_only(body)))
        _allow(method, *_READS)
        if path[:2] == ["wherry", "recent"] and self._plane.recent is not None:
            return _recent(self._plane.recent, path[2:], dict(scope["headers"]))
        return self._read(path)

    def _read(self, path: list[str]) -> Reply:
        """Everything that only looks; answered on the event loop, also while an inference runs."""
        match path:
            case [name] if name in self._page:
                return Reply(200, *self._page[name])
            case ["v2"]:
                return _json(self._plane.server_metadata())
            case ["v2", "health", "live"]:
                return _json({"live": True})
            case ["v2", "health", "ready"]:
                return self._ready()
            case ["v2", "models", "stats"]:
                return _json(self._plane.stats(self._plane.models, self._memory_bytes()))
            case ["metrics"]:
                text = metrics.render(self._plane.counters(), self._worker.pending, self._memory_bytes())
                return Reply(200, text, ((b"content-type", metrics.CONTENT_TYPE),))
            case ["v2", "models", _, *rest]:
                action = rest.pop() if rest and rest[-1] in ("ready", "config", "stats") else ""
                return self._read_model(path[2:3] + rest, action)
        raise NotFound(f"path /{'/'.join(path)[:200]}", "is not part of the Open Inference Protocol")

    def _ready(self) -> Reply:
        if self._plane.ready and not self.draining:
            return _json({"ready": True})
        return Reply(503, orjson.dumps({"ready": False, "reason": "draining" if self.draining else "loading"}))

    def _read_model(self, path: list[str], action: str) -> Reply:
        model = self._plane.model(*_model_path(path))
        match action:
            case "ready":
                return _json({"name": model.name, "ready": True})
            case "config":
                return _json(self._plane.config(model))
            case "stats":
                return _json(self._plane.stats([model], self._memory_bytes()))
        return _json(self._plane.metadata(model))

    async def _infer(
        self, path: tuple[str, str], method: str, headers: Mapping[bytes, bytes], receive: Receive
    ) -> Reply:
        _allow(method, "POST")
        model = self._plane.model(*path)
        try:
            with Hold(self._bodies) as hold:
                body = await self._bodies.read(headers, receive, hold)
                inference = _inference(body, headers)
                return await self._run(model, inference, headers)
        except (BodyRefused, AdmissionError):  # the data plane counts those that reach it
            if _PROBE not in headers:
                model.stats.failed()
            raise

    async def _run(self, model: Model, inference: Inference, headers: Mapping[bytes, bytes]) -> Reply:
        answer = None
        if self._worker.idle and self._plane.runs_at_once(model, inference):
            with suppress(NotQuick):
                answer = self._plane.infer(model, inference, at_once=True)
        if answer is None:
            answer = await self._worker.run(partial(self._plane.infer, model, inference))
        body, extra = answer.body, [_JSON]
        if answer.header_length is not None:
            extra = [_BINARY, (_HEADER_LENGTH, b"%d" % answer.header_length)]
        coding = choose(headers.get(b"accept-encoding", b"").decode("latin-1"))
        if coding and len(body) >= COMPRESS_FROM:
            body = await asyncio.get_running_loop().run_in_executor(self._executor, compress, body, coding)
            extra.append((b"content-encoding", coding.encode()))
        return Reply(200, body, tuple(extra))


def _recent(kept: RecentRequests, path: list[str], headers: Mapping[bytes, bytes]) -> Reply:
    """The latest requests, for the agent alone."""
    kept.check(headers.get(_TOKEN, b"").decode("latin-1"))
    if not path:
        return _json(kept.index())
    return Reply(200, kept.one(path[0]).to_bytes(), (_BINARY,))


def _inference(body: bytes, headers: Mapping[bytes, bytes]) -> Inference:
    """What is asked. Only a Content-Type of a picture means something: clients of the protocol send any or none.

    Raises:
        BodyRefused: a kind of picture that is not taken.
        MalformedMessage: the header's length is not a number.
    """
    counted, now = _PROBE not in headers, time.perf_counter_ns()
    kind = headers.get(b"content-type", b"")
    if not kind.startswith(b"image/"):
        return Inference(body, header_length(headers), now, counted=counted)
    name = kind.partition(b";")[0].strip().lower().decode("latin-1")
    if name not in PICTURE_TYPES:
        raise BodyRefused(415, f"is of type {name[:40]!r}, expected one of {', '.join(PICTURE_TYPES)}")
    binary = headers.get(b"accept", b"").startswith(b"application/octet-stream")
    return Inference(body, None, now, "picture", binary, counted)


def error_reply(error: WherryError) -> Reply:
    """The protocol's form of an error: one sentence, and the status that fits its kind."""
    if isinstance(error, BodyRefused):
        return _error(error.status, f"{error.thing} {error.reason}")
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return _error(status, f"{error.thing} {error.reason}")


def _error(status: int, text: str) -> Reply:
    return Reply(status, orjson.dumps({"error": text}))


def _json(value: Any) -> Reply:
    return Reply(200, orjson.dumps(value))


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise MethodRefused(f"method {method[:20]}", f"is not allowed here, expected {' or '.join(allowed)}")


def _model_path(path: list[str]) -> tuple[str, str]:
    """Name and version ("" for none) of `M` or `M/versions/V`."""
    match path:
        case [name]:
            return name, ""
        case [name, "versions", version]:
            return name, version
    raise NotFound(f"path {'/'.join(path)[:200]}", "is not MODEL or MODEL/versions/VERSION")


def _ready_only(body: bytes) -> bool:
    try:
        value = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and value.get("ready") is True
