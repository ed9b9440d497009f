"""The server's HTTP API for operators; no exception of httpx leaves this module."""

from __future__ import annotations

import itertools
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from wherry.api.base import ErrorBody
from wherry.api.devices import (
    DeviceChange,
    DevicePage,
    DeviceView,
    DiagnoseAnswer,
    LogsAnswer,
    LogsQuestion,
    TokenCreated,
    TokenRequest,
)
from wherry.api.operators import ApiTokenList, ApiTokenView, AuditEntry, AuditPage
from wherry.api.releases import ReleasePage, ReleaseView
from wherry.api.repository import OnlineKeys, RepositoryInfo, RepositoryUpload
from wherry.api.rollouts import DeploymentPage, DeploymentView, RolloutPage, RolloutPreview, RolloutRequest, RolloutView
from wherry.api.telemetry import FleetView, TelemetrySummary
from wherry.errors import IdentityError, MalformedMessage, NotAllowed, NotFound, ServerError, WherryError, walk_errors
from wherry.messages import Problem
from wherry_cli.settings import Settings

M = TypeVar("M", bound=BaseModel)
RETRY_WAITS = (0.2, 0.6, 1.5)
"""Seconds before each repetition of a GET that failed on its way."""
RETRY_STATUS = frozenset({502, 503, 504})
PAGE_LIMIT = 200
ROLLOUT_PAGE = 500
LOGIN_FIX = "Run `wherry login` with another token; `wherry-server token create NAME --data DIR` makes one"
Query = dict[str, str | int | list[str]]


def error_from(problem: Problem) -> WherryError:
    """The error that a problem names, as its class: by its code, or the nearest parent that this program knows."""
    classes = {kind.code: kind for kind in walk_errors()}
    code = problem.code
    while code not in classes and "." in code:
        code = code.rpartition(".")[0]
    return classes.get(code, WherryError)(problem.thing, problem.reason, problem.fix)


def tls_context(ca_file: Path) -> ssl.SSLContext:
    """TLS settings that trust one CA and nothing else.

    Raises:
        IdentityError: the file is missing or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        fix = "Run `wherry login` again with --ca-file or --ca-sha256"
        raise IdentityError(f"CA certificate {ca_file}", f"cannot be used ({error})", fix) from error


class Untrusted(ServerError):
    """The server shows a certificate that is not trusted: this does not pass by waiting."""


class ServerClient:
    """Speaks `wherry.api` with one server.

    Every method raises the WherryError that the server answered with, and ServerError, naming the
    address, when there is no usable answer.

    Args:
        server: base URL.
        token: API token; empty sends none.
        verify: TLS settings.
        transport: how requests travel; httpx's own by default.
        sleep: waits between repetitions.
        hurry: seconds for an answer, when none is better than a late one: nothing is repeated.
    """

    def __init__(
        self,
        server: str,
        token: str,
        verify: ssl.SSLContext,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        hurry: float | None = None,
    ) -> None:
        self._server = server.rstrip("/")
        self._sleep = sleep
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._waits = () if hurry else RETRY_WAITS
        timeout = httpx.Timeout(hurry or 30.0, connect=hurry or 5.0)
        try:
            self._http = httpx.Client(
                base_url=self._server, headers=headers, verify=verify, timeout=timeout, transport=transport
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ServerError(f"server {server}", f"is not a usable address ({error})") from error

    @property
    def server(self) -> str:
        """The server's base URL."""
        return self._server

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- how a request travels

    def _send(self, method: str, path: str, body: BaseModel | None, params: Query | None) -> httpx.Response:
        content = None if body is None else body.model_dump_json(by_alias=True).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            return self._http.request(method, path, content=content, headers=headers, params=params)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise self._network_error(error) from error

    def _network_error(self, error: Exception) -> ServerError:
        text = str(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in text:
            fix = "If the server's CA was renewed on purpose, run `wherry login` again; otherwise do not trust it"
            return Untrusted(f"server {self._server}", f"shows a certificate that is not trusted ({text})", fix)
        return ServerError(f"server {self._server}", f"cannot be reached ({text})")

    def _send_patiently(self, method: str, path: str, body: BaseModel | None, params: Query | None) -> httpx.Response:
        waits = self._waits if method == "GET" else ()
        for wait in waits:
            try:
                response = self._send(method, path, body, params)
            except Untrusted:
                raise
            except ServerError:
                pass  # perhaps it restarts: once more, after the wait
            else:
                if response.status_code not in RETRY_STATUS:
                    return response
            self._sleep(wait)
        return self._send(method, path, body, params)

    def _call(
        self, method: str, path: str, body: BaseModel | None = None, params: Query | None = None
    ) -> httpx.Response:
        response = self._send_patiently(method, path, body, params)
        if response.status_code >= 400:
            raise self._refusal(response)
        return response

    def _refusal(self, response: httpx.Response) -> WherryError:
        try:
            problem = ErrorBody.model_validate_json(response.content).error
            if response.status_code == 401:
                # The server speaks of headers; who sits here knows of logging in.
                return NotAllowed(f"API token for {self._server}", "is not valid (any more)", LOGIN_FIX)
            return error_from(problem)
        except ValidationError:
            status = f"{response.status_code} {response.reason_phrase}".strip()
            kind = NotFound if response.status_code == 404 else ServerError
            where = f"server {self._server}"
            return kind(where, f"answered {status} to {response.request.method} {response.request.url.path}")

    def _read(self, kind: type[M], method: str, path: str, **more: Any) -> M:
        response = self._call(method, path, **more)
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            raise MalformedMessage(
                f"answer of {self._server} to {method} {path}", f"field {where}: {first['msg']}"
            ) from error

    # -- trust

    def repository(self) -> RepositoryInfo:
        """Versions of the signed metadata that the server holds."""
        return self._read(RepositoryInfo, "GET", "/v1/repository")

    def upload_repository(self, upload: RepositoryUpload) -> RepositoryInfo:
        """Store owner-signed metadata, all files or none."""
        return self._read(RepositoryInfo, "POST", "/v1/repository", body=upload)

    def online_keys(self) -> OnlineKeys:
        """The server's own public keys."""
        return self._read(OnlineKeys, "GET", "/v1/keys")

    def metadata(self, name: str) -> bytes:
        """One metadata file as the server holds it."""
        return self._call("GET", f"/v1/tuf/metadata/{name}").content

    # -- devices

    def create_token(self, request: TokenRequest) -> TokenCreated:
        """A single-use join token."""
        return self._read(TokenCreated, "POST", "/v1/tokens", body=request)

    def devices(self, **conditions: str | int | list[str] | None) -> Iterator[DeviceView]:
        """Every device that meets the conditions (profile, label, state, search, model, version), page by page."""
        return self._pages(DevicePage, "/v1/devices", _given(**conditions))

    def some_devices(self, state: str, limit: int) -> list[DeviceView]:
        """The first few devices in a state."""
        return self._read(DevicePage, "GET", "/v1/devices", params={"state": state, "limit": limit}).items

    def fleet(self) -> FleetView:
        """The fleet at a glance."""
        return self._read(FleetView, "GET", "/v1/fleet")

    def device(self, device: str) -> DeviceView:
        """One device's twin."""
        return self._read(DeviceView, "GET", f"/v1/devices/{device}")

    def change_device(self, device: str, change: DeviceChange) -> DeviceView:
        """Replace a device's labels."""
        return self._read(DeviceView, "PATCH", f"/v1/devices/{device}", body=change)

    def revoke_device(self, device: str) -> None:
        """Lock a device out."""
        self._call("DELETE", f"/v1/devices/{device}")

    def remove_device(self, device: str, force: bool) -> None:
        """Take a device that is gone for good out of the fleet."""
        self._call("POST", f"/v1/devices/{device}/remove", params={"force": "true" if force else "false"})

    def poll_device(self, device: str) -> None:
        """Tell a device to fetch its assignment now."""
        self._call("POST", f"/v1/devices/{device}/poll")

    def retry_device(self, device: str, slot: str, digest: str) -> None:
        """Let a device try a digest again that it rejected."""
        self._call("POST", f"/v1/devices/{device}/retry", body=RetryRequest(slot=slot, digest=digest))

    def unassign(self, device: str, slot: str) -> None:
        """Empty a slot of a device."""
        self._call("DELETE", f"/v1/devices/{device}/slots/{slot}")

    def logs(self, device: str, question: LogsQuestion) -> LogsAnswer:
        """What a slot's container wrote, from the device itself."""
        return self._read(LogsAnswer, "POST", f"/v1/devices/{device}/logs", body=question)

    def diagnose(self, device: str) -> DiagnoseAnswer:
        """Have a device examine itself."""
        return self._read(DiagnoseAnswer, "POST", f"/v1/devices/{device}/diagnose")

    def deployments(self, device: str | None = None, limit: int = 20) -> list[DeploymentView]:
        """The newest deployments."""
        params = _given(device=device, limit=limit)
        return self._read(DeploymentPage, "GET", "/v1/deployments", params=params).items

    # -- operators

    def audit(self, limit: int, **conditions: str | None) -> list[AuditEntry]:
        """Who did what (action, thing, actor), newest first."""
        params = _given(limit=min(limit, PAGE_LIMIT), **conditions)
        return list(itertools.islice(self._pages(AuditPage, "/v1/audit", params), limit))

    def api_tokens(self) -> list[ApiTokenView]:
        """The operators' tokens, without their secrets."""
        return self._read(ApiTokenList, "GET", "/v1/api-tokens").items

    def revoke_api_token(self, name: str) -> None:
        """Make a token useless."""
        self._call("DELETE", f"/v1/api-tokens/{quote(name, safe='')}")

    # -- releases, rollouts, telemetry

    def releases(self, model: str | None = None) -> Iterator[ReleaseView]:
        """Every release, page by page."""
        return self._pages(ReleasePage, "/v1/releases", _given(model=model))

    def release(self, model: str, version: str) -> ReleaseView:
        """One release."""
        return self._read(ReleaseView, "GET", f"/v1/releases/{model}/{version}")

    def preview_rollout(self, request: RolloutRequest) -> RolloutPreview:
        """`POST /v1/rollouts/preview`."""
        return self._read(RolloutPreview, "POST", "/v1/rollouts/preview", body=request)

    def start_rollout(self, request: RolloutRequest) -> RolloutView:
        """Bring a release to a selection of devices."""
        return self._read(RolloutView, "POST", "/v1/rollouts", body=request)

    def rollouts(self, limit: int = 20) -> list[RolloutView]:
        """The newest rollouts, without their targets."""
        return self._read(RolloutPage, "GET", "/v1/rollouts", params={"limit": limit}).items

    def rollout(self, number: int) -> RolloutView:
        """One rollout with all its targets, page by page."""
        path, params = f"/v1/rollouts/{number}", _given(limit=ROLLOUT_PAGE)
        view = self._read(RolloutView, "GET", path, params=params)
        while view.next is not None:
            page = self._read(RolloutView, "GET", path, params=params | _given(after=view.next))
            view = page.model_copy(update={"targets": [*view.targets, *page.targets]})
        return view

    def control_rollout(self, number: int, action: str) -> RolloutView:
        """`start` (resume), `pause`, `abort` or `retry` a rollout."""
        return self._read(RolloutView, "POST", f"/v1/rollouts/{number}/{action}")

    def telemetry(self, device: str | None, model: str | None, since: str) -> TelemetrySummary:
        """What devices measured since an ISO 8601 time."""
        params = _given(device=device, model=model, since=since)
        return self._read(TelemetrySummary, "GET", "/v1/telemetry", params=params)

    def _pages(self, kind: type[M], path: str, params: Query) -> Iterator[Any]:
        after: str | None = None
        while True:
            page: Any = self._read(kind, "GET", path, params={"limit": PAGE_LIMIT, **params, **_given(after=after)})
            yield from page.items
            after = page.next
            if after is None:
                return


class RetryRequest(BaseModel):
    """Body of `POST /v1/devices/{id}/retry`."""

    slot: str
    digest: str


def _given(**values: str | int | list[str] | None) -> Query:
    return {name: value for name, value in values.items() if value is not None}


def open_client(settings: Settings, hurry: float | None = None) -> ServerClient:
    """A client for the server that the operator logged in to."""
    return ServerClient(settings.server, settings.token, tls_context(settings.ca_file), hurry=hurry)
