"""Dashboard sessions: a signed cookie that names an API token and ends by itself. Nothing is kept per session."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from datetime import datetime, timedelta
from pathlib import Path

from wherry.errors import StoreError

COOKIE = "__Host-wherry"
"""The prefix has browsers insist on Secure, on our path, and on no other host."""


class Sessions:
    """Makes and checks cookies.

    Args:
        key: signs them; whoever has it can make sessions for known tokens.
        hours: life of a session.
    """

    def __init__(self, key: bytes, hours: int) -> None:
        self._key = key
        self._life = timedelta(hours=hours)

    @classmethod
    def open(cls, path: Path, hours: int) -> Sessions:
        """Read the key from a file, which is made when it is missing.

        Raises:
            StoreError: the file cannot be read or written.
        """
        try:
            if not path.exists():
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(secrets.token_bytes(32))
            key = path.read_bytes()
        except OSError as error:
            raise StoreError(f"session key {path}", str(error)) from error
        if len(key) < 32:
            raise StoreError(f"session key {path}", "is too short", "Delete the file and start the server again")
        return cls(key, hours)

    @property
    def seconds(self) -> int:
        """Life of a session."""
        return int(self._life.total_seconds())

    def make(self, token_id: int, now: datetime) -> str:
        """A cookie value for whoever showed this API token."""
        text = f"{token_id}.{int((now + self._life).timestamp())}"
        return f"{text}.{self._sign(text)}"

    def check(self, cookie: str, now: datetime) -> int | None:
        """The token's id, or None when the cookie is forged, cut off or over."""
        text, _, signature = cookie.rpartition(".")
        token_id, _, ends = text.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(text).encode()):
            return None
        return int(token_id) if int(ends) > now.timestamp() else None

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
