"""Typed look-ups in a model's metadata that name the missing or mistyped key; shared by the readers of GGUF and `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lionrock.inference.model.config import MAX_SIZE
from lionrock.inference.model.errors import MalformedWeights

_MAX_INTEGER = 1 << 62


@dataclass(frozen=True, slots=True)
class Reader:
    """Values of one document. prefix: of every key."""

    values: Mapping[str, Any]
    where: str
    prefix: str = ""

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """Look up an integer; absent and null give the default. Raises MalformedWeights."""
        value = self.values.get(self.prefix + key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < _MAX_INTEGER:
            raise MalformedWeights(f"{self.where}: {self.prefix}{key} is missing or no integer of at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Look up a positive number; absent and null give the default. Raises MalformedWeights."""
        value = self.values.get(self.prefix + key)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e12:
            raise MalformedWeights(f"{self.where}: {self.prefix}{key} is missing or no positive number")
        return float(value)

    def optional_size(self, key: str) -> int | None:
        """Look up an integer that may be absent or null."""
        return None if self.values.get(self.prefix + key) is None else self.size(key)

    def optional_number(self, key: str) -> float | None:
        """Look up a positive number; absent, null and zero give None."""
        value = self.values.get(self.prefix + key)
        return None if value is None or (value == 0 and not isinstance(value, bool)) else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        """Look up a truth value; absent and null give the default."""
        value = self.values.get(self.prefix + key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise MalformedWeights(f"{self.where}: {self.prefix}{key} is neither true nor false")
        return value


def token_ids(value: object) -> frozenset[int]:
    """Read one token id, a list of them, or none. Raises MalformedWeights."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token_id, int) and 0 <= token_id < MAX_SIZE for token_id in ids):
        raise MalformedWeights("end-of-sequence token ids are not token ids")
    return frozenset(ids)
