"""Asking a model server and counting: latency, throughput, and the memory of the processes that it takes."""

from __future__ import annotations

import re
import socket
import statistics
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from wherry.errors import InferenceError
from wherry.tensors import HEADER_LENGTH, Tensor, encode_request

_ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Question:
    """One prepared inference request, the same bytes for every way of running.

    Attributes:
        model: its name in the path.
        inputs: its tensors.
    """

    model: str
    inputs: tuple[Tensor, ...]

    def request(self) -> bytes:
        """The request as it goes over the wire, on a connection that is kept."""
        body, length = encode_request(list(self.inputs))
        head = [f"POST /v2/models/{self.model}/infer HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
        if length is not None:
            head.append(f"{HEADER_LENGTH}: {length}")
        return "\r\n".join([*head, "", ""]).encode() + body


class Client:
    """One kept connection that sends the same request again and again.

    Raises:
        OSError: nobody answers there.
    """

    def __init__(self, host: str, port: int, request: bytes, seconds: float = _ANSWER_SECONDS) -> None:
        self._request = request
        self._socket = socket.create_connection((host, port), timeout=seconds)
        self._socket.settimeout(_ANSWER_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> float:
        """Send the request and read the whole answer; the seconds it took.

        Raises:
            InferenceError: the answer was not 200.
            OSError: the connection broke.
        """
        began = time.perf_counter()
        self._socket.sendall(self._request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._receive()
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        while length and len(body) < int(length[1]):
            body += self._receive()
        if not head.startswith(b"HTTP/1.1 200"):
            raise InferenceError("model under test", f"answered {data[:200].decode('utf-8', 'replace')!r}")
        return time.perf_counter() - began

    def _receive(self) -> bytes:
        piece = self._socket.recv(1 << 18)
        if not piece:
            raise ConnectionResetError("the connection was closed in the middle of an answer")
        return piece

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


@dataclass
class Figures:
    """What one way of running cost.

    Attributes:
        starts: seconds from the start command to the first good answer, one each start.
        latencies: seconds an inference took, asked one after the other.
        throughputs: inferences a second over several connections, one each round.
        memory_bytes: proportional share of all processes it takes, after the load.
        disk_bytes: what it occupies on disk.
        first_bytes, next_bytes: transferred for the first version, and for the next version of the model.
    """

    name: str
    note: str = ""
    starts: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    throughputs: list[float] = field(default_factory=list)
    memory_bytes: int = 0
    disk_bytes: int = 0
    first_bytes: int = 0
    next_bytes: int = 0

    @property
    def start(self) -> float:
        """Median start, seconds."""
        return statistics.median(self.starts)

    @property
    def throughput(self) -> float:
        """Median throughput, inferences a second."""
        return statistics.median(self.throughputs)

    def percentile(self, share: float) -> float:
        """A percentile of the latencies, seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def first_answer(host: str, port: int, request: bytes, began: float, deadline: float) -> float:
    """Ask until an answer comes; seconds since `began` (monotonic clock).

    Raises:
        InferenceError: no answer before the deadline.
    """
    problem = "nobody listens"
    while time.monotonic() < deadline:
        try:
            client = Client(host, port, request, seconds=0.25)
            try:
                client.ask()
                return time.monotonic() - began
            finally:
                client.close()
        except (OSError, InferenceError) as error:
            problem = str(error)
            time.sleep(0.005)
    raise InferenceError("model under test", f"gave no answer in time ({problem})")


def throughput(host: str, port: int, request: bytes, connections: int, seconds: float) -> float:
    """Good answers a second over several connections at once.

    Raises:
        InferenceError: a connection or an answer failed.
    """
    counts, problems = [0] * connections, []
    stop = time.monotonic() + seconds

    def ask(number: int) -> None:
        try:
            client = Client(host, port, request)
            while time.monotonic() < stop:
                client.ask()
                counts[number] += 1
            client.close()
        except (OSError, InferenceError) as error:
            problems.append(str(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(connections)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise InferenceError("model under test", f"failed under load ({problems[0]})")
    return sum(counts) / (time.monotonic() - began)


def memory_of(processes: Iterable[int]) -> int:
    """Proportional set size of processes and all their children, bytes."""
    family = set(processes)
    parents = dict(_parents())
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in family} - family
        family |= children
        grown = bool(children)
    return sum(_pss(pid) for pid in family)


def _parents() -> Iterable[tuple[int, int]]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in brackets may hold anything, also spaces and brackets.
            yield int(status.parent.name), int(status.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue


def _pss(pid: int) -> int:
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
