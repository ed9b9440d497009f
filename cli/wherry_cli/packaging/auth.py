"""How a registry lets us in: basic or bearer tokens, as its 401 answer asks."""

from __future__ import annotations

import re
from collections.abc import Generator
from urllib.parse import urlsplit

import httpx

from wherry_cli.packaging.credentials import Credentials
from wherry_cli.packaging.reference import is_loopback

_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """Scheme (lower case) and parameters of a WWW-Authenticate header."""
    scheme, _, rest = header.partition(" ")
    return scheme.lower(), dict(_PARAMETER.findall(rest))


class RegistryAuth(httpx.Auth):
    """Answers a registry's challenge once per request, and remembers the tokens it got by scope.

    The user's secret goes only to the registry itself and to the token service it names, and to that only over https
    or on this machine.
    """

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials
        self._tokens: dict[str, str] = {}
        self._last: str | None = None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request; on 401 get a token or add basic credentials, and send it again."""
        if self._last is not None:
            request.headers["Authorization"] = self._last
        response = yield request
        if response.status_code != 401:
            return
        scheme, asked = parse_challenge(response.headers.get("WWW-Authenticate", ""))
        if scheme == "basic" and self._credentials is not None:
            self._last = _basic(self._credentials)
        elif scheme == "bearer" and _usable_realm(asked.get("realm", "")):
            known = self._tokens.get(asked.get("scope", ""))
            if known is None or known == self._last:
                answer = yield self._token_request(asked)
                known = _bearer(answer)
            if known is None:
                return
            self._tokens[asked.get("scope", "")] = self._last = known
        else:
            return
        request.headers["Authorization"] = self._last
        yield request

    def _token_request(self, asked: dict[str, str]) -> httpx.Request:
        parameters: dict[str, str] = {key: value for key, value in asked.items() if key in ("service", "scope")}
        headers = {"Authorization": _basic(self._credentials)} if self._credentials else {}
        return httpx.Request("GET", asked["realm"], params=parameters, headers=headers)


def _basic(credentials: Credentials) -> str:
    header = httpx.BasicAuth(credentials.user, credentials.secret)._auth_header
    return str(header)


def _usable_realm(realm: str) -> bool:
    parts = urlsplit(realm)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def _bearer(answer: httpx.Response) -> str | None:
    answer.read()
    if answer.status_code != 200:
        return None
    try:
        body = answer.json()
        token = body.get("token") or body.get("access_token")
    except (ValueError, AttributeError):
        return None
    return f"Bearer {token}" if isinstance(token, str) else None
