"""Questions to a model server on loopback, with urllib3; every one has a deadline."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import urllib3

from wherry.errors import ContractError, InferenceError
from wherry.release import GoldenCase
from wherry.tensors import HEADER_LENGTH, PROBE, Tensor, decode_response, encode_request, tensor_from_golden

_METADATA_LIMIT = 1_048_576


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
        try:
            document = json.loads(body)
        except ValueError as error:
            raise InferenceError(f"model {model}", "answered metadata that is not JSON") from error
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
        headers = {"Content-Type": "application/octet-stream", PROBE: "1"}
        if header_length is not None:
            headers[HEADER_LENGTH] = str(header_length)
        url = f"{base_url}/v2/models/{quote(model, safe='')}/infer"
        began = time.perf_counter()
        status, answer, answered = self._request("POST", url, timeout, self._response_limit, body, headers)
        seconds = time.perf_counter() - began
        _expect_ok(model, f"golden case {case.name!r}", status, answer)
        length = answered.get(HEADER_LENGTH)
        try:
            response = decode_response(answer, int(length) if length else None)
        except (ContractError, ValueError) as error:
            raise InferenceError(f"model {model}", f"golden case {case.name!r}: {error}") from error
        return response.outputs, seconds

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


def _plain(error: Exception) -> str:
    """The cause without urllib3's object addresses."""
    text = str(error)
    return text.rpartition("object at ")[2].partition(">: ")[2] or text if "object at " in text else text


def _expect_ok(model: str, what: str, status: int, body: bytes) -> None:
    if status != 200:
        words = body[:200].decode("utf-8", "replace")
        raise InferenceError(f"model {model}", f"answered {what} with status {status}: {words}")
