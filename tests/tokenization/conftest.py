"""The four real tokenizers as fixtures."""

from __future__ import annotations

import pytest

from models import Unavailable
from real_tokenizers import NAMES, Served, served


@pytest.fixture(params=NAMES, scope="session")
def real(request: pytest.FixtureRequest) -> Served:
    """Each of the four."""
    try:
        return served(request.param)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def smollm2() -> Served:
    """The one that needs nothing but the Python registry."""
    return served("smollm2")
