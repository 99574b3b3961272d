"""Data subjects as the shared state knows them: by a keyed hash, so that whoever reads its rows learns no pseudonym.

A tenant's pseudonyms may be guessable, account numbers for one: without the gateways' secret no guess can be tried. Pure.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Final

MIN_SECRET_BYTES: Final = 32
_SUBJECT: Final = b"lionrock/consent-subject/v1\x00"
_CHECK: Final = b"lionrock/consent-secret/v1\x00"


class SubjectHashes:
    """HMAC-SHA-256 (RFC 2104) of subjects under one secret, apart for each tenant."""

    def __init__(self, secret: bytes) -> None:
        """`secret`: at least 32 bytes, the same in all gateways. Raises ValueError."""
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"the secret of the consents has fewer than {MIN_SECRET_BYTES} bytes")
        self._secret = secret

    def of(self, tenant: str, subject_id: str) -> bytes:
        """Return what stands for a subject of a tenant, 32 bytes. Neither name holds a NUL."""
        return hmac.digest(self._secret, _SUBJECT + tenant.encode() + b"\x00" + subject_id.encode(), sha256)

    @property
    def check(self) -> bytes:
        """Tells this secret from another without telling what it is."""
        return hmac.digest(self._secret, _CHECK, sha256)
