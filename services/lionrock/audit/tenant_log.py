"""One tenant's log while the service runs, and the checks that it passes before anything is signed.

Knows: what must agree at start — the key, the stored tree, the signed checkpoint beside it, the one kept in the second place.
Does not know: how leaves get in (sequencer.py) or out (log.py).
A log that does not pass is opened read-only and says why and what to do. Nothing is repaired here: two histories under one
key are worse than no service.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lionrock.audit.failures import KeyUnusable, LogReadOnly, LogSealed, StoreFailed
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store import UNFINISHED, LogId, LogStore, StoredLeaf, StoredLog
from lionrock.audit.store.departures import ENDED, SEALED, furthest
from lionrock.audit.store.tables import RETIRED_KEYS
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.keys import Signer, UntrustedNote, VerifierKey
from lionrock.tlog.merkle import (
    EMPTY_ROOT,
    Frontier,
    InvalidProof,
    ReadSubtrees,
    inclusion_proof,
    leaf_hash,
    root_at,
    subtrees_of,
    verify_inclusion,
)
from lionrock.tlog.note import open_note, sign_note
from lionrock.tlog.proof import TlogProof

RETIRED_KEYS_MAX = 1000
"""A log that changes its key every day for years has fewer."""
TAIL_LEAVES = 256
"""Leaves whose hashes are computed again at start: a torn write hits the end of the log."""
_TAIL_BYTES = 2**20
SEALED_WHY = "the tenant was off-boarded: its log is sealed, and its name is not given again"


@dataclass(frozen=True, slots=True)
class Head:
    """A size and root that were signed, durable in both places, and may be shown."""

    size: int
    root: bytes
    checkpoint: str

    def receipt(self, leaf: StoredLeaf, read: ReadSubtrees) -> str:
        """Write the tlog-proof file of a leaf below this head, after checking it.

        Raises StoreFailed when what is stored does not prove it.
        """
        path = inclusion_proof(leaf.index, self.size, read)
        try:
            verify_inclusion(leaf.index, self.size, leaf_hash(leaf.data), path, self.root)
        except InvalidProof as error:
            raise StoreFailed(
                f"leaf {leaf.index} as stored is not in the tree that was signed ({error}): restore the store"
            ) from error
        return TlogProof(leaf.data, leaf.index, path, self.checkpoint).text()


@dataclass(slots=True)
class TenantLog:
    """A log that is open. `head` and `frontier` are moved by the sequencer alone; readers take `head` in one piece."""

    tenant: str
    origin: str
    log_id: LogId
    verifier_key: str
    signer: Signer | None
    head: Head
    frontier: Frontier
    read_only: str | None = None
    """Why nothing more is signed, and what to do; None: writable."""
    retired: tuple[str, ...] = ()
    """Verifier keys that signed before, newest first."""
    departure: str | None = None
    """Stage that the departure of its tenant has reached (store/departures.py); None: it stays."""
    last_event_id: str = ""
    """Event of the last leaf, which alone is recorded while the log is being sealed."""

    @property
    def sealed(self) -> bool:
        """Whether its tenant has left: nothing is ever added again."""
        return self.departure in (SEALED, ENDED)

    def refused(self) -> LogReadOnly:
        """Return why nothing is signed, for a log that is read-only."""
        why = self.read_only or "the log has no key"
        return LogSealed(why) if self.sealed else LogReadOnly(why)

    @property
    def verifier_keys(self) -> Sequence[str]:
        """Keys under which its checkpoints verify, newest first."""
        return self.verifier_key, *self.retired

    def sign(self, size: int, root: bytes, *others: Signer) -> Head:
        """Sign a checkpoint. The caller has made sure that it extends the last one.

        `others` sign beside the log's key. Raises LogReadOnly.
        """
        if self.read_only is not None or self.signer is None:
            raise self.refused()
        return Head(size, root, sign_note(Checkpoint(self.origin, size, root).text(), self.signer, *others))


def open_tenant_log(tenant: str, origin: str, store: LogStore, keys: KeyDirectory, signed: SignedCheckpoints) -> TenantLog:
    """Open a tenant's log, creating key and log when neither was ever there.

    Raises StoreFailed, and LogReadOnly when not even reads make sense.
    """
    stored = store.find_log(origin)
    last_signed = signed.last().get(origin)
    departure = None if stored is None else furthest(store.departures.stages(stored.log_id))
    if stored is not None and departure in (SEALED, ENDED):
        return _open_sealed(tenant, stored, store, last_signed, departure)
    try:
        signer = keys.load(tenant, origin)
        if stored is not None and (signer is None or str(signer.verifier_key) != stored.verifier_key):
            signer = _changed_to(stored, tenant, keys) or signer
    except KeyUnusable as error:
        if stored is None:
            raise LogReadOnly(str(error)) from error
        return _read_only(tenant, stored, str(error))
    if stored is None:
        return _create(tenant, origin, store, keys, signed, signer, last_signed)
    try:
        if signer is None:
            raise LogReadOnly(f"the key of {origin} is gone: restore {keys.path(tenant)} from its backup")
        retired = retired_keys(store, stored.log_id)
        if str(signer.verifier_key) != stored.verifier_key:
            raise LogReadOnly(
                f"the key file of {origin} holds another key than the log was begun with: restore the key from its backup"
            )
        frontier = _verify(stored, store, signer.verifier_key, retired, last_signed)
    except LogReadOnly as refusal:
        return _read_only(tenant, stored, str(refusal))
    except StoreFailed as failure:
        return _read_only(tenant, stored, f"the store of {origin} is damaged ({failure}): restore the store from its backup")
    if last_signed != stored.checkpoint:
        signed.record({origin: stored.checkpoint})  # the crash came between the two places
    head = Head(stored.size, stored.root, stored.checkpoint)
    before = tuple(map(str, reversed(retired)))
    return TenantLog(
        tenant, origin, stored.log_id, stored.verifier_key, signer, head, frontier, retired=before, departure=departure
    )


def _open_sealed(tenant: str, stored: StoredLog, store: LogStore, last_signed: str | None, departure: str) -> TenantLog:
    """Open a log whose tenant has left: it is checked like any other, and needs no key."""
    try:
        retired = retired_keys(store, stored.log_id)
        frontier = _verify(stored, store, VerifierKey.parse(stored.verifier_key), retired, last_signed)
    except (LogReadOnly, MalformedNote) as refusal:
        opened = _read_only(tenant, stored, str(refusal))
    except StoreFailed as failure:
        opened = _read_only(tenant, stored, f"the store of {stored.origin} is damaged ({failure}): restore the store")
    else:
        head, before = Head(stored.size, stored.root, stored.checkpoint), tuple(map(str, reversed(retired)))
        return TenantLog(
            tenant,
            stored.origin,
            stored.log_id,
            stored.verifier_key,
            None,
            head,
            frontier,
            read_only=SEALED_WHY,
            retired=before,
            departure=departure,
        )
    return opened


def _changed_to(stored: StoredLog, tenant: str, keys: KeyDirectory) -> Signer | None:
    """Finish a change of keys that ended between store and key directory (rotation.py). Raises KeyUnusable."""
    following = keys.load_next(tenant, stored.origin)
    if following is None or str(following.verifier_key) != stored.verifier_key:
        return None
    try:
        keys.promote(tenant)
    except OSError as error:
        raise KeyUnusable(f"{keys.next_path(tenant)} cannot take its place: {error.strerror}") from error
    return following


def _create(
    tenant: str,
    origin: str,
    store: LogStore,
    keys: KeyDirectory,
    signed: SignedCheckpoints,
    signer: Signer | None,
    last_signed: str | None,
) -> TenantLog:
    """Make key, second place and log, in this order: a log is never there without the other two."""
    if last_signed is not None:
        if signer is None:
            raise LogReadOnly(f"{origin} was signed for, but its key and its store are gone: restore both from their backups")
        if _opened(last_signed, [signer.verifier_key], "the second place").size > 0:
            raise LogReadOnly(f"{origin} was signed for, but the store does not hold it: restore the store from its backup")
    if signer is None:
        signer = keys.create(tenant, origin)
    checkpoint = sign_note(Checkpoint(origin, 0, EMPTY_ROOT).text(), signer)
    signed.record({origin: checkpoint})
    verifier_key = str(signer.verifier_key)
    stored = store.create_log(origin, verifier_key, EMPTY_ROOT, checkpoint)
    return TenantLog(tenant, origin, stored.log_id, verifier_key, signer, Head(0, EMPTY_ROOT, checkpoint), Frontier(0, []))


def _verify(
    stored: StoredLog, store: LogStore, key: VerifierKey, retired: Sequence[VerifierKey], last_signed: str | None
) -> Frontier:
    """Check that everything agrees under the key that signs. Raises LogReadOnly, StoreFailed."""
    origin = stored.origin
    if stored.checkpoint == UNFINISHED:
        raise LogReadOnly(f"{origin} was not wholly moved to this store: finish `lionrock audit migrate` or use the old store")
    in_store = _opened(stored.checkpoint, [key], "the store")
    if (in_store.size, in_store.root) != (stored.size, stored.root):
        raise LogReadOnly(f"the store of {origin} names another head than its signed checkpoint: restore the store from its backup")
    if store.next_index(stored.log_id) != stored.size:
        raise LogReadOnly(f"the store of {origin} does not hold {stored.size} leaves as signed: restore the store from its backup")
    read = partial(store.subtree_hashes, stored.log_id)
    frontier = Frontier(stored.size, read(subtrees_of(0, stored.size)))
    if frontier.root() != stored.root:
        raise LogReadOnly(f"the stored tree of {origin} has another root than was signed: restore the store from its backup")
    tail = store.leaves(stored.log_id, max(0, stored.size - TAIL_LEAVES), stored.size, _TAIL_BYTES)
    for index, leaf in enumerate(tail, start=max(0, stored.size - TAIL_LEAVES)):
        if leaf.index != index or leaf_hash(leaf.data) != leaf.completed[0]:
            raise LogReadOnly(f"leaf {index} of {origin} is not what was hashed: restore the store from its backup")
    if last_signed is None:
        raise LogReadOnly(f"the file of signed checkpoints does not know {origin}: restore that file from its backup")
    second = _opened(last_signed, [key, *retired], "the second place")
    if second.size > stored.size:
        raise LogReadOnly(
            f"the store of {origin} ends at {stored.size} leaves, but {second.size} were signed: the store was rolled back; "
            "restore a newer copy of it, for signing on from here would fork the log"
        )
    if root_at(second.size, read) != second.root:
        raise LogReadOnly(f"the store of {origin} holds another history than the one signed: restore the store that was signed for")
    if stored.failed_over is not None and second.size < stored.size:
        raise LogReadOnly(
            f"{stored.failed_over}, and the file of signed checkpoints here ends before {origin} does, so leaves that were signed"
            " may be lost: start the service that signed last, with its file; or set store_accept_timeline to the later timeline"
            " when you have made sure that the fail-over lost no commit"
        )
    return frontier


def retired_keys(store: LogStore, log_id: LogId) -> list[VerifierKey]:
    """Keys that signed the log before, oldest first. Raises StoreFailed."""
    try:
        return [VerifierKey.parse(text) for _, text, _ in store.tables.page(RETIRED_KEYS, log_id, None, RETIRED_KEYS_MAX)]
    except MalformedNote as error:
        raise StoreFailed(f"a key that signed before is stored wrongly: {error}") from error


def _opened(checkpoint: str, keys: Sequence[VerifierKey], where: str) -> Checkpoint:
    """`keys`: of one log."""
    key = keys[0]
    try:
        opened = Checkpoint.parse(open_note(checkpoint, keys).text)
    except (MalformedNote, UntrustedNote) as error:
        raise LogReadOnly(
            f"the checkpoint of {key.name} in {where} is not signed by its key ({error}): restore it from its backup"
        ) from error
    if opened.origin != key.name:
        raise LogReadOnly(f"the checkpoint of {key.name} in {where} is that of another log: restore it from its backup")
    return opened


def _read_only(tenant: str, stored: StoredLog, why: str) -> TenantLog:
    head = Head(stored.size, stored.root, stored.checkpoint)
    return TenantLog(tenant, stored.origin, stored.log_id, stored.verifier_key, None, head, Frontier(0, []), why)
