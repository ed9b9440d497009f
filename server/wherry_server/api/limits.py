"""Request bodies are bounded before anything reads them."""

from __future__ import annotations

import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wherry_server.api.errors import TooLarge, error_response


class BodyLimit:
    """ASGI middleware that answers 413 for bodies over a limit, whether their length is declared or not.

    Args:
        app: the application behind.
        limit: bytes.
        exceptions: other limits, by path.
    """

    def __init__(self, app: ASGIApp, limit: int, exceptions: dict[str, int]) -> None:
        self._app = app
        self._limit = limit
        self._exceptions = exceptions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._exceptions.get(scope["path"], self._limit)
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not declared.isdigit() or int(declared[:20]) > limit:
            await self._refuse(limit, scope, receive, send)
            return
        await self._serve_counted(limit, scope, receive, send)

    async def _serve_counted(self, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        seen, answered = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
            return message

        async def watched(message: Message) -> None:
            # Whoever read the body may have turned our error into one of its own: the answer is still ours.
            nonlocal answered
            if seen <= limit or (answered and message["type"] != "http.response.start"):
                answered = True
                await send(message)

        with contextlib.suppress(TooLarge):
            await self._app(scope, counted, watched)
        if seen > limit and not answered:
            await self._refuse(limit, scope, receive, send)

    async def _refuse(self, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(_too_large(limit))(scope, receive, send)


def _too_large(limit: int) -> TooLarge:
    return TooLarge("request body", f"is over the limit of {limit} bytes", "Send less at a time")
