"""The log of logs: its leaves are the tenants' signed checkpoints, so one cosignature on it covers every tenant.

Knows: when a tenant's checkpoint becomes a leaf, and how a tenant's leaf is proven in two steps. Does not know: witnesses
(witnessing.py), how a batch of a tenant is committed (sequencer.py).

Origin `<platform>/audit`. A leaf is the bytes of the signed note itself, as its tenant got it; the event id is
"<tenant>:<size>", so a checkpoint is recorded once. Witnesses see this log's size and root and nothing of a tenant. Its steps run
on the sequencer's thread between batches: the store keeps its one writer, and what ends writing there ends it here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lionrock.audit.failures import LeafNotCovered, LeafNotFound, LogReadOnly, StoreFailed
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.log import AuditLogs
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store import LogId, LogStore, StoredLeaf
from lionrock.audit.tenant_log import Head, TenantLog, open_tenant_log
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.merkle import consistency_proof, leaf_hash, root_at

KEY_NAME = "_platform"
"""Where its key lies among the tenants' keys. No tenant's name begins with an underscore."""
_SEARCH_LEAVES = 10_000
_PAGE_LEAVES = 512
_PAGE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Recorded:
    """A tenant's checkpoint in the platform log: the tenant's tree size, and the index of the platform's leaf."""

    tenant_size: int
    index: int


@dataclass(frozen=True, slots=True)
class ProvenLeaf:
    """A leaf in its tenant's checkpoint, and that checkpoint in the platform's: two tlog-proof files."""

    receipt: str
    platform_proof: str
    leaf: StoredLeaf


@dataclass(frozen=True, slots=True)
class CoveredCheckpoint:
    """A tenant's checkpoint that the platform's log holds: the signed note, and its tlog-proof file at the attested head."""

    head: Head
    platform_proof: str


class PlatformLog:
    """The platform log of a running service. Its methods belong to the event loop."""

    def __init__(self, opened: TenantLog, logs: AuditLogs, store: LogStore, signed: SignedCheckpoints) -> None:
        """Use what `open_platform_log` opened. `store` and `signed` are touched on the threads of `logs` alone."""
        self._log = opened
        self._logs = logs
        self._store = store
        self._signed = signed
        self._recorded: dict[str, Recorded] = {}
        self._attested = opened.head
        self._covered: Mapping[str, Recorded] = {}

    @property
    def origin(self) -> str:
        """Origin line of the platform log."""
        return self._log.origin

    @property
    def opened(self) -> TenantLog:
        """Return the log itself, whose head and key the sequencer's thread alone changes."""
        return self._log

    @property
    def verifier_key(self) -> str:
        """Key under which its latest checkpoint verifies."""
        return self._log.verifier_key

    @property
    def verifier_keys(self) -> Sequence[str]:
        """Keys under which its checkpoints verify, newest first."""
        return self._log.verifier_keys

    @property
    def read_only(self) -> str | None:
        """Why nothing more is recorded; None: all is well."""
        return self._log.read_only

    @property
    def head(self) -> Head:
        """Latest signed head, cosigned or not."""
        return self._log.head

    @property
    def attested(self) -> Head:
        """Head that proofs lead to: the last cosigned one where there are witnesses, else the latest."""
        return self._attested

    @property
    def published(self) -> tuple[str, LogId, Callable[[], Head]]:
        """Origin, number in the store, and what gives the newest head that the world may have: the attested one."""
        return self._log.origin, self._log.log_id, lambda: self._attested

    async def begin(self, attested: Head | None, *, witnessed: bool = False) -> None:
        """Find out what was recorded before this start.

        `attested`: the last cosigned head, None without one; `witnessed`: nothing but a cosigned head covers a leaf.

        A tree that does not contain the cosigned one is another history, and so are the tenants' in the same store: nothing more is
        signed. Raises StoreFailed.
        """
        heads = self._logs.heads()

        def read() -> tuple[dict[str, Recorded], dict[str, Recorded]]:
            if attested is not None and not self._contains(attested):
                self._log.read_only = why = (
                    f"{self._log.origin} does not contain the {attested.size} leaves that witnesses cosigned: the store and the"
                    " file of signed checkpoints were both rolled back or replaced; restore those that were signed for"
                )
                self._logs.stop_signing(why)
            if self._log.read_only is not None:  # it may lack what its head says; tenants' logs go on
                return {}, {}
            size = 0 if witnessed and attested is None else (attested or self._log.head).size
            recorded = {}
            for tenant, head in heads.items():
                leaf = self._store.leaf_of_event(self._log.log_id, _event_id(tenant, head.size))
                if leaf is not None:
                    recorded[tenant] = Recorded(head.size, leaf.index)
            covered = {tenant: place for tenant, place in recorded.items() if place.index < size}
            try:
                covered |= self._newest_below(size, heads.keys() - covered.keys())
            except StoreFailed as failure:
                self._log.read_only = str(failure)
                return {}, {}
            return recorded, covered

        self._recorded, self._covered = await self._logs.read(read)
        self._attested = attested or self._log.head

    async def advance(self) -> tuple[Head, Mapping[str, Recorded]]:
        """Record the newest checkpoint of every tenant whose log grew.

        Returns the head, and what is recorded under it by tenant: what `attest` wants. Raises LogReadOnly, QueueFull, StoreFailed.
        """
        if self._log.read_only is not None:
            raise LogReadOnly(self._log.read_only)  # here, since on the sequencer's thread it would end all writing
        grown = [
            (tenant, head)
            for tenant, head in sorted(self._logs.heads().items())
            if head.size > 0 and (tenant not in self._recorded or self._recorded[tenant].tenant_size < head.size)
        ]
        if grown:
            self._recorded |= await self._logs.sequence(lambda store: self._append(store, grown))
        return self._log.head, dict(self._recorded)

    def attest(self, head: Head, recorded: Mapping[str, Recorded]) -> None:
        """Lead proofs to this head from now on: what `advance` returned, cosignatures added where there are any."""
        if head.size >= self._attested.size:
            self._attested, self._covered = head, recorded

    async def consistency_proof(self, first: int, second: int) -> Sequence[bytes]:
        """Prove that the tree of `first` leaves is a prefix of that of `second`. Raises StoreFailed."""
        if first in (0, second):
            return []
        return await self._logs.read(
            lambda: consistency_proof(first, second, partial(self._store.subtree_hashes, self._log.log_id))
        )

    async def prove(self, tenant: str, wanted: int | str) -> ProvenLeaf:
        """Prove a tenant's leaf, by index or by event id, at the attested head.

        Raises LogNotFound, LogReadOnly, LeafNotFound, LeafNotCovered when no attested checkpoint holds it yet, StoreFailed.
        """
        origin, log_id = self._logs.origin(tenant), self._logs.log_id(tenant)
        attested, covered = self._attested, self._covered.get(tenant)

        def read() -> ProvenLeaf:
            leaf = self._store.leaf(log_id, wanted) if isinstance(wanted, int) else self._store.leaf_of_event(log_id, wanted)
            if leaf is None:
                raise LeafNotFound("no such leaf")
            if covered is None or leaf.index >= covered.tenant_size:
                raise LeafNotCovered("the leaf is not yet under a checkpoint that the platform's log attests")
            checkpoint = self._covered_checkpoint(origin, covered.index, attested)
            receipt = checkpoint.head.receipt(leaf, partial(self._store.subtree_hashes, log_id))
            return ProvenLeaf(receipt, checkpoint.platform_proof, leaf)

        return await self._logs.read(read)

    async def covered(self, tenant: str) -> CoveredCheckpoint | None:
        """Newest checkpoint of a tenant under the attested head; None while there is none. Raises LogNotFound, StoreFailed."""
        origin, attested, covered = self._logs.origin(tenant), self._attested, self._covered.get(tenant)
        if covered is None:
            return None
        return await self._logs.read(lambda: self._covered_checkpoint(origin, covered.index, attested))

    async def covered_before(self, tenant: str, tenant_size: int, at_us: int) -> CoveredCheckpoint | None:
        """Newest checkpoint of a tenant that the platform's log held at a time, of at most so many leaves and at least one.

        None when there is none as far back as is worth looking. Raises LogNotFound, StoreFailed.
        """
        origin, attested = self._logs.origin(tenant), self._attested

        def read() -> CoveredCheckpoint | None:
            low, high = 0, attested.size
            while low < high:  # times of this log are in order: one task appends
                middle = (low + high) // 2
                leaf = self._store.leaf(self._log.log_id, middle)
                assert leaf is not None
                low, high = (middle + 1, high) if leaf.recorded_at_us < at_us else (low, middle)
            index = self._newest_of(tenant, tenant_size, low)
            return None if index is None else self._covered_checkpoint(origin, index, attested)

        return await self._logs.read(read)

    def _covered_checkpoint(self, origin: str, index: int, attested: Head) -> CoveredCheckpoint:
        recorded = self._store.leaf(self._log.log_id, index)
        assert recorded is not None
        note = recorded.data.decode()
        checkpoint = Checkpoint.parse(note.rpartition("\n\n")[0] + "\n")
        assert checkpoint.origin == origin
        proof = attested.receipt(recorded, partial(self._store.subtree_hashes, self._log.log_id))
        return CoveredCheckpoint(Head(checkpoint.size, checkpoint.root, note), proof)

    def _newest_of(self, tenant: str, tenant_size: int, stop: int) -> int | None:
        """Index below `stop` of the newest checkpoint of a tenant with 1 to `tenant_size` leaves."""
        for leaf in self._newest_first(stop):
            name, _, size = leaf.event_id.rpartition(":")
            if name == tenant and 1 <= int(size) <= tenant_size:
                return leaf.index
        return None

    def _append(self, store: LogStore, grown: Sequence[tuple[str, Head]]) -> dict[str, Recorded]:
        """On the sequencer's thread: one transaction, then the second place, then what readers see."""
        opened, frontier = self._log, self._log.frontier.copy()
        now_us = self._logs.now_us()
        leaves, recorded = [], {}
        for tenant, head in grown:
            data = head.checkpoint.encode()
            index = frontier.size
            completed = frontier.append(leaf_hash(data))
            leaves.append(StoredLeaf(index, _event_id(tenant, head.size), now_us, completed, data))
            recorded[tenant] = Recorded(head.size, index)
        new = opened.sign(frontier.size, frontier.root())
        with store.transaction() as transaction:
            transaction.add_leaves(opened.log_id, leaves)
            transaction.advance(opened.log_id, opened.head.size, opened.head.root, new.size, new.root, new.checkpoint)
        self._signed.record({opened.origin: new.checkpoint})
        opened.frontier, opened.head = frontier, new
        return recorded

    def _contains(self, earlier: Head) -> bool:
        if earlier.size > self._log.head.size:
            return False
        try:
            return root_at(earlier.size, partial(self._store.subtree_hashes, self._log.log_id)) == earlier.root
        except StoreFailed:
            return False

    def _newest_below(self, size: int, tenants: set[str]) -> dict[str, Recorded]:
        """Newest checkpoint of each tenant among the platform's first `size` leaves, as far back as is worth looking."""
        found: dict[str, Recorded] = {}
        if not tenants:
            return found
        for leaf in self._newest_first(size):
            tenant, _, tenant_size = leaf.event_id.rpartition(":")
            if tenant in tenants:
                found.setdefault(tenant, Recorded(int(tenant_size), leaf.index))
            if len(found) == len(tenants):
                break
        return found

    def _newest_first(self, stop: int) -> Iterator[StoredLeaf]:
        """Leaves of the platform log below `stop`, the newest first, as far back as is worth looking. Raises StoreFailed."""
        end = max(0, stop - _SEARCH_LEAVES)
        while stop > end:
            start = max(end, stop - _PAGE_LEAVES)
            leaves: list[StoredLeaf] = []
            while start + len(leaves) < stop:
                page = self._store.leaves(self._log.log_id, start + len(leaves), stop, _PAGE_BYTES)
                if not page or page[0].index != start + len(leaves):
                    raise StoreFailed(f"leaf {start + len(leaves)} of {self._log.origin} is not in the store: restore the store")
                leaves += page
            yield from reversed(leaves)
            stop = start


def open_platform_log(platform: str, store: LogStore, keys: KeyDirectory, signed: SignedCheckpoints) -> TenantLog:
    """Open or create the platform log, checking it like a tenant's. Raises StoreFailed, LogReadOnly."""
    return open_tenant_log(KEY_NAME, f"{platform}/audit", store, keys, signed)


def _event_id(tenant: str, size: int) -> str:
    return f"{tenant}:{size}"
