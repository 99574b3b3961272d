"""Makes an export: who may, what the leaf says, which checkpoint everything is proven against, and the archive piece by piece.

Knows: the order of the steps and the layout of the archive (README.txt, docs/audit.md). Does not know: gRPC, how leaves are chosen
(selection.py), how an archive is written (zip_stream.py).

    1  who asks may export                                    2  the leaves are chosen and counted
    3  the EXPORT leaf is durable                             4  the checkpoint, and the platform's proof of it
    5  the archive, a page of leaves or a record at a time

No byte leaves before 3. What fails in 5 ends the stream with an error, and the archive has no end. Memory: a page of leaves, one
record, the digests of the files (`PAYLOAD_RECORDS_MAX` at most), the page for people; however long the log is.
"""

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import pairwise
from typing import Any, Final

from lionrock.audit.canonical_json import JsonValue, canonical_json
from lionrock.audit.export.paths import Paths
from lionrock.audit.export.report import Report
from lionrock.audit.export.selection import Run, Selection, find_run, selected
from lionrock.audit.export.zip_stream import Entry, ZipStream
from lionrock.audit.failures import QueueFull, RecordErased, RecordNotFound, VaultDisabled
from lionrock.audit.leaf import Context, Event, Export, rfc3339
from lionrock.audit.log import AuditLogs
from lionrock.audit.platform_log import CoveredCheckpoint, PlatformLog
from lionrock.audit.records.contents import Opened
from lionrock.audit.records.permissions import Action, is_cleared, is_withheld, permit
from lionrock.audit.records.recording import SUSPICION
from lionrock.audit.records.records import Records
from lionrock.audit.store import StoredLeaf
from lionrock.audit.tenant_log import Head, TenantLog
from lionrock.chassis.ids import uuid7

SCHEMA_VERSION: Final = 1
KIND: Final = "lionrock.audit.export"
PAYLOAD_RECORDS_MAX: Final = 50_000
"""An archive; the manifest counts what is beyond."""
PIECE_BYTES: Final = 256 * 1024
_AT_ONCE: Final = 4
"""Exports that run beside each other; they share the thread that reads with everybody else."""
_COVER_WAIT_S: Final = 30.0
_COVER_POLL_S: Final = 0.1
_RECORD_TYPES: Final = frozenset({"intent", "outcome", "governance", "correction"})


@dataclass(frozen=True, slots=True)
class Piece:
    """Next bytes of the archive, and how far it is."""

    data: bytes
    leaves_done: int
    leaves_total: int


@dataclass(slots=True)
class _Archive:
    """An archive in the making."""

    asker: Context
    selection: Selection
    run: Run
    leaves_total: int
    export_leaf: int
    head: Head
    covered: CoveredCheckpoint | None
    zip: ZipStream = field(default_factory=ZipStream)
    entries: list[Entry] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    report: Report = field(default_factory=Report)
    leaves_done: int = 0
    written: int = 0
    withheld: int = 0
    payload_records: int = 0

    def add(self, name: str, data: bytes) -> None:
        """Write a whole file."""
        self.entries.append(self.zip.add(name, data))

    def pieces(self, at_least: int = 1) -> list[Piece]:
        """Take what has come out, once that is worth a message."""
        if self.zip.waiting < at_least:
            return []
        data = self.zip.take()
        cuts = range(0, len(data), PIECE_BYTES)
        return [Piece(data[cut : cut + PIECE_BYTES], self.leaves_done, self.leaves_total) for cut in cuts]


class Exporter:
    """Exports of all tenants."""

    def __init__(
        self,
        logs: AuditLogs,
        records: Records,
        platform_log: PlatformLog,
        *,
        witness_keys: Sequence[str] = (),
        cover_wait_s: float = _COVER_WAIT_S,
    ) -> None:
        """`cover_wait_s`: how long an export waits until the platform's log has a checkpoint that holds all of its leaves."""
        self._logs = logs
        self._records = records
        self._platform_log = platform_log
        self._witness_keys = witness_keys
        self._cover_wait_s = cover_wait_s
        self._running = 0

    async def export(
        self, asker: Context, *, from_us: int | None, to_us: int | None, case_id: str, with_payloads: bool
    ) -> AsyncGenerator[Piece]:
        """Stream the archive. Times: microseconds since 1970; None: the beginning, now.

        Raises RoleNotPermitted, LogNotFound, QueueFull and what appending raises, before the first piece; KeysUnavailable and
        StoreFailed also after it.
        """
        permit(asker.roles, Action.EXPORT_RECORDS)
        if self._running >= _AT_ONCE:
            raise QueueFull(f"{_AT_ONCE} exports are under way")
        self._running += 1
        try:
            archive = await self._begin(asker, from_us, to_us, case_id, with_payloads=with_payloads)
            async for piece in self._pieces(archive):
                yield piece
        finally:
            self._running -= 1

    async def _begin(
        self, asker: Context, from_us: int | None, to_us: int | None, case_id: str, *, with_payloads: bool
    ) -> _Archive:
        """Choose, record, and find the checkpoint."""
        selection = Selection(from_us or 0, self._logs.now_us() if to_us is None else to_us, case_id, with_payloads)
        run = await find_run(self._logs, asker.tenant, selection)
        total, restricted = await self._count(asker, run, case_id)
        body = Export(
            run.first, run.stop, total, with_payloads, rfc3339(selection.from_us), rfc3339(selection.to_us), selection.case_id
        )
        context = replace(asker, data_class=SUSPICION) if restricted else asker
        leaf = await self._logs.append(Event(uuid7(), "", context, body, {}), want_receipt=False)
        head, covered = await self._checkpoint(asker.tenant, run.stop)
        return _Archive(asker, selection, run, total, leaf.leaf_index, head, covered)

    async def _count(self, asker: Context, run: Run, case_id: str) -> tuple[int, bool]:
        """Count the selected leaves, and say whether any is of the data class "suspicion" (and then exists for the caller)."""
        count, restricted, cleared = 0, False, is_cleared(asker.roles)
        async for page in selected(self._logs, asker.tenant, run, case_id, asker.roles):
            count += len(page)
            restricted = restricted or (cleared and any(is_withheld(leaf.data, ()) for leaf in page))
        return count, restricted

    async def _checkpoint(self, tenant: str, size: int) -> tuple[Head, CoveredCheckpoint | None]:
        """Newest checkpoint with at least `size` leaves that the platform's log attests.

        Where none comes in time: the newest one, without the platform's proof, which the manifest then says.
        """
        deadline = time.monotonic() + self._cover_wait_s
        while True:
            covered = await self._platform_log.covered(tenant)
            if covered is not None and covered.head.size >= size:
                return covered.head, covered
            if time.monotonic() >= deadline:
                return self._logs.heads()[tenant], None
            await asyncio.sleep(_COVER_POLL_S)

    async def _pieces(self, archive: _Archive) -> AsyncIterator[Piece]:
        archive.add("README.txt", files(__package__).joinpath("README.txt").read_bytes())
        archive.add("verify.py", files("lionrock.audit").joinpath("verify.py").read_bytes())
        await self._add_proofs(archive)
        archive.add("keys.txt", self._keys(archive.asker.tenant))
        if links := [*await self._links(self._logs.opened(archive.asker.tenant)), *await self._links(self._platform_log.opened)]:
            archive.add("key-links.json", canonical_json({"links": links}))
        archive.zip.begin("leaves.jsonl")
        paths = Paths(archive.head.size, archive.head.root)
        async for page, counts in self._pages(archive):
            missing = paths.missing(page)
            hashes = await self._logs.subtree_hashes(archive.asker.tenant, missing) if missing else []
            paths.learn(missing, hashes)
            await asyncio.to_thread(_write_leaves, archive, page, paths)
            archive.leaves_done += len(page) if counts else 0
            for piece in archive.pieces(PIECE_BYTES // 4):
                yield piece
        archive.entries.append(archive.zip.end())
        if archive.selection.with_payloads:
            async for record_id, opened in self._payloads(archive):
                await asyncio.to_thread(archive.add, f"payloads/{record_id}.json", _payload_file(record_id, opened))
                for piece in archive.pieces(PIECE_BYTES // 4):
                    yield piece
        manifest = _manifest(archive, self._logs.now_us())
        archive.add("report.html", archive.report.html(manifest))
        listed: dict[str, JsonValue] = {entry.name: {"sha256": entry.digest, "bytes": entry.size} for entry in archive.entries}
        archive.zip.add("manifest.json", canonical_json({**manifest, "files": listed}))
        archive.zip.finish()
        for piece in archive.pieces():
            yield piece

    async def _pages(self, archive: _Archive) -> AsyncIterator[tuple[list[StoredLeaf], bool]]:
        """Leaves to write, and whether they were selected: without a case, the run's neighbours come with it."""
        tenant, run, case_id = archive.asker.tenant, archive.run, archive.selection.case_id
        if not case_id and 0 < run.first <= archive.head.size:
            yield [await self._logs.leaf_at(tenant, run.first - 1)], False
        async for page in selected(self._logs, tenant, run, case_id, archive.asker.roles):
            if page:
                yield page, True
        if not case_id and run.stop < archive.head.size:
            yield [await self._logs.leaf_at(tenant, run.stop)], False

    async def _add_proofs(self, archive: _Archive) -> None:
        tenant, run, covered = archive.asker.tenant, archive.run, archive.covered
        archive.add("checkpoint", archive.head.checkpoint.encode())
        if covered is not None:
            archive.add("platform-proof.tlog-proof", covered.platform_proof.encode())
            earlier = None
            if run.first > 0:
                earlier = await self._platform_log.covered_before(tenant, run.first, archive.selection.from_us)
        else:
            archive.left_out["PLATFORM_PROOF_NOT_COVERED"] += 1
            earlier = await self._platform_log.covered(tenant)
        links: list[JsonValue] = []
        if earlier is not None and earlier.head.size < archive.head.size:
            hashes, _ = await self._logs.consistency_proof(tenant, earlier.head.size, archive.head.size)
            encoded = [base64.b64encode(one).decode() for one in hashes]
            links = [{"checkpoint": earlier.head.checkpoint, "platform_proof": earlier.platform_proof, "consistency": encoded}]
        archive.add("consistency.json", canonical_json({"earlier": links}))

    def _keys(self, tenant: str) -> bytes:
        lines = ["# Verifier keys as the exporting service names them. Hints: compare them with keys from somewhere else.", "# log"]
        lines += [*self._logs.verifier_keys(tenant), "# platform's log", *self._platform_log.verifier_keys]
        if self._witness_keys:
            lines += ["# witnesses", *self._witness_keys]
        return ("\n".join(lines) + "\n").encode()

    async def _links(self, opened: TenantLog) -> list[JsonValue]:
        """Return what leads from each key of a log to the next, oldest first, with both of them."""
        keys = opened.verifier_keys  # before the links, so that there is one for each
        links = {link.verifier_key: link.tlog_proof for link in await self._logs.key_links(opened)}
        return [
            {"previous_key": before, "next_key": after, "tlog_proof": links[before]} for before, after in pairwise(reversed(keys))
        ]

    async def _payloads(self, archive: _Archive) -> AsyncIterator[tuple[str, Sequence[Opened]]]:
        """Open the records of the selection that the caller may see and that are kept, each at its first leaf in the run."""
        asker, run = archive.asker, archive.run
        permit(asker.roles, Action.READ_RECORD)
        async for page in selected(self._logs, asker.tenant, run, archive.selection.case_id, asker.roles):
            for leaf in page:
                record_id = _record_of(leaf, asker.roles)
                if record_id is None or not await self._is_first(asker.tenant, record_id, leaf.index, run):
                    continue
                if archive.payload_records >= PAYLOAD_RECORDS_MAX:
                    archive.left_out["TOO_MANY_RECORDS"] += 1
                    continue
                try:
                    opened = await self._records.opened(asker, record_id)
                except VaultDisabled:
                    archive.left_out["VAULT_DISABLED"] += 1
                    return
                except (RecordErased, RecordNotFound) as refusal:
                    archive.left_out["RECORD_ERASED" if isinstance(refusal, RecordErased) else "RECORD_NOT_FOUND"] += 1
                    continue
                if here := [part for part in opened if run.first <= part.leaf_index < run.stop]:
                    archive.payload_records += 1
                    yield record_id, here

    async def _is_first(self, tenant: str, record_id: str, index: int, run: Run) -> bool:
        leaves = await self._logs.read_records(tenant, lambda reader, log_id: reader.leaves_of(log_id, record_id))
        return index == min((other for other, _ in leaves if run.first <= other < run.stop), default=index)


def _write_leaves(archive: _Archive, page: Sequence[StoredLeaf], paths: Paths) -> None:
    lines = []
    for leaf, path in zip(page, paths.paths(page), strict=True):
        if is_withheld(leaf.data, archive.asker.roles):
            name, content = "withheld", leaf.completed[0]
            archive.withheld += 1
            archive.report.add_withheld()
        else:
            name, content = "leaf", leaf.data
            archive.report.add(leaf.index, json.loads(leaf.data))
        encoded = ",".join(f'"{base64.b64encode(sibling).decode()}"' for sibling in path)
        lines.append(f'{{"index":{leaf.index},"{name}":"{base64.b64encode(content).decode()}","path":[{encoded}]}}\n')
    archive.written += len(lines)
    archive.zip.write("".join(lines).encode())


def _record_of(leaf: StoredLeaf, roles: Sequence[str]) -> str | None:
    """Request id of the record of which a leaf holds commitments, unless the record does not exist for the caller."""
    if b'"commitments":' not in leaf.data or is_withheld(leaf.data, roles):
        return None
    fields = json.loads(leaf.data)
    if fields["type"] not in _RECORD_TYPES or "commitments" not in fields:
        return None
    record_id: str = fields["record_id" if fields["type"] == "correction" else "request_id"]
    return record_id


def _payload_file(record_id: str, opened: Sequence[Opened]) -> bytes:
    """Write the openings of a record. A payload in UTF-8 stands as text."""
    parts: list[JsonValue] = []
    for part in opened:
        try:
            content = {"text": part.payload.decode("utf-8")}
        except UnicodeDecodeError:
            content = {"base64": base64.b64encode(part.payload).decode()}
        salt = base64.b64encode(part.salt).decode()
        parts.append({"kind": part.kind, "leaf_index": part.leaf_index, "salt": salt, **content})
    return canonical_json({"request_id": record_id, "payloads": parts})


def _manifest(archive: _Archive, now_us: int) -> dict[str, Any]:
    selection, asker = archive.selection, archive.asker
    chosen = {"from": rfc3339(selection.from_us), "to": rfc3339(selection.to_us), "with_payloads": selection.with_payloads}
    by: dict[str, JsonValue] = {"tenant": asker.tenant, "actor": asker.actor, "roles": list(asker.roles), "purpose": asker.purpose}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "origin": archive.head.checkpoint.partition("\n")[0],
        "created_at": rfc3339(now_us),
        "selection": {**chosen, "case_id": selection.case_id} if selection.case_id else chosen,
        "first_index": archive.run.first,
        "stop_index": archive.run.stop,
        "tree_size": archive.head.size,
        "leaves": archive.written,
        "withheld_leaves": archive.withheld,
        "payload_records": archive.payload_records,
        "exported_by": {**by, "request_id": asker.request_id},
        "export_leaf": archive.export_leaf,
        "left_out": dict(archive.left_out),
    }
