"""The arithmetic of the benchmarks, imported from bench/ as its own programs do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def swap_figures() -> ModuleType:
    """bench/swap_figures.py."""
    before = list(sys.path)
    sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "scripts")]
    try:
        return importlib.import_module("swap_figures")
    finally:
        sys.path[:] = before
