"""What leads from a log's earlier keys to the one of today.

Knows: how a KEY_CHANGE leaf names keys, and which proof shows it under the key that ended with it. Does not know: when a key
changes (rotation.py), how a link is checked (verify.py, which shares nothing with this module).
"""

from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from lionrock.audit.failures import StoreFailed
from lionrock.audit.store import LogId, LogStore
from lionrock.audit.store.tables import RETIRED_KEYS
from lionrock.audit.tenant_log import RETIRED_KEYS_MAX, Head
from lionrock.tlog.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class KeyLink:
    """Leads from a key that signed before to the next one: a tlog-proof of the leaf that names both, signed by it."""

    verifier_key: str
    tlog_proof: str


def key_links(store: LogStore, log_id: LogId) -> list[KeyLink]:
    """Prove each change of a log's key under the key that ended with it, newest first. Raises StoreFailed."""
    links = []
    for index, verifier_key, checkpoint in store.tables.page(RETIRED_KEYS, log_id, None, RETIRED_KEYS_MAX):
        leaf = store.leaf(log_id, index)
        if leaf is None:
            raise StoreFailed(f"leaf {index}, by which a key changed, is not in the store: restore the store")
        signed = Checkpoint.parse(checkpoint.rpartition("\n\n")[0] + "\n")
        head = Head(signed.size, signed.root, checkpoint)
        links.append(KeyLink(verifier_key, head.receipt(leaf, partial(store.subtree_hashes, log_id))))
    return links[::-1]


def key_digest(verifier_key: str) -> str:
    """SHA-256 over a verifier key as text."""
    return f"sha256:{sha256(verifier_key.encode()).hexdigest()}"
