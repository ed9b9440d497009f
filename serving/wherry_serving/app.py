"""`wherry-serving`: arguments, composition, and an end that loses no request."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from wherry import __version__
from wherry.errors import ConfigError, ModelError, WherryError
from wherry_serving.bodies import Limits
from wherry_serving.connection import connections
from wherry_serving.dataplane import DataPlane
from wherry_serving.dev_page import read_page
from wherry_serving.http import HttpApp
from wherry_serving.models import read_models
from wherry_serving.recent import from_environment
from wherry_serving.worker import Worker

STRAGGLER_SECONDS = 1.0
"""A drain lasts at least this long: a connection accepted by the kernel may not have reached us yet."""
_KEEP_ALIVE_SECONDS = 300
"""Long, because a client may send on an idle connection just when we close it."""
_log = logging.getLogger("wherry_serving")


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve.

    Attributes:
        queue: requests that may wait.
        drain_seconds: time for clients to leave after SIGTERM.
        stage: "dev" has a page at `/` to try the models in a browser.
        limits: bounds on bodies.
    """

    queue: int = 64
    drain_seconds: float = 5.0
    stage: str = "prod"
    limits: Limits = field(default_factory=Limits)


def drain_over(elapsed: float, connections: int, unread: bool, drain_seconds: float) -> bool:
    """Whether a draining server may end: everybody left and the last counts were read, or the time is up."""
    if elapsed >= drain_seconds:
        return True
    return elapsed >= STRAGGLER_SECONDS and connections == 0 and not unread


class DrainingServer(uvicorn.Server):
    """uvicorn, but SIGTERM first lets clients leave on their own.

    Args:
        config: uvicorn's.
        app: told when the drain begins.
        worker: the inference thread.
        plane: the models, not loaded yet.
        drain_seconds: how long it may last.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: HttpApp,
        worker: Worker,
        plane: DataPlane,
        drain_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config)
        self.failure: WherryError | None = None
        self._app = app
        self._worker = worker
        self._plane = plane
        self._drain_seconds = drain_seconds
        self._clock = clock
        self._drain_began = 0.0
        self._loading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer health from the first moment; models load meanwhile."""
        await super().startup(sockets)
        self._worker.start()
        self._loading = asyncio.create_task(self._load_models())

    async def _load_models(self) -> None:
        try:
            await self._worker.run(self._plane.load)
        except WherryError as error:
            self.failure = error
        except Exception as error:
            _log.exception("loading failed unexpectedly")
            self.failure = ModelError("models", f"cannot be loaded: {type(error).__name__}")
        else:
            _log.info("ready")
        self.should_exit = self.should_exit or self.failure is not None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """First SIGTERM: drain. A second signal, or SIGINT: end now. The signal is not raised again: exit code 0."""
        if sig == signal.SIGINT or self._app.draining:
            self.should_exit = True
            return
        self._drain_began = self._clock()
        self._app.draining = True

    def end(self) -> bool:
        """After `run`: let the inference thread finish; False when it does not."""
        return self._worker.stop(STRAGGLER_SECONDS)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        over = self._app.draining and drain_over(
            self._clock() - self._drain_began,
            len(self.server_state.connections),
            self._plane.unread,
            self._drain_seconds,
        )
        return await super().on_tick(counter) or over


def memory_bytes() -> int:
    """Resident memory of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def arguments(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    """The command line; some defaults come from the environment."""
    parser = argparse.ArgumentParser(
        prog="wherry-serving", description="Serve models over the Open Inference Protocol."
    )
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="one folder a model, with model.json")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")  # noqa: S104 - inside a container
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--queue", type=_count, default=64, help="requests that may wait; more are answered 503")
    parser.add_argument("--max-body-mb", type=_count, default=64, help="largest request body, MiB, also unpacked")
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=environ.get("WHERRY_DRAIN_SECONDS", "5"),
        help="time for clients to leave after SIGTERM (WHERRY_DRAIN_SECONDS)",
    )
    parser.add_argument(
        "--stage",
        default=environ.get("WHERRY_STAGE", "prod"),
        help="dev has a page at / to try the models in a browser (WHERRY_STAGE)",
    )
    parser.add_argument("--version", action="version", version=f"wherry-serving {__version__}")
    return parser


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = f"cannot be listened on: {error.strerror}"
        raise ConfigError(f"address {host} port {port}", reason, "Choose another --host or --port") from error


def make_server(plane: DataPlane, options: Options, executor: Executor) -> DrainingServer:
    """Put the parts together.

    Args:
        plane: the models, not loaded yet.
        options: how to serve.
        executor: runs compression; one thread is enough.
    """
    worker = Worker(options.queue)
    page = read_page() if options.stage == "dev" else None
    app = HttpApp(plane, worker, options.limits, executor, memory_bytes, page)
    settings: dict[str, Any] = {
        "loop": "uvloop",
        "http": connections(options.limits.header_seconds),
        "ws": "none",
        "lifespan": "off",
        "interface": "asgi3",
        "log_config": None,
        "log_level": "warning",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "date_header": False,
        "timeout_keep_alive": _KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": 1,
    }
    return DrainingServer(uvicorn.Config(app, **settings), app, worker, plane, options.drain_seconds)


def _serve(parsed: argparse.Namespace) -> None:
    body = parsed.max_body_mb << 20
    limits = Limits(body_bytes=body, inflight_bytes=2 * body)
    options = Options(parsed.queue, parsed.drain_seconds, parsed.stage, limits)
    plane = DataPlane(read_models(parsed.models), recent=from_environment(os.environ))
    listener = _listen(parsed.host, parsed.port)
    with listener, ThreadPoolExecutor(1, "codings") as executor:
        server = make_server(plane, options, executor)
        _log.info("listening on %s port %d", *listener.getsockname()[:2])
        server.run(sockets=[listener])
        if not server.end():
            _log.warning("an inference was still running at the end")
            logging.shutdown()
            os._exit(0)  # the interpreter's own end would pull the runtime away from under that thread
    if server.failure is not None:
        raise server.failure


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `wherry-serving`."""
    parsed = arguments(os.environ).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        _serve(parsed)
    except WherryError as error:
        sys.stderr.write(f"wherry-serving: {error}\n")
        return 1
    return 0
