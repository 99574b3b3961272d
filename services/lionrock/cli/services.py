"""`lionrock SERVICE …` becomes `python -m lionrock.SERVICE …`, whose --help lists its settings."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lionrock.cli.errors import MissingExtra


def run_service(service: str, arguments: Sequence[str]) -> NoReturn:
    """Become the service's process. Raises MissingExtra."""
    if importlib.util.find_spec(f"lionrock.{service}.__main__") is None:
        raise MissingExtra(f"lionrock.{service}", service)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", f"lionrock.{service}", *arguments])  # noqa: S606
