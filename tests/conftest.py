"""Makes the helpers beside this file importable by name: `from mesh_ca import DevCa`, `from models import smollm2_path`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
