"""`lionrock audit migrate`: opens both stores, moves all logs, shows how far it is."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lionrock.audit.failures import AuditError, StoreHeld
from lionrock.audit.moving import move_logs
from lionrock.audit.store.opening import open_named
from lionrock.cli.errors import CommandError


def migrate(source: str, target: str) -> int:
    """Move every log. Prints one line a log: its origin and size. Raises CommandError."""
    kind, _, path = source.partition(":")
    if kind == "sqlite" and not Path(path).is_file():
        raise CommandError(f"there is no store {path}", fix="name the file that store_file names in the service's settings")
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("leaves"), TimeRemainingColumn())
    try:
        with (
            closing(open_named(source)) as old,
            closing(open_named(target)) as new,
            Progress(*columns, console=console, disable=not console.is_terminal) as bars,
        ):
            tasks = {log.origin: bars.add_task(log.origin, total=log.size) for log in old.logs()}
            moved = move_logs(old, new, lambda origin, done, total: bars.update(tasks[origin], completed=done, total=total))
    except StoreHeld as error:
        raise CommandError(str(error), fix="stop the audit service, then move its logs") from error
    except AuditError as error:
        raise CommandError(str(error)) from error
    for log in moved:
        print(f"{log.origin}  {log.size} leaves")
    return 0
