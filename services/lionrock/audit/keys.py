"""The signing keys of the logs: one Ed25519 key a tenant, one file a key.

Knows: where a key lies, that only its owner may read it, how it is made. Does not know: what is signed with it.
A key is made once, durably, before anything is signed with it. Making a new one where a log already exists is never done here:
tenant_log.py refuses to sign instead.
"""

import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lionrock.audit.failures import KeyUnusable
from lionrock.chassis.durable_files import create_through
from lionrock.tlog.note import Ed25519Signer, MalformedNote

_OTHERS_OR_GROUP_WRITE = stat.S_IRWXO | stat.S_IWGRP
"""Group read is allowed: a mounted secret often comes with it."""
_KEY_MAX_BYTES = 4096


class KeyDirectory:
    """Private keys as signer keys of golang.org/x/mod/sumdb/note, `<tenant>.key`, mode 0600; the key names its log."""

    def __init__(self, directory: Path) -> None:
        """Use `directory`, made with mode 0700 when it is not there."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory

    def path(self, tenant: str) -> Path:
        """Return the file of a tenant's key. `tenant` is a DNS label, so it cannot leave the directory."""
        return self._directory / f"{tenant}.key"

    def load(self, tenant: str, key_name: str) -> Ed25519Signer | None:
        """Signer of a tenant's log, None when it has no key. Raises KeyUnusable."""
        path = self.path(tenant)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & _OTHERS_OR_GROUP_WRITE:
                    raise KeyUnusable(f"{path} is open to others: chmod 600 it, and replace the key if it may have been read")
                signer = Ed25519Signer.decode(file.read(_KEY_MAX_BYTES).decode("utf-8").strip())
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, MalformedNote) as error:
            raise KeyUnusable(f"{path} is not a readable Ed25519 signer key: restore it from its backup") from error
        if signer.verifier_key.name != key_name:
            raise KeyUnusable(f"{path} is the key of {signer.verifier_key.name}, not of {key_name}: restore it from its backup")
        return signer

    def create(self, tenant: str, key_name: str) -> Ed25519Signer:
        """Make a key and write it through to the disk. Raises FileExistsError, OSError."""
        signer = Ed25519Signer(key_name, Ed25519PrivateKey.generate())
        create_through(self.path(tenant), f"{signer.encode()}\n".encode())
        return signer
