"""The real server on a seeded database, and a real browser that looks at it."""

from __future__ import annotations

import importlib.util
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
import uvicorn
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError
from sqlalchemy import Select, delete, select, update

from wherry.identity import sha256_digest
from wherry.messages import Presence, ReleaseRef, SlotReport, StateReport, TelemetryBatch, TelemetryRecord
from wherry_server.app import Bell, https_server, make_context
from wherry_server.config import ServerConfig
from wherry_server.pki import Authority
from wherry_server.services import reports, telemetry
from wherry_server.services.access import create_token
from wherry_server.services.context import Context
from wherry_server.store.schema import DesiredSlot, Device, Image

ROOT = Path(__file__).resolve().parent.parent.parent
SCREENS = ROOT / "build" / "screens"
CHROMIUM = ROOT / "tests" / "chromium.py"
DEVICES = 120
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)
NETWORK_CHANGED = "ERR_NETWORK_CHANGED"
"""Chromium's answer to a machine whose interfaces change; no page can help it."""


def _load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@dataclass
class Site:
    """A server that can be stopped and started again.

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
    config: ServerConfig
    running: tuple[uvicorn.Server, threading.Thread] | None = None

    @classmethod
    def make(cls, folder: Path, devices: int = DEVICES) -> Site:
        """A server on a database of its own, not started yet."""
        config = ServerConfig(
            data=folder, host="127.0.0.1", bind="127.0.0.1", port=_load_script("ports").free_ports(1)[0], link=False
        )
        Authority.create(config.pki, config.host, datetime.now(UTC))
        context = make_context(config, Bell())
        seeded = _load_script("seed").seed(context.store, devices=devices, now=datetime.now(UTC)) if devices else None
        return cls(f"https://127.0.0.1:{config.port}", create_token(context, "olga"), context, seeded, config)

    def start(self) -> None:
        """Serve, from a thread; after `stop` with new parts on the same data."""
        if self.running is not None:
            return
        if self.context is None:
            self.context = make_context(self.config, Bell())
        server = https_server(self.context)
        thread = threading.Thread(target=server.run, name="site", daemon=True)
        thread.start()
        self.running = (server, thread)
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the server ended"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server as a signal does."""
        if self.running is None:
            return
        server, thread = self.running
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not end"
        self.running = None
        self.context.store.close()
        self.context = None  # type: ignore[assignment]


@dataclass
class Visit:
    """What a browser did that it should not."""

    host: str
    wrong: list[str] = field(default_factory=list)
    allowed: tuple[str, ...] = ()

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


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server on a seeded database, shared: change only what your test made or chose for itself."""
    found = Site.make(tmp_path_factory.mktemp("site"))
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="session")
def site_class() -> type[Site]:
    """For a module that wants a `site` of its own."""
    return Site


@pytest.fixture
def new_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Starts a server of the test's own; `new_site()` has an empty database, `new_site(devices=20)` a small fleet."""
    made: list[Site] = []

    def start(devices: int = 0) -> Site:
        made.append(Site.make(tmp_path / f"site-{len(made)}", devices))
        made[-1].start()
        return made[-1]

    yield start
    for found in made:
        found.stop()


class PageDevice:
    """A device as the server meets it, without a key: what it says goes straight to the use cases.

    Releases of `model` that the owner signed are those; others are made up from their versions.
    """

    def __init__(self, site: Site, name: str, model: str = "lens", **fields: Any) -> None:
        self.site, self.name, self.model = site, name, model
        self.number = 0
        row = {"profile": "generic-arm64", "labels": "{}", "enrolled": datetime.now(UTC)} | fields
        with site.context.store.write() as session:
            session.add(Device(id=name, **row))

    def release(self, version: str) -> ReleaseRef:
        """A version of its model."""
        with self.site.context.store.read() as session:
            image = session.scalar(self._image(version))
        counter, digest = (image.counter, image.digest) if image else (int(version[0]), sha256_digest(version.encode()))
        return ReleaseRef(model=self.model, version=version, counter=counter, digest=digest)

    def _image(self, version: str) -> Select[Image]:
        return select(Image).where(Image.model == self.model, Image.version == version).order_by(Image.profile).limit(1)

    def is_to_serve(self, version: str) -> None:
        """A signed release is desired in slot main, and the device has that assignment."""
        with self.site.context.store.write() as session:
            image = session.scalars(self._image(version)).one()
            session.merge(DesiredSlot(device=self.name, slot="main", path=image.path))
            session.execute(update(Device).where(Device.id == self.name).values(sequence=1))

    def serves(self, version: str, **fields: Any) -> SlotReport:
        """Slot main, healthy."""
        release = self.release(version)
        values = {"serving": release, "known_good": release, "desired": release, "healthy": True} | fields
        return SlotReport(slot="main", port=8500, **values)

    def reports(self, *slots: SlotReport, **fields: Any) -> None:
        """Its state, under the next number."""
        self.number += 1
        values = {"profile": "generic-arm64", "agent_version": "0.2.0", "stream": "s", "boot_id": "b", "sequence": 0}
        report = StateReport(
            device=self.name, number=self.number, at=datetime.now(UTC), slots=list(slots), **values | fields
        )
        assert reports.ingest_state(self.site.context, report)

    def measures(self, *records: tuple[datetime, Any]) -> None:
        """Telemetry with its times."""
        self.number += 1
        numbered = [TelemetryRecord(sequence=n, at=at, record=record) for n, (at, record) in enumerate(records)]
        batch = TelemetryBatch(device=self.name, stream=f"t{self.number}", records=numbered)
        assert telemetry.ingest(self.site.context, batch)

    def leaves(self) -> None:
        """Its last will."""
        reports.ingest_presence(self.site.context, Presence(device=self.name, online=False))


@pytest.fixture
def add_device(request: pytest.FixtureRequest) -> Iterator[Callable[..., PageDevice]]:
    """Adds a device, `add_device("live-one")`; to another site when one is given. It is deleted afterwards."""
    made: list[PageDevice] = []

    def add(name: str, at: Site | None = None, **fields: Any) -> PageDevice:
        made.append(PageDevice(at or request.getfixturevalue("site"), name, **fields))
        return made[-1]

    yield add
    for device in made:
        if device.site.context is not None:
            with device.site.context.store.write() as session:
                session.execute(delete(Device).where(Device.id == device.name))


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Not for the whole session: while it runs, nothing else may run an event loop in this thread."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as found:
        yield found


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Debian's Chromium without a window."""
    found = playwright.chromium.launch(executable_path=CHROMIUM)
    yield found
    found.close()


@pytest.fixture(scope="session")
def sessions() -> dict[str, Any]:
    """Cookies by token, for ports come again: one login serves all tests."""
    return {}


def _go(page: Page, url: str) -> None:
    try:
        page.goto(url)
    except PlaywrightError as error:
        if NETWORK_CHANGED not in str(error):
            raise
        page.goto(url)


def _log_in(page: Page, site: Site) -> None:
    _go(page, f"{site.url}/login")
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
            storage_state=sessions.get(at.token) if login else None,
        )
        context.set_default_timeout(PATIENCE_MS)
        visit = Visit(urlsplit(at.url).netloc, allowed=(*allow, NETWORK_CHANGED))
        context.on("page", visit.watch)
        opened.append((context, visit))
        page = context.new_page()
        if login and at.token not in sessions:
            _log_in(page, at)
            sessions[at.token] = context.storage_state()
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
        page.screenshot(path=path, full_page=True, caret="initial")  # hiding it leaves inline styles behind
        return path

    return take
