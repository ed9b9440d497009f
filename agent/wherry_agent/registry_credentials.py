"""How this device shows private registries who it is: a file as `docker login` writes it, read anew for each pull."""

from __future__ import annotations

import base64
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wherry.errors import RegistryError

FOLDER = "registries"
"""In the state folder, for `docker --config STATE/registries login HOST`; its config.json is read by default."""
_FILE_LIMIT = 1_048_576
_ALIASES = {"docker.io": "index.docker.io"}


@dataclass(frozen=True, slots=True)
class Login:
    """What one registry is shown. Its secret never shows in a log."""

    username: str
    secret: str = field(repr=False)
    token: bool = False

    def header(self, host: str) -> str:
        """The value of the engine's `X-Registry-Auth`."""
        shown = {"identitytoken": self.secret} if self.token else {"username": self.username, "password": self.secret}
        return base64.urlsafe_b64encode(json.dumps({**shown, "serveraddress": host}).encode()).decode()


class RegistryCredentials:
    """The logins of a device.

    Args:
        path: the file; it may be absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def header(self, repository: str) -> str:
        """`X-Registry-Auth` for a repository's registry; empty where the file names none.

        Raises:
            RegistryError: the file cannot be used: others may read it, it is damaged, or it only points elsewhere.
        """
        host = repository.partition("/")[0]
        login = self.logins().get(_ALIASES.get(host, host))
        return login.header(host) if login else ""

    def logins(self) -> dict[str, Login]:
        """Every registry that the file names, by HOST or HOST:PORT.

        Raises:
            RegistryError: see `header`.
        """
        data = self._read()
        try:
            return {_host(name): _login(entry) for name, entry in data.get("auths", {}).items() if entry}
        except (AttributeError, ValueError, TypeError, UnicodeDecodeError) as error:
            raise self._unusable("is not as `docker login` writes it") from error

    def advice(self, host: str) -> str:
        """How a person gives this device a login."""
        return f"Run `docker --config {self.path.parent} login {host}` on the device, as root"

    def _read(self) -> dict[str, Any]:
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(_FILE_LIMIT)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._unusable(f"cannot be read ({error.strerror})") from error
        if stat.S_IMODE(mode) & 0o077:
            others = f"can be read by others (mode {stat.S_IMODE(mode):04o})"
            raise self._unusable(others, f"Run `chmod 600 {self.path}`")
        try:
            data = json.loads(text)
        except ValueError as error:
            raise self._unusable("is not JSON") from error
        if not isinstance(data, dict):
            raise self._unusable("is not as `docker login` writes it")
        if data.get("credsStore") or data.get("credHelpers"):
            why = "points to a credential helper, which a service has not"
            raise self._unusable(why, "Take the helper out of it and log in once more")
        return data

    def _unusable(self, reason: str, fix: str | None = None) -> RegistryError:
        return RegistryError(f"registry credentials {self.path}", reason, fix or "Remove the file and log in once more")


def _host(name: str) -> str:
    """`https://HOST:PORT/v1/`, as old files have it, is HOST:PORT."""
    return name.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _login(entry: dict[str, Any]) -> Login:
    if token := entry.get("identitytoken"):
        return Login("", str(token), token=True)
    if "auth" in entry:
        username, separator, secret = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        if not separator:
            raise ValueError("no colon")
        return Login(username, secret.rstrip("\0"))
    return Login(str(entry.get("username", "")), str(entry.get("password", "")))
