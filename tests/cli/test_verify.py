"""`lionrock verify` over receipts of a real log in a directory of the test."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lionrock.audit.keys import KeyDirectory
from lionrock.audit.leaf import Context, Event, Outcome
from lionrock.audit.log import Limits, open_logs
from lionrock.audit.platform_log import PlatformLog, open_platform_log
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.chassis.ids import uuid7
from lionrock.cli import verify
from lionrock.cli.errors import CommandError
from lionrock.cli.receipts import Opening, keep_keys, save_receipt
from lionrock.cli.state import StateDir
from lionrock.tlog.keys import Cosigner
from lionrock.tlog.note import add_signatures, signature_line

WITNESS = Cosigner("w1.example", Ed25519PrivateKey.from_private_bytes(bytes(32)), clock=lambda: 1_735_689_600)
ANSWER = "天空係藍色嘅。"


@dataclass(frozen=True)
class Proven:
    state: StateDir
    receipt: Path
    keys: tuple[str, ...]
    above: verify.Above


@pytest.fixture
async def proven(tmp_path: Path) -> Proven:
    """A receipt and its opening as `lionrock chat` leaves them; the key is not kept yet."""
    state = StateDir(tmp_path / "state")
    state.create()
    request_id = uuid7()
    context = Context(
        request_id, "demo", "spiffe://td/tenant/demo/user/a", "mtls", ("user",), "support", "", "", "personal", "HK", "default"
    )
    event = Event(uuid7(), "", context, Outcome(None, "answered"), {"answer": ANSWER.encode()})
    with (
        closing(SqliteLogStore(state.audit / "logs.sqlite")) as store,
        closing(SignedCheckpoints(state.audit / "keys" / "signed.jsonl")) as signed,
    ):
        key_dir = KeyDirectory(state.audit / "keys")
        logs = open_logs(store, key_dir, signed, ("demo",), platform="td", region="HK", limits=Limits(16, 16, 60))
        platform_log = PlatformLog(open_platform_log("td", store, key_dir, signed), logs, store, signed)
        async with logs:
            appended = await logs.append(event, want_receipt=True)
            await platform_log.begin(None)
            head, recorded = await platform_log.advance()
            cosigned = add_signatures(head.checkpoint, [signature_line(head.checkpoint.partition("\n\n")[0] + "\n", WITNESS)])
            platform_log.attest(replace(head, checkpoint=cosigned), recorded)
            pair = await platform_log.prove("demo", 0)
            keys = (*logs.verifier_keys("demo"), platform_log.verifier_key)
    assert appended.proof is not None
    assert appended.proof == pair.receipt
    opening = Opening(request_id, ANSWER, appended.salt, b"")
    (state.root / "platform.tlog-proof").write_text(pair.platform_proof)
    above = verify.Above(state.root / "platform.tlog-proof", [str(WITNESS.verifier_key)], None)
    return Proven(state, save_receipt(state, request_id, appended.proof, opening), keys, above)


def check(
    proven: Proven,
    *,
    keys: tuple[str, ...] = (),
    opening: Path | None = None,
    as_json: bool = True,
    above: verify.Above | None = None,
) -> int:
    return verify.run(proven.receipt, keys, None, opening, proven.state.root, as_json=as_json, above=above)


def test_receipt_is_verified_with_a_given_key_and_its_opening(proven: Proven, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(proven, keys=proven.keys) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["verified"]
    assert shown["answer_opened"]
    assert shown["leaf"]["status"] == "answered"


def test_key_of_first_contact_is_used_and_named(proven: Proven, capsys: pytest.CaptureFixture[str]) -> None:
    keep_keys(proven.state, "td/audit/demo", proven.keys)
    assert check(proven, as_json=False) == 0
    shown = capsys.readouterr().out
    assert "VERIFIED" in shown
    assert "kept at first contact" in shown
    assert "td/audit/demo, leaf 0 of 1" in shown


def test_the_way_through_the_platforms_log_names_who_cosigned(proven: Proven, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(proven, keys=proven.keys, above=proven.above) == 0
    shown = json.loads(capsys.readouterr().out)["platform"]
    assert (shown["origin"], shown["cosigned"]) == ("td/audit", {"w1.example": "2025-01-01T00:00:00+00:00"})
    assert check(proven, keys=proven.keys, above=proven.above, as_json=False) == 0
    assert "w1.example at 2025-01-01" in capsys.readouterr().out
    assert check(proven, keys=proven.keys, above=replace(proven.above, threshold=2)) == 1
    assert json.loads(capsys.readouterr().out)["reason"] == "WITNESSES_TOO_FEW"


def test_without_a_key_nothing_is_claimed(proven: Proven) -> None:
    with pytest.raises(CommandError, match="no verifier key"):
        check(proven)


def test_answer_that_is_another_one_is_found(proven: Proven, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside = proven.receipt.with_name(proven.receipt.name.replace(".tlog-proof", ".opening.json"))
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads(beside.read_text()), "answer": ANSWER + "！"}))
    assert check(proven, keys=proven.keys, opening=other) == 1
    assert json.loads(capsys.readouterr().out)["reason"] == "OPENING_INVALID"


@pytest.mark.parametrize("line", range(8))
def test_every_line_of_a_receipt_counts(proven: Proven, line: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = proven.receipt.read_text().split("\n")
    lines[line] = lines[line][:-2] + "?" + lines[line][-1:] if lines[line] else "x"
    proven.receipt.write_text("\n".join(lines))
    assert check(proven, keys=proven.keys, as_json=False) == 1
    assert "NOT VERIFIED" in capsys.readouterr().err
