"""`lionrock verify`: is this receipt good, and what does it say? Offline; the work is done by `lionrock.audit.verify`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from lionrock.audit.verify import (
    RECEIPT_MAX_CHARS,
    Reason,
    VerificationFailed,
    VerifiedLeaf,
    VerifiedPlatform,
    check_opening,
    verify_platform_proof,
    verify_receipt,
    when,
)
from lionrock.cli.errors import EXIT_FAILED, EXIT_USAGE, CommandError
from lionrock.cli.http_receipts import MAX_BYTES as HTTP_MAX_BYTES
from lionrock.cli.http_receipts import ShownReceipt, shown_receipts
from lionrock.cli.receipts import Opening, opening_beside, read_keys, saved_keys
from lionrock.cli.state import StateDir


@dataclass(frozen=True, slots=True)
class Above:
    """The way through the platform's log, and the witnesses that must have cosigned it; `threshold` None: all of them."""

    proof: Path
    witnesses: Sequence[str]
    threshold: int | None

    @classmethod
    def given(cls, proof: Path, witnesses: Sequence[str], witnesses_file: Path | None, threshold: int | None) -> Above:
        """Take what the command line gives. Raises CommandError for a file that cannot be read."""
        return cls(proof, [*witnesses, *(read_keys(witnesses_file) if witnesses_file is not None else [])], threshold)


def run(
    receipt: Path,
    keys: Sequence[str],
    keys_file: Path | None,
    opening: Path | None,
    state_dir: Path | None,
    *,
    as_json: bool,
    above: Above | None = None,
) -> int:
    """Check and say, receipt after receipt where a file has several.

    Returns 0 when everything that was given holds, 1 when something does not. Raises CommandError.
    """
    state = StateDir.at(state_dir)
    trusted = [*keys, *(read_keys(keys_file) if keys_file is not None else [])]
    source = "given"
    if not trusted:
        trusted, source = saved_keys(state), f"kept at first contact, in {state.keys}"
    if not trusted:
        raise CommandError(
            "there is no verifier key to check against", fix="give one with --key or --keys-file: the log's operator publishes it"
        )
    found = shown_receipts(_read(receipt, HTTP_MAX_BYTES))
    opening = opening or opening_beside(receipt)
    if len(found) > 1 and (opening is not None or above is not None):
        raise CommandError(
            f"{receipt} has {len(found)} receipts", fix="check one of them with its opening or proof", exit_code=EXIT_USAGE
        )
    given = None if opening is None else Opening.read(opening)
    status = 0
    for shown in found:
        try:
            leaf, platform, opened = _checked(shown, trusted, given, above)
        except VerificationFailed as failure:
            status = EXIT_FAILED
            if as_json:
                print(json.dumps({"verified": False, "reason": failure.reason.name, "detail": str(failure)}))
            else:
                print(f"NOT VERIFIED  {receipt}: {failure}", file=sys.stderr)
            continue
        if as_json:
            print(json.dumps(_fields(leaf, platform, opened), ensure_ascii=False))
        else:
            print_verified(leaf, platform, key_source=source, opened=opened)
    return status


def _checked(
    shown: ShownReceipt, trusted: Sequence[str], given: Opening | None, above: Above | None
) -> tuple[VerifiedLeaf, VerifiedPlatform | None, bool]:
    """Check one receipt with all that is known beside it; return also whether an answer opened its leaf."""
    leaf = verify_receipt(shown.tlog_proof, trusted)
    if shown.request_id is not None and leaf.fields.get("request_id") != shown.request_id:
        raise VerificationFailed(Reason.OPENING_INVALID, "the receipt is of another request than the one it stands beside")
    platform = None
    if above is not None:
        needed = len({key.partition("+")[0] for key in above.witnesses}) if above.threshold is None else above.threshold
        platform = verify_platform_proof(_read(above.proof, 4 * RECEIPT_MAX_CHARS), leaf, trusted, above.witnesses, needed)
    opened = False
    if shown.answer is not None and shown.answer_salt is not None:
        check_opening(leaf, "answer", shown.answer_salt, shown.answer.encode("utf-8", "surrogatepass"))
        opened = True
    if given is not None:
        check_opening(leaf, "answer", given.answer_salt, given.answer.encode())
        opened = True
    return leaf, platform, opened


def print_verified(leaf: VerifiedLeaf, platform: VerifiedPlatform | None, *, key_source: str, opened: bool) -> None:
    """Say what was proven, for people."""
    rows = [
        ("log", f"{leaf.origin}, leaf {leaf.leaf_index} of {leaf.tree_size}"),
        ("signed by", f"{', '.join(leaf.signed_by)} (key {key_source})"),
    ]
    if platform is not None:
        rows.append(("platform's log", f"{platform.origin}, checkpoint {platform.leaf_index} of {platform.tree_size}"))
        rows.extend(("cosigned by", f"{name} at {when(time_s)}") for name, time_s in platform.cosigned.items())
    rows.extend(_summary(leaf))
    if opened:
        rows.append(("answer", "the stored text is the one that this leaf commits to"))
    console = Console(highlight=False, soft_wrap=True)
    console.print("[bold green]VERIFIED[/]  the log's key signed a tree that holds this leaf")
    for name, value in rows:
        console.print(f"  [dim]{name:<22}[/] {escape(value)}")


def _summary(leaf: VerifiedLeaf) -> list[tuple[str, str]]:
    """Name the fields that a person asks for first, flattened; nested ones as JSON."""
    rows = []
    for name, value in leaf.fields.items():
        if name == "commitments" or value in (None, "", [], {}):
            continue
        rows.append((name.replace("_", " "), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return rows


def _fields(leaf: VerifiedLeaf, platform: VerifiedPlatform | None, opened: bool) -> dict[str, object]:
    fields: dict[str, object] = {
        "verified": True,
        "origin": leaf.origin,
        "leaf_index": leaf.leaf_index,
        "tree_size": leaf.tree_size,
        "leaf_hash": leaf.leaf_hash.hex(),
        "root": leaf.root.hex(),
        "signed_by": list(leaf.signed_by),
        "answer_opened": opened,
        "leaf": dict(leaf.fields),
    }
    if platform is not None:
        fields["platform"] = {
            "origin": platform.origin,
            "leaf_index": platform.leaf_index,
            "tree_size": platform.tree_size,
            "root": platform.root.hex(),
            "cosigned": {name: when(time_s) for name, time_s in platform.cosigned.items()},
        }
    return fields


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise CommandError(
            f"{path} cannot be read: {error.strerror}", fix="give the path that `lionrock chat` printed; receipts lie in receipts/"
        ) from error
