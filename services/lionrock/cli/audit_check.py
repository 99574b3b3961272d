"""`lionrock audit check`: every leaf, hash and checkpoint of a store, against keys and checkpoints that the auditor brings.

Runs beside the service or on a store at rest, and changes nothing; what it checks is in `lionrock.audit.store_check`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from lionrock.audit.failures import StoreFailed
from lionrock.audit.findings import Check
from lionrock.audit.signed_checkpoints import read_batches
from lionrock.audit.store.opening import Reader, StoreMisnamed, open_for_reading
from lionrock.audit.store_check import check_store
from lionrock.cli.errors import EXIT_FAILED, EXIT_UNAVAILABLE, EXIT_USAGE, CommandError
from lionrock.cli.receipts import read_keys
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.keys import VerifierKey


def run(
    store: str, signed: Path, keys: Sequence[str], keys_file: Path | None, checkpoints: Sequence[Path], *, as_json: bool
) -> int:
    """Check the store. Returns 0 when nothing is wrong, 1 when something is. Raises CommandError."""
    given = [*keys, *(read_keys(keys_file) if keys_file is not None else [])]
    if not given:
        fix = "give every log's key, the platform's too, with --key or --keys-file"
        raise CommandError("there is no verifier key to check against", fix=fix, exit_code=EXIT_USAGE)
    try:
        parsed = [VerifierKey.parse(key) for key in given]
        trusted = [path.read_text(encoding="utf-8") for path in checkpoints]
    except MalformedNote as error:
        raise CommandError(f"a key is not one: {error}", fix="lionrock audit keys prints them", exit_code=EXIT_USAGE) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError("a checkpoint cannot be read", fix="give files with signed notes", exit_code=EXIT_USAGE) from error
    if not signed.is_file():
        fix = "name signed-checkpoints.jsonl in the key directory of the service"
        raise CommandError(f"there is no file {signed}", fix=fix, exit_code=EXIT_USAGE)
    check = _check(store, signed, parsed, trusted)
    _print(check, as_json=as_json)
    return EXIT_FAILED if check.findings else 0


def _check(store: str, signed: Path, keys: Sequence[VerifierKey], trusted: Sequence[str]) -> Check:
    def second_place() -> list[tuple[str, str]]:
        return [pair for batch in read_batches(signed) for pair in batch.items()]

    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    try:
        with (
            closing(_opened(store)) as reader,
            Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars,
        ):
            task = bars.add_task("checking", total=None)

            def progress(origin: str, leaves: int) -> None:
                bars.update(task, description=f"checking {origin}, {leaves:,} leaves")

            return check_store(reader, keys, second_place, trusted=trusted, on_progress=progress)
    except StoreFailed as error:
        raise CommandError(str(error), exit_code=EXIT_UNAVAILABLE) from error


def _opened(store: str) -> Reader:
    try:
        return open_for_reading(store)
    except StoreMisnamed as error:
        raise CommandError(str(error), fix="name the store that the service's settings name", exit_code=EXIT_USAGE) from error


def _print(check: Check, *, as_json: bool) -> None:
    for finding in check.findings:
        if as_json:
            print(json.dumps({"origin": finding.origin, "flaw": finding.flaw.name, "detail": finding.detail}, ensure_ascii=False))
        else:
            print(f"WRONG  {finding}")
    if check.more:
        print(f"and {check.more} more", file=sys.stderr)
    summary = {"leaves": check.leaves, "findings": len(check.findings) + check.more}
    if as_json:
        print(json.dumps(summary))
    else:
        print(f"{'CHECKED' if not check.findings else 'DAMAGED'}  {check.leaves} leaves read, {summary['findings']} findings")
