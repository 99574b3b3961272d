"""Makes this directory's helpers and the small checkpoints of the model tests importable by name."""

from __future__ import annotations

import sys
from pathlib import Path

for directory in (Path(__file__).parent, Path(__file__).parent.parent / "model"):
    sys.path.insert(0, str(directory))
