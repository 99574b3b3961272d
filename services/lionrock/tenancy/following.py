"""Follows a directory of Tenant files: what is new is taken over, what is no good is refused by name, what it said before stays.

A service reads off its event loop (`read`, which takes as long as the files are large) and takes over on it (`settle`). Whether
tenants fit together and into the service, the service says. A mounted ConfigMap changes by a swap of symbolic links, so what is
watched is the files that the names lead to; they are looked at, not waited for with inotify, which not every file system has.
Write a file beside its place and rename it, so that nobody ever reads half of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lionrock.tenancy.documents import MAX_BYTES, TenantsInvalid, parse_tenants
from lionrock.tenancy.spec import TenantResource

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILES = 4096

Tenants = tuple[TenantResource, ...]
Accept = Callable[[Sequence[TenantResource]], None]
"""Takes over all tenants at once. Raises ValueError, and has changed nothing then, when they do not fit together."""
_Signature = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A file that is not followed, and why; None: the directory itself."""

    file: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What has changed since the last reading."""

    tenants: Mapping[str, Tenants] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    gone: frozenset[str] = frozenset()

    @property
    def changed(self) -> bool:
        """Whether there is anything to settle."""
        return bool(self.tenants or self.refused or self.gone)


class TenantFiles:
    """One directory. `read` and `settle` alternate; they may run in different threads, never at the same time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: dict[str, _Signature] = {}
        self._followed: dict[str, Tenants] = {}
        self._waiting: dict[str, Tenants] = {}
        """Good files that did not fit to the others; tried again when anything changes."""
        self._unreadable = False

    @property
    def by_file(self) -> Mapping[str, Tenants]:
        """All tenants that are followed, by file."""
        return dict(self._followed)

    def start(self, accept: Accept) -> Sequence[Refusal]:
        """Read everything for the first time. Returns what is refused. Raises OSError for a directory that cannot be read."""
        os.listdir(self._directory)
        return self.settle(self.read(), accept)

    def read(self) -> Reading:
        """Read what has changed."""
        try:
            present = self._signatures()
        except OSError as error:
            told, self._unreadable = self._unreadable, True
            why = error.strerror or "it cannot be read"
            return Reading() if told else Reading(refused=(Refusal(None, why),))
        self._unreadable = False
        tenants: dict[str, Tenants] = {}
        refused: list[Refusal] = []
        for name, signature in present.items():
            if self._seen.get(name) == signature:
                continue
            self._seen[name] = signature
            try:
                tenants[name] = parse_tenants(self._content(name))
            except TenantsInvalid as invalid:
                refused.append(Refusal(name, str(invalid)))
            except FileNotFoundError:
                del self._seen[name]  # gone while we looked: the next look settles it
            except OSError as error:
                refused.append(Refusal(name, error.strerror or "it cannot be read"))
        gone = frozenset(self._seen.keys() - present.keys())
        for name in gone:
            del self._seen[name]
        return Reading(tenants, tuple(refused), gone)

    def settle(self, reading: Reading, accept: Accept) -> Sequence[Refusal]:
        """Take over what was read, as far as it fits. Returns what is refused, read or not."""
        if not reading.changed:
            return ()
        refused = list(reading.refused)
        kept = {name: tenants for name, tenants in self._followed.items() if name not in reading.gone}
        # A file that is no good any more is not what waits under its name either.
        bad = {refusal.file for refusal in reading.refused}
        waiting = {name: each for name, each in self._waiting.items() if name not in bad | reading.gone} | dict(reading.tenants)
        if not waiting and kept == self._followed:
            self._waiting = waiting
            return refused
        if self._accepted({**kept, **waiting}, accept) is None:
            self._waiting = {}
            return refused
        # One of them does not fit. What is gone is gone; the rest comes by halves, as often as that helps.
        if kept != self._followed and (why := self._accepted(kept, accept)):
            return [*refused, Refusal(None, why)]
        self._waiting = waiting
        while True:
            before = len(self._waiting)
            reasons = dict(self._added(sorted(self._waiting), accept))
            if len(self._waiting) == before:
                return [*refused, *(Refusal(name, reasons[name]) for name in sorted(reasons))]

    def _added(self, names: Sequence[str], accept: Accept) -> Iterator[tuple[str, str]]:
        """Follow these waiting files, by halves where one of them does not fit. Yields whose turn it is not, and why."""
        if not names:
            return
        why = self._accepted({**self._followed, **{name: self._waiting[name] for name in names}}, accept)
        if why is None:
            for name in names:
                del self._waiting[name]
        elif len(names) == 1:
            yield names[0], why
        else:
            yield from self._added(names[: len(names) // 2], accept)
            yield from self._added(names[len(names) // 2 :], accept)

    def _accepted(self, files: Mapping[str, Tenants], accept: Accept) -> str | None:
        """Follow these files, or say why not."""
        try:
            accept([tenant for name in sorted(files) for tenant in files[name]])
        except ValueError as error:
            return str(error)
        self._followed = dict(files)
        return None

    def _signatures(self) -> dict[str, _Signature]:
        found: dict[str, _Signature] = {}
        with os.scandir(self._directory) as entries:
            for entry in entries:
                # A hidden name is a mounted ConfigMap's own, or a file that is being written.
                if entry.name.startswith(".") or not entry.name.endswith(SUFFIXES):
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                found[entry.name] = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
                if len(found) > MAX_FILES:
                    raise OSError(0, f"it holds more than {MAX_FILES} files")
        return found

    def _content(self, name: str) -> bytes:
        with (self._directory / name).open("rb") as file:
            return file.read(MAX_BYTES + 1)
