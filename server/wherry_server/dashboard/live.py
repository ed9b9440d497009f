"""`/live`: tells a page that what it shows has changed. One asyncio task a browser, no thread."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from wherry.errors import Conflict
from wherry_server.dashboard.frame import HEADERS, Frame, FrameDep, page_router

GAP_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 15.0
_RECONNECT = b"retry: 2000\n\n"
_KEEP_ALIVE = b": still here\n\n"
_FULL = b"retry: 30000\n\n"
"""Too many look already: come again later."""
_HEADERS = HEADERS | {"X-Accel-Buffering": "no"}  # proxies must not collect a stream


def live_routes() -> APIRouter:
    """`/live?watch=device:ID&watch=fleet`: server-sent events named `change`, with the keys that changed."""
    router = page_router()
    router.add_api_route("/live", _live, methods=["GET"])
    return router


async def _live(
    request: Request,
    frame: FrameDep,
    watch: Annotated[list[str], Query(max_length=150)],
) -> StreamingResponse:
    topics = {_topic(key[:100]): key[:100] for key in watch}
    return StreamingResponse(_events(request, frame, topics), media_type="text/event-stream", headers=_HEADERS)


def _topic(key: str) -> str:
    """Keys are written without spaces, so that a page can name several in one attribute."""
    return key.replace(":", " ", 1)


async def _events(request: Request, frame: Frame, topics: dict[str, str]) -> AsyncIterator[bytes]:
    try:
        with frame.context.changes.listen(topics, gap=GAP_SECONDS) as listener:
            yield _RECONNECT
            checked = time.monotonic()
            while not listener.closed:
                rang = await listener.wait(timeout=KEEP_ALIVE_SECONDS)
                keys = sorted(topics[topic] for topic in rang)
                yield f"event: change\ndata: {json.dumps(keys)}\n\n".encode() if keys else _KEEP_ALIVE
                if time.monotonic() - checked > KEEP_ALIVE_SECONDS / 2:
                    checked = time.monotonic()
                    if await run_in_threadpool(frame.operator, request) is None:
                        return  # the session is over: the browser's next attempt is sent to the login
    except Conflict:
        yield _FULL
