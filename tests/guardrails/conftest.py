"""The shipped policy, and a small one whose rules overlap on purpose. Makes the helpers beside this file importable by name."""

import sys
from pathlib import Path

import pytest

from lionrock.guardrails.policy import DEFAULT_PROFILE, Policy, load_policies, parse_policy

sys.path.insert(0, str(Path(__file__).parent))

from small_policies import OVERLAPPING


@pytest.fixture(scope="session")
def policy() -> Policy:
    """The shipped default."""
    return load_policies(None)[DEFAULT_PROFILE]


@pytest.fixture(scope="session")
def overlapping() -> Policy:
    """Rules that overlap and block."""
    return parse_policy(OVERLAPPING, "overlapping.yaml")
