"""`lionrock audit erase, hold, correct, refusals`: what changes records, or the log book. Each is a leaf before it is done."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from lionrock.audit.v1 import records_pb2 as rec
from lionrock.cli.audit_door import Where, confirmed, open_door, scope_of, shown_time
from lionrock.cli.audit_reading import print_fields, print_json
from lionrock.cli.errors import EXIT_USAGE, CommandError
from lionrock.cli.state import write_atomically

REFUSED: Final[Mapping[str, rec.RefusedRequest.ValueType]] = {
    "access": rec.REFUSED_REQUEST_ACCESS,
    "correction": rec.REFUSED_REQUEST_CORRECTION,
    "erasure": rec.REFUSED_REQUEST_ERASURE,
}


def erase(
    where: Where,
    subject: str,
    case: str,
    request: str,
    basis: str,
    *,
    partial: bool,
    yes: bool,
    receipt: Path | None,
    as_json: bool,
) -> int:
    """Destroy keys and salts of records for ever, and keep the proof of it."""
    scope = scope_of(subject, case, request)
    kind = scope.WhichOneof("scope") or ""
    confirmed(f"Erase everything kept of {kind.removesuffix('_id')} {getattr(scope, kind)}, for ever?", yes=yes)
    with open_door(where) as door:
        asked = rec.EraseSubjectRequest(scope=scope, basis=basis, allow_partial=partial)
        erased = door.records.EraseSubject(asked, timeout=door.timeout_s)
    index = erased.receipt.position.leaf_index
    path = receipt or where.state.receipts / f"erasure-{index}.tlog-proof"
    write_atomically(path, erased.receipt.tlog_proof)
    fields = {"erased_records": erased.erased_records, "kept_records": dict(erased.kept_records), "leaf_index": index}
    print_fields({**fields, "receipt": str(path), "scope_salt": erased.scope_salt.hex()}, as_json=as_json)
    print("the salt shows whom the leaf concerns and is kept nowhere: give it to nobody but them", file=sys.stderr)
    return 0


def place_hold(where: Where, subject: str, case: str, request: str, reason: str, *, as_json: bool) -> int:
    """Keep records from erasure and expiry."""
    with open_door(where) as door:
        asked = rec.PlaceHoldRequest(scope=scope_of(subject, case, request), reason=reason)
        placed = door.records.PlaceHold(asked, timeout=door.timeout_s)
    print_fields({"hold_id": placed.hold_id, "leaf_index": placed.position.leaf_index}, as_json=as_json)
    return 0


def release_hold(where: Where, hold_id: str, *, yes: bool, as_json: bool) -> int:
    """End a hold."""
    confirmed(f"Release the hold {hold_id}? What it kept may then be erased, and expires.", yes=yes)
    with open_door(where) as door:
        released = door.records.ReleaseHold(rec.ReleaseHoldRequest(hold_id=hold_id), timeout=door.timeout_s)
    print_fields({"leaf_index": released.position.leaf_index}, as_json=as_json)
    return 0


def list_holds(where: Where, *, as_json: bool) -> int:
    """List the holds in force."""
    with open_door(where) as door:
        holds = list(door.records.ListHolds(rec.ListHoldsRequest(), timeout=door.timeout_s))
    table = Table("Hold", "Keeps", "Why", "Since", "By", "Leaf", box=None)
    for hold in holds:
        kind = hold.scope.WhichOneof("scope") or ""
        kept: dict[str, str] = {kind: getattr(hold.scope, kind)}
        if as_json:
            fields = {"hold_id": hold.hold_id, **kept, "reason": hold.reason, "placed_at": shown_time(hold.placed_at)}
            print_json({**fields, "placed_by": hold.placed_by, "leaf_index": hold.leaf_index})
        else:
            names = (hold.hold_id, f"{kind.removesuffix('_id')} {kept[kind]}", hold.reason, shown_time(hold.placed_at))
            table.add_row(*names, hold.placed_by, str(hold.leaf_index))
    if not as_json:
        Console(highlight=False, markup=False, soft_wrap=True).print(table if holds else "no holds")
    return 0


def correct(where: Where, request_id: str, statement: str | None, *, as_json: bool) -> int:
    """Add what a data subject says is right to a record."""
    with open_door(where) as door:
        asked = rec.CorrectRecordRequest(request_id=request_id, statement=_text(statement, "statement"))
        entered = door.records.CorrectRecord(asked, timeout=door.timeout_s)
    print_fields({"leaf_index": entered.position.leaf_index}, as_json=as_json)
    return 0


def add_refusal(where: Where, refused: str, subject: str, ground: str, particulars: str | None, *, as_json: bool) -> int:
    """Enter a refused data request into the log book."""
    if refused not in REFUSED:
        fix = f"one of {', '.join(REFUSED)}"
        raise CommandError(f"{refused!r} is no request that can be refused", fix=fix, exit_code=EXIT_USAGE)
    with open_door(where) as door:
        asked = rec.LogRefusalRequest(
            request=REFUSED[refused],
            subject_id=subject,
            ground=ground,
            particulars=_text(particulars, "particulars"),
        )
        entered = door.records.LogRefusal(asked, timeout=door.timeout_s)
    print_fields({"leaf_index": entered.position.leaf_index}, as_json=as_json)
    return 0


def list_refusals(where: Where, limit: int, *, as_json: bool) -> int:
    """Read the log book, newest first."""
    names = {number: name for name, number in REFUSED.items()}
    with open_door(where) as door:
        entries = list(door.records.ListRefusals(rec.ListRefusalsRequest(limit=limit), timeout=door.timeout_s))
    for entry in entries:
        fields = {
            "entered_at": shown_time(entry.entered_at),
            "request": names.get(entry.request, "?"),
            "subject_id": entry.subject_id,
            "ground": entry.ground,
            "particulars": entry.particulars,
            "actor": entry.actor,
            "leaf_index": entry.leaf_index,
        }
        print_fields(fields, as_json=as_json)
        if not as_json:
            print()
    return 0


def _text(given: str | None, what: str) -> str:
    """Return what the command line gave, else standard input. Raises CommandError."""
    try:
        text = given if given is not None else sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError:
        raise CommandError("standard input is not UTF-8", fix="iconv -t utf-8 converts it", exit_code=EXIT_USAGE) from None
    if not text:
        raise CommandError(f"there is no {what}", fix="give it as an argument, or on standard input", exit_code=EXIT_USAGE)
    return text
