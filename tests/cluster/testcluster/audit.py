"""Reads the API server's audit log: who asked what of which resource, and how often."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. resource: with its subresource, e.g. pods/status. group: "" for core."""

    user: str
    verb: str
    group: str
    resource: str
    namespace: str | None
    name: str | None
    status: int
    """HTTP status of the answer; 0 where the caller left before it."""
    refused_by_rbac: bool
    began: str
    """RFC 3339, microseconds."""


class AuditLog:
    """The log from here on; position 0 is its begin."""

    def __init__(self, path: Path) -> None:
        """Read this file, which need not be there yet."""
        self._path = path

    def position(self) -> int:
        """Return where the log ends now, to read on from later."""
        return self._path.stat().st_size if self._path.exists() else 0

    def since(self, position: int, *, user: str | None = None) -> Iterator[Asked]:
        """Yield the requests after a position, in order of their answers. user: of this one only."""
        if not self._path.exists():
            return
        with self._path.open("rb") as log:
            log.seek(position)
            for line in log:
                if not line.endswith(b"\n"):
                    return  # being written
                event = json.loads(line)
                if event["verb"] == "watch" and event["stage"] == "ResponseComplete":
                    continue  # counted when it began
                asked = _asked(event)
                if user is None or asked.user == user:
                    yield asked

    def count(self, position: int, *, user: str) -> Counter[str]:
        """Count a user's requests after a position by "verb group/resource"."""
        return Counter(
            f"{asked.verb} {asked.group}/{asked.resource}".replace(" /", " ") for asked in self.since(position, user=user)
        )


def _asked(event: dict[str, Any]) -> Asked:
    target = event.get("objectRef") or {}
    answer = event.get("responseStatus") or {}
    notes = event.get("annotations") or {}
    user = event["user"]
    resource = target.get("resource", "")
    return Asked(
        user=str(user["username"]),
        verb=str(event["verb"]),
        group=str(target.get("apiGroup", "")),
        resource=f"{resource}/{target['subresource']}" if "subresource" in target else str(resource),
        namespace=target.get("namespace"),
        name=target.get("name"),
        status=int(answer.get("code", 0)),
        refused_by_rbac=notes.get("authorization.k8s.io/decision") == "forbid",
        began=str(event["requestReceivedTimestamp"]),
    )
