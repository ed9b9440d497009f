"""Looks at the registries for `wherry-agent doctor`: reachable, and do they let this device in?

The engine is asked to look, with the login that a pull would show: it alone knows which certificates it believes.
"""

from __future__ import annotations

import http.client
import re
import socket
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from wherry.errors import RegistryError
from wherry_agent.examination import LOOK_SECONDS, ask_engine, error_words
from wherry_agent.registry_credentials import Login, RegistryCredentials
from wherry_agent.verdicts import PeerFacts

MOST = 3
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - there is room where the disk is full
_REPOSITORY = re.compile(rb'"repository":"([^"/]+/[^"]+)"')
_SHUT = re.compile("no basic auth credentials|unauthorized|denied|forbidden|401|403", re.IGNORECASE)
_UNTRUSTED = re.compile("x509|certificate|gave HTTP response to HTTPS client", re.IGNORECASE)


def look_at_registries(state: Path, engine_url: str, credentials: RegistryCredentials) -> list[PeerFacts]:
    """The registries of the images that this device knows."""
    repositories = assigned_repositories(state)
    try:
        logins = credentials.logins()
    except RegistryError as error:
        return [PeerFacts(str(credentials.path), error.reason, fix=error.fix)]
    found: list[PeerFacts] = []
    for host, repository in list(repositories.items())[:MOST]:
        found.append(_reach(host) or _enter(engine_url, host, repository, logins, credentials))
    return found


def assigned_repositories(state: Path) -> dict[str, str]:
    """A repository of each registry in the journal. The agent has that locked: a copy is read."""
    files = [path for path in (state / "journal.db", state / "journal.db-wal") if path.exists()]
    if not files:
        return {}
    try:
        with TemporaryDirectory(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None) as folder:
            # By another process: were the agent itself to open and close the file, its lock would be gone.
            subprocess.run(["cp", *files, folder], check=True, capture_output=True, timeout=LOOK_SECONDS)
            with closing(sqlite3.connect(Path(folder) / "journal.db")) as database:
                rows = database.execute("SELECT value FROM facts WHERE key LIKE 'slot/%'").fetchall()
    except (sqlite3.Error, OSError, subprocess.SubprocessError):
        return {}
    names = sorted({match.decode("utf-8", "replace") for (value,) in rows for match in _REPOSITORY.findall(value)})
    return {name.partition("/")[0]: name for name in reversed(names)}


def _reach(host: str) -> PeerFacts | None:
    """Why a registry takes no connection; None when it does."""
    name, _, port = host.partition(":")
    try:
        with socket.create_connection((name, int(port or 443)), LOOK_SECONDS / 4):
            return None
    except (OSError, ValueError) as error:
        return PeerFacts(host, error_words(error))


def _enter(
    engine_url: str, host: str, repository: str, logins: Mapping[str, Login], credentials: RegistryCredentials
) -> PeerFacts:
    try:
        header = credentials.header(repository)
        headers = {"X-Registry-Auth": header} if header else {}
        # Any tag will do: who may ask learns that there is none.
        answer = ask_engine(engine_url, f"/distribution/{repository}:latest/json", headers)
    except (OSError, http.client.HTTPException, ValueError, RegistryError):
        return PeerFacts(host, detail="accepts connections; the engine did not say whether it lets this device in")
    words = str(answer.get("message", "")) if isinstance(answer, dict) else ""
    if _UNTRUSTED.search(words):
        fix = f"Put its authority's certificate at /etc/docker/certs.d/{host}/ca.crt"
        return PeerFacts(host, f"the engine does not believe it ({words[:200]})", fix=fix)
    if not _SHUT.search(words):
        return PeerFacts(host)
    login = logins.get(host)
    problem = f"refuses the login of {login.username or 'a token'}" if login else "asks for a login, and there is none"
    return PeerFacts(host, problem, fix=credentials.advice(host))
