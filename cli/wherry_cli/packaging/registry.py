"""An OCI registry client: manifests and blobs, every digest checked, uploads that resume.

The only module that speaks to a registry. Every failure is a RegistryError that names the thing asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from wherry.errors import RegistryError
from wherry.identity import sha256_digest
from wherry_cli.packaging.auth import RegistryAuth
from wherry_cli.packaging.credentials import Credentials, find_credentials
from wherry_cli.packaging.oci import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Blob, Manifest
from wherry_cli.packaging.progress import Progress, Report, silent
from wherry_cli.packaging.reference import check_registry, is_loopback, registry_url
from wherry_cli.packaging.store import Store

MANIFEST_LIMIT = 4 * 1024 * 1024
CHUNK_BYTES = 8 * 1024 * 1024
"""Blobs up to this size are sent in one piece; larger ones in chunks, so that a broken connection costs one chunk."""
ATTEMPTS = 4
_TIMEOUT = httpx.Timeout(60, connect=10)

Outcome = Literal["present", "mounted", "sent"]


class _UploadLostError(httpx.TransportError):
    """An upload that must start over."""


class RegistryClient:
    """One registry.

    Args:
        registry: HOST or HOST:PORT; plain http on this machine, https elsewhere.
        credentials: user and secret, or None for anonymous access.
        transport: replaces the network in tests.
        sleep: waits between attempts.
    """

    def __init__(
        self,
        registry: str,
        credentials: Credentials | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.registry = check_registry(registry)
        url = registry_url(registry)
        self._sleep = sleep
        self._client = httpx.Client(
            base_url=url,
            auth=RegistryAuth(credentials),
            timeout=_TIMEOUT,
            follow_redirects=True,
            max_redirects=5,
            transport=transport,
            # A proxy configured for the world must not be asked for this machine's own registry.
            trust_env=not is_loopback(httpx.URL(url).host),
        )

    @classmethod
    def for_user(cls, registry: str) -> RegistryClient:
        """A client with the credentials that this user has for the registry.

        Raises:
            ConfigError: Docker's configuration file cannot be read.
        """
        return cls(registry, find_credentials(registry))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # -- manifests

    def manifest(self, repository: str, version: str) -> Manifest | None:
        """The manifest of a tag or digest; None when the registry has none.

        Raises:
            RegistryError: the registry failed, or the bytes are not those of the digest asked for.
        """
        thing = f"{self.registry}/{repository}:{version}"
        accept = ", ".join((OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_INDEX))
        answer = self._call("GET", f"/v2/{repository}/manifests/{version}", thing, headers={"Accept": accept})
        if answer.status_code == 404:
            return None
        self._expect(answer, thing, 200)
        digest = sha256_digest(answer.content)
        if version.startswith("sha256:") and digest != version:
            raise RegistryError(thing, f"the registry sent other bytes ({digest})", "Repair or replace the registry")
        if len(answer.content) > MANIFEST_LIMIT:
            raise RegistryError(thing, f"its manifest has {len(answer.content)} bytes, the limit is {MANIFEST_LIMIT}")
        return Manifest(answer.content, answer.headers.get("Content-Type", "").split(";")[0], digest)

    def put_manifest(self, repository: str, version: str, data: bytes, media_type: str = OCI_MANIFEST) -> str:
        """Store a manifest under a tag or its digest; returns the digest.

        Raises:
            RegistryError: the registry refused it or recorded another digest.
        """
        thing = f"{self.registry}/{repository}:{version}"
        url = f"/v2/{repository}/manifests/{version}"
        answer = self._call("PUT", url, thing, content=data, headers={"Content-Type": media_type})
        self._expect(answer, thing, 201)
        digest = sha256_digest(data)
        recorded = answer.headers.get("Docker-Content-Digest", digest)
        if recorded != digest:
            raise RegistryError(thing, f"the registry recorded {recorded}, sent was {digest}")
        return digest

    # -- blobs

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether a repository holds a blob.

        Raises:
            RegistryError: the registry failed.
        """
        thing = f"blob {digest} in {self.registry}/{repository}"
        answer = self._call("HEAD", f"/v2/{repository}/blobs/{digest}", thing)
        if answer.status_code == 404:
            return False
        self._expect(answer, thing, 200)
        return True

    def pull_blob(self, repository: str, digest: str, store: Store, report: Report = silent, stage: str = "") -> Path:
        """Bring a blob into the store and return its file; checked against its digest.

        Raises:
            RegistryError: the registry failed, or sent other bytes.
            StoreError: the store cannot be written.
        """
        if store.has(digest):
            return store.path(digest)
        thing = f"blob {digest} in {self.registry}/{repository}"
        for attempt in range(ATTEMPTS):
            try:
                path = self._download(f"/v2/{repository}/blobs/{digest}", thing, digest, store, report, stage)
            except httpx.TransportError as error:
                self._pause(attempt, thing, error)
                continue
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise RegistryError(thing, _reason(error)) from error
            if path is None:
                raise RegistryError(thing, "the registry sent bytes of another digest", "Repair the registry")
            return path
        raise AssertionError("the last attempt returns or raises")

    def _download(self, url: str, thing: str, digest: str, store: Store, report: Report, stage: str) -> Path | None:
        with self._client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as answer:
            if answer.status_code != 200:
                answer.read()
            self._expect(answer, thing, 200)
            total = int(answer.headers.get("Content-Length", "0"))

            def pieces() -> Iterator[bytes]:
                for piece in answer.iter_raw(1 << 20):
                    report(Progress(stage or thing, answer.num_bytes_downloaded, total))
                    yield piece

            return store.add_blob(pieces(), digest)

    def read_blob(self, repository: str, digest: str) -> bytes:
        """A small blob, such as an image configuration, checked against its digest.

        Raises:
            RegistryError: absent, too large, or of another digest.
        """
        thing = f"blob {digest} in {self.registry}/{repository}"
        answer = self._call("GET", f"/v2/{repository}/blobs/{digest}", thing)
        self._expect(answer, thing, 200)
        if sha256_digest(answer.content) != digest:
            raise RegistryError(thing, "the registry sent bytes of another digest", "Repair the registry")
        return answer.content

    def push_blob(
        self,
        repository: str,
        blob: Blob,
        mount_from: tuple[str, ...] = (),
        report: Report = silent,
        stage: str = "",
    ) -> Outcome:
        """Make a repository hold a blob, moving bytes only when it must.

        Args:
            repository: where to.
            blob: what.
            mount_from: other repositories of this registry that may hold it already.
            report: told of progress.
            stage: the name of this work in progress reports.

        Raises:
            RegistryError: the registry failed or refused it.
        """
        if self.has_blob(repository, blob.digest):
            return "present"
        for source in mount_from:
            if source != repository and self._mount(repository, blob.digest, source):
                return "mounted"
        thing = f"blob {blob.digest} to {self.registry}/{repository}"
        for attempt in range(ATTEMPTS):
            try:
                self._send(repository, blob, thing, report, stage or thing)
            except httpx.TransportError as error:
                self._pause(attempt, thing, error)
            else:
                return "sent"
        raise AssertionError("the last attempt returns or raises")

    def _mount(self, repository: str, digest: str, source: str) -> bool:
        """Cross-repository mount; a registry that cannot starts an upload instead, which is given up."""
        thing = f"blob {digest} to {self.registry}/{repository}"
        query = {"mount": digest, "from": source}
        answer = self._call("POST", f"/v2/{repository}/blobs/uploads/", thing, params=query)
        if answer.status_code == 202:
            self._call("DELETE", self._location(answer, thing), thing)
        return answer.status_code == 201

    def _send(self, repository: str, blob: Blob, thing: str, report: Report, stage: str) -> None:
        answer = self._client.post(f"/v2/{repository}/blobs/uploads/")
        self._expect(answer, thing, 202)
        place = self._location(answer, thing)
        offset = 0
        if blob.size > CHUNK_BYTES:
            while offset < blob.size:
                place, offset = self._send_chunk(place, blob, offset, thing)
                report(Progress(stage, offset, blob.size))
        headers = {"Content-Length": str(blob.size - offset), "Content-Type": "application/octet-stream"}
        url = httpx.URL(place).copy_merge_params({"digest": blob.digest})
        answer = self._client.put(url, content=b"".join(blob.pieces(offset)), headers=headers)
        self._expect(answer, thing, 201)
        report(Progress(stage, blob.size, blob.size))

    def _send_chunk(self, place: str, blob: Blob, offset: int, thing: str) -> tuple[str, int]:
        """Send the next chunk; after a broken connection ask how far the registry got and go on from there."""
        length = min(CHUNK_BYTES, blob.size - offset)
        headers = {
            "Content-Length": str(length),
            "Content-Range": f"{offset}-{offset + length - 1}",
            "Content-Type": "application/octet-stream",
        }
        # In memory, because the answer to a 401 sends it twice.
        body = b"".join(blob.pieces(offset, length))
        for attempt in range(ATTEMPTS):
            try:
                answer = self._client.patch(place, content=body, headers=headers)
                if answer.status_code != 416:
                    self._expect(answer, thing, 202)
                    return self._location(answer, thing), offset + length
            except httpx.TransportError as error:
                self._pause(attempt, thing, error)
            state = self._call("GET", place, thing)
            if state.status_code == 404:
                # docker-registry forgets an upload whose last answer was lost: its place no longer fits its size.
                raise _UploadLostError("the registry forgot the upload")
            self._expect(state, thing, 204)
            reached = _received(state)
            if reached != offset:
                return self._location(state, thing), reached
        raise RegistryError(thing, "the registry does not take the next chunk")

    # -- how calls are made

    def _location(self, answer: httpx.Response, thing: str) -> str:
        place = answer.headers.get("Location")
        if not place:
            raise RegistryError(thing, "the registry named no place to upload to")
        try:
            return str(answer.request.url.join(place))
        except httpx.InvalidURL as error:
            raise RegistryError(thing, f"the registry named an unusable place to upload to ({error})") from error

    def _pause(self, attempt: int, thing: str, error: httpx.HTTPError) -> None:
        if attempt + 1 >= ATTEMPTS:
            raise RegistryError(thing, f"the connection failed {ATTEMPTS} times ({_reason(error)})") from error
        self._sleep(0.5 * 2**attempt)

    def _call(self, method: str, url: str, thing: str, **options: Any) -> httpx.Response:
        """One small request, tried again when the connection fails or the registry is briefly unable."""
        for attempt in range(ATTEMPTS):
            try:
                answer = self._client.request(method, url, **options)
            except httpx.TransportError as error:
                self._pause(attempt, thing, error)
                continue
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise RegistryError(thing, _reason(error)) from error
            if answer.status_code not in (429, 502, 503, 504) or attempt + 1 >= ATTEMPTS:
                return answer
            self._sleep(0.5 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _expect(self, answer: httpx.Response, thing: str, status: int) -> None:
        if answer.status_code == status:
            return
        if answer.status_code in (401, 403):
            fix = f"Run `docker login {self.registry}` with an account that may do this"
            raise RegistryError(thing, f"the registry does not allow it ({answer.status_code})", fix)
        if answer.status_code == 404:
            raise RegistryError(thing, "the registry does not have it", "Check the name and the tag or digest")
        raise RegistryError(thing, f"the registry answered {answer.status_code}{_said(answer)}")


def _received(state: httpx.Response) -> int:
    """How many bytes of an upload the registry holds: its Range header is 0-LAST."""
    last = state.headers.get("Range", "").removeprefix("bytes=").partition("-")[2]
    return int(last) + 1 if last.isdigit() and last != "0" else 0


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _said(answer: httpx.Response) -> str:
    try:
        first = answer.json()["errors"][0]
        return f" ({first.get('code')}: {first.get('message')})"[:200]
    except (ValueError, LookupError, TypeError, AttributeError, httpx.HTTPError):
        return ""
