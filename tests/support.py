"""Where things lie, for tests."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "djepa_mm"
SHARED = ROOT.parent / "shared"
