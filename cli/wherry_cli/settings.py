"""Where this tool keeps what it knows: $WHERRY_HOME (default ~/.config/wherry).

`config.toml` (mode 0600, it holds the API token), `ca.crt` (the server's CA), `keys/` (the owner's
keys) and `repository/` (the owner's copy of the signed metadata).
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import ConfigError, StoreError

CONFIG_NAME = "config.toml"
CA_NAME = "ca.crt"


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one operator, and the names in it."""

    folder: Path

    @property
    def config(self) -> Path:
        """The settings file."""
        return self.folder / CONFIG_NAME

    @property
    def ca(self) -> Path:
        """The CA certificate that `wherry login` accepted."""
        return self.folder / CA_NAME

    @property
    def keys(self) -> Path:
        """The owner's keys."""
        return self.folder / "keys"

    @property
    def repository(self) -> Path:
        """The owner's copy of the signed metadata."""
        return self.folder / "repository"

    @property
    def packages(self) -> Path:
        """Where `wherry push` leaves its package files."""
        return self.folder / "packages"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach the server and the registry.

    Attributes:
        server: base URL of the server's API, without a slash at the end.
        token: API token.
        ca_file: CA certificate that the server's certificate is checked against.
        registry: HOST:PORT of the OCI registry that images are pushed to, if one was named.
    """

    server: str
    token: str
    ca_file: Path
    registry: str | None = None


def find_home(env: Mapping[str, str] | None = None) -> Home:
    """The operator's folder: $WHERRY_HOME, else $XDG_CONFIG_HOME/wherry, else ~/.config/wherry."""
    env = os.environ if env is None else env
    if env.get("WHERRY_HOME"):
        return Home(Path(env["WHERRY_HOME"]).expanduser())
    base = Path(env["XDG_CONFIG_HOME"]) if env.get("XDG_CONFIG_HOME") else Path("~/.config").expanduser()
    return Home(base / "wherry")


def load_settings(home: Home, env: Mapping[str, str] | None = None) -> Settings:
    """Read config.toml; WHERRY_SERVER, WHERRY_TOKEN, WHERRY_CA_FILE and WHERRY_REGISTRY override it.

    Raises:
        ConfigError: nobody logged in here yet, or the file is damaged.
    """
    env = os.environ if env is None else env
    found = read_config(home)
    for name in ("server", "token", "ca_file", "registry"):
        value = env.get(f"WHERRY_{name.upper()}")
        if value:
            found[name] = value
    missing = [name for name in ("server", "token", "ca_file") if not found.get(name)]
    if missing:
        raise ConfigError(
            "wherry",
            f"is not logged in to a server (no {', '.join(missing)} in {home.config})",
            "Run `wherry login --server URL --token-file FILE --ca-file FILE`",
        )
    return Settings(found["server"].rstrip("/"), found["token"], Path(found["ca_file"]), found.get("registry"))


def read_config(home: Home) -> dict[str, str]:
    """What config.toml holds; empty when there is none.

    Raises:
        ConfigError: it is not TOML or holds something that is not text.
        StoreError: it cannot be read.
    """
    try:
        data = tomllib.loads(home.config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(str(home.config), f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(str(home.config), f"is not usable TOML ({error})", "Run `wherry login` again") from error
    if not all(isinstance(value, str) for value in data.values()):
        raise ConfigError(str(home.config), "holds a value that is not text", "Run `wherry login` again")
    return data


def save_settings(home: Home, settings: Settings) -> None:
    """Write config.toml, readable by its owner only.

    Raises:
        StoreError: it cannot be written.
    """
    values = {
        "server": settings.server,
        "token": settings.token,
        "ca_file": str(settings.ca_file),
        "registry": settings.registry,
    }
    # A JSON string without non-ASCII characters is a TOML basic string.
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items() if value]
    write_private(home.config, "\n".join(lines) + "\n")


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, mode 0600 from its first byte on.

    Raises:
        StoreError: it cannot be written.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600, exist_ok=False)
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise StoreError(str(path), f"cannot be written ({error.strerror})") from error
