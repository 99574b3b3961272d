"""Which leaves an export holds: a run of indices for a span of time, and of these all, or those of one case.

Knows: the clock of leaves, cases, what exists for whom. Does not know: the archive.

Leaves are in the order in which they were committed; their times are those at which they were asked for, which may be some
seconds out of that order. The run reaches from the first leaf of the span to the last one, as far as times are in order but for
`DISORDER_US`; a leaf between them that a clock stamped otherwise is in the run too, so that the run has no gap and its
completeness can be checked.
"""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from lionrock.audit.canonical_json import canonical_json
from lionrock.audit.log import AuditLogs
from lionrock.audit.records.permissions import is_withheld
from lionrock.audit.store import StoredLeaf

DISORDER_US: Final = 60_000_000
_ALL: Final = 1 << 53


@dataclass(frozen=True, slots=True)
class Selection:
    """What was asked for. Times: microseconds since 1970, `from_us` inclusive, `to_us` exclusive; `case_id` "": all cases."""

    from_us: int
    to_us: int
    case_id: str = ""
    with_payloads: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """Leaves [first, stop): the selection without its case."""

    first: int
    stop: int


async def find_run(logs: AuditLogs, tenant: str, selection: Selection) -> Run:
    """Find the run of a selection in the log as it is now. Raises LogNotFound, LogReadOnly, StoreFailed."""
    size = logs.size(tenant)
    begin = await _at_or_after(logs, tenant, size, selection.from_us - DISORDER_US)
    first = size
    async for page in logs.leaves(tenant, begin, _ALL):
        found = next((leaf.index for leaf in page if leaf.recorded_at_us >= selection.from_us), None)
        if found is not None:
            first = min(found, size)
            break
    certain = max(first, await _at_or_after(logs, tenant, size, selection.to_us - DISORDER_US))
    end = max(certain, await _at_or_after(logs, tenant, size, selection.to_us + DISORDER_US))
    stop = certain
    async for page in logs.leaves(tenant, certain, end - certain):
        stop = max([stop, *(leaf.index + 1 for leaf in page if leaf.recorded_at_us < selection.to_us)])
    return Run(first, min(stop, size))


async def selected(logs: AuditLogs, tenant: str, run: Run, case_id: str, roles: Sequence[str]) -> AsyncIterator[list[StoredLeaf]]:
    """Pages of the leaves of a run, of all cases or of one. Raises LogNotFound, LogReadOnly, StoreFailed."""
    async for page in logs.leaves(tenant, run.first, run.stop - run.first):
        yield list(page) if not case_id else await _of_case(logs, tenant, page, case_id, roles)


async def _of_case(
    logs: AuditLogs, tenant: str, page: Sequence[StoredLeaf], case_id: str, roles: Sequence[str]
) -> list[StoredLeaf]:
    """Leaves of requests of a case, and the corrections of their records; none that does not exist for the caller."""
    written = b'"case_id":' + canonical_json(case_id)  # canonical JSON has one way to write it
    corrected: dict[str, str] = {}
    for leaf in page:
        if b'"type":"correction"' in leaf.data:
            record_id = json.loads(leaf.data).get("record_id")
            if isinstance(record_id, str):
                corrected[leaf.event_id] = record_id
    records = {}
    if corrected:
        records = await logs.read_records(tenant, lambda reader, log_id: reader.records(log_id, set(corrected.values())))
    chosen = []
    for leaf in page:
        record = records.get(corrected.get(leaf.event_id, ""))
        of_case = (written in leaf.data and json.loads(leaf.data).get("case_id") == case_id) or (
            record is not None and record.case_id == case_id
        )
        if of_case and not is_withheld(leaf.data, roles):
            chosen.append(leaf)
    return chosen


async def _at_or_after(logs: AuditLogs, tenant: str, size: int, at_us: int) -> int:
    """Lowest index whose time is not before `at_us`, by bisection."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if (await logs.leaf_at(tenant, middle)).recorded_at_us < at_us:
            low = middle + 1
        else:
            high = middle
    return low
