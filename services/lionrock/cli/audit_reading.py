"""`lionrock audit tail, show, search, stats, keys, prove`: what reads. Each reading of records is itself a leaf of the log.

JSON is one object a line. What comes from a log is shown without control characters on a terminal.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import grpc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.v1 import records_pb2 as rec
from lionrock.chassis.errors import remote_error
from lionrock.cli.audit_door import AuditDoor, Where, open_door, scope_of, shown_time
from lionrock.cli.errors import EXIT_USAGE, CommandError
from lionrock.cli.state import write_atomically
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.proof import TlogProof

_PAGE: Final = 1000
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_REQUEST_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOT_COVERED: Final = "LEAF_NOT_COVERED"


def print_json(fields: Mapping[str, Any]) -> None:
    """Print one object as one line."""
    print(json.dumps(fields, ensure_ascii=False), flush=True)


def tail(where: Where, *, lines: int, follow: bool, interval_s: float, as_json: bool) -> int:
    """Print the newest leaves, and with `follow` what comes after them until Ctrl-C."""
    with open_door(where) as door:
        size = _size(door)
        start = max(0, size - lines)
        while True:
            for leaf in leaves(door, start, size):
                _print_leaf(leaf, as_json=as_json)
            start = size
            if not follow:
                return 0
            time.sleep(interval_s)
            size = _size(door)


def show(where: Where, wanted: str, *, as_json: bool) -> int:
    """Print one leaf by its index, or by a request id what was said, with what opens the leaves' commitments."""
    with open_door(where) as door:
        if wanted.isdecimal():
            found = next(leaves(door, int(wanted), int(wanted) + 1), None)
            if found is None:
                raise CommandError(f"there is no leaf {wanted}", fix="lionrock audit stats says how many there are")
            _print_leaf(found, as_json=as_json, whole=True)
            return 0
        if not _REQUEST_ID.fullmatch(wanted):
            raise CommandError(f"{wanted!r} is neither an index nor a request id", exit_code=EXIT_USAGE)
        pieces = door.records.StreamRecord(rec.StreamRecordRequest(request_id=wanted), timeout=door.timeout_s)
        _print_record(gathered(pieces), as_json=as_json)
    return 0


def search(where: Where, subject: str, case: str, request: str, limit: int, *, as_json: bool) -> int:
    """List records that concern someone, a case or a request, newest first."""
    asked = rec.SearchSubjectRequest(scope=scope_of(subject, case, request), limit=limit)
    with open_door(where) as door:
        found = [_record_fields(record) for record in door.records.SearchSubject(asked, timeout=door.timeout_s)]
    if as_json:
        for fields in found:
            print_json(fields)
        return 0
    table = Table("Request", "State", "Leaves", "Class", "Kept until", "Expires", "Held", box=None)
    for fields in found:
        cells = (fields[name] for name in ("request_id", "state", "leaves", "retention_class", "retained_until", "expires_at"))
        table.add_row(*(_cell(cell) for cell in cells), "yes" if fields["held"] else "")
    _console().print(table if found else "no records")
    return 0


def stats(where: Where, *, as_json: bool) -> int:
    """Print what log and vault hold."""
    with open_door(where) as door:
        told = door.records.GetLogStats(rec.GetLogStatsRequest(), timeout=door.timeout_s)
    fields: dict[str, Any] = {"leaves": told.leaves, "open_intents": told.open_intents}
    fields |= {f"records_{state}": count for state, count in sorted(told.records.items())}
    fields |= {"vault_bytes": told.vault_bytes, "holds": told.holds}
    if told.HasField("witnessed_at"):
        fields["witnessed_at"] = shown_time(told.witnessed_at)
    print_fields(fields, as_json=as_json)
    return 0


def keys(where: Where, links: Path | None, *, as_json: bool) -> int:
    """Print the verifier keys of the tenant's log and of the platform's, newest first; write what links them into `links`."""
    with open_door(where) as door:
        told = door.audit.ListKeys(pb.ListKeysRequest(), timeout=door.timeout_s)
    if links is not None:
        for log, changes in (("log", told.links), ("platform", told.platform_links)):
            for link in changes:
                key_id = link.verifier_key.split("+")[1]
                write_atomically(links / f"{log}-from-{key_id}.tlog-proof", link.tlog_proof)
    if as_json:
        print_json({"verifier_keys": list(told.verifier_keys), "platform_verifier_keys": list(told.platform_verifier_keys)})
        return 0
    print("# the tenant's log", *told.verifier_keys, "# the platform's log", *told.platform_verifier_keys, sep="\n")
    print("compare them with keys from another source before you trust them", file=sys.stderr)
    return 0


def prove(where: Where, wanted: str, output: Path, *, as_json: bool) -> int:
    """Write the two proofs of a leaf: in its log, and of its log's checkpoint in the platform's log."""
    asked = _leaf_of(wanted)
    with open_door(where) as door:
        proven = _covered(door, asked)
    index = proven.receipt.position.leaf_index
    receipt, platform = output / f"leaf-{index}.tlog-proof", output / f"leaf-{index}.platform.tlog-proof"
    write_atomically(receipt, proven.receipt.tlog_proof)
    write_atomically(platform, proven.platform_proof)
    fields = {"leaf_index": index, "origin": proven.receipt.position.origin}
    print_fields({**fields, "receipt": str(receipt), "platform_proof": str(platform)}, as_json=as_json)
    return 0


def leaves(door: AuditDoor, start: int, stop: int) -> Iterator[pb.Leaf]:
    """Read leaves [start, stop), a page a call."""
    while start < stop:
        asked = pb.ListLeavesRequest(start=start, limit=min(_PAGE, stop - start))
        begin = start
        for page in door.audit.ListLeaves(asked, timeout=door.timeout_s):
            yield from page.leaves
            start = page.leaves[-1].leaf_index + 1 if page.leaves else start
        if start == begin:
            return


def print_fields(fields: Mapping[str, Any], *, as_json: bool) -> None:
    """Print names and values: a line each for people, one object for programs."""
    if as_json:
        print_json(fields)
        return
    for name, value in fields.items():
        _console().print(f"[dim]{name.replace('_', ' '):<18}[/] {_cell(value)}")


def _size(door: AuditDoor) -> int:
    note = door.audit.GetCheckpoint(pb.GetCheckpointRequest(), timeout=door.timeout_s).checkpoint
    return Checkpoint.parse(note.rpartition("\n\n")[0] + "\n").size


def _leaf_of(wanted: str) -> pb.ProveLeafRequest:
    """Read an index, an event id, or a receipt's file, which names the event in its leaf. Raises CommandError."""
    if wanted.isdecimal():
        return pb.ProveLeafRequest(leaf_index=int(wanted))
    if _REQUEST_ID.fullmatch(wanted):
        return pb.ProveLeafRequest(event_id=wanted)
    fix = "give an index, an event id, or the file of a receipt"
    try:
        leaf = TlogProof.parse(Path(wanted).read_text(encoding="utf-8")).leaf
        return pb.ProveLeafRequest(event_id=json.loads(leaf or b"{}")["event_id"])
    except OSError as error:
        raise CommandError(f"{wanted} cannot be read: {error.strerror}", fix=fix, exit_code=EXIT_USAGE) from error
    except (MalformedNote, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{wanted} is not a receipt", fix=fix, exit_code=EXIT_USAGE) from error


def _covered(door: AuditDoor, asked: pb.ProveLeafRequest) -> pb.ProveLeafResponse:
    """Ask until the platform's log covers the leaf, as long as the deadline allows."""
    deadline = time.monotonic() + door.timeout_s
    while True:
        try:
            return door.audit.ProveLeaf(asked, timeout=max(0.0, deadline - time.monotonic()))
        except grpc.RpcError as failure:
            error = remote_error(failure)
            pause_s = error.retry_after_s or 1.0
            if error.reason != _NOT_COVERED or time.monotonic() + pause_s >= deadline:
                raise
            time.sleep(pause_s)


def _record_fields(record: rec.SearchSubjectResponse) -> dict[str, Any]:
    indices = [*record.leaf_indices, *([record.position.leaf_index] if record.HasField("position") else [])]
    return {
        "request_id": record.request_id,
        "state": rec.RecordState.Name(record.state).removeprefix("RECORD_STATE_").lower(),
        "leaves": sorted(indices),
        "retention_class": record.retention_class,
        "retained_until": shown_time(record.retained_until) if record.HasField("retained_until") else None,
        "expires_at": shown_time(record.expires_at) if record.HasField("expires_at") else None,
        "held": record.held,
    }


def gathered(pieces: Iterable[rec.StreamRecordResponse]) -> rec.ReadRecordResponse:
    """Put a record together. Raises CommandError for a stream that leaves something out."""
    record, parts = rec.ReadRecordResponse(), list[tuple[rec.RecordPart, bytearray]]()
    for piece in pieces:
        match piece.WhichOneof("piece"):
            case "position":
                record.position.CopyFrom(piece.position)
            case "part":
                parts.append((piece.part, bytearray()))
            case "data" if parts:
                parts[-1][1].extend(piece.data)
    if any(len(data) != part.size_bytes for part, data in parts):
        raise CommandError("what came is not the whole record", fix="report this to the operator of the mesh")
    for part, data in parts:
        record.openings.append(part.opening)
        if part.opening.kind == "correction":
            record.corrections.add(
                entered_at=part.recorded_at, statement=data.decode("utf-8", "replace"), leaf_index=part.opening.leaf_index
            )
        elif part.opening.kind == "statement":
            record.statements.add(
                recorded_at=part.recorded_at, text=data.decode("utf-8", "replace"), leaf_index=part.opening.leaf_index
            )
        elif part.opening.kind in ("prompt", "stop", "answer"):
            setattr(record, part.opening.kind, bytes(data))
    return record


def _print_record(record: rec.ReadRecordResponse, *, as_json: bool) -> None:
    fields: dict[str, Any] = {"recorded_as_leaf": record.position.leaf_index}
    for name in ("prompt", "stop", "answer"):
        if payload := getattr(record, name):
            fields[name] = payload.decode("utf-8", "replace")
    openings = [{"kind": one.kind, "leaf_index": one.leaf_index, "salt": one.salt.hex()} for one in record.openings]
    corrections = [
        {"entered_at": shown_time(one.entered_at), "statement": one.statement, "leaf_index": one.leaf_index}
        for one in record.corrections
    ]
    statements = [
        {"recorded_at": shown_time(one.recorded_at), "text": one.text, "leaf_index": one.leaf_index} for one in record.statements
    ]
    if as_json:
        print_json({**fields, "statements": statements, "corrections": corrections, "openings": openings})
        return
    for said in statements:
        fields[f"statement_{said['leaf_index']}"] = f"{said['recorded_at']}  {said['text']}"
    for one in corrections:
        fields[f"correction_{one['leaf_index']}"] = f"{one['entered_at']}  {one['statement']}"
    print_fields(fields, as_json=False)


def _print_leaf(leaf: pb.Leaf, *, as_json: bool, whole: bool = False) -> None:
    if not leaf.data:
        withheld = leaf.withheld_leaf_hash.hex()
        if as_json:
            print_json({"leaf_index": leaf.leaf_index, "withheld_leaf_hash": withheld})
        else:
            print(f"{leaf.leaf_index:>10}  withheld, leaf hash {withheld}")
        return
    fields = json.loads(leaf.data)
    if as_json:
        print_json({"leaf_index": leaf.leaf_index, "leaf": fields})
    elif whole:
        print_fields({"leaf": leaf.leaf_index, **fields}, as_json=False)
    else:
        model = fields.get("model") if isinstance(fields.get("model"), dict) else {}
        names = [fields.get(name) for name in ("actor", "purpose", "case_id", "operation", "object_id")]
        names += [model.get("name"), fields.get("status")]
        said = "  ".join(_plain(name) for name in names if name)
        print(f"{leaf.leaf_index:>10}  {_plain(fields.get('ts'))}  {_plain(fields.get('type')):<12}  {said}", flush=True)


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, int) for item in value):
        return ", ".join(map(str, value))
    return escape(_plain(value))


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
