"""Images that only pretend to be containers, and callers that never try again, for tests of routes."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Image:
    """Answers every request with its name on a loopback port. It cannot drain: told to end, it is gone at once."""

    def __init__(self, name: str, seconds: float = 0.0) -> None:
        self.name, self.seconds, self.asked = name, seconds, threading.Event()
        self.most, self._now, self._lock = 0, 0, threading.Lock()
        image, connections = self, set()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                connections.add(self.connection)

            def _answer(self) -> None:
                got = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                image.asked.set()
                with image.busy():
                    time.sleep(image.seconds)
                body = f"{image.name} {len(got)}".encode()
                self.send_response(500 if self.path == "/fails" else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = _answer  # noqa: N815  the names that http.server calls

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self._connections = connections
        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Notes how many requests it answered at a time at most."""
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        yield
        with self._lock:
            self._now -= 1

    def die(self) -> None:
        """End as a process does that knows no SIGTERM: connections with it."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def images(*names: str, seconds: float = 0.0) -> Iterator[list[Image]]:
    found = [Image(name, seconds) for name in names]
    try:
        yield found
    finally:
        for image in found:
            image.die()


def ask(port: int, path: str = "/", body: bytes | None = None, host: str = "127.0.0.1", timeout: float = 20) -> str:
    """Who answers, with the status when it is not 200; the kind of error when nobody does."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        reply = connection.getresponse()
        text = reply.read().decode().partition(" ")[0]
        return text if reply.status == 200 else f"{reply.status} {reply.headers.get('Retry-After', '')}".strip()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


@dataclass
class Callers:
    """Ask a port about `rate` times a second; half of them keep their connection, and none ever tries again."""

    port: int
    rate: int = 100
    count: int = 8
    answers: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def failed(self) -> list[str]:
        return [answer for answer in self.answers if answer.startswith(("error", "status"))]

    def wait_for(self, answer: str) -> None:
        wait_for(lambda: answer in self.answers[-self.count :], f"{answer} never answered: {self.answers[-20:]}")

    def _call(self, number: int) -> None:
        kept: http.client.HTTPConnection | None = None
        while not self._stop.wait(self.count / self.rate):
            connection = kept or http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            kept = connection if number % 2 else None
            try:
                connection.request("POST", "/", b"x" * 4000)
                reply = connection.getresponse()
                text = reply.read().decode().partition(" ")[0]
                self.answers.append(text if reply.status == 200 else f"status {reply.status}")
                if reply.will_close:
                    kept = None
            except (OSError, http.client.HTTPException) as error:
                self.answers.append(f"error {error!r}")
                kept = None
            if kept is None:
                connection.close()
        if kept is not None:
            kept.close()


def wait_for(condition: Callable[[], Any], otherwise: str = "it never came true", seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)
    return found
