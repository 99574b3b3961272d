"""Makes the helpers of this room importable: `audit_harness`, `rfc6962_reference`, `kill_rounds`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from audit_harness import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Directories of a store and its keys; nothing is open yet."""
    return Place(tmp_path)


@pytest.fixture
async def logs(place: Place) -> AsyncIterator[object]:
    """Open logs of the tenants "bank" and "broker"."""
    async with place.open() as opened:
        yield opened
