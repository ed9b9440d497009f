"""Looks at the registries for `wherry-agent doctor`: reachable, and do they let this device in?

The engine is asked to look, with the login that a pull would show: it alone knows which certificates it believes.
"""

from __future__ import annotations

import http.client
import re
import socket
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from wherry.errors import RegistryError
from wherry_agent.examination import LOOK_SECONDS, ask_engine, error_words
from wherry_agent.registry_credentials import Login, RegistryCredentials
from wherry_agent.verdicts import PeerFacts

MOST = 3
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
    """A repository of each registry in the journal, read without disturbing the agent that writes it."""
    path = state / "journal.db"
    if not path.exists():
        return {}
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1.0)) as database:
            rows = database.execute("SELECT value FROM facts WHERE key LIKE 'slot/%'").fetchall()
    except sqlite3.Error:
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
