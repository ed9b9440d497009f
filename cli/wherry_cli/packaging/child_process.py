"""Work on a model in a process of its own: a file that crashes its runtime must not take the operator's tool along.

The child reads its order as JSON from stdin and writes its findings, or a `Failure`, as JSON to stdout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel

from wherry.errors import BuildError, ConfigError, InputError, ModelError, WherryError

_RAISED: dict[str, type[WherryError]] = {kind.code: kind for kind in (BuildError, ConfigError, InputError, ModelError)}
Asked = TypeVar("Asked", bound=BaseModel)
Found = TypeVar("Found", bound=BaseModel)


class Failure(BaseModel):
    """An error of the child, for the one that started it."""

    failed: str
    thing: str
    reason: str
    fix: str


def ask_child(module: str, order: BaseModel, findings: type[Found], thing: str, seconds: int, slow: str) -> Found:
    """Run `python -m module` on an order.

    Args:
        module: has a `main` that calls `answer_parent`.
        order: what to do.
        findings: what comes back.
        thing: for errors, as "model a.onnx".
        seconds: how long it may take.
        slow: reason and way out, when it takes longer: "REASON|FIX".

    Raises:
        ModelError: the child crashed or gave no answer, or found the model unusable.
        InputError, ConfigError, BuildError: as the child found.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=order.model_dump_json().encode(),
            capture_output=True,
            # Quantizers walk sets of names: another order would be another digest.
            env=os.environ | {"PYTHONHASHSEED": "0"},
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        reason, _, fix = slow.partition("|")
        raise ModelError(thing, f"{reason} within {seconds} s", fix or None) from error
    if done.returncode < 0:
        reason = f"made its runtime crash ({signal.Signals(-done.returncode).name})"
        raise ModelError(thing, reason, "Check the file; with --shape the inputs may be too large") from None
    reply = _parse(done.stdout, findings)
    if isinstance(reply, Failure):
        raise _RAISED.get(reply.failed, InputError)(reply.thing, reply.reason, reply.fix)
    if reply is None:
        raise ModelError(thing, f"could not be run: {_last_line(done.stderr)}")
    return reply


def _parse(output: bytes, findings: type[Found]) -> Found | Failure | None:
    try:
        document = json.loads(output)
    except ValueError:
        return None
    return Failure.model_validate(document) if "failed" in document else findings.model_validate(document)


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def answer_parent(asked: type[Asked], work: Callable[[Asked], BaseModel]) -> int:
    """Entry of a child process: read the order, do the work, answer."""
    order = asked.model_validate_json(sys.stdin.buffer.read())
    # Runtimes print to stdout too: the answer gets the real one, they get stderr.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        reply: Any = work(order)
    except WherryError as error:
        known = next((code for code, kind in _RAISED.items() if type(error) is kind), InputError.code)
        reply = Failure(failed=known, thing=error.thing, reason=error.reason, fix=error.fix)
    with answer:
        answer.write(reply.model_dump_json(by_alias=True))
    return 0
