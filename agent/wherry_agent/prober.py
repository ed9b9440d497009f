"""Questions to a model server on loopback, with urllib3; every one has a deadline."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import urllib3

from wherry.errors import ContractError, InferenceError
from wherry.release import GoldenCase
from wherry.tensors import HEADER_LENGTH, PROBE, TOKEN, Tensor, decode_response, encode_request, tensor_from_golden
from wherry_agent.observed import Recorded

_METADATA_LIMIT = 1_048_576
_TENSORS = "application/octet-stream"
_KEPT_SECONDS = 0.25


class HttpProber:
    """Implements `ports.Prober`. Each call makes its own connection: a candidate must accept new ones."""

    def __init__(self, response_limit: int = 256 * 1_048_576) -> None:
        self._response_limit = response_limit

    def ready(self, base_url: str, model: str, timeout: float) -> bool:
        """One question to `v2/models/M/ready`."""
        return self.status(base_url, f"/v2/models/{quote(model, safe='')}/ready", timeout) == 200

    def status(self, base_url: str, path: str, timeout: float) -> int | None:
        """Status code of a GET; None when there is no answer."""
        try:
            return self._request("GET", base_url + path, timeout, _METADATA_LIMIT)[0]
        except InferenceError:
            return None

    def metadata(self, base_url: str, model: str, timeout: float) -> dict[str, Any]:
        """The model's metadata document."""
        name = quote(model, safe="")
        status, body, _ = self._request("GET", f"{base_url}/v2/models/{name}", timeout, _METADATA_LIMIT)
        _expect_ok(model, "metadata", status, body)
        document = _json(model, "metadata", body)
        if not isinstance(document, dict):
            raise InferenceError(f"model {model}", "answered metadata that is not a JSON object")
        return document

    def infer(self, base_url: str, model: str, case: GoldenCase, timeout: float) -> tuple[Sequence[Tensor], float]:
        """Post a case's inputs in binary form; the output tensors and the seconds it took."""
        inputs = [tensor_from_golden(item) for item in case.inputs]
        # A streaming model starts anew for each case: its answer must not depend on who asked before.
        body, header_length = encode_request(
            inputs,
            outputs=[item.name for item in case.outputs],
            binary=True,
            parameters={"sequence_start": True},
        )
        return self._infer(base_url, model, f"golden case {case.name!r}", _TENSORS, body, header_length, timeout)

    def _infer(
        self, base_url: str, model: str, what: str, kind: str, body: bytes, header_length: int | None, timeout: float
    ) -> tuple[Sequence[Tensor], float]:
        headers = {"Content-Type": kind, PROBE: "1"}
        if header_length is not None:
            headers[HEADER_LENGTH] = str(header_length)
        url = f"{base_url}/v2/models/{quote(model, safe='')}/infer"
        began = time.perf_counter()
        status, answer, answered = self._request("POST", url, timeout, self._response_limit, body, headers)
        seconds = time.perf_counter() - began
        _expect_ok(model, what, status, answer)
        length = answered.get(HEADER_LENGTH)
        return _outputs(model, what, answer, int(length) if length else None), seconds

    def keeps_connection(self, port: int, timeout: float) -> bool:
        """A proxy of the engine may take any connection, and closes it at once when nobody listens behind it."""
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
                connection.settimeout(_KEPT_SECONDS)
                try:
                    return bool(connection.recv(1))
                except TimeoutError:
                    return True
        except OSError:
            return False

    def stats(self, base_url: str, model: str, timeout: float) -> Any:
        """The model's statistics document."""
        url = f"{base_url}/v2/models/{quote(model, safe='')}/stats"
        status, body, _ = self._request("GET", url, timeout, _METADATA_LIMIT)
        _expect_ok(model, "statistics", status, body)
        return _json(model, "statistics", body)

    def recent(self, base_url: str, token: str, model: str, timeout: float) -> Sequence[int]:
        """Numbers of the latest requests that the server keeps of a model, oldest first."""
        if not token:
            return []
        status, body, _ = self._request(
            "GET", f"{base_url}/wherry/recent", timeout, _METADATA_LIMIT, headers={TOKEN: token}
        )
        if status == 404:
            return []
        _expect_ok(model, "what it was asked lately", status, body)
        try:
            return [int(number) for number, name, _ in _json(model, "recent requests", body)["recent"] if name == model]
        except (TypeError, ValueError, KeyError) as error:
            raise InferenceError(f"model {model}", "answered recent requests that are not readable") from error

    def recorded(self, base_url: str, token: str, number: int, timeout: float) -> Recorded | None:
        """One of them; None when it has given way."""
        url = f"{base_url}/wherry/recent/{number}"
        status, body, _ = self._request("GET", url, timeout, self._response_limit, headers={TOKEN: token})
        if status == 404:
            return None
        what = f"recent request {number}"
        _expect_ok("on this device", what, status, body)
        line, _, rest = body.partition(b"\n")
        try:
            head = json.loads(line)
            cut = int(head["request_bytes"])
            request, form, header = rest[:cut], str(head["form"]), head["request_header"]
            outputs = _outputs(str(head["model"]), what, rest[cut:], head["answer_header"])
        except (TypeError, ValueError, KeyError) as error:
            raise InferenceError(what, "is not readable") from error
        return Recorded(number, form, request, header, outputs)

    def replay(self, base_url: str, model: str, recorded: Recorded, timeout: float) -> tuple[Sequence[Tensor], float]:
        """Ask it again, as it came."""
        kind = "image/jpeg" if recorded.form == "picture" else _TENSORS  # the server looks at the bytes
        what = f"recent request {recorded.number}"
        return self._infer(base_url, model, what, kind, recorded.request, recorded.request_header, timeout)

    def _request(
        self,
        method: str,
        url: str,
        timeout: float,
        limit: int,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes, Any]:
        """One request on a connection of its own: status, body and headers.

        Raises:
            InferenceError: no answer in time, or an endless one.
        """
        deadline = time.monotonic() + timeout
        try:
            with urllib3.PoolManager(num_pools=1, retries=False) as pool:
                response = pool.request(
                    method, url, body=body, headers={"Connection": "close", **(headers or {})},
                    timeout=urllib3.Timeout(total=timeout), preload_content=False, redirect=False,
                )  # fmt: skip
                body_parts, size = [], 0
                while part := response.read1(65536):  # what has arrived: a dripping body must not outlast the deadline
                    size += len(part)
                    if size > limit or time.monotonic() > deadline:
                        raise InferenceError(f"{method} {url}", f"answered more than {limit} bytes or too slowly")
                    body_parts.append(part)
                return response.status, b"".join(body_parts), response.headers
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise InferenceError(f"{method} {url}", f"no answer ({_plain(error)})") from error


def _json(model: str, what: str, body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise InferenceError(f"model {model}", f"answered {what} that is not JSON") from error


def _outputs(model: str, what: str, body: bytes, header_length: int | None) -> Sequence[Tensor]:
    try:
        return decode_response(body, header_length).outputs
    except (ContractError, ValueError) as error:
        raise InferenceError(f"model {model}", f"{what}: {error}") from error


def _plain(error: Exception) -> str:
    """The cause without urllib3's object addresses."""
    text = str(error)
    return text.rpartition("object at ")[2].partition(">: ")[2] or text if "object at " in text else text


def _expect_ok(model: str, what: str, status: int, body: bytes) -> None:
    if status != 200:
        words = body[:200].decode("utf-8", "replace")
        raise InferenceError(f"model {model}", f"answered {what} with status {status}: {words}")
