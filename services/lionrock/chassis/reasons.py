"""The table of all reasons that a call can fail with, made from the code. `python -m lionrock.chassis.reasons` prints it.

Imports `lionrock.<room>.errors` of every room that has one; these modules hold error classes and import nothing heavy.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import lionrock
from lionrock.chassis.errors import MeshError


@dataclass(frozen=True, slots=True, order=True)
class Reason:
    """One row: the reason of ErrorInfo, the gRPC status that it comes with, the room that declares it, and what it means."""

    reason: str
    status: str
    room: str
    meaning: str


def _subclasses(base: type[MeshError]) -> Iterator[type[MeshError]]:
    for subclass in base.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _import_errors() -> None:
    for room in pkgutil.iter_modules(lionrock.__path__, "lionrock."):
        if room.ispkg and importlib.util.find_spec(f"{room.name}.errors") is not None:
            importlib.import_module(f"{room.name}.errors")


def all_reasons() -> list[Reason]:
    """Import all rooms' errors and return their reasons, the chassis' first. Raises ValueError for one without a meaning."""
    _import_errors()
    found: set[Reason] = set()
    for error in _subclasses(MeshError):
        package, _, module = error.__module__.partition(".")
        if package != "lionrock" or "reason" not in vars(error):
            continue
        room = module.partition(".")[0]
        meaning = (inspect.cleandoc(vars(error).get("__doc__") or "")).partition("\n")[0]
        if not meaning:
            raise ValueError(f"{error.__module__}.{error.__qualname__} has no docstring")
        found.add(Reason(error.reason, error.status.name, room, meaning))
    return sorted(found, key=lambda reason: (reason.room != "chassis", reason.room, reason.reason, reason.status))


def markdown_table(reasons: Iterable[Reason]) -> str:
    """Write reasons as a Markdown table, with a line end after each row."""
    rows = ["| Reason | Status | From | Meaning |", "|---|---|---|---|"]
    for row in reasons:
        meaning = row.meaning.replace("|", "\\|")
        rows.append(f"| `{row.reason}` | `{row.status}` | {row.room} | {meaning} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(markdown_table(all_reasons()), end="")
