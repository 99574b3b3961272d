"""Typed look-ups in the plain dicts of the API, which name the field that is missing or wrong.

The API server checks custom resources by their definition, but one that was stored before the definition changed may not match it.
Does not know what the fields mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from lionrock.operator.quantities import QuantityError, parse_bytes

_MAX_COUNT: Final = 1 << 62


class Malformed(Exception):
    """An object's field is missing or has a value that it cannot have. The text names the field by its path."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping within an object, and where it is. Every look-up raises Malformed; null counts as absent."""

    path: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, value: object, path: str) -> Fields:
        """Fields of that value, which must be a mapping."""
        if not isinstance(value, Mapping):
            raise Malformed(f"{path} is not an object")
        return cls(path, value)

    def at(self, key: str) -> str:
        """Path of a field, for messages."""
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        """Whether the field is there."""
        return self.values.get(key) is not None

    def under(self, key: str) -> Fields:
        """Fields of an object within this one; an absent one is empty."""
        value = self.values.get(key)
        return Fields(self.at(key), {}) if value is None else Fields.of(value, self.at(key))

    def each(self, key: str) -> list[Fields]:
        """Fields of every object of a list; an absent list is empty."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise Malformed(f"{self.at(key)} is not a list")
        return [Fields.of(item, f"{self.at(key)}[{index}]") for index, item in enumerate(value)]

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string; without a default it must be there."""
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise Malformed(f"{self.at(key)} is missing")
        if not isinstance(value, str):
            raise Malformed(f"{self.at(key)} is not a string")
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a string, or None where it is absent."""
        return self.text(key) if self.has(key) else None

    def one_of(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        """Return a string out of those allowed."""
        value = self.text(key, default)
        if value not in allowed:
            raise Malformed(f"{self.at(key)} is {value!r}, not one of {', '.join(allowed)}")
        return value

    def count(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        """Return an integer that is not below `least`."""
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise Malformed(f"{self.at(key)} is missing")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MAX_COUNT:
            raise Malformed(f"{self.at(key)} is not an integer of at least {least}")
        return value

    def optional_count(self, key: str, *, least: int = 0) -> int | None:
        """Return an integer, or None where it is absent."""
        return self.count(key, least=least) if self.has(key) else None

    def flag(self, key: str) -> bool:
        """Return a boolean; absent is False."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise Malformed(f"{self.at(key)} is not a boolean")
        return bool(value)

    def texts(self, key: str) -> dict[str, str]:
        """Strings by name, as labels are; an absent one is empty."""
        values = self.under(key).values
        if not all(isinstance(value, str) for value in values.values()):
            raise Malformed(f"{self.at(key)} has a value that is not a string")
        return dict(values)

    def optional_bytes(self, key: str) -> int | None:
        """Return a quantity of bytes, for example 64Gi, or None where it is absent."""
        value = self.values.get(key)
        if value is None:
            return None
        try:
            return parse_bytes(value)
        except QuantityError as error:
            raise Malformed(f"{self.at(key)}: {error}") from None

    def optional_time(self, key: str) -> datetime | None:
        """Return an RFC 3339 time, or None where it is absent."""
        text = self.optional_text(key)
        if text is None:
            return None
        try:
            value = datetime.fromisoformat(text)
        except ValueError:
            raise Malformed(f"{self.at(key)} is not a time of RFC 3339") from None
        return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
