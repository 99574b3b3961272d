"""The signing keys of the logs: one key a log, one file a key.

Knows: where a key lies, that only its owner may read it, how it is made. Does not know: what is signed with it.
A key is made once, durably, before anything is signed with it. Making a new one where a log already exists is never done here:
tenant_log.py refuses to sign instead. The key that is to follow lies beside the one in use, `<tenant>.next.key`, until it takes its
place (rotation.py).
"""

import secrets
from pathlib import Path

from lionrock.audit.failures import KeyUnusable
from lionrock.chassis.durable_files import create_through, make_directory_through, remove_through, sync_directory
from lionrock.chassis.private_files import PrivateFileUnusable, read_private
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.keys import SEED_BYTES, SignatureType, Signer, decode_signer, signer_from_seed

_KEY_MAX_BYTES = 4096
LOG_SIGNATURES = {"ed25519": SignatureType.ED25519, "ml-dsa-44": SignatureType.ML_DSA_44_COSIGNATURE}
"""What a log can sign with, by the name in settings."""


class KeyDirectory:
    """Private keys as signer keys of golang.org/x/mod/sumdb/note, `<tenant>.key`, mode 0600; the key names its log."""

    def __init__(self, directory: Path, signature: SignatureType = SignatureType.ED25519) -> None:
        """Use `directory`, made with mode 0700 when it is not there. `signature`: algorithm of the keys that are made."""
        make_directory_through(directory)
        self._directory = directory
        self._signature = signature

    def path(self, tenant: str) -> Path:
        """Return the file of a tenant's key. `tenant` is a DNS label, so it cannot leave the directory."""
        return self._directory / f"{tenant}.key"

    def next_path(self, tenant: str) -> Path:
        """Return the file of the key that is to follow. No tenant's name has a dot."""
        return self._directory / f"{tenant}.next.key"

    def load(self, tenant: str, key_name: str) -> Signer | None:
        """Signer of a tenant's log, None when it has no key. Raises KeyUnusable."""
        return self._load(self.path(tenant), key_name)

    def load_next(self, tenant: str, key_name: str) -> Signer | None:
        """Signer that is to follow, None when there is none. Raises KeyUnusable."""
        return self._load(self.next_path(tenant), key_name)

    def _load(self, path: Path, key_name: str) -> Signer | None:
        try:
            signer = decode_signer(read_private(path, _KEY_MAX_BYTES))
        except FileNotFoundError:
            return None
        except PrivateFileUnusable as error:
            raise KeyUnusable(str(error)) from error
        except MalformedNote as error:
            raise KeyUnusable(f"{path} is not a readable signer key: restore it from its backup") from error
        if signer.verifier_key.type not in LOG_SIGNATURES.values():
            raise KeyUnusable(f"{path} is the key of a witness, not of a log: restore it from its backup")
        if signer.verifier_key.name != key_name:
            raise KeyUnusable(f"{path} is the key of {signer.verifier_key.name}, not of {key_name}: restore it from its backup")
        return signer

    def create(self, tenant: str, key_name: str) -> Signer:
        """Make a key and write it through to the disk. Raises FileExistsError, OSError."""
        return self._create(self.path(tenant), key_name)

    def create_next(self, tenant: str, key_name: str) -> Signer:
        """Make the key that is to follow, and write it through to the disk. Raises FileExistsError, OSError."""
        return self._create(self.next_path(tenant), key_name)

    def promote(self, tenant: str) -> None:
        """Put the key that was to follow in the place of the one in use, which is gone then. Raises OSError."""
        self.next_path(tenant).replace(self.path(tenant))
        sync_directory(self._directory)

    def destroy(self, tenant: str) -> None:
        """Overwrite and remove the keys of a tenant's log, after which nothing is ever signed by them. Raises OSError."""
        for path in (self.next_path(tenant), self.path(tenant)):
            remove_through(path)

    def _create(self, path: Path, key_name: str) -> Signer:
        signer = signer_from_seed(key_name, self._signature, secrets.token_bytes(SEED_BYTES))
        create_through(path, f"{signer.encode()}\n".encode())
        return signer
