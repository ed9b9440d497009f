"""The join token: one line that an operator pastes into `wherry-agent enroll`.

It carries the server's address, the single-use secret, the fingerprint of the server's CA and the
fingerprint of the owner's TUF root, so that the device trusts neither by first use.
"""

from __future__ import annotations

import base64
import binascii
import json

from pydantic import BaseModel, ConfigDict, ValidationError

from wherry.errors import IdentityError
from wherry.identity import DeviceId

PREFIX = "wherry1."


class JoinToken(BaseModel):
    """Contents of a join token.

    Attributes:
        server: base URL of the server's API.
        device: id the token was made for.
        secret: single-use secret.
        ca_sha256: hex SHA-256 of the server CA certificate's DER bytes.
        root_sha256: hex SHA-256 of the owner's `1.root.json` file.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    server: str
    device: DeviceId
    secret: str
    ca_sha256: str
    root_sha256: str

    def encode(self) -> str:
        """The token as one line."""
        text = json.dumps(self.model_dump(), separators=(",", ":"), sort_keys=True)
        return PREFIX + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, line: str) -> JoinToken:
        """Read a token.

        Raises:
            IdentityError: it is cut off, mistyped or of another version.
        """
        text = line.strip()
        if not text.startswith(PREFIX):
            raise IdentityError("join token", f"does not start with {PREFIX!r}")
        body = text.removeprefix(PREFIX)
        try:
            return cls.model_validate_json(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except (binascii.Error, ValueError, ValidationError) as error:
            raise IdentityError("join token", "is incomplete or mistyped", "Copy the whole line again") from error
