"""The report of an off-boarding: one directory that an auditor checks without the mesh.

    export.zip            what the tenant had, as far as the caller's roles allow, from before anything was erased
    begun.tlog-proof      the leaf that says that the tenant leaves, and leaf-<index>.tlog-proof: the ERASURE leaves
    erased.tlog-proof     the last leaf of the log, under its last checkpoint
    consistency.json      proof that the log which was exported is the beginning of the one that was sealed
    keys.txt verify.py    verifier keys as they were used here, and the verifier
    report.json, report.txt

Knows these files, how they are written, and what must hold between them. Does not know the mesh.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

from lionrock.audit.verify import VerificationFailed, VerifiedExport, VerifiedLeaf, verify_export, verify_receipt
from lionrock.cli.errors import CommandError
from lionrock.cli.state import write_atomically
from lionrock.tlog.merkle import InvalidProof, verify_consistency

KIND: Final = "lionrock.tenant.offboarding"
SCHEMA_VERSION: Final = 1
EXPORT, BEGUN, ERASED, CONSISTENCY, KEYS = "export.zip", "begun.tlog-proof", "erased.tlog-proof", "consistency.json", "keys.txt"
REPORT, TEXT, VERIFIER = "report.json", "report.txt", "verify.py"
SEALED: Final = "sealed"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Checked:
    """What holds of a directory, a sentence each."""

    lines: Sequence[str]


class ReportUnsound(Exception):
    """Something of the report does not hold; the message says what."""


def export_of(path: Path, keys: Sequence[str]) -> VerifiedExport:
    """Verify an archive by the packaged verifier. Raises CommandError."""
    try:
        with path.open("rb") as stream:
            return verify_export(stream, keys, (), 0)
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error
    except VerificationFailed as failure:
        raise CommandError(f"{path} does not verify: {failure}", fix="nothing was erased; export again elsewhere") from failure


def write_report(directory: Path, report: Mapping[str, Any]) -> None:
    """Write what was found beside the files that prove it, with their digests."""
    with as_file(files("lionrock.audit") / VERIFIER) as verifier:
        shutil.copyfile(verifier, directory / VERIFIER)
    names = sorted(path.name for path in directory.iterdir() if path.is_file() and path.name not in (REPORT, TEXT))
    whole = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        **report,
        "files": {name: f"sha256:{_digest(directory / name)}" for name in names if not name.startswith(".")},
    }
    write_atomically(directory / REPORT, json.dumps(whole, ensure_ascii=False, indent=2, sort_keys=True) + "\n")
    write_atomically(directory / TEXT, "\n".join(text_of(whole)) + "\n")


def text_of(report: Mapping[str, Any]) -> list[str]:
    """Say the report to people, a line a fact."""
    exported, erased = report["export"], report["erased"]
    lines = [
        f"Off-boarding of the tenant {report['tenant']}, log {report['origin']}",
        f"written {report['written_at']}",
        "",
        f"begun by     {report['begun']['by']} (leaf {report['begun']['leaf_index']}, {BEGUN})",
        f"decided by   {report['decided_by'] or 'nobody yet'}{_because(report['basis'])}",
    ]
    if exported is None:
        lines.append("exported     not into this directory: the erasure was decided before")
    else:
        left_out = ", ".join(f"{reason} {count}" for reason, count in sorted(exported["left_out"].items())) or "nothing"
        lines.append(
            f"exported     {exported['leaves']} leaves ({exported['withheld_leaves']} by their hash alone),"
            f" payloads of {exported['payload_records']} records; left out: {left_out}"
        )
    lines.append("records      " + (", ".join(f"{count} {state}" for state, count in sorted(report["records"].items())) or "none"))
    if erased is not None:
        lines += [
            f"sealed       after {erased['tree_size']} leaves; the last one says so ({ERASED})",
            f"tenant's key {report['vault_key']}",
        ]
    else:
        lines.append("sealed       not yet: something is kept")
        for kept in report["kept"]:
            until = f" until {kept['until']}" if kept["until"] else ""
            lines.append(f"kept         {kept['records']} records of class {kept['retention_class']}: {kept['reason']}{until}")
        lines.append(f"holds        {report['holds']} in force")
    lines += ["", "Check it with keys that you have from somewhere else:", "", *(f"  {line}" for line in report["verify"])]
    return lines


def check_report(directory: Path, keys: Sequence[str]) -> Checked:
    """Check everything that a report says and that files show. Raises ReportUnsound, CommandError."""
    report = _read(directory)
    for name, digest in report["files"].items():
        path = directory / name
        if Path(name).name != name or not path.is_file() or f"sha256:{_digest(path)}" != digest:
            raise ReportUnsound(f"{name} is not the file that the report names")
    lines = [f"{len(report['files'])} files are those of the report"]
    begun = _leaf(directory / BEGUN, keys, "tenant.offboarding_begun", report)
    lines.append(f"{report['tenant']} leaves: leaf {begun.leaf_index}, by {begun.fields.get('actor')}")
    exported = None
    if report["export"] is not None:
        exported = export_of(directory / EXPORT, keys)
        if exported.origin != begun.origin or exported.first_index != 0 or not exported.without_gap:
            raise ReportUnsound("the export is of another log, or not of all its leaves")
        lines.append(f"exported {exported.leaves} leaves without a gap, {exported.opened} payloads opened")
    if report["erased"] is None:
        return Checked([*lines, "the log is not sealed: something is kept still"])
    last = _leaf(directory / ERASED, keys, "tenant.erased", report)
    if last.leaf_index != last.tree_size - 1 or last.origin != begun.origin:
        raise ReportUnsound("the leaf that says that everything is erased is not the last one of the log")
    if last.fields.get("actor") == begun.fields.get("actor"):
        raise ReportUnsound("one person began it and decided on it")
    lines.append(f"everything is erased: leaf {last.leaf_index}, the last one, by {last.fields.get('actor')}")
    erasures = [_erasure(directory / name, keys, last) for name in sorted(report["files"]) if name.startswith("leaf-")]
    lines.append(f"{sum(erasures)} records erased by {len(erasures)} leaves")
    if exported is not None:
        _check_consistency(directory, exported, last)
        lines.append("the log that was exported is the beginning of the one that was sealed")
    return Checked(lines)


def _erasure(path: Path, keys: Sequence[str], last: VerifiedLeaf) -> int:
    try:
        leaf = verify_receipt(path.read_text(encoding="utf-8"), keys)
    except VerificationFailed as failure:
        raise ReportUnsound(f"{path.name} does not verify: {failure}") from failure
    if (leaf.fields.get("type"), leaf.fields.get("scope"), leaf.origin) != ("erasure", "tenant", last.origin):
        raise ReportUnsound(f"{path.name} is no erasure of this tenant")
    return int(leaf.fields["record_count"])


def _leaf(path: Path, keys: Sequence[str], operation: str, report: Mapping[str, Any]) -> VerifiedLeaf:
    try:
        leaf = verify_receipt(path.read_text(encoding="utf-8"), keys)
    except OSError as error:
        raise ReportUnsound(f"{path.name} cannot be read: {error.strerror}") from error
    except VerificationFailed as failure:
        raise ReportUnsound(f"{path.name} does not verify: {failure}") from failure
    said = (leaf.fields.get("operation"), leaf.fields.get("object_id"), leaf.fields.get("tenant"))
    if said != (operation, report["tenant"], report["tenant"]):
        raise ReportUnsound(f"{path.name} is not the leaf {operation} of {report['tenant']}")
    return leaf


def _check_consistency(directory: Path, exported: VerifiedExport, last: VerifiedLeaf) -> None:
    try:
        proof = json.loads((directory / CONSISTENCY).read_text(encoding="utf-8"))
        hashes = [base64.b64decode(one, validate=True) for one in proof["hashes"]]
        verify_consistency(exported.tree_size, last.tree_size, exported.root, last.root, hashes)
    except (OSError, ValueError, KeyError, TypeError, InvalidProof) as error:
        raise ReportUnsound("the log that was exported is not the beginning of the one that was sealed") from error


def _read(directory: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads((directory / REPORT).read_text(encoding="utf-8"))
        if (report["kind"], report["schema_version"]) != (KIND, SCHEMA_VERSION):
            raise ValueError("another kind")
        if not {"tenant", "files", "export", "erased"} <= report.keys():
            raise ValueError("something is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{directory / REPORT} is no report of an off-boarding", fix="give the directory of --out") from error
    return report


def _because(basis: str) -> str:
    return f": {basis}" if basis else ""


def _digest(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
