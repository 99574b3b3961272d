"""Makes the helpers beside this file importable by name: `from simulated_cluster import SimulatedCluster`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
