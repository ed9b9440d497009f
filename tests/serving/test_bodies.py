"""Reading a body piece by piece: never more than the limit is taken from the client."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from wherry.errors import AdmissionError
from wherry_serving.bodies import Bodies, BodyRefused, ClientGone, Limits

LIMITS = Limits(body_bytes=100, inflight_bytes=150, body_seconds=5)


def read(messages, headers=None, limits=LIMITS):
    """The body, and how many messages were left unread."""
    left = list(messages)

    async def receive():
        return left.pop(0)

    async def main():
        with ThreadPoolExecutor(1) as executor:
            return await Bodies(limits, executor).read(headers or {}, receive)

    return asyncio.run(main()), len(left)


def pieces(*parts):
    last = len(parts) - 1
    return [{"type": "http.request", "body": part, "more_body": index < last} for index, part in enumerate(parts)]


def test_pieces_are_put_together():
    assert read(pieces(b"a")) == (b"a", 0)
    assert read(pieces(b"a" * 60, b"", b"b" * 40)) == (b"a" * 60 + b"b" * 40, 0)


def test_a_body_over_the_limit_is_not_read_to_its_end():
    taken = []

    async def receive():
        taken.append(1)
        return {"type": "http.request", "body": b"x" * 60, "more_body": True}

    with pytest.raises(BodyRefused) as caught, ThreadPoolExecutor(1) as executor:
        asyncio.run(Bodies(LIMITS, executor).read({}, receive))
    assert caught.value.status == 413
    assert len(taken) == 2


@pytest.mark.parametrize("before", [0, 1])
def test_a_client_that_leaves(before):
    messages = [{"type": "http.request", "body": b"x", "more_body": True}] * before + [{"type": "http.disconnect"}]
    with pytest.raises(ClientGone):
        read(messages)


def test_a_slow_body_is_given_up():
    async def receive():
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"", "more_body": True}

    with pytest.raises(BodyRefused) as caught, ThreadPoolExecutor(1) as executor:
        asyncio.run(Bodies(Limits(body_seconds=0.05), executor).read({}, receive))
    assert caught.value.status == 408


def test_what_is_held_is_counted_and_given_back():
    with ThreadPoolExecutor(1) as executor:
        bodies = Bodies(LIMITS, executor)
        for _ in range(3):
            with bodies.reserved(100):
                with pytest.raises(AdmissionError):
                    bodies.reserved(51).__enter__()
                with bodies.reserved(50):
                    pass


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        ({b"content-length": b"7"}, 7),
        ({}, 100),
        ({b"content-length": b"7", b"content-encoding": b"gzip"}, 100),
        ({b"content-length": b"nonsense"}, 100),
    ],
)
def test_what_is_reserved_for_a_request(headers, size):
    with ThreadPoolExecutor(1) as executor:
        assert Bodies(LIMITS, executor).expected_size(headers) == size
