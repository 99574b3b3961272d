"""Makes this directory's helpers, those of the audit tests and the small checkpoints of the model tests importable by name."""

from __future__ import annotations

import sys
from pathlib import Path

for directory in (Path(__file__).parent, Path(__file__).parent.parent / "model", Path(__file__).parent.parent / "audit"):
    sys.path.insert(0, str(directory))
