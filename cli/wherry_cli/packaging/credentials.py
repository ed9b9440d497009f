"""Registry credentials where Docker and others keep them: ~/.docker/config.json and its helpers."""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wherry.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and its secret; the secret never shows in a log."""

    user: str
    secret: str = field(repr=False)


def docker_config_path() -> Path:
    """The file that `docker login` writes."""
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def find_credentials(registry: str, path: Path | None = None) -> Credentials | None:
    """The credentials for a registry, or None.

    Args:
        registry: HOST or HOST:PORT.
        path: the configuration file; default: Docker's.

    Raises:
        ConfigError: the file is there but not readable as JSON, or a credential helper fails.
    """
    place = path or docker_config_path()
    config = _read(place)
    helper = config.get("credHelpers", {}).get(registry)
    if helper:
        return _ask_helper(str(helper), registry)
    entries = config.get("auths", {})
    for key in (registry, f"https://{registry}", f"https://{registry}/", f"http://{registry}", f"{registry}/"):
        if entries.get(key, {}).get("auth"):
            return _decode(entries[key]["auth"], registry, place)
    if config.get("credsStore") and registry in entries:
        return _ask_helper(str(config["credsStore"]), registry)
    return None


def _read(place: Path) -> dict[str, Any]:
    try:
        config = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"registry credentials {place}", f"cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"registry credentials {place}", "is not a JSON object")
    return config


def _decode(auth: str, registry: str, place: Path) -> Credentials:
    try:
        user, _, secret = base64.b64decode(auth, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"credentials of {registry} in {place}", "are not base64 of USER:SECRET") from error
    return Credentials(user, secret.rstrip("\0"))


def _ask_helper(helper: str, registry: str) -> Credentials | None:
    command = [f"docker-credential-{Path(helper).name}", "get"]
    try:
        answer = subprocess.run(command, input=registry, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"credential helper {command[0]}", f"cannot be run ({error})") from error
    if answer.returncode != 0:
        return None
    try:
        reply = json.loads(answer.stdout)
        return Credentials(str(reply["Username"]), str(reply["Secret"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"credential helper {command[0]}", "answered something else than credentials") from error
