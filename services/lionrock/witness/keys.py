"""The keys of a witness: made once, together with the state that they are bound to.

Knows: the key file (a signer key a line, mode 0600), that a key without its state must not sign. Does not know: what is signed.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path

from lionrock.chassis.durable_files import create_through, make_directory_through
from lionrock.chassis.private_files import PrivateFileUnusable, read_private
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.keys import SEED_BYTES, SignatureType, Signer, decode_signer, signer_from_seed
from lionrock.witness.failures import CannotStart
from lionrock.witness.state import create_state

_KEY_FILE_MAX_BYTES = 16 * 1024
ALGORITHMS = {"ed25519": SignatureType.ED25519_COSIGNATURE, "ml-dsa-44": SignatureType.ML_DSA_44_COSIGNATURE}


def new_keys(name: str, algorithms: Sequence[str], key_file: Path, state_file: Path) -> Sequence[Signer]:
    """Make keys and their empty state. Raises CannotStart when either is there already."""
    if key_file.exists():
        raise CannotStart(f"{key_file} exists; keys are made once")
    signers = [signer_from_seed(name, ALGORITHMS[algorithm], secrets.token_bytes(SEED_BYTES)) for algorithm in algorithms]
    create_state(state_file, [str(signer.verifier_key) for signer in signers])
    try:
        make_directory_through(key_file.parent)
        create_through(key_file, "".join(f"{signer.encode()}\n" for signer in signers).encode())
    except OSError as error:
        raise CannotStart(f"{key_file}: {error.strerror}") from error
    return signers


def load_keys(key_file: Path, name: str) -> Sequence[Signer]:
    """Read the keys. Raises CannotStart."""
    try:
        lines = read_private(key_file, _KEY_FILE_MAX_BYTES).split("\n")
        signers = [decode_signer(line) for line in lines]
    except FileNotFoundError:
        raise CannotStart(
            f"{key_file} is not there: make it with `lionrock witness new-key`, or restore it from its backup"
        ) from None
    except PrivateFileUnusable as error:
        raise CannotStart(str(error)) from error
    except MalformedNote as error:
        raise CannotStart(f"{key_file} is not a file of signer keys: restore it from its backup") from error
    for signer in signers:
        if signer.verifier_key.type not in ALGORITHMS.values() or signer.verifier_key.name != name:
            raise CannotStart(f"{key_file} holds a key of {signer.verifier_key.name}, not of the witness {name}")
    return signers
