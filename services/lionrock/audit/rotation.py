"""Gives a log another key, so that whoever trusts the old one has reason to trust the new one.

    1  ready    the new key is in its file, `<tenant>.next.key` (`lionrock audit rotate-key`)
    2  signed   one transaction: a KEY_CHANGE leaf that names both keys, the old one among the retired, the new one as the log's,
                and a head over that leaf which both keys signed
    3  known    that checkpoint is in the second place
    4  done     the new key's file takes the place of the old one's, which is gone

A crash before 2 leaves the new key waiting; after it, the log opens with the new key and finishes 3 and 4 (tenant_log.py). From the
next head on the new key signs alone. The link from one key to the next is a tlog-proof of the leaf under the checkpoint of step 2:
it verifies under the old key and names the new one by its digest.

Knows: this order. Does not know: who decided that a key is to change. Runs on the sequencer's thread, between batches. A witness
has to be told of the platform's new key before that signs alone, as it has to be told of the first one.
"""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial

from lionrock.audit.failures import AuditError, KeyUnusable, LogReadOnly, StoreFailed
from lionrock.audit.key_links import key_digest
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.leaf import Context, Event, KeyChange, build_leaf
from lionrock.audit.log import AuditLogs
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store import LogStore, StoredLeaf
from lionrock.audit.store.departures import SEALING
from lionrock.audit.store.tables import RETIRED_KEYS
from lionrock.audit.tenant_log import TenantLog
from lionrock.chassis.ids import uuid7
from lionrock.tlog.keys import Signer
from lionrock.tlog.merkle import leaf_hash

log = logging.getLogger("lionrock.audit")


class Rotation:
    """Looks for keys that are to follow, and changes to them."""

    def __init__(
        self, logs: AuditLogs, platform: TenantLog, keys: KeyDirectory, signed: SignedCheckpoints, region: str = ""
    ) -> None:
        """`platform`: the platform's log. `signed` is touched on the sequencer's thread alone."""
        self._logs = logs
        self._platform = platform
        self._keys = keys
        self._signed = signed
        self._region = region

    async def run(self, interval_s: float) -> None:
        """Look for ever."""
        while True:
            for changing in self._opened():
                try:
                    await self.look(changing)
                except AuditError as error:
                    log.error("a key could not be changed", extra={"log": changing.origin, "why": str(error)})
            await asyncio.sleep(interval_s)

    async def look(self, changing: TenantLog) -> bool:
        """Change a log's key if another one is ready. Returns whether it was. Raises AuditError."""
        following = await asyncio.to_thread(self._keys.load_next, changing.tenant, changing.origin)
        if following is None:
            return False
        if changing.read_only is not None:
            raise LogReadOnly(changing.read_only)  # here, since on the sequencer's thread it would end all writing
        if changing.departure == SEALING:
            return False  # its last leaf is about to be written, and then the key goes
        if str(following.verifier_key) == changing.verifier_key:
            raise KeyUnusable(f"{self._keys.next_path(changing.tenant)} is the key that signs already: remove it")
        await self._logs.sequence(partial(self._change, changing, following))
        log.info("a log changed its key", extra={"log": changing.origin, "verifier_key": changing.verifier_key})
        return True

    def _opened(self) -> Iterable[TenantLog]:
        yield self._platform
        for tenant in self._logs.tenants:
            yield self._logs.opened(tenant)

    def _change(self, changing: TenantLog, following: Signer, store: LogStore) -> None:
        previous, verifier_key = changing.verifier_key, str(following.verifier_key)
        tenant = "" if changing is self._platform else changing.tenant
        body = KeyChange(changing.origin, key_digest(previous), key_digest(verifier_key))
        event = Event(uuid7(), "", _context(tenant), body, {})
        now_us = self._logs.now_us()
        data = build_leaf(event, recorded_at_us=now_us, salt=b"", region=self._region)
        frontier = changing.frontier.copy()
        index = frontier.size
        leaf = StoredLeaf(index, event.event_id, now_us, frontier.append(leaf_hash(data)), data)
        old, new = changing.head, changing.sign(frontier.size, frontier.root(), following)
        with store.transaction() as transaction:
            transaction.add_leaves(changing.log_id, [leaf])
            transaction.tables.add(RETIRED_KEYS, changing.log_id, [(index, previous, new.checkpoint)])
            transaction.set_key(changing.log_id, verifier_key)
            transaction.advance(changing.log_id, old.size, old.root, new.size, new.root, new.checkpoint)
        self._signed.record({changing.origin: new.checkpoint})
        changing.signer, changing.verifier_key, changing.retired = following, verifier_key, (previous, *changing.retired)
        changing.frontier, changing.head = frontier, new
        try:
            self._keys.promote(changing.tenant)
        except OSError as error:
            raise StoreFailed(f"{self._keys.next_path(changing.tenant)} cannot take its place: {error.strerror}") from error


def _context(tenant: str) -> Context:
    """Return the context of what nobody asked for over the wire."""
    return Context(
        request_id=uuid7(),
        tenant=tenant,
        actor="",
        auth_method="",
        roles=(),
        purpose="key_change",
        case_id="",
        conversation_id="",
        data_class="",
        territory="",
        profile="",
    )
