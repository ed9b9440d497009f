"""A load generator that never retries: every failed request of a swap shows.

Workers send at a fixed rate, half of them on keep-alive connections, half on a new connection for each
request. A refused connection, a reset, a stale keep-alive, a time-out, an answer other than 200 or a
wrong answer: each counts as failed.
"""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from wherry.tensors import HEADER_LENGTH, Tensor, decode_response, encode_request


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was sent (monotonic seconds), how long it took, what came; on a kept connection or not."""

    at: float
    seconds: float
    problem: str | None
    version: str
    kept: bool = False


@dataclass
class Load:
    """Sends inference requests to a slot until it is stopped.

    Attributes:
        host, port: the slot's stable endpoint.
        model: model name in the path.
        inputs: the request's tensors.
        judge: says what is wrong with an answer's outputs, or None.
        rate: requests a second, all workers together.
        workers: threads; even ones keep their connection.
        patience: seconds that a request may take.
    """

    host: str
    port: int
    model: str
    inputs: list[Tensor]
    judge: Callable[[list[Tensor]], str | None] = lambda _: None
    rate: float = 50.0
    workers: int = 4
    patience: float = 10.0
    answers: list[Answer] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for number in range(self.workers):
            thread = threading.Thread(target=self._work, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    @property
    def sent(self) -> int:
        """Requests that were sent."""
        return len(self.answers)

    @property
    def problems(self) -> list[str]:
        """What went wrong with each failed request."""
        return [answer.problem for answer in self.answers if answer.problem]

    @property
    def versions(self) -> dict[str, int]:
        """Good answers by the model version that gave them."""
        found: dict[str, int] = {}
        for answer in self.answers:
            if not answer.problem:
                found[answer.version] = found.get(answer.version, 0) + 1
        return found

    def longest_gap(self) -> float:
        """The longest time, in seconds, between two good answers arriving."""
        arrivals = sorted(answer.at + answer.seconds for answer in self.answers if not answer.problem)
        return max((later - sooner for sooner, later in itertools.pairwise(arrivals)), default=0.0)

    def percentile(self, share: float, since: float = 0.0, until: float = float("inf")) -> float:
        """A latency percentile of the good answers sent in a window, in seconds."""
        times = sorted(a.seconds for a in self.answers if not a.problem and since <= a.at < until)
        return times[min(len(times) - 1, int(share * len(times)))] if times else 0.0

    def _work(self, number: int) -> None:
        body, header = encode_request(self.inputs)
        headers = {"Content-Type": "application/octet-stream"} | ({HEADER_LENGTH: str(header)} if header else {})
        period = self.workers / self.rate
        due = time.monotonic() + period * number / self.workers
        connection: http.client.HTTPConnection | None = None
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + period, time.monotonic() - period)
            began = time.monotonic()
            problem, version = None, ""
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(self.host, self.port, timeout=self.patience)
                connection.request("POST", f"/v2/models/{self.model}/infer", body, headers)
                reply = connection.getresponse()
                payload = reply.read()
                problem, version = self._read(reply, payload)
                if reply.will_close or number % 2:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
                if connection is not None:
                    connection.close()
                connection = None
            self.answers.append(Answer(began, time.monotonic() - began, problem, version, number % 2 == 0))
        if connection is not None:
            connection.close()

    def _read(self, reply: http.client.HTTPResponse, payload: bytes) -> tuple[str | None, str]:
        if reply.status != 200:
            return f"status {reply.status}: {payload[:200].decode('utf-8', 'replace')}", ""
        length = reply.headers.get(HEADER_LENGTH)
        answer = decode_response(payload, int(length) if length else None)
        return self.judge(list(answer.outputs)), answer.version
