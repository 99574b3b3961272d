"""The tenants' own keys: they wrap the keys of the vault and never leave the place that holds them.

Knows: the interface, and the implementation for one machine, a file a tenant. Does not know: what is wrapped. The
implementation over HTTP is transit.py. One test suite runs over all (tests/audit/test_vault_key_management.py).

Whoever holds a tenant's key and the key store can read that tenant's records; the key alone, or the store alone, opens nothing.
"""

import os
import secrets
import stat
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lionrock.audit.failures import KeysUnavailable
from lionrock.chassis.durable_files import create_through, remove_through

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
_PREFIX: Final = "lionrock-tenant-key-v1 "
_FILE_MAX_BYTES: Final = 4096
_OTHERS_OR_GROUP_WRITE: Final = stat.S_IRWXO | stat.S_IWGRP
"""Group read is allowed: a mounted secret often comes with it."""


class KeyManagement(Protocol):
    """Wraps keys under the key of a tenant. Every call ends by a deadline; all raise KeysUnavailable."""

    async def prepare(self, tenant: str) -> None:
        """Make the key of a tenant for whom nothing was ever wrapped, where it is this program that makes it."""

    async def wrap(self, tenant: str, key: bytes, aad: bytes) -> bytes:
        """Encrypt a key of 32 bytes, bound to `aad`."""

    async def unwrap(self, tenant: str, wrapped: bytes, aad: bytes) -> bytes:
        """Decrypt what `wrap` returned for the same tenant and `aad`. Whatever else it is given, it raises."""

    def mark(self, tenant: str) -> bytes | None:
        """Return how everything begins that `wrap` returns now, where a tenant states its key; None where it does not."""

    async def destroy(self, tenant: str) -> bool:
        """Destroy the key of a tenant, where it is this program that makes it; twice does no harm. Returns whether it is."""

    async def close(self) -> None:
        """Let go of connections."""


class LocalKeyManagement:
    """AES-256-GCM under a key in a file, `<tenant>.kek`, mode 0600, on a disk that the key store is not on."""

    def __init__(self, directory: Path) -> None:
        """Use `directory`, made with mode 0700 when it is not there."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._ciphers: dict[str, AESGCM] = {}

    def path(self, tenant: str) -> Path:
        """Return the file of a tenant's key. `tenant` is a DNS label, so it cannot leave the directory."""
        return self._directory / f"{tenant}.kek"

    async def prepare(self, tenant: str) -> None:
        """Make the file unless it is there."""
        if self.path(tenant).exists():
            return
        try:
            create_through(self.path(tenant), f"{_PREFIX}{secrets.token_hex(KEY_BYTES)}\n".encode())
        except OSError as error:
            raise KeysUnavailable(f"the key of {tenant} could not be made in {self._directory}: {error.strerror}") from error

    async def wrap(self, tenant: str, key: bytes, aad: bytes) -> bytes:
        """Nonce and ciphertext."""
        return seal(self._cipher(tenant), key, aad)

    async def unwrap(self, tenant: str, wrapped: bytes, aad: bytes) -> bytes:
        """Open what `wrap` made."""
        try:
            return unseal(self._cipher(tenant), wrapped, aad)
        except InvalidTag:
            raise KeysUnavailable(
                f"{self.path(tenant)} is not the key that this was wrapped with: restore it from its backup"
            ) from None

    async def destroy(self, tenant: str) -> bool:
        """Overwrite the file and remove it. What a disk or file system keeps of earlier blocks is theirs."""
        self._ciphers.pop(tenant, None)
        try:
            remove_through(self.path(tenant))
        except OSError as error:
            raise KeysUnavailable(f"{self.path(tenant)} could not be destroyed: {error.strerror}") from error
        return True

    def mark(self, tenant: str) -> None:
        """Return None: a tenant has one file, always the same."""

    async def close(self) -> None:
        """Forget the keys."""
        self._ciphers.clear()

    def _cipher(self, tenant: str) -> AESGCM:
        if (cipher := self._ciphers.get(tenant)) is None:
            cipher = self._ciphers[tenant] = AESGCM(_read_key(self.path(tenant)))
        return cipher


def seal(cipher: AESGCM, data: bytes, aad: bytes) -> bytes:
    """Encrypt under a new random nonce, which comes first in what is returned."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, data, aad)


def unseal(cipher: AESGCM, sealed: bytes, aad: bytes) -> bytes:
    """Undo `seal`. Raises InvalidTag."""
    if len(sealed) < NONCE_BYTES:
        raise InvalidTag
    return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad)


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS_OR_GROUP_WRITE:
                raise KeysUnavailable(f"{path} is open to others: chmod 600 it, and replace the key if it may have been read")
            text = file.read(_FILE_MAX_BYTES).decode("ascii").strip()
        key = bytes.fromhex(text.removeprefix(_PREFIX))
    except FileNotFoundError:
        raise KeysUnavailable(f"{path} is gone: restore it from its backup") from None
    except (OSError, ValueError) as error:  # the file's content is in neither message
        raise KeysUnavailable(f"{path} is not a readable tenant key: restore it from its backup") from error
    if len(key) != KEY_BYTES or not text.startswith(_PREFIX):
        raise KeysUnavailable(f"{path} is not a tenant key: restore it from its backup")
    return key
