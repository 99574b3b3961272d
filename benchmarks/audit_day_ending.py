"""What must hold when a replayed day is over: the logs, the records, the stored bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from random import Random

from benchmarks.audit_day_doings import Doings, context_of
from benchmarks.audit_day_model import Part, TenantModel
from benchmarks.audit_day_service import ORIGIN, PLATFORM, STORE_FILE, Directory, Service
from lionrock.audit.failures import AuditError, RecordErased
from lionrock.audit.signed_checkpoints import read_batches
from lionrock.audit.store import LogStore
from lionrock.audit.store.sqlite_reader import SqliteLogReader
from lionrock.audit.store_check import check_store
from lionrock.tlog.keys import VerifierKey

_READ_AT_MOST = 40
"""Kept records of a tenant that are read again; of what is destroyed, every record is tried."""
_PIECE_BYTES = 1 << 20


async def check_all(service: Service, models: Mapping[str, TenantModel]) -> list[str]:
    """Ask the running service. Returns what disagrees."""
    wrong = []
    sizes = await service.look(everything=True)
    for tenant, model in models.items():
        if sizes[f"{ORIGIN}/{tenant}"] != service.logs.size(tenant):
            wrong.append(f"{tenant}: the monitor ends at {sizes[f'{ORIGIN}/{tenant}']} leaves")
        wrong += await _check_tenant(service, tenant, model)
    if sizes[ORIGIN] != service.platform_log.head.size:
        wrong.append(f"the monitor ends at {sizes[ORIGIN]} leaves of the platform's log")
    return wrong


async def _check_tenant(service: Service, tenant: str, model: TenantModel) -> list[str]:
    regulator = context_of(tenant, ("regulator",))
    _, counts = await service.records.stats(regulator)
    wrong = Doings(tenant, model, b"", Random(0)).differs_from(counts)
    seen: Counter[str] = Counter()
    for record in reversed(model.records.values()):
        seen[record.state] += 1
        if record.state == "kept" and seen["kept"] > _READ_AT_MOST:
            continue
        try:
            opened = await service.records.opened(regulator, record.request_id)
        except AuditError as refusal:
            if record.state == "kept" or not isinstance(refusal, RecordErased):
                wrong.append(f"{tenant}: a record that is {record.state} is refused by {type(refusal).__name__}")
            continue
        if record.state != "kept":
            wrong.append(f"{tenant}: a record that is {record.state} can be read")
        elif [Part(part.kind, part.payload, part.recorded_at_us) for part in opened] != record.parts:
            wrong.append(f"{tenant}: a record is not what was said")
    return wrong + _check_leaves(service.store, tenant, model)


def _check_leaves(store: LogStore, tenant: str, model: TenantModel) -> list[str]:
    """Count leaves by type."""
    stored = store.find_log(f"{PLATFORM}/audit/{tenant}")
    assert stored is not None
    found: Counter[str] = Counter()
    expired, index = 0, 0
    while page := store.leaves(stored.log_id, index, stored.size, _PIECE_BYTES):
        for leaf in page:
            fields = json.loads(leaf.data)
            if fields["type"] == "expiry":
                expired += fields["record_count"]
            else:
                found[fields["type"]] += 1
        index = page[-1].index + 1
    wrong = []
    if found != +model.leaves:
        wrong.append(f"{tenant}: leaves by type are {dict(found)} instead of {dict(model.leaves)}")
    if expired != model.states().get("expired", 0):
        wrong.append(f"{tenant}: leaves of expiry count {expired} records")
    return wrong


def check_stored(at: Directory, models: Mapping[str, TenantModel]) -> tuple[int, list[str]]:
    """Check the store as an auditor does, when the service has ended. Returns how many leaves were read, and the findings."""

    def signed() -> list[tuple[str, str]]:
        return [pair for batch in read_batches(at.key_dir / "signed-checkpoints.jsonl") for pair in batch.items()]

    keys = [VerifierKey.parse(key) for its_keys in at.trusted.values() for key in its_keys]
    if (at.root / STORE_FILE).exists():
        with closing(SqliteLogReader.open(at.root / STORE_FILE)) as reader:
            check = check_store(reader, keys, signed)
    else:
        with closing(at.open_store()) as store:
            check = check_store(store, keys, signed)
    missing = {f"{ORIGIN}/{tenant}" for tenant in models} - at.trusted.keys()
    return check.leaves, [*map(str, check.findings), *(f"{origin} was not checked" for origin in sorted(missing))]


def check_files(at: Directory, marker: bytes) -> tuple[dict[str, int], list[str]]:
    """Search every file for what was said. Returns bytes of files by what they are, and the files that hold it."""
    places = {"store": at.root / STORE_FILE.parent, "key store": at.key_store_file.parent, "full tiles": at.tiles}
    sizes = {name: sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) for name, place in places.items()}
    # Partial ones stay until the tile is full: of a log that is looked at often and grows slowly there are many.
    sizes["partial tiles"] = sum(path.stat().st_size for path in at.tiles.rglob("*.p/*"))
    sizes["full tiles"] -= sizes["partial tiles"]
    wrong = [f"{path.name} holds what was said" for path in at.root.rglob("*") if path.is_file() and _holds(path, marker)]
    return sizes, wrong


def _holds(path: Path, marker: bytes) -> bool:
    tail = b""
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            if marker in tail + piece:
                return True
            tail = piece[-len(marker) :]
    return False
