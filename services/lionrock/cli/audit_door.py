"""How the commands of `lionrock audit` reach the audit service: through the gateway's door, as the owner of a certificate.

Knows: which gateway, whose certificate, deadlines; how times and scopes are written on a command line. Does not know: what a
command asks. Failed calls are CommandErrors when `open_door`'s block ends.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from lionrock.audit.v1.audit_pb2_grpc import AuditServiceStub
from lionrock.audit.v1.records_pb2 import RecordScope
from lionrock.audit.v1.records_pb2_grpc import RecordsServiceStub
from lionrock.cli.call_errors import calls_explained
from lionrock.cli.chat import Door, connection
from lionrock.cli.errors import EXIT_USAGE, CommandError
from lionrock.cli.state import StateDir


@dataclass(frozen=True, slots=True)
class Where:
    """Which mesh, as whom, and how long a call may take."""

    state_dir: Path | None = None
    door: Door = field(default_factory=Door)
    timeout_s: float = 30.0

    @property
    def state(self) -> StateDir:
        """State directory of this user."""
        return StateDir.at(self.state_dir)


@dataclass(frozen=True, slots=True)
class AuditDoor:
    """The two services behind the gateway. `timeout_s`: deadline of each call."""

    audit: AuditServiceStub
    records: RecordsServiceStub
    timeout_s: float


@contextmanager
def open_door(where: Where) -> Iterator[AuditDoor]:
    """Connect. Raises MeshNotRunning, CommandError."""
    opened = connection(where.state, where.door)
    try:
        with opened.channel() as channel, calls_explained():
            yield AuditDoor(AuditServiceStub(channel), RecordsServiceStub(channel), where.timeout_s)
    finally:
        opened.close()


def scope_of(subject: str, case: str, request: str) -> RecordScope:
    """Read --subject, --case and --request, of which one must be given. Raises CommandError."""
    given = {"subject_id": subject, "case_id": case, "request_id": request}
    named = {name: value for name, value in given.items() if value}
    if len(named) != 1:
        raise CommandError("whom or what?", fix="give one of --subject, --case and --request", exit_code=EXIT_USAGE)
    return RecordScope(**named)


def timestamp_of(text: str, option: str) -> Timestamp | None:
    """Read a day or a time in ISO 8601; without a zone it is UTC. Empty: None. Raises CommandError."""
    if not text:
        return None
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        fix = f"{option} 2026-11-01, or {option} 2026-11-01T09:00:00+08:00"
        raise CommandError(f"{text!r} is no time", fix=fix, exit_code=EXIT_USAGE) from None
    value = Timestamp()
    value.FromDatetime(read.astimezone(UTC) if read.tzinfo is not None else read)
    return value


def shown_time(value: Timestamp) -> str:
    """Write a time in ISO 8601, UTC."""
    return value.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def confirmed(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone. Raises CommandError unless the answer is yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError("nobody is there to confirm this", fix="say --yes when you are sure", exit_code=EXIT_USAGE)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was changed", exit_code=EXIT_USAGE)
