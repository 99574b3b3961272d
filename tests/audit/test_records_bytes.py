"""After erasure nothing that is left confirms what was said, or about whom: every byte of every file is looked at.

Files: the store and its write-ahead log, the key store and its, tenants' keys, published tiles, and old copies of the main
store taken before the erasure. Content is searched raw, as base64, as hexadecimal; guesses are tried by every HMAC that the
bytes there allow.
"""

from __future__ import annotations

import base64
import hmac
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_harness import PLATFORM, Place, copy_files
from records_harness import Opened, RecordsPlace, who

from lionrock.audit import failures
from lionrock.audit.leaf import commitment
from lionrock.audit.records.holds import RecordScope
from lionrock.audit.vault.record_keys import KeyScope
from lionrock.audit.vault.sealing import Sealer
from lionrock.tlog.tiles import join_bundle

PROMPT = "客戶陳大文想知道佢嘅戶口結餘 and A123456(3)".encode()
ANSWER = b"The balance of Chan Tai Man is HKD 1,234.56"
SUBJECT = "customer-7f3a91"


def spellings(secret: bytes) -> Iterator[bytes]:
    """How bytes may stand in a file: raw, hexadecimal, base64 at each of three offsets."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + secret)
        yield text[4:-4]
        yield text.replace(b"+", b"-").replace(b"/", b"_")[4:-4]


def files_below(*directories: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for directory in directories for path in directory.rglob("*") if path.is_file()}


def assert_absent(secret: bytes, files: dict[Path, bytes]) -> None:
    for spelling in spellings(secret):
        assert [path for path, content in files.items() if spelling in content] == []


@pytest.fixture
def at(place: Place) -> RecordsPlace:
    return RecordsPlace(place)


async def erase(opened: Opened) -> bytes:
    erased = await opened.records.erase(who("privacy_officer"), RecordScope("subject", SUBJECT), basis="asked", allow_partial=False)
    assert erased.records == 1
    return erased.scope_salt


async def test_nothing_is_in_clear_even_before_erasure(at: RecordsPlace) -> None:
    async with at.open() as opened:
        said = await opened.say(PROMPT, ANSWER, subjects=(SUBJECT,))
        await opened.records.place_hold(who("mlro"), RecordScope("subject", SUBJECT), "inquiry")
        files = files_below(at.place.root)
    for secret in (PROMPT, ANSWER, SUBJECT.encode(), *said.salts):
        assert_absent(secret, files)


async def test_after_erasure_neither_bytes_nor_guesses_are_confirmed(at: RecordsPlace, tmp_path: Path) -> None:
    old = tmp_path / "old-copy"
    tiles = tmp_path / "tiles"
    async with at.open() as opened:
        said = await opened.say(PROMPT, ANSWER, subjects=(SUBJECT,))
        await opened.say(b"another", b"one", subjects=("someone-else",))
        key = await opened.keys.key_of("bank", said.request_id)
        tag = (await opened.keys.tags("bank", [KeyScope("subject", SUBJECT)]))[0]
        wrapped = opened.key_store.record_key("bank", said.request_id)
        scope_wrapped = opened.key_store.scope_key("bank", tag)
        assert wrapped is not None
        assert scope_wrapped is not None
        copy_files(at.place.store_file.parent, old)
        salt = await erase(opened)
        leaves = [leaf.data async for page in opened.logs.leaves("bank", 0, 100) for leaf in page]
        tiles.mkdir()
        (tiles / "000").write_bytes(join_bundle(leaves))
        live = files_below(at.place.root)
    with sqlite3.connect(at.place.store_file) as database:
        database.execute("VACUUM")
    database.close()
    files = {Path("before-vacuum") / path.name: content for path, content in live.items()} | files_below(at.place.root)

    gone = (PROMPT, ANSWER, SUBJECT.encode(), *said.salts, key, tag, wrapped.wrapped, scope_wrapped, salt)
    for secret in gone:
        assert_absent(secret, files)

    # The old copy still has the ciphertexts; nothing that is left opens them, and no commitment answers a guess.
    present = {path: content for path, content in files.items() if old not in path.parents}
    sealed = [row[0] for row in rows(old / at.place.store_file.name, "SELECT sealed FROM payloads")]
    assert len(sealed) == 4
    select = "SELECT kind, event_id, sealed FROM payloads WHERE request_id = ?"
    mine = rows(old / at.place.store_file.name, select, said.request_id)
    assert [kind for kind, _, _ in mine] == ["prompt", "answer"]
    commitments = {value for leaf in leaves for value in json.loads(leaf).get("commitments", {}).values()}
    commitments |= {json.loads(leaf).get("scope_commitment", "") for leaf in leaves}
    assert {commitment(said.salts[0], PROMPT).hex(), commitment(said.salts[1], ANSWER).hex()} <= commitments
    tries = 0
    for content in present.values():
        for candidate in candidate_keys(content):
            tries += 1
            for guess in (PROMPT, ANSWER, SUBJECT.encode(), f"subject:{SUBJECT}".encode()):
                assert hmac.digest(candidate, guess, "sha256").hex() not in commitments
            sealer = Sealer(candidate, f"{PLATFORM}/audit/bank", said.request_id)
            for kind, event_id, ciphertext in mine:
                with pytest.raises(failures.StoreFailed):
                    sealer.open(kind, event_id, ciphertext)
    assert tries > 2_000


async def test_what_is_kept_can_still_be_read_after_the_erasure_of_another(at: RecordsPlace) -> None:
    async with at.open() as opened:
        await opened.say(PROMPT, ANSWER, subjects=(SUBJECT,))
        kept = await opened.say(b"another", b"one", subjects=("someone-else",))
        await erase(opened)
    async with at.open() as opened:
        assert (await opened.records.read(who("auditor"), kept.request_id)).payloads[0].payload == b"another"


async def test_an_old_copy_of_the_store_with_the_present_keys_reads_nothing_erased(at: RecordsPlace, tmp_path: Path) -> None:
    """Somebody restores the logs' store from before the erasure, and keeps the key store as it is."""
    old = tmp_path / "old"
    async with at.open() as opened:
        said = await opened.say(PROMPT, ANSWER, subjects=(SUBJECT,))
        copy_files(at.place.store_file.parent, old)
        signed = at.place.signed_file.read_bytes()
        await erase(opened)
    shutil.rmtree(at.place.store_file.parent)
    shutil.copytree(old, at.place.store_file.parent)
    at.place.signed_file.write_bytes(signed)  # and rolls the second place back too
    async with at.open() as opened:
        with pytest.raises(failures.RecordErased):
            await opened.records.read(who("auditor"), said.request_id)
        assert await opened.records.search(who("auditor"), RecordScope("subject", SUBJECT), 10) == []


def rows(path: Path, sql: str, *parameters: str) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(path)
    try:
        return database.execute(sql, parameters).fetchall()
    finally:
        database.close()


def candidate_keys(content: bytes) -> Iterator[bytes]:
    """All 32 bytes in a row that could be a key or a salt: those that are not mostly zeros or text."""
    for start in range(len(content) - 31):
        candidate = content[start : start + 32]
        if candidate.count(0) < 4 and not candidate.isascii():
            yield candidate
