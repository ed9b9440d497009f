"""What the server really exposes at /metrics, and the folder of what is deployed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from wherry_server.api.metrics import METRICS, get_metrics
from wherry_server.app import Bell, cli, make_context
from wherry_server.config import load_config

ROOT = Path(__file__).resolve().parent.parent.parent
_SERIES = {"gauge": ("",), "counter": ("",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="session")
def deploy() -> Path:
    """The folder deploy/."""
    return ROOT / "deploy"


@pytest.fixture(scope="session")
def series(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, set[str]]:
    """Series that a real server exposes, and the labels of each."""
    data = tmp_path_factory.mktemp("metrics") / "server"
    cli(["init", "--data", str(data), "--host", "localhost"], standalone_mode=False)
    context = make_context(load_config(data, {}), Bell())
    text = bytes(get_metrics(context).body).decode()
    context.store.close()
    found: dict[str, set[str]] = {}
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        labels = set(METRICS[name.removesuffix("_total")][1])
        for ending in _SERIES[kind]:
            found[name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    assert len(found) >= len(METRICS)
    return found
