"""Group *Registry*: what a device downloads is cut, changed, slowed down or replaced."""

from __future__ import annotations

import gzip
import io
import re
import signal
import time
from collections.abc import Iterable, Iterator

from faults.proxy import Trouble
from faults.rig import MODEL, eventually
from faults.sweep import Run, fault

ENGINE_RESTARTED = "the operator restarts the engine, which takes the only model with it and brings it back"
_HEAD = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nConnection: close\r\n"


def _troubled(run: Run, *troubles: Trouble) -> None:
    """A swap that must fetch, with the registry in trouble; each trouble is bounded, after it the registry is well."""
    for trouble in troubles:
        with run.swap(before=lambda: run.rig.registry.trouble(trouble), keep_image=False):  # noqa: B023
            deadline = time.monotonic() + 25
            while run.rig.registry.hits < trouble.times and time.monotonic() < deadline:
                time.sleep(0.1)
            run.hit(run.rig.registry.hits)
            run.rig.registry.trouble(None)
            run.rig.registry.break_all()  # the engine waits for a silent connection for as long as it is open


def _status(status: bytes, *headers: bytes, body: bytes = b"{}") -> Trouble:
    def answer(_: bytes) -> Iterable[bytes]:
        extra = b"".join(header + b"\r\n" for header in headers)
        yield _HEAD % status + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body

    return Trouble(when=b"GET /v2/", times=4, answer=answer)


@fault("Registry", 26, "truncated blob")
def truncated(run: Run) -> None:
    """The relay ends each of the first connections after 200 kB of the model's layer."""
    _troubled(run, Trouble(when=b"/blobs/", times=3, cut=200_000))


@fault("Registry", 27, "one bit")
def one_bit(run: Run) -> None:
    """The relay turns one bit over, 150 kB into a blob, then 40 kB into it."""
    _troubled(run, *(Trouble(when=b"/blobs/", times=2, flip=at) for at in (150_000, 40_000)))


@fault("Registry", 28, "wrong manifest", sample=True)
def wrong_manifest(run: Run) -> None:
    """The manifest of version 1 is sent where version 2's digest is asked for."""
    old = run.rig.images["1"]["digest"].encode()

    def edit(request: bytes) -> bytes:
        return re.sub(rb"/manifests/sha256:[0-9a-f]{64}", b"/manifests/" + old, request)

    _troubled(run, Trouble(when=b"/manifests/", times=3, edit=edit))


@fault("Registry", 29, "reset every 100 kB")
def resets(run: Run) -> None:
    """Every connection is reset after 100 kB of a blob, eight times in a row."""
    _troubled(run, Trouble(when=b"/blobs/", times=8, cut=100_000))


@fault("Registry", 30, "1 kB/s drip")
def drip(run: Run) -> None:
    """Answers come at 1 kB/s: the pull's own deadlines end it, and it is tried again."""
    _troubled(run, Trouble(when=b"/v2/", times=2, bytes_per_second=1000))


@fault("Registry", 30, "silence")
def silence(run: Run) -> None:
    """The registry accepts, and never answers."""
    _troubled(run, Trouble(when=b"/v2/", times=2, stall=True))


@fault("Registry", 30, "silence that never ends", excuse=ENGINE_RESTARTED, seconds=20)
def stuck(run: Run) -> None:
    """A layer's connection stays open, and the engine waits for it for ever: the agent says what helps, and it does."""
    registry, engine = run.rig.registry, run.rig.engine
    trouble = Trouble(when=b"/blobs/", times=1, stall=True)
    with run.swap(before=lambda: registry.trouble(trouble), keep_image=False) as device:
        eventually(lambda: registry.hits, 40, "nothing was pulled")
        run.hit(hurts=False)
        registry.trouble(None)
        eventually(lambda: "restart the container engine" in str(device.status), 60, "it does not say what helps")
        run.expect(device.answers("1"), "version 1 does not answer meanwhile")
        run.hit()
        engine.send(signal.SIGTERM)
        engine.start()
        run.over()


@fault("Registry", 31, "500 storm")
def errors(run: Run) -> None:
    """The first requests are answered with 500."""
    _troubled(run, _status(b"500 Internal Server Error"))


@fault("Registry", 31, "429 storm")
def too_many(run: Run) -> None:
    """The first requests are answered with 429 and a Retry-After."""
    _troubled(run, _status(b"429 Too Many Requests", b"Retry-After: 1"))


@fault("Registry", 31, "redirect loop")
def redirects(run: Run) -> None:
    """The first requests are redirected to themselves."""
    _troubled(run, _status(b"307 Temporary Redirect", b"Location: /v2/" + MODEL.encode() + b"/blobs/again"))


@fault("Registry", 32, "no Range")
def no_range(run: Run) -> None:
    """A transfer is cut, and the registry ignores the Range header of the next try."""

    def edit(request: bytes) -> bytes:
        return re.sub(rb"\r\nRange: [^\r]*", b"", request)

    _troubled(run, Trouble(when=b"/blobs/", times=3, cut=200_000, edit=edit))


@fault("Registry", 32, "wrong Range")
def wrong_range(run: Run) -> None:
    """A transfer is cut, and the registry goes on at another place than it was asked for."""

    def edit(request: bytes) -> bytes:
        return re.sub(rb"Range: bytes=\d+-", b"Range: bytes=17-", request)

    _troubled(run, Trouble(when=b"/blobs/", times=3, cut=200_000, edit=edit))


def _endless(_: bytes) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n\r\n"
    while True:
        yield b"\0" * 65536


@fault("Registry", 33, "endless body")
def endless(run: Run) -> None:
    """Blobs never end, at 4 MB/s, until the pull's deadline."""
    _troubled(run, Trouble(when=b"GET /v2/", times=1, answer=_endless, bytes_per_second=4_000_000))


@fault("Registry", 33, "gzip bomb")
def bomb(run: Run) -> None:
    """Blobs are 64 MB of zeros, packed into 64 kB."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        file.write(bytes(64 * 2**20))
    body = packed.getvalue()

    def answer(_: bytes) -> Iterable[bytes]:
        yield b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        yield body

    _troubled(run, Trouble(when=b"/blobs/", times=2, answer=answer))
