"""Makes the helpers beside this file importable by name: `from mesh_ca import DevCa`, `from models import smollm2_path`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the model tests run on an accelerator."""
    parser.addoption("--device", default="cpu", help="torch device for tests/model, e.g. cuda")
