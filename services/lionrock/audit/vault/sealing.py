"""What lies in the store of logs for a payload: its salt and its bytes, encrypted under the key of its record.

Knows: AES-256-GCM with a random nonce of 96 bits, and what a ciphertext is bound to: log, record, kind and event, so that one
put in the place of another does not open. Does not know: where keys come from. A record's key encrypts a few payloads; 2^32 of
them would be needed before random nonces met too often (NIST SP 800-38D, 8.3).
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lionrock.audit.canonical_json import canonical_json
from lionrock.audit.failures import StoreFailed
from lionrock.audit.leaf import SALT_BYTES
from lionrock.audit.vault.key_management import seal, unseal

RETRY_SALT = "retry_salt"
"""Kind under which a salt alone is sealed, for the retry window."""


class Sealer:
    """Seals and opens what belongs to one record of one log."""

    def __init__(self, key: bytes, origin: str, record_id: str) -> None:
        self._cipher = AESGCM(key)
        self._origin = origin
        self._record_id = record_id

    def seal(self, kind: str, event_id: str, salt: bytes, payload: bytes) -> bytes:
        """Encrypt salt (32 bytes, or none) and payload."""
        return seal(self._cipher, salt + payload, self._bound_to(kind, event_id))

    def open(self, kind: str, event_id: str, sealed: bytes) -> tuple[bytes, bytes]:
        """Return salt and payload. Raises StoreFailed for what was not sealed for this record, kind and event."""
        try:
            opened = unseal(self._cipher, sealed, self._bound_to(kind, event_id))
        except InvalidTag:
            raise StoreFailed(f"a payload of kind {kind} is not what was sealed: restore the store from its backup") from None
        return opened[:SALT_BYTES], opened[SALT_BYTES:]

    def open_retry_salt(self, event_id: str, sealed: bytes) -> bytes:
        """Return a salt that was sealed alone; empty for none, or for one that is not of this event."""
        try:
            return unseal(self._cipher, sealed, self._bound_to(RETRY_SALT, event_id)) if sealed else b""
        except InvalidTag:
            return b""

    def _bound_to(self, kind: str, event_id: str) -> bytes:
        return canonical_json([self._origin, self._record_id, kind, event_id])
