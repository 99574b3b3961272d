"""Receipts of the user's own chats on disk, and the verifier keys that they are checked against.

    receipts/<request id>.tlog-proof      the receipt, a C2SP tlog-proof file
    receipts/<request id>.opening.json    the answer and the salts that open the leaves' commitments; for its owner only
    keys/<origin, percent-encoded>        verifier keys of one log, one a line

Keys are trusted on first use: the first contact with a log stores what its mesh says, later receipts are checked against that and
never replace it. Compare the first key with one from another source, or give keys with --key. Knows files; does not call anybody.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lionrock.cli.errors import CommandError
from lionrock.cli.state import StateDir, write_atomically

RECEIPT_SUFFIX = ".tlog-proof"
OPENING_SUFFIX = ".opening.json"


@dataclass(frozen=True, slots=True)
class Opening:
    """What opens the commitments of a request's leaves. HMAC-SHA256(salt, text in UTF-8) is the commitment."""

    request_id: str
    answer: str
    answer_salt: bytes
    prompt_salt: bytes

    def to_json(self) -> str:
        """As stored; salts in Base64."""
        fields = {
            "request_id": self.request_id,
            "answer": self.answer,
            "answer_salt": base64.b64encode(self.answer_salt).decode(),
            "prompt_salt": base64.b64encode(self.prompt_salt).decode(),
        }
        return json.dumps(fields, ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Opening:
        """Read an opening. Raises CommandError."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                fields["request_id"],
                fields["answer"],
                base64.b64decode(fields["answer_salt"], validate=True),
                base64.b64decode(fields["prompt_salt"], validate=True),
            )
        except OSError as error:
            raise CommandError(f"{path} cannot be read: {error.strerror}", fix="give the opening's file with --opening") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(f"{path} is not an opening", fix="give the .opening.json file that `lionrock chat` wrote") from error


def save_receipt(state: StateDir, request_id: str, tlog_proof: str, opening: Opening | None) -> Path:
    """Store receipt and opening; return the receipt's path. Without an opening: the answer is held, and nobody has its salt."""
    name = quote(request_id, safe="")
    if opening is not None:
        save_opening(state, opening)
    path = state.receipts / f"{name}{RECEIPT_SUFFIX}"
    write_atomically(path, tlog_proof)
    return path


def has_receipt(state: StateDir, request_id: str) -> bool:
    """Whether the receipt of a request is kept."""
    return (state.receipts / f"{quote(request_id, safe='')}{RECEIPT_SUFFIX}").is_file()


def save_opening(state: StateDir, opening: Opening) -> None:
    """Store what opens the leaf of a receipt."""
    write_atomically(state.receipts / f"{quote(opening.request_id, safe='')}{OPENING_SUFFIX}", opening.to_json())


def opening_beside(receipt: Path) -> Path | None:
    """Find the opening that was stored with a receipt."""
    path = receipt.with_name(receipt.name.removesuffix(RECEIPT_SUFFIX) + OPENING_SUFFIX)
    return path if path.exists() else None


def saved_keys(state: StateDir, origin: str | None = None) -> list[str]:
    """Return the keys kept for one log, or for all."""
    files = [_keys_file(state, origin)] if origin is not None else sorted(state.keys.glob("*"))
    return [key for file in files if file.exists() for key in read_keys(file)]


def keep_keys(state: StateDir, origin: str, verifier_keys: Sequence[str]) -> Path:
    """Store the keys of a log that was met for the first time; return the file. An existing file is not touched."""
    path = _keys_file(state, origin)
    if not path.exists():
        write_atomically(path, "".join(f"{key}\n" for key in verifier_keys))
    return path


def read_keys(path: Path) -> list[str]:
    """Read a file with one verifier key a line; empty lines and those that start with # do not count. Raises CommandError.

    The JSON that `GET /v1/lionrock/audit-keys` answers is taken too: no verifier key begins as it does.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("{"):
            keys = json.loads(text)["verifier_keys"]
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                raise TypeError("not a list of keys")
            return keys
        lines = text.splitlines()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"the keys in {path} cannot be read", fix="give a text file with one verifier key a line") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _keys_file(state: StateDir, origin: str) -> Path:
    return state.keys / quote(origin, safe="")
