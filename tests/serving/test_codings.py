"""Content codings: what was packed comes back, bounded; which one is chosen."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import MalformedMessage
from wherry_serving.codings import TooLarge, choose, compress, decompress


@given(st.binary(max_size=3000), st.sampled_from(["gzip", "deflate"]))
def test_round_trip(data, coding):
    assert decompress(compress(data, coding), coding, len(data)) == data


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]))
def test_no_body_breaks_it(data, coding):
    with contextlib.suppress(MalformedMessage, TooLarge):
        assert len(decompress(data, coding, 1000)) <= 1000


def test_a_limit_is_a_limit():
    assert decompress(compress(b"a" * 100, "gzip"), "gzip", 100) == b"a" * 100
    with pytest.raises(TooLarge):
        decompress(compress(b"a" * 101, "gzip"), "gzip", 100)


def test_a_bomb_never_unpacks():
    bomb = zlib.compress(b"\0" * 100_000_000, 9)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            decompress(bomb, "deflate", 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("br;q=1, GZIP ; q=0.2", "gzip"),
        ("gzip;q=0", ""),
        ("gzip; q=0.0, deflate", "deflate"),
        ("identity", ""),
    ],
)
def test_the_coding_of_an_answer(header, coding):
    assert choose(header) == coding
