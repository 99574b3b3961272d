"""Makes the helpers beside this file importable by name; one compute thread, because the machine is shared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from models import smollm2_path

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Put the models of these tests on the device that was asked for."""
    import small_models

    small_models.DEVICE = config.getoption("--device")
    if small_models.DEVICE == "lion":
        import lion_device  # noqa: F401  # registers it


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of the real model."""
    return smollm2_path()
