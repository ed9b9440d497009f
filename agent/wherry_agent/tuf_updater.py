"""`tuf.ngclient`, with what it leaves to its user: durable files, bounded downloads, a time that is given.

Nothing but roots is written before the caller calls `commit`: a root is proven by the one before it, everything
else counts only as a whole set that the high-water marks allow. Uses private names of tuf 7; a test holds them.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import urllib3
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    SlowRetrievalError,
)
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from wherry.metadata import LIMITS, ROOT_LIMIT, SNAPSHOT_LIMIT, TARGETS_LIMIT, TIMESTAMP_LIMIT
from wherry_agent.tuf_files import HISTORY, read_bounded, write_durably

CONFIG = UpdaterConfig(
    root_max_length=ROOT_LIMIT,
    timestamp_max_length=TIMESTAMP_LIMIT,
    snapshot_max_length=SNAPSHOT_LIMIT,
    targets_max_length=TARGETS_LIMIT,
)
CHUNK = 65_536
_LAST = (Targets.type, Snapshot.type, Timestamp.type)


class BoundedFetcher(FetcherInterface):
    """HTTPS GET with the server's CA, a size limit, a time limit, no redirects and no temporary files.

    Args:
        ca_file: certificate that the server's is checked against; None uses the system's.
        silence: longest wait for the next bytes, seconds.
        deadline: longest time for one file, seconds.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        ca_file: Path | None,
        silence: float = 10,
        deadline: float = 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deadline = deadline
        self._clock = clock
        self._pool = urllib3.PoolManager(
            maxsize=1,
            timeout=urllib3.Timeout(connect=silence, read=silence),
            retries=urllib3.Retry(total=1, redirect=0, status=0, raise_on_redirect=False),
            headers={"User-Agent": "wherry-agent", "Accept-Encoding": "identity"},
            ca_certs=str(ca_file) if ca_file else None,
            ssl_minimum_version=ssl.TLSVersion.TLSv1_2,
        )

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """The body of `GET url`, held in memory.

        Raises:
            DownloadError: of the kinds `tuf` knows.
        """
        body = bytearray()
        for chunk in self.fetch(url):
            body += chunk
            if len(body) > max_length:
                raise DownloadLengthMismatchError(f"{url} is longer than {max_length} bytes")
        return bytes(body)

    def close(self) -> None:
        """Drop the connection."""
        self._pool.clear()

    def _fetch(self, url: str) -> Iterator[bytes]:
        started = self._clock()
        response = self._pool.request("GET", url, preload_content=False, redirect=False)
        if response.status != 200:
            response.drain_conn()
            response.release_conn()
            raise DownloadHTTPError(f"{url} answered {response.status}", response.status)
        return self._chunks(response, url, started)

    def _chunks(self, response: urllib3.BaseHTTPResponse, url: str, started: float) -> Iterator[bytes]:
        finished = False
        try:
            while chunk := response.read1(CHUNK, decode_content=False):
                yield chunk
                if self._clock() - started > self._deadline:
                    raise SlowRetrievalError(f"{url} took longer than {self._deadline} s")
            finished = True
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise DownloadError(f"{url} broke off: {error}") from error
        finally:
            # A body that was not read to its end would be taken for the next answer.
            if finished:
                response.release_conn()
            else:
                response.close()


class StagedUpdater(Updater):
    """One refresh.

    Args:
        folder: the TUF folder; must exist.
        url: where `<n>.root.json` and the others are served.
        fetcher: how they are fetched.
        root: bytes of the newest trusted root.
        reference: the time that expiry is judged by.
        config: limits.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        fetcher: FetcherInterface,
        root: bytes,
        reference: datetime,
        config: UpdaterConfig = CONFIG,
    ) -> None:
        self._folder = folder
        self._staged: dict[str, bytes] = {}
        self.last: tuple[str, bytes] | None = None
        super().__init__(str(folder), url, fetcher=fetcher, config=config, bootstrap=root)
        self._trusted_set.reference_time = reference

    @property
    def root(self) -> Root:
        """The newest verified root."""
        return self._trusted_set.root

    @property
    def timestamp(self) -> Timestamp:
        """The verified timestamp, after a refresh."""
        return self._trusted_set.timestamp

    @property
    def snapshot(self) -> Snapshot:
        """The verified snapshot, after a refresh."""
        return self._trusted_set.snapshot

    @property
    def targets(self) -> Targets:
        """The verified targets, after a refresh."""
        return self._trusted_set.targets

    def load_local(self) -> None:
        """Like `refresh`, from the folder alone.

        Raises:
            OSError: a file is missing or cannot be read.
            RepositoryError: one does not verify or is expired.
        """
        self._trusted_set.update_timestamp(self._load_local_metadata(Timestamp.type))
        self._trusted_set.update_snapshot(self._load_local_metadata(Snapshot.type), trusted=True)
        self._trusted_set.update_targets(self._load_local_metadata(Targets.type))

    def commit(self) -> None:
        """Write what the refresh brought, leaves first: each file on the medium is then named by the next one.

        Raises:
            OSError: a file cannot be written; every mixture of old and new files is usable.
        """
        for role in sorted(self._staged, key=lambda role: _LAST.index(role) if role in _LAST else -1):
            write_durably(self._path(role), self._staged[role])
        self._staged.clear()

    def use_targets(self, folder: Path, url: str) -> None:
        """Where `download_target` gets its files from and puts them; the agent itself downloads none."""
        self.target_dir = str(folder)
        self._target_base_url = url if url.endswith("/") else f"{url}/"

    def _path(self, role: str) -> Path:
        return self._folder / f"{quote(role, safe='')}.json"

    def _download_metadata(self, rolename: str, length: int, version: int | None = None) -> bytes:
        # The announced length comes from the server: it may lower the limit, never raise it.
        limit = min(length, LIMITS.get(rolename, TARGETS_LIMIT))
        data = super()._download_metadata(rolename, limit, version)
        self.last = (rolename, data)
        return data

    def _load_local_metadata(self, rolename: str) -> bytes:
        data = read_bounded(self._path(rolename), LIMITS.get(rolename, TARGETS_LIMIT))
        self.last = (rolename, data)
        return data

    def _persist_metadata(self, rolename: str, data: bytes) -> None:
        self._staged[rolename] = data

    def _persist_root(self, version: int, data: bytes) -> None:
        write_durably(self._folder / HISTORY / f"{version}.root.json", data)

    def _update_root_symlink(self) -> None:
        # A file instead of ngclient's link: between its unlink and symlink there is no root at all.
        newest = self._folder / HISTORY / f"{self.root.version}.root.json"
        write_durably(self._folder / "root.json", read_bounded(newest, ROOT_LIMIT))
