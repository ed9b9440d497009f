"""Puts the fakes of this room where its tests can import them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from agent_fakes import Device


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """An agent on a pretended device, with three good releases to choose from."""
    device = Device(tmp_path)
    for key in ("1", "2", "3"):
        device.release(key)
    return device
