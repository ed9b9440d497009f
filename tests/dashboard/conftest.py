"""The real server on a seeded database, and a real browser that looks at it."""

from __future__ import annotations

import importlib.util
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from wherry_server.app import Bell, https_server, make_context
from wherry_server.config import ServerConfig
from wherry_server.pki import Authority
from wherry_server.services.access import create_token
from wherry_server.services.context import Context

ROOT = Path(__file__).resolve().parent.parent.parent
SCREENS = ROOT / "build" / "screens"
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DEVICES = 120
PATIENCE_MS = 30_000


def _load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Site:
    """A running server.

    Attributes:
        url: base URL, without a slash at the end.
        token: an API token; its name is "olga".
        context: the server's parts, for what devices would send.
        seeded: what scripts/seed.py stored.
    """

    url: str
    token: str
    context: Context
    seeded: Any


@dataclass
class Visit:
    """What a browser did that it should not."""

    host: str
    wrong: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        """Collect errors and requests that leave the host."""
        page.on("console", lambda message: self._note(message.type in ("error", "warning"), message.text))
        page.on("pageerror", lambda error: self._note(True, str(error)))
        page.on("request", lambda request: self._note(not self._ours(request.url), f"request to {request.url}"))

    def _ours(self, url: str) -> bool:
        parts = urlsplit(url)
        return parts.scheme in ("data", "blob", "about") or parts.netloc == self.host

    def _note(self, wrong: bool, text: str) -> None:
        if wrong and not any(part in text for part in self.allowed):
            self.wrong.append(text)


def start_site(folder: Path, devices: int = DEVICES) -> tuple[Site, Callable[[], None]]:
    """Start a server on a database of its own; and how to stop it."""
    config = ServerConfig(data=folder, host="127.0.0.1", bind="127.0.0.1", port=_free_port(), link=False)
    Authority.create(config.pki, config.host, datetime.now(UTC))
    context = make_context(config, Bell())
    seeded = _load_script("seed").seed(context.store, devices=devices, now=datetime.now(UTC)) if devices else None
    server = https_server(context)
    thread = threading.Thread(target=server.run, name="site", daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive(), "the server ended"
        assert time.monotonic() < deadline, "the server did not start in time"
        time.sleep(0.02)

    def stop() -> None:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not end"
        context.store.close()

    return Site(f"https://127.0.0.1:{config.port}", create_token(context, "olga"), context, seeded), stop


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server on a seeded database, shared: change only what your test made or chose for itself."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    found, stop = start_site(tmp_path_factory.mktemp("site"))
    yield found
    stop()


@pytest.fixture
def new_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Starts a server of the test's own; `new_site(devices=0)` has an empty database."""
    stops: list[Callable[[], None]] = []

    def start(devices: int = 0) -> Site:
        found, stop = start_site(tmp_path / f"site-{len(stops)}", devices)
        stops.append(stop)
        return found

    yield start
    for stop in stops:
        stop()


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as found:
        yield found


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Debian's Chromium without a window."""
    found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
    yield found
    found.close()


@pytest.fixture(scope="session")
def sessions() -> dict[str, Any]:
    """Cookies by server: one login serves all tests."""
    return {}


def _log_in(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/login")
    page.get_by_label("API token").fill(site.token)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{site.url}/")


@pytest.fixture
def open_page(
    request: pytest.FixtureRequest, browser: Browser, sessions: dict[str, Any]
) -> Iterator[Callable[..., Page]]:
    """Opens a path in a context of its own, logged in. Fails the test on errors and on requests elsewhere.

    `open_page("/", scheme="dark", width=375, height=800, scripts=False, login=True, site=other, allow=["404"])`
    """
    opened: list[tuple[Any, Visit]] = []

    def open_one(
        path: str = "/",
        *,
        scheme: Any = "light",
        width: int = 1440,
        height: int = 900,
        scripts: bool = True,
        login: bool = True,
        at: Site | None = None,
        allow: tuple[str, ...] = (),
    ) -> Page:
        at = at or request.getfixturevalue("site")
        context = browser.new_context(
            ignore_https_errors=True,
            color_scheme=scheme,
            viewport={"width": width, "height": height},
            java_script_enabled=scripts,
            reduced_motion="reduce",
            storage_state=sessions.get(at.url) if login else None,
        )
        context.set_default_timeout(PATIENCE_MS)
        visit = Visit(urlsplit(at.url).netloc, allowed=list(allow))
        context.on("page", visit.watch)
        opened.append((context, visit))
        page = context.new_page()
        if login and at.url not in sessions:
            _log_in(page, at)
            sessions[at.url] = context.storage_state()
        page.goto(at.url + path)
        return page

    yield open_one
    for context, visit in opened:
        context.close()
        assert visit.wrong == []


@pytest.fixture
def shoot() -> Callable[[Page, str], Path]:
    """Keeps a picture of a whole page in build/screens/NAME.png."""

    def take(page: Page, name: str) -> Path:
        SCREENS.mkdir(parents=True, exist_ok=True)
        path = SCREENS / f"{name}.png"
        page.screenshot(path=path, full_page=True)
        return path

    return take
