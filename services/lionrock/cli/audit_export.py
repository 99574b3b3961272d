"""`lionrock audit export` and `lionrock audit verify`: fetch an archive, check one, take a proof out of it."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lionrock.audit.v1 import records_pb2 as rec
from lionrock.audit.verify import VerificationFailed, VerifiedExport, describe, extract_proof, verify_export, when
from lionrock.cli import verify as receipts
from lionrock.cli.audit_door import Where, open_door, timestamp_of
from lionrock.cli.audit_reading import print_fields, print_json
from lionrock.cli.errors import EXIT_FAILED, EXIT_USAGE, CommandError
from lionrock.cli.receipts import read_keys, saved_keys
from lionrock.cli.state import StateDir


@dataclass(frozen=True, slots=True)
class Chosen:
    """What to export: `start` and `end` in ISO 8601; an empty `tenant` accepts whichever the credential names."""

    start: str
    end: str
    case: str
    with_payloads: bool
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Trusted:
    """Keys that the auditor gives. `threshold`: witnesses that must have cosigned; None: all that are given."""

    keys: Sequence[str]
    keys_file: Path | None
    witnesses: Sequence[str]
    threshold: int | None

    @classmethod
    def given(
        cls,
        keys: Sequence[str],
        keys_file: Path | None,
        witnesses: Sequence[str],
        witnesses_file: Path | None,
        threshold: int | None,
    ) -> Trusted:
        """Read what the command line names. Raises CommandError."""
        more = read_keys(witnesses_file) if witnesses_file is not None else []
        return cls(keys, keys_file, [*witnesses, *more], threshold)

    def witnesses_needed(self) -> int:
        """How many."""
        return len({key.partition("+")[0] for key in self.witnesses}) if self.threshold is None else self.threshold


def export(where: Where, chosen: Chosen, output: Path, *, as_json: bool) -> int:
    """Fetch the archive. The file appears whole or not at all."""
    asked = rec.ExportRequest(case_id=chosen.case, with_payloads=chosen.with_payloads)
    for name, text in (("from", chosen.start), ("to", chosen.end)):
        if (at := timestamp_of(text, f"--{name}")) is not None:
            getattr(asked, name).CopyFrom(at)
    if output.exists():
        raise CommandError(f"{output} is there already", fix="give another file with --output", exit_code=EXIT_USAGE)
    manifest, done = fetch(where, asked, output, tenant=chosen.tenant)
    names = ("origin", "leaves", "withheld_leaves", "payload_records", "tree_size", "export_leaf", "left_out")
    fields = {"file": str(output), "bytes": output.stat().st_size, **{name: manifest[name] for name in names}}
    print_fields({**fields, "selected_leaves": done}, as_json=as_json)
    print(f"check it: lionrock audit verify {output} --key …, or python verify.py, which is in it", file=sys.stderr)
    return 0


def fetch(where: Where, asked: rec.ExportRequest, output: Path, *, tenant: str = "") -> tuple[dict[str, Any], int]:
    """Write an archive, whole or not at all. Returns its manifest and how many leaves were selected. Raises CommandError.

    `tenant`: whose it must be; empty: whichever the credential names.
    """
    with _appearing(output) as (file, part):
        done = _receive(where, asked, file)
        file.flush()
        manifest = _manifest(part)
        exported = manifest["exported_by"]["tenant"]
        if tenant and exported != tenant:
            fix = "use the certificate of somebody of that tenant"
            raise CommandError(f"this certificate exports the tenant {exported}, not {tenant}", fix=fix, exit_code=EXIT_USAGE)
    return manifest, done


def verify(
    where: StateDir,
    file: Path,
    trusted: Trusted,
    *,
    platform_proof: Path | None,
    extract: int | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """Check an export, or a receipt. Returns 0 when everything holds, 1 when something does not."""
    with _opened(file) as stream:
        if stream.read(4) == b"PK\x03\x04":
            if platform_proof is not None:
                fix = "leave --platform-proof away"
                raise CommandError("an export has its own proof from the platform's log", fix=fix, exit_code=EXIT_USAGE)
            return _verify_export(where, file, stream, trusted, extract, output, as_json=as_json)
    if extract is not None:
        raise CommandError("proofs are extracted from exports", fix="leave --extract away", exit_code=EXIT_USAGE)
    if platform_proof is None and (trusted.witnesses or trusted.threshold is not None):
        raise CommandError("witnesses cosign the platform's log", fix="give --platform-proof", exit_code=EXIT_USAGE)
    above = None if platform_proof is None else receipts.Above(platform_proof, trusted.witnesses, trusted.threshold)
    return receipts.run(file, trusted.keys, trusted.keys_file, None, where.root, as_json=as_json, above=above)


def _verify_export(
    state: StateDir, file: Path, stream: BinaryIO, trusted: Trusted, extract: int | None, output: Path | None, *, as_json: bool
) -> int:
    keys = [*trusted.keys, *(read_keys(trusted.keys_file) if trusted.keys_file is not None else [])]
    source = "given"
    if not keys:
        keys, source = saved_keys(state), f"kept at first contact, in {state.keys}"
    if not keys:
        fix = "give one with --key or --keys-file: the log's operator publishes it. Keys in the archive prove nothing"
        raise CommandError("there is no verifier key to check against", fix=fix, exit_code=EXIT_USAGE)
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
            followed = bars.wrap_file(stream, total=file.stat().st_size, description="checking")
            needed = trusted.witnesses_needed()
            if extract is None:
                export, proof = verify_export(followed, keys, trusted.witnesses, needed), None
            else:
                export, proof = extract_proof(followed, keys, trusted.witnesses, needed, extract)
    except VerificationFailed as failure:
        if as_json:
            print_json({"verified": False, "reason": failure.reason.name, "detail": str(failure)})
        else:
            print(f"NOT PROVEN  {file}: {failure}", file=sys.stderr)
        return EXIT_FAILED
    if proof is not None:
        output = output or Path(f"leaf-{extract}.tlog-proof")
        output.write_text(proof, encoding="utf-8", newline="")
    if as_json:
        print_json({**_fields(export), "keys": source, **({} if output is None else {"extracted": str(output)})})
        return 0
    print(*describe(export), f"KEYS {source}", *([f"WRITTEN {output}"] if proof is not None else []), sep="\n")
    return 0


def _receive(where: Where, asked: rec.ExportRequest, file: BinaryIO) -> int:
    """Write the stream to a file. Returns how many leaves were selected."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("leaves"), TimeRemainingColumn())
    total = 0
    with (
        open_door(where) as door,
        Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars,
    ):
        task = bars.add_task("exporting", total=None)
        for piece in door.records.Export(asked, timeout=door.timeout_s):
            file.write(piece.data)
            total = piece.leaves_total
            bars.update(task, completed=piece.leaves_done, total=piece.leaves_total)
    return total


def _manifest(archive: Path) -> dict[str, Any]:
    """Read what the archive says of itself, to show it; whether it is so is for `verify`. Raises CommandError."""
    try:
        with zipfile.ZipFile(archive) as opened:
            manifest: dict[str, Any] = json.loads(opened.read("manifest.json"))
            return manifest
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise CommandError("what came is not an export", fix="report this to the operator of the mesh") from error


@contextmanager
def _appearing(output: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Write beside the file, sync, rename; nothing is left when the block raises."""
    part = output.with_name(f".{output.name}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}", fix="give another file with --output") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file, part
            file.flush()
            os.fsync(file.fileno())
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        stream = file.open("rb")
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}", fix="give the path of an export or a receipt") from error
    with stream:
        yield stream


def _fields(export: VerifiedExport) -> dict[str, Any]:
    platform = None
    if export.platform is not None:
        cosigned = {name: when(time_s) for name, time_s in export.platform.cosigned.items()}
        platform = {"origin": export.platform.origin, "tree_size": export.platform.tree_size, "cosigned": cosigned}
    return {
        "verified": True,
        "origin": export.origin,
        "tree_size": export.tree_size,
        "root": export.root.hex(),
        "signed_by": list(export.signed_by),
        "leaves": export.leaves,
        "withheld": export.withheld,
        "first_index": export.first_index,
        "last_index": export.last_index,
        "without_gap": export.without_gap,
        "whole_time": export.whole_time,
        "payloads_opened": export.opened,
        "platform": platform,
        "extends": [size for size, _ in export.earlier],
        "key_changes": dict(export.key_changes),
        "left_out": export.manifest.get("left_out", {}),
    }
