"""Content codings: gzip and deflate, bounded against bodies that unpack to much more than they are."""

from __future__ import annotations

import zlib

from wherry.errors import MalformedMessage

ACCEPTED = ("gzip", "deflate")
COMPRESS_FROM = 1024
"""Bytes from which an answer is compressed when the client accepts it; less is not worth the time."""
_LEVEL = 1
_GZIP_OR_ZLIB = 47
_RAW = -15


class TooLarge(Exception):
    """The body unpacks to more than the limit."""


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """Unpack a body.

    Args:
        body: the whole body as sent.
        coding: "gzip" or "deflate".
        limit: bytes that the result may have.

    Raises:
        TooLarge: it unpacks to more than `limit`; never more than that was held.
        MalformedMessage: the body is not of this coding, or ends too early.
    """
    try:
        if coding == "deflate" and not _has_zlib_header(body):
            return _unpack(body, _RAW, limit)
        return _unpack(body, _GZIP_OR_ZLIB, limit)
    except zlib.error as error:
        raise MalformedMessage("request body", f"is not {coding} as its Content-Encoding says ({error})") from error


def _has_zlib_header(body: bytes) -> bool:
    """Some clients send deflate without the zlib header that the standard asks for."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def _unpack(body: bytes, window: int, limit: int) -> bytes:
    unpacker = zlib.decompressobj(window)
    data = unpacker.decompress(body, limit + 1)
    if len(data) > limit:
        raise TooLarge
    if not unpacker.eof:
        raise MalformedMessage("request body", "ends before its compressed data does")
    if unpacker.unused_data:  # several gzip members in a row are legal, but nobody sends them and they cost time
        raise MalformedMessage("request body", "goes on after its compressed data ends")
    return data


def compress(body: bytes, coding: str) -> bytes:
    """Pack a body, fast rather than small: floats hardly shrink."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    return packer.compress(body) + packer.flush()


def choose(accept_encoding: str) -> str:
    """The coding for an answer: the first of ours that the client accepts, "" for none."""
    accepted = set()
    for item in accept_encoding.lower().split(","):
        coding, _, rest = item.partition(";")
        if rest.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            accepted.add(coding.strip())
    return next((coding for coding in ACCEPTED if coding in accepted), "")
