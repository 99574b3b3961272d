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
    VerificationFailed,
    VerifiedLeaf,
    VerifiedPlatform,
    check_opening,
    verify_platform_proof,
    verify_receipt,
    when,
)
from lionrock.cli.errors import EXIT_FAILED, CommandError
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
    """Check and say. Returns 0 when everything that was given holds, 1 when something does not. Raises CommandError."""
    state = StateDir.at(state_dir)
    trusted = [*keys, *(read_keys(keys_file) if keys_file is not None else [])]
    source = "given"
    if not trusted:
        trusted, source = saved_keys(state), f"kept at first contact, in {state.keys}"
    if not trusted:
        raise CommandError(
            "there is no verifier key to check against", fix="give one with --key or --keys-file: the log's operator publishes it"
        )
    opening = opening or opening_beside(receipt)
    try:
        leaf = verify_receipt(_read(receipt), trusted)
        platform = None
        if above is not None:
            needed = len({key.partition("+")[0] for key in above.witnesses}) if above.threshold is None else above.threshold
            platform = verify_platform_proof(_read(above.proof), leaf, trusted, above.witnesses, needed)
        if opening is not None:
            opened = Opening.read(opening)
            check_opening(leaf, "answer", opened.answer_salt, opened.answer.encode())
    except VerificationFailed as failure:
        if as_json:
            print(json.dumps({"verified": False, "reason": failure.reason.name, "detail": str(failure)}))
        else:
            print(f"NOT VERIFIED  {receipt}: {failure}", file=sys.stderr)
        return EXIT_FAILED
    if as_json:
        print(json.dumps(_fields(leaf, platform, opening is not None), ensure_ascii=False))
    else:
        print_verified(leaf, platform, key_source=source, opened=opening is not None)
    return 0


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


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4 * RECEIPT_MAX_CHARS + 1)
    except OSError as error:
        raise CommandError(
            f"{path} cannot be read: {error.strerror}", fix="give the path that `lionrock chat` printed; receipts lie in receipts/"
        ) from error
