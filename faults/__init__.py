"""The fault sweep: every row of the fault catalogue, injected into real daemons. `make faults` runs it."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
