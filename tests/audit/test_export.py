"""Exports: what is in them, who gets what, and that the verifier that is inside says so from outside."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from audit_harness import PLATFORM, Place, intent
from export_edits import packed
from export_harness import AUDITOR, WITNESS_KEYS, WITNESSES, Exporting, check, exporting, now_us, who
from hypothesis import given, settings
from hypothesis import strategies as st
from records_harness import decision
from rfc6962_reference import tree_hash

from lionrock.audit.export.paths import Paths
from lionrock.audit.export.zip_stream import ZipStream
from lionrock.audit.failures import QueueFull, RoleNotPermitted, StoreFailed
from lionrock.audit.publisher import LogPublisher, PublishedLog
from lionrock.audit.records.holds import RecordScope
from lionrock.audit.store import StoredLeaf
from lionrock.audit.store.postgres import PostgresLogStore
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.tenant_log import Head
from lionrock.audit.tile_sinks import DirectorySink
from lionrock.audit.verify import Reason, VerificationFailed, main, verify_platform_proof, verify_receipt
from lionrock.tlog.merkle import Frontier, Subtree, inclusion_proof, leaf_hash


@pytest.fixture
async def open_export(tmp_path: Path) -> AsyncIterator[Exporting]:
    async with exporting(tmp_path) as opened:
        yield opened


def contents(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def manifest_of(archive: bytes) -> dict[str, object]:
    read: dict[str, object] = json.loads(contents(archive)["manifest.json"])
    return read


def lines_of(archive: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in contents(archive)["leaves.jsonl"].splitlines()]


async def leaves_of(export: Exporting) -> list[bytes]:
    return [leaf.data async for page in export.logs.leaves("bank", 0, 10_000) for leaf in page]


async def test_an_export_of_three_leaves_is_proven(open_export: Exporting) -> None:
    await open_export.opened.say(b"a question", b"an answer \xff", case_id="case-1")
    await open_export.logs.append(intent(prompt=b"left open"), want_receipt=False)
    await open_export.cosign()
    archive = await open_export.archive(with_payloads=True)
    verified = check(archive, open_export.keys)
    assert (verified.leaves, verified.first_index, verified.last_index, verified.opened) == (3, 0, 2, 3)
    assert (verified.without_gap, verified.whole_time) == (True, True)
    assert verified.platform is not None
    assert sorted(verified.platform.cosigned) == ["w1.example", "w2.example"]
    names = contents(archive)
    assert {"README.txt", "verify.py", "keys.txt", "report.html", "checkpoint", "platform-proof.tlog-proof"} <= names.keys()
    assert all(key in names["keys.txt"].decode() for key in [*open_export.keys, *WITNESS_KEYS])


async def test_what_was_written_about_a_decision_is_exported_with_its_leaf_and_opens_it(open_export: Exporting) -> None:
    said = await open_export.opened.say()
    for event in (decision(), decision(statement=b"checked by telephone"), decision(statement=b"so", request_id=said.request_id)):
        await open_export.logs.append(event, want_receipt=False)
    await open_export.cosign()
    archive = await open_export.archive(with_payloads=True)
    verified = check(archive, open_export.keys)
    assert (verified.leaves, verified.opened) == (5, 4)
    payloads = b"".join(data for name, data in contents(archive).items() if name.startswith("payloads/"))
    assert b"checked by telephone" in payloads
    page = contents(archive)["report.html"].decode()
    assert "review.released object-1" in page
    assert "What was decided or done" in page


async def test_an_export_from_postgres_is_proven_like_one_from_sqlite(database: str, tmp_path: Path) -> None:
    async with exporting(tmp_path, store=PostgresLogStore(database)) as export:
        for _ in range(3):
            await export.opened.say(case_id="case-1")
        await export.cosign()
        verified = check(await export.archive(with_payloads=True), export.keys)
        assert (verified.leaves, verified.opened, verified.whole_time) == (6, 6, True)
        await export.cosign()  # the leaf of the export
        assert check(await export.archive(case_id="case-1", with_payloads=True), export.keys).opened == 6


async def test_the_export_is_a_leaf_before_its_first_byte(open_export: Exporting) -> None:
    await open_export.opened.say()
    pieces = open_export.pieces(with_payloads=True)
    first = await anext(pieces)
    assert first.data
    leaf = json.loads((await leaves_of(open_export))[-1])
    assert (leaf["type"], leaf["actor"], leaf["leaf_count"]) == ("export", AUDITOR.actor, 2)
    assert (leaf["first_index"], leaf["stop_index"], leaf["with_payloads"]) == (0, 2, True)
    rest = [piece.data async for piece in pieces]
    assert manifest_of(first.data + b"".join(rest))["export_leaf"] == 2


async def test_a_failing_log_lets_no_byte_out(open_export: Exporting, monkeypatch: pytest.MonkeyPatch) -> None:
    await open_export.opened.say()

    async def refuse(*_: object, **__: object) -> None:
        raise RoleNotPermitted("the log takes nothing")

    monkeypatch.setattr(open_export.logs, "append", refuse)
    with pytest.raises(RoleNotPermitted):
        await anext(open_export.pieces())


@pytest.mark.parametrize("role", ["user", "reviewer", "mlro", "tenant_admin", "platform_operator", "stranger"])
async def test_other_roles_export_nothing_and_leave_no_leaf(open_export: Exporting, role: str) -> None:
    await open_export.opened.say()
    with pytest.raises(RoleNotPermitted):
        await open_export.archive(who(role))
    assert len(await leaves_of(open_export)) == 2


async def test_suspicion_is_withheld_by_its_hash_and_in_full_for_a_regulator(open_export: Exporting) -> None:
    await open_export.opened.say()
    hidden = await open_export.opened.say(b"is it laundering", b"perhaps", data_class="suspicion", case_id="sar-1")
    await open_export.opened.say()
    archive = await open_export.archive(with_payloads=True)
    verified = check(archive, open_export.keys, [], 0)
    assert (verified.withheld, verified.opened) == (2, 4)
    assert hidden.request_id.encode() not in b"".join(contents(archive).values())
    assert lines_of(await open_export.archive(case_id="sar-1")) == []
    regulator = check(await open_export.archive(who("regulator"), with_payloads=True), open_export.keys, [], 0)
    assert (regulator.withheld, regulator.opened) == (0, 6)
    assert [json.loads(leaf).get("data_class") for leaf in (await leaves_of(open_export))[-3:]] == [
        "personal",
        "personal",
        "suspicion",
    ]


async def test_a_span_of_time_shows_by_its_neighbours_that_nothing_is_missing(open_export: Exporting) -> None:
    for _ in range(3):
        await open_export.opened.say()
    start = now_us()
    said = [await open_export.opened.say() for _ in range(2)]
    end = now_us()
    await open_export.opened.say()
    await open_export.cosign()
    archive = await open_export.archive(from_us=start, to_us=end)
    verified = check(archive, open_export.keys)
    assert (verified.first_index, verified.last_index) == (said[0].leaves[0] - 1, said[-1].leaves[-1] + 1)
    assert verified.whole_time
    assert manifest_of(archive)["leaves"] == 6
    before = check(await open_export.archive(to_us=start - 10**9), open_export.keys, threshold=0)
    assert (before.leaves, before.whole_time) == (1, True)


async def test_an_export_extends_the_checkpoint_that_was_witnessed_before_it(open_export: Exporting) -> None:
    await open_export.opened.say()
    await open_export.cosign(*WITNESSES)
    start = now_us()
    for _ in range(5):
        await open_export.opened.say()
    await open_export.cosign()
    ((size, cosigned),) = check(await open_export.archive(from_us=start), open_export.keys).earlier
    assert size == 2
    assert cosigned is not None
    assert sorted(cosigned) == ["w1.example", "w2.example"]  # those of the platform's checkpoint to which its proof leads


async def test_without_a_platforms_checkpoint_the_manifest_says_so_and_witnesses_are_missed(open_export: Exporting) -> None:
    await open_export.opened.say()
    archive = await open_export.archive()
    assert manifest_of(archive)["left_out"] == {"PLATFORM_PROOF_NOT_COVERED": 1}
    assert check(archive, open_export.keys, [], 0).platform is None
    with pytest.raises(VerificationFailed) as failure:
        check(archive, open_export.keys, threshold=1)
    assert failure.value.reason is Reason.WITNESSES_TOO_FEW


async def test_an_export_waits_for_the_platforms_checkpoint(tmp_path: Path) -> None:
    async with exporting(tmp_path, cover_wait_s=30) as export:
        await export.opened.say()
        making = asyncio.create_task(export.archive())
        await asyncio.sleep(0)
        await export.cosign()
        assert check(await making, export.keys).platform is not None


async def test_erased_records_are_counted_and_the_log_book_stays_closed(open_export: Exporting) -> None:
    said = await open_export.opened.say()
    await open_export.opened.say()
    officer = who("privacy_officer")
    await open_export.opened.records.erase(officer, RecordScope("request", said.request_id), basis="PDPO s.26", allow_partial=False)
    await open_export.opened.records.log_refusal(
        officer, request="access", subject_id="c-1", ground="s.20", particulars="secret why"
    )
    archive = await open_export.archive(with_payloads=True)
    assert check(archive, open_export.keys, [], 0).opened == 2
    assert manifest_of(archive)["left_out"] == {"RECORD_ERASED": 1, "PLATFORM_PROOF_NOT_COVERED": 1}
    assert b"secret why" not in b"".join(contents(archive).values())


async def test_a_case_brings_its_requests_and_their_corrections_and_claims_no_completeness(open_export: Exporting) -> None:
    mine = await open_export.opened.say(b"mine", case_id="case-1")
    await open_export.opened.say(b"other", case_id="case-10")
    await open_export.opened.records.correct(who("privacy_officer"), mine.request_id, "no, that")
    archive = await open_export.archive(with_payloads=True, case_id="case-1")
    verified = check(archive, open_export.keys, [], 0)
    assert (verified.leaves, verified.opened, verified.without_gap) == (3, 3, False)
    (payloads,) = (json.loads(data) for name, data in contents(archive).items() if name.startswith("payloads/"))
    assert [part["text"] for part in payloads["payloads"] if part["kind"] == "correction"] == ["no, that"]


async def test_an_export_without_a_vault_has_leaves_and_says_why_nothing_else(tmp_path: Path) -> None:
    async with exporting(tmp_path, vaulted=()) as export:
        await export.opened.say()
        archive = await export.archive(with_payloads=True)
        assert check(archive, export.keys, [], 0).leaves == 3  # the third: the leaf of the export, which ends the run
        assert manifest_of(archive)["left_out"] == {"PLATFORM_PROOF_NOT_COVERED": 1, "VAULT_DISABLED": 1}


async def test_exports_are_whole_while_appends_go_on(open_export: Exporting) -> None:
    async def write_on() -> None:
        while True:
            await asyncio.gather(*(open_export.logs.append(intent(prompt=b"more"), want_receipt=False) for _ in range(8)))

    await open_export.opened.say()
    writing = asyncio.create_task(write_on())
    try:
        for _ in range(5):
            verified = check(await open_export.archive(), open_export.keys, [], 0)
            assert verified.leaves in (verified.manifest["stop_index"], verified.manifest["stop_index"] + 1)
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def test_a_stream_that_is_given_up_leaves_the_service_working(open_export: Exporting) -> None:
    for _ in range(4):
        await open_export.opened.say(b"q" * 300_000, b"a" * 300_000)
    pieces = open_export.exporter.export(AUDITOR, from_us=None, to_us=None, case_id="", with_payloads=True)
    cut = (await anext(pieces)).data
    await pieces.aclose()
    with pytest.raises(VerificationFailed):
        check(cut, open_export.keys)
    assert check(await open_export.archive(with_payloads=True), open_export.keys, [], 0).opened == 8


async def test_a_fifth_export_at_a_time_is_refused_and_comes_through_later(open_export: Exporting) -> None:
    await open_export.opened.say()
    running = [open_export.exporter.export(AUDITOR, from_us=None, to_us=None, case_id="", with_payloads=False) for _ in range(4)]
    for pieces in running:
        await anext(pieces)
    with pytest.raises(QueueFull):
        await open_export.archive()
    for pieces in running:
        await pieces.aclose()
    assert check(await open_export.archive(), open_export.keys, [], 0).leaves > 2


async def test_pieces_stay_small_whatever_is_in_them(open_export: Exporting) -> None:
    await open_export.opened.say(bytes(range(256)) * 8_000, b"a" * 4_000_000)
    sizes = [len(piece.data) async for piece in open_export.pieces(with_payloads=True)]
    assert max(sizes) <= 256 * 1024


async def test_the_page_is_static_and_shows_nothing_unescaped(open_export: Exporting) -> None:
    await open_export.opened.say(case_id='<script>alert("1")</script>', purpose='"><img src=x onerror=alert(1)>')
    page = contents(await open_export.archive(replace(AUDITOR, purpose="<b>look</b>")))["report.html"].decode()
    tags: list[str] = []
    attributes: list[tuple[str, str | None]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            attributes.extend(attrs)

    Reader().feed(page)
    assert set(tags) <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "p",
        "pre",
        "code",
        "table",
        "tr",
        "th",
        "td",
    }
    assert {name for name, _ in attributes} <= {"lang", "charset", "http-equiv", "content", "class"}
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page


def test_a_leaf_of_an_export_is_a_proof_that_others_read(log_verifier: Path, tmp_path: Path) -> None:
    async def make() -> tuple[bytes, list[str]]:
        async with exporting(tmp_path / "log") as export:
            for _ in range(9):
                await export.opened.say()
            await export.cosign()
            return await export.archive(), export.keys

    archive, keys = asyncio.run(make())
    file, proofs = tmp_path / "export.zip", []
    file.write_bytes(archive)
    for index in (0, 7, 17):
        target = tmp_path / f"leaf-{index}.tlog-proof"
        given_keys = [option for key in keys for option in ("--key", key)]
        assert main([str(file), *given_keys, "--extract", str(index), "--output", str(target)]) == 0
        proofs.append(target.read_text(encoding="utf-8"))
        assert verify_receipt(proofs[-1], keys).leaf_index == index
    platform = contents(archive)["platform-proof.tlog-proof"]
    verify_platform_proof(platform, verify_receipt(proofs[-1], keys), keys, WITNESS_KEYS, 2)
    origin = f"{PLATFORM}/audit/bank"
    with closing(SqliteLogStore(Place(tmp_path / "log").store_file)) as store, closing(DirectorySink(tmp_path / "tiles")) as sink:
        log = store.find_log(origin)
        assert log is not None
        head = Head(log.size, log.root, log.checkpoint)
        publisher = LogPublisher(PublishedLog(origin, log.log_id, lambda: head), store, sink)
        while publisher.step():
            pass
    (tmp_path / "proofs.json").write_text(json.dumps({"receipts": proofs, "consistency": []}), encoding="utf-8")
    options = [
        "-dir",
        str(tmp_path / "tiles" / origin),
        "-origin",
        origin,
        "-key",
        keys[0],
        "-proofs",
        str(tmp_path / "proofs.json"),
    ]
    judged = subprocess.run([str(log_verifier), *options], capture_output=True, text=True, check=False, timeout=100)
    assert judged.returncode == 0, judged.stderr
    assert json.loads(judged.stdout)["given_proofs"] == 3


def test_the_program_in_the_archive_needs_nothing_but_cryptography(tmp_path: Path) -> None:
    async def make() -> tuple[bytes, list[str]]:
        async with exporting(tmp_path / "log") as export:
            await export.opened.say()
            await export.cosign()
            return await export.archive(with_payloads=True), export.keys

    archive, keys = asyncio.run(make())
    (tmp_path / "export.zip").write_bytes(archive)
    (tmp_path / "verify.py").write_bytes(contents(archive)["verify.py"])
    program = [sys.executable, "-I", str(tmp_path / "verify.py")]
    given = [str(tmp_path / "export.zip"), "--key", keys[0], "--key", keys[1], "--witness-key", WITNESS_KEYS[0], "--witnesses"]
    proven = subprocess.run([*program, *given, "1"], capture_output=True, text=True, env={}, check=False)
    assert proven.returncode == 0, proven.stderr
    assert "PROVEN 2 leaves" in proven.stdout
    assert "COSIGNED by w1.example" in proven.stdout
    too_many = subprocess.run([*program, *given, "2"], capture_output=True, text=True, env={}, check=False)
    assert (too_many.returncode, "WITNESSES_TOO_FEW" in too_many.stderr) == (1, True)
    without = subprocess.run([*program, given[0]], capture_output=True, text=True, env={}, check=False)
    assert (without.returncode, "prove nothing" in without.stderr) == (2, True)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data())
def test_paths_of_runs_are_those_of_single_proofs(size: int, data: st.DataObject) -> None:
    frontier, stored, leaves = Frontier(0, []), {}, []
    for index in range(size):
        content = b"%d" % index
        completed = frontier.append(leaf_hash(content))
        leaves.append(StoredLeaf(index, str(index), index, completed, content))
        for level, hash_ in enumerate(completed):
            stored[Subtree(level, index >> level)] = hash_
    assert frontier.root() == tree_hash([leaf.data for leaf in leaves])
    chosen = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=40)))
    reader = Paths(size, frontier.root())
    cut = data.draw(st.integers(0, len(chosen)))
    for run in (chosen[:cut], chosen[cut:]):
        page = [leaves[index] for index in run]
        missing = reader.missing(page)
        reader.learn(missing, [stored[subtree] for subtree in missing])
        expected = [inclusion_proof(index, size, lambda subtrees: [stored[subtree] for subtree in subtrees]) for index in run]
        assert reader.paths(page) == expected
        if page:
            altered = replace(page[-1], data=b"another")
            with pytest.raises(StoreFailed):
                reader.paths([altered])


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0/\\"), min_size=1), st.binary(), max_size=8))
def test_archives_are_read_by_other_programs(files: dict[str, bytes]) -> None:
    stream, pieces = ZipStream(), []
    for name, data in files.items():
        stream.begin(name)
        for at in range(0, len(data), 7):
            stream.write(data[at : at + 7])
            pieces.append(stream.take())
        entry = stream.end()
        assert entry.size == len(data)
    stream.finish()
    pieces.append(stream.take())
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as opened:
        assert opened.testzip() is None
        assert {name: opened.read(name) for name in opened.namelist()} == files


async def rotated(export: Exporting) -> tuple[list[str], list[str], int]:
    """Change each key twice, requests between. Returns keys of log and platform's log, oldest first, and a time between."""
    await export.opened.say()
    await export.cosign()
    await export.change_key()
    start = now_us()
    await export.opened.say()
    await export.change_key(of_platform=True)
    await export.cosign()
    for of_platform in (False, True):
        await export.change_key(of_platform=of_platform)
    await export.opened.say()
    await export.cosign()
    return list(export.logs.verifier_keys("bank"))[::-1], list(export.platform_log.verifier_keys)[::-1], start


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_one_key_a_log_checks_an_export_of_logs_that_changed_theirs(open_export: Exporting, place: int) -> None:
    log_keys, platform_keys, start = await rotated(open_export)
    archive = await open_export.archive(from_us=start, with_payloads=True)
    verified = check(archive, [log_keys[place], platform_keys[place]])
    origin = f"{PLATFORM}/audit/bank"
    assert verified.key_changes == {origin: 2, f"{PLATFORM}/audit": 2}
    assert verified.platform is not None
    ((size, cosigned),) = verified.earlier  # signed by the first key alone
    assert (size, cosigned is not None) == (2, True)
    assert check(archive, [log_keys[place]], [], 0).key_changes == {origin: 2}


async def test_a_log_that_never_changed_its_key_exports_no_links(open_export: Exporting) -> None:
    await open_export.opened.say()
    await open_export.cosign()
    archive = await open_export.archive()
    assert "key-links.json" not in contents(archive)
    assert check(archive, open_export.keys).key_changes == {}


async def test_the_program_follows_the_links_in_the_archive_from_the_first_key(
    open_export: Exporting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_keys, platform_keys, _ = await rotated(open_export)
    archive = await open_export.archive()
    (tmp_path / "export.zip").write_bytes(archive)
    (tmp_path / "bare.zip").write_bytes(packed(without(contents(archive), "key-links.json")))
    options = ["--key", log_keys[0], "--key", platform_keys[0], "--witness-key", WITNESS_KEYS[0], "--witnesses", "1"]
    assert main([str(tmp_path / "export.zip"), *options]) == 0
    assert f"FOLLOWED 2 changes of the key of {PLATFORM}/audit/bank" in capsys.readouterr().out
    assert main([str(tmp_path / "bare.zip"), *options]) == 1
    assert "SIGNER_UNKNOWN" in capsys.readouterr().err


def without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {other: data for other, data in files.items() if other != name}


async def test_a_key_that_was_given_up_signs_no_export_for_whoever_trusts_the_next(open_export: Exporting) -> None:
    await open_export.opened.say()
    await open_export.cosign()
    early = contents(await open_export.archive())  # signed by the first key alone
    await open_export.change_key()
    await open_export.cosign()
    first, second = reversed(open_export.logs.verifier_keys("bank"))
    links = contents(await open_export.archive())["key-links.json"]
    forged = packed({**early, "key-links.json": links})
    assert check(forged, [first, open_export.platform_log.verifier_key]).leaves == 2
    with pytest.raises(VerificationFailed) as refused:
        check(forged, [second, open_export.platform_log.verifier_key])
    assert refused.value.reason is Reason.SIGNER_UNKNOWN


async def test_links_that_leave_out_swap_or_repeat_a_change_are_refused(open_export: Exporting, tmp_path: Path) -> None:
    log_keys, platform_keys, _ = await rotated(open_export)
    files = contents(await open_export.archive())
    links = json.loads(files["key-links.json"])["links"]
    assert [link["next_key"] for link in links] == [*log_keys[1:], *platform_keys[1:]]
    async with exporting(tmp_path / "other") as stranger:
        await stranger.change_key()
        await stranger.opened.say()
        strange = json.loads(contents(await stranger.archive())["key-links.json"])["links"]
    halves = [{**links[0], name: links[1][name]} for name in links[0]]
    for altered in (
        [],
        links[::-1],
        [links[0], *links],
        [*links, links[0]],
        strange,
        [*strange, *links],
        *([half] for half in halves),
    ):
        data = json.dumps({"links": altered}, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        with pytest.raises(VerificationFailed) as refused:
            check(packed({**files, "key-links.json": data}), [log_keys[0], platform_keys[0]])
        assert refused.value.reason in (Reason.KEY_NOT_LINKED, Reason.SIGNER_UNKNOWN)


async def test_each_tenant_exports_its_own_log_alone(open_export: Exporting) -> None:
    await open_export.opened.say()
    archive = await open_export.archive(who("auditor", tenant="broker"))
    (line,) = lines_of(archive)
    assert json.loads(base64.b64decode(str(line["leaf"])))["type"] == "export"
    assert str(manifest_of(archive)["origin"]).endswith("/broker")
    with pytest.raises(VerificationFailed) as failure:
        check(archive, open_export.keys, [], 0)
    assert failure.value.reason is Reason.SIGNER_UNKNOWN
