"""Objects by something that they have in common, kept up to date one object at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

Group = TypeVar("Group")
Key = TypeVar("Key", bound=tuple[str, ...])
Value = TypeVar("Value")


class Grouped(Generic[Group, Key, Value]):
    """Values by group and key. A key is in one group at most; groups without values do not exist."""

    def __init__(self) -> None:
        self._groups: dict[Group, dict[Key, Value]] = {}

    def of(self, group: Group) -> Mapping[Key, Value]:
        """Values of a group by key. Not to be changed."""
        return self._groups.get(group) or {}

    def sorted(self, group: Group) -> list[Value]:
        """Values of a group, in the order of their keys."""
        values = self._groups.get(group, {})
        return [values[key] for key in sorted(values)]

    def put(self, before: Group | None, after: Group | None, key: Key, value: Value) -> None:
        """Put a value into the group `after`, and out of the group `before` where that is another; None: no group."""
        if before is not None and before != after:
            group = self._groups[before]
            del group[key]
            if not group:
                del self._groups[before]
        if after is not None:
            self._groups.setdefault(after, {})[key] = value
