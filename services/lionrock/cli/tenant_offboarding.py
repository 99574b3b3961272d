"""`lionrock tenant offboard`: a tenant leaves, by two people, with an export before and a report after.

One command, which does what is next and what its caller may do: a tenant_admin begins; then a privacy_officer, who is somebody
else, exports, verifies the export, and decides on the erasure. Every step is in the tenant's log, so the command is repeated after
whatever happened; only an export that is lost after the erasure cannot be made again. The services do the work; this knows their
order and the files of the report (offboarding_report.py).
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.v1 import records_pb2 as rec
from lionrock.cli import offboarding_report as files
from lionrock.cli.audit_door import AuditDoor, Where, confirmed, open_door, shown_time
from lionrock.cli.audit_export import fetch
from lionrock.cli.audit_reading import leaves
from lionrock.cli.errors import EXIT_FAILED, CommandError
from lionrock.cli.receipts import read_keys, saved_keys
from lionrock.cli.state import write_atomically
from lionrock.cli.tenant_files import followed_by

_STAGES: Final = {
    rec.OFFBOARDING_STAGE_LEAVING: "leaving",
    rec.OFFBOARDING_STAGE_ERASING: "erasing",
    rec.OFFBOARDING_STAGE_SEALED: files.SEALED,
}
_PAUSE_S: Final = 1.0
_PROVEN_ERASURES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Choices:
    """What the command line said. `keys`: those to verify with; without any those of first contact, else the mesh's own."""

    out: Path
    basis: str
    keys: Sequence[str] = ()
    keys_file: Path | None = None
    wait_s: float = 900.0
    yes: bool = False
    accept_left_out: bool = False


def run(where: Where, tenant: str, choices: Choices) -> int:
    """Do what is next. Returns the exit status. Raises CommandError."""
    _directory(choices.out)
    with open_door(where) as door:
        state = _progress(door)
        if state.stage == rec.OFFBOARDING_STAGE_NONE:
            return _begin(door, tenant, choices)
        keys, source = _keys(where, door, choices)
        exported = None
        if state.stage == rec.OFFBOARDING_STAGE_LEAVING:
            state = _until_all_has_ended(door, choices.wait_s)
            exported = _export(where, tenant, choices, keys, after=state.begun.leaf_index)
            confirmed(
                f"Erase everything of the tenant {tenant} that need not be kept, and destroy its keys, for ever?", yes=choices.yes
            )
        elif (choices.out / files.EXPORT).exists():
            exported = _manifest_of(choices.out / files.EXPORT, keys)
        if state.stage != rec.OFFBOARDING_STAGE_SEALED:
            asked = rec.EraseTenantRequest(tenant=tenant, basis=choices.basis)
            state = door.records.EraseTenant(asked, timeout=door.timeout_s).offboarding
        _write(door, tenant, choices.out, state, exported, keys, source)
    print((choices.out / files.TEXT).read_text(encoding="utf-8"), end="")
    print(f"written to {choices.out}", file=sys.stderr)
    _take_out(where, tenant, sealed=state.stage == rec.OFFBOARDING_STAGE_SEALED)
    return 0


def cancel(where: Where, tenant: str) -> int:
    """Let the tenant ask again."""
    with open_door(where) as door:
        cancelled = door.records.CancelOffboarding(rec.CancelOffboardingRequest(tenant=tenant), timeout=door.timeout_s)
    print(f"tenant {tenant}: stays; leaf {cancelled.position.leaf_index} says so")
    return 0


def check(directory: Path, keys: Sequence[str], keys_file: Path | None) -> int:
    """Check a report. Returns 0 when everything holds, 1 when something does not."""
    trusted = [*keys, *([] if keys_file is None else read_keys(keys_file))]
    if not trusted:
        raise CommandError("there is no verifier key to check against", fix="give one with --key or --keys-file")
    try:
        checked = files.check_report(directory, trusted)
    except files.ReportUnsound as unsound:
        print(f"NOT PROVEN  {directory}: {unsound}", file=sys.stderr)
        return EXIT_FAILED
    print(*(f"PROVEN  {line}" for line in checked.lines), sep="\n")
    return 0


def _begin(door: AuditDoor, tenant: str, choices: Choices) -> int:
    confirmed(
        f"Begin to off-board the tenant {tenant}? Nobody of it is answered any more, until somebody cancels this.", yes=choices.yes
    )
    begun = door.records.BeginOffboarding(rec.BeginOffboardingRequest(tenant=tenant), timeout=door.timeout_s)
    write_atomically(choices.out / files.BEGUN, begun.receipt.tlog_proof)
    print(
        f"tenant {tenant}: leaves; nothing new is answered. Leaf {begun.receipt.position.leaf_index}: {choices.out / files.BEGUN}"
    )
    print("next: somebody else, who is privacy_officer, runs this command. Until then a tenant_admin may --cancel")
    return 0


def _progress(door: AuditDoor) -> rec.Offboarding:
    return door.records.GetOffboarding(rec.GetOffboardingRequest(), timeout=door.timeout_s).offboarding


def _until_all_has_ended(door: AuditDoor, wait_s: float) -> rec.Offboarding:
    """Wait until requests that were begun before have ended. Raises CommandError."""
    deadline = time.monotonic() + wait_s
    while (state := _progress(door)).open_requests:
        if time.monotonic() + _PAUSE_S >= deadline:
            fix = "run this command again later: what nobody ends, the audit service does"
            raise CommandError(f"{state.open_requests} requests have not ended", fix=fix)
        print(f"waiting for {state.open_requests} requests to end", file=sys.stderr)
        time.sleep(_PAUSE_S)
    return state


def _export(where: Where, tenant: str, choices: Choices, keys: Sequence[str], *, after: int) -> dict[str, Any]:
    """Have a verified export of everything until after the tenant began to leave. Raises CommandError."""
    path = choices.out / files.EXPORT
    if not path.exists():
        fetch(where, rec.ExportRequest(with_payloads=True), path, tenant=tenant)
    manifest = _manifest_of(path, keys)
    selection = manifest["selection"]
    whole = manifest["first_index"] == 0 and selection["with_payloads"] and "case_id" not in selection
    if not whole or manifest["stop_index"] <= after or not manifest["origin"].endswith(f"/{tenant}"):
        fix = "give an empty directory with --out"
        raise CommandError(f"{path} is not an export of everything since the tenant began to leave", fix=fix)
    if manifest["left_out"].get("TOO_MANY_RECORDS") and not choices.accept_left_out:
        fix = "export it in spans of time: lionrock audit export --from … --to … --payloads; then say --accept-left-out"
        raise CommandError(f"one archive does not hold the payloads of {manifest['left_out']['TOO_MANY_RECORDS']} records", fix=fix)
    return manifest


def _manifest_of(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Return what a verified archive says of itself. Raises CommandError."""
    return dict(files.export_of(path, keys).manifest)


def _write(
    door: AuditDoor,
    tenant: str,
    out: Path,
    state: rec.Offboarding,
    exported: dict[str, Any] | None,
    keys: Sequence[str],
    source: str,
) -> None:
    """Fetch the proofs and write the report."""
    sealed = state.stage == rec.OFFBOARDING_STAGE_SEALED
    begun = door.audit.GetReceipt(pb.GetReceiptRequest(leaf_index=state.begun.leaf_index), timeout=door.timeout_s).receipt
    write_atomically(out / files.BEGUN, begun.tlog_proof)
    write_atomically(out / files.KEYS, "".join(f"{key}\n" for key in keys))
    erased = None
    if sealed:
        write_atomically(out / files.ERASED, state.erased.tlog_proof)
        index = state.erased.position.leaf_index
        erased = {"leaf_index": index, "tree_size": index + 1}
        _prove_erasures(door, out, range(state.begun.leaf_index, index))
        if exported is not None:
            asked = pb.GetConsistencyProofRequest(first_size=exported["tree_size"], second_size=index + 1)
            hashes = door.audit.GetConsistencyProof(asked, timeout=door.timeout_s).hashes
            proof = {"first_size": exported["tree_size"], "second_size": index + 1, "hashes": [_base64(one) for one in hashes]}
            write_atomically(out / files.CONSISTENCY, json.dumps(proof) + "\n")
    names = ("leaves", "withheld_leaves", "payload_records", "tree_size", "left_out")
    report = {
        "tenant": tenant,
        "origin": state.begun.origin,
        "stage": _STAGES[state.stage],
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "begun": {"by": state.begun_by, "leaf_index": state.begun.leaf_index},
        "decided_by": state.decided_by,
        "basis": state.basis,
        "export": None if exported is None else {name: exported[name] for name in names},
        "records": dict(state.records),
        "kept": [
            {
                "reason": kept.reason,
                "retention_class": kept.retention_class,
                "records": kept.records,
                "until": shown_time(kept.until) if kept.HasField("until") else None,
            }
            for kept in state.kept
        ],
        "holds": state.holds,
        "erased": erased,
        "vault_key": rec.VaultKey.Name(state.vault_key).removeprefix("VAULT_KEY_").lower() if sealed else "in use",
        "keys_from": source,
        "verify": [
            f"lionrock tenant check-report {out.name} --keys-file logs.txt",
            *(f"python verify.py {name} $(cat logs.txt)" for name in (files.ERASED, files.EXPORT) if (out / name).exists()),
        ],
    }
    files.write_report(out, report)


def _prove_erasures(door: AuditDoor, out: Path, indices: range) -> None:
    """Keep the proof of each ERASURE leaf of the tenant that the caller may see."""
    for leaf in leaves(door, indices.start, min(indices.stop, indices.start + _PROVEN_ERASURES)):
        fields = json.loads(leaf.data or b"{}")
        if (fields.get("type"), fields.get("scope")) == ("erasure", "tenant"):
            asked = pb.GetReceiptRequest(leaf_index=leaf.leaf_index)
            receipt = door.audit.GetReceipt(asked, timeout=door.timeout_s).receipt
            write_atomically(out / f"leaf-{leaf.leaf_index}.tlog-proof", receipt.tlog_proof)


def _keys(where: Where, door: AuditDoor, choices: Choices) -> tuple[list[str], str]:
    """Return keys to verify with, and where they are from."""
    given = [*choices.keys, *([] if choices.keys_file is None else read_keys(choices.keys_file))]
    if given:
        return given, "given"
    told = list(door.audit.ListKeys(pb.ListKeysRequest(), timeout=door.timeout_s).verifier_keys)
    kept = [key for key in saved_keys(where.state) if key.partition("+")[0] == told[0].partition("+")[0]]
    return (kept, "kept at first contact") if kept else (told, "the mesh itself: compare them with keys from somewhere else")


def _take_out(where: Where, tenant: str, *, sealed: bool) -> None:
    """Take the tenant's document away where this machine's mesh has one; say what there is to do elsewhere."""
    if not sealed:
        print("run this command again when something of it may go; the service does it by itself too", file=sys.stderr)
        return
    if where.door.gateway is not None:
        print(f"last: delete its Tenant document, so that nobody of {tenant} is let in any more", file=sys.stderr)
        return
    followed = followed_by(where.state)
    place = followed.file_of(tenant)
    if place is None:
        return
    path = followed.directory / place
    if len(followed.files[place]) > 1:
        print(f"last: take {tenant} out of {path}, which names others too", file=sys.stderr)
        return
    path.unlink()
    print(f"tenant {tenant}: {path} is removed; nobody of it is let in any more")


def _directory(out: Path) -> None:
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{out} cannot be made: {error.strerror}", fix="give another directory with --out") from error


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
