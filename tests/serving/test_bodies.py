"""Reading a body piece by piece: never more than the limit is taken from the client."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from wherry.errors import AdmissionError
from wherry_serving.bodies import Bodies, BodyRefused, ClientGone, Hold, Limits
from wherry_serving.codings import compress

LIMITS = Limits(body_bytes=100, inflight_bytes=150, body_seconds=5)


async def read_from(receive, limits, headers=None):
    with ThreadPoolExecutor(1) as executor:
        bodies = Bodies(limits, executor)
        with Hold(bodies) as hold:
            return await bodies.read(headers or {}, receive, hold)


def read(messages, headers=None, limits=LIMITS):
    """The body, and how many messages were left unread."""
    left = list(messages)

    async def receive():
        return left.pop(0)

    return asyncio.run(read_from(receive, limits, headers)), len(left)


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

    with pytest.raises(BodyRefused) as caught:
        asyncio.run(read_from(receive, LIMITS))
    assert caught.value.status == 413
    assert len(taken) == 2


@pytest.mark.parametrize("before", [0, 1])
def test_a_client_that_leaves(before):
    messages = [{"type": "http.request", "body": b"x", "more_body": True}] * before + [{"type": "http.disconnect"}]
    with pytest.raises(ClientGone):
        read(messages)


@pytest.mark.timeout(20)
def test_a_body_that_never_begins_is_given_up():
    async def receive():
        await asyncio.Event().wait()

    with pytest.raises(BodyRefused) as caught:
        asyncio.run(read_from(receive, Limits(body_seconds=0.05), {b"content-length": b"9"}))
    assert caught.value.status == 408


def test_a_slow_body_is_given_up():
    async def receive():
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"", "more_body": True}

    with pytest.raises(BodyRefused) as caught:
        asyncio.run(read_from(receive, Limits(body_seconds=0.05)))
    assert caught.value.status == 408


def test_what_is_held_is_counted_and_given_back():
    with ThreadPoolExecutor(1) as executor:
        bodies = Bodies(LIMITS, executor)
        for _ in range(3):
            with Hold(bodies) as first, Hold(bodies) as second:
                first.take(60)
                first.take(40)
                with pytest.raises(AdmissionError):
                    second.take(51)
                second.take(50)
                assert bodies.inflight == 150
            assert bodies.inflight == 0


def test_a_request_that_is_alone_is_never_refused():
    with ThreadPoolExecutor(1) as executor, Hold(Bodies(LIMITS, executor)) as hold:
        hold.take(100)
        hold.take(100)


@pytest.mark.parametrize(
    ("headers", "parts", "held"),
    [
        ({b"content-length": b"7"}, [b"a" * 7], 7),
        ({b"content-length": b"7"}, [b"a" * 3, b"a" * 4], 7),
        ({}, [b"a" * 7], 7),
        ({}, [b"a" * 3, b"a" * 4], 7),
        ({b"content-encoding": b"gzip"}, [compress(b"a" * 90, "gzip")], 90 + len(compress(b"a" * 90, "gzip"))),
    ],
)
def test_what_a_request_holds_while_it_is_served(headers, parts, held):
    messages = pieces(*parts)

    async def receive():
        return messages.pop(0)

    async def main():
        with ThreadPoolExecutor(1) as executor:
            bodies = Bodies(LIMITS, executor)
            with Hold(bodies) as hold:
                await bodies.read(headers, receive, hold)
                return bodies.inflight

    assert asyncio.run(main()) == held


def test_a_length_over_the_limit_is_refused_unread():
    with pytest.raises(BodyRefused) as caught:
        read([], {b"content-length": b"101"})
    assert caught.value.status == 413
