"""Archives that no exporter wrote: each is refused by its reason, and none ends in anything but an answer."""

from __future__ import annotations

import asyncio
import io
import json
import random
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from export_edits import ExportBytes, ForgedExport, PristineExport, make_export, packed, unpacked
from export_harness import WITNESS_KEYS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tamper import tamper

from lionrock.audit.export.zip_stream import ZipStream
from lionrock.audit.verify import Reason, VerificationFailed, VerifiedExport, main, verify_export

QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> PristineExport:
    return asyncio.run(make_export(tmp_path_factory.mktemp("export"), requests=12))


def verified(pristine: PristineExport, archive: bytes, threshold: int = 3) -> VerifiedExport:
    return verify_export(io.BytesIO(archive), pristine.keys, WITNESS_KEYS, threshold)


def reason(pristine: PristineExport, archive: bytes) -> Reason:
    with pytest.raises(VerificationFailed) as failure:
        verified(pristine, archive)
    return failure.value.reason


@pytest.mark.parametrize("target", [ExportBytes, ForgedExport])
def test_every_edit_of_an_export_is_found_and_none_ends_in_a_crash(
    pristine: PristineExport, target: Callable[[PristineExport], ExportBytes]
) -> None:
    seed = time.time_ns() % 10**9
    result = tamper(target(pristine), 120, seed)
    assert result.wrong == [], f"seed {seed}"
    assert result.verdicts["found"] > 80


@QUICK
@given(st.binary(max_size=2000))
def test_arbitrary_bytes_are_refused(pristine: PristineExport, data: bytes) -> None:
    assert reason(pristine, data) is Reason.ARCHIVE_MALFORMED
    assert reason(pristine, b"PK\x03\x04" + data) is Reason.ARCHIVE_MALFORMED


FILES = ("README.txt", "checkpoint", "consistency.json", "key-links.json", "keys.txt", "leaves.jsonl")
FILES += ("platform-proof.tlog-proof", "report.html")
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.floats(), st.lists, max_leaves=6)
TEXTS = (VALUES | st.dictionaries(st.text(), VALUES, max_size=4)).map(lambda value: json.dumps(value).encode())


@QUICK
@given(st.sampled_from([*FILES, "payloads/"]), st.binary(max_size=300) | TEXTS)
def test_arbitrary_contents_of_any_file_are_refused_or_hold(pristine: PristineExport, prefix: str, content: bytes) -> None:
    files = unpacked(pristine.archive)
    name = next(name for name in sorted(files) if name.startswith(prefix))
    try:
        verified(pristine, packed({**files, name: content}))
    except VerificationFailed:
        return
    assert name in ("README.txt", "keys.txt", "report.html") or content == files[name]  # nothing rests on what these say


FIELDS = ("created_at", "export_leaf", "exported_by", "first_index", "kind", "leaves", "left_out", "origin")
FIELDS += ("payload_records", "schema_version", "selection", "stop_index", "tree_size", "withheld_leaves")


@QUICK
@given(st.sampled_from(FIELDS), VALUES.filter(lambda value: value == value) | st.dictionaries(st.text(), st.text(), max_size=4))
def test_arbitrary_manifests_are_refused_or_hold(pristine: PristineExport, name: str, value: object) -> None:
    files = unpacked(pristine.archive)
    try:
        verified(pristine, packed(files, **{name: value}))  # "files" itself: test_every_edit…, test_hostile_manifests…
    except VerificationFailed:
        return
    told = ("created_at", "exported_by", "left_out", "export_leaf")  # what nobody signed, and nothing rests on
    assert name in told or value == json.loads(files["manifest.json"])[name]


@pytest.mark.parametrize(
    "manifest", [b"[" * 200_000, b'{"a":' * 100_000, b'{"a":1e999999}', b"9" * 10_000, b'"\\ud800"', b"{}", b"\xff", b"null", b""]
)
def test_hostile_manifests_are_refused(pristine: PristineExport, manifest: bytes) -> None:
    stream = ZipStream()
    for name, data in unpacked(pristine.archive).items():
        stream.add(name, manifest if name == "manifest.json" else data)
    stream.finish()
    assert reason(pristine, stream.take()) is Reason.MANIFEST_MALFORMED


def test_files_that_no_export_has_are_refused(pristine: PristineExport) -> None:
    files = unpacked(pristine.archive)
    for name in ("../escape", "/etc/passwd", "payloads/x.json", "extra.txt", "payloads/../verify.py", "sitecustomize.py"):
        assert reason(pristine, packed({**files, name: b""})) is Reason.ARCHIVE_MALFORMED
    for name in ("keys.txt", "report.html", "consistency.json", "verify.py"):
        assert reason(pristine, packed({other: data for other, data in files.items() if other != name})) is Reason.ARCHIVE_MALFORMED


def test_a_name_that_comes_twice_is_refused(pristine: PristineExport) -> None:
    stream = ZipStream()
    for name, data in [*unpacked(pristine.archive).items(), ("checkpoint", b"another")]:
        stream.add(name, data)
    stream.finish()
    assert reason(pristine, stream.take()) is Reason.ARCHIVE_MALFORMED


def test_an_archive_of_another_program_is_refused(pristine: PristineExport) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", compression) as archive:
            for name, data in unpacked(pristine.archive).items():
                archive.writestr(name, data)
        assert reason(pristine, made.getvalue()) is Reason.ARCHIVE_MALFORMED


def test_bytes_before_between_and_after_the_files_are_refused(pristine: PristineExport) -> None:
    archive = pristine.archive
    at = archive.index(b"PK\x03\x04", 10)
    for other in (b"MZ" + archive, archive + b"\0", archive[:at] + b"hidden" + archive[at:]):
        assert reason(pristine, other) is Reason.ARCHIVE_MALFORMED


@pytest.mark.parametrize("name", ["leaves.jsonl", "manifest.json"])
def test_a_bomb_is_refused_before_it_fills_memory(pristine: PristineExport, name: str) -> None:
    files = unpacked(pristine.archive)
    stream = ZipStream()
    for other, data in files.items():
        stream.begin(other)
        for _ in range(40 if other == name else 1):
            stream.write(bytes(2**20) if other == name else data)
        stream.end()
    stream.finish()
    begin = time.process_time()
    assert reason(pristine, stream.take()) in (Reason.ARCHIVE_MALFORMED, Reason.FILE_ALTERED, Reason.LEAF_MALFORMED)
    assert time.process_time() - begin < 5


def test_a_file_that_says_it_is_small_and_is_not_is_refused(pristine: PristineExport) -> None:
    archive = pristine.archive
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        leaves = opened.getinfo("leaves.jsonl")
    real, lie = struct.pack("<Q", leaves.file_size), struct.pack("<Q", 10)
    assert reason(pristine, archive.replace(real, lie)) in (Reason.ARCHIVE_MALFORMED, Reason.FILE_ALTERED)


@pytest.mark.parametrize("count", [0, 1, 2**16, 2**40, 2**64 - 1])
def test_a_directory_of_another_length_is_refused(pristine: PristineExport, count: int) -> None:
    archive = bytearray(pristine.archive)
    struct.pack_into("<QQ", archive, len(archive) - 98 + 24, count, count)
    assert reason(pristine, bytes(archive)) is Reason.ARCHIVE_MALFORMED


def test_keys_in_the_archive_are_not_trusted(pristine: PristineExport, tmp_path: Path) -> None:
    other = asyncio.run(make_export(tmp_path / "other", requests=3))
    assert reason(pristine, other.archive) is Reason.KEY_NOT_LINKED
    unlinked = {name: data for name, data in unpacked(other.archive).items() if name != "key-links.json"}
    assert reason(pristine, packed(unlinked)) is Reason.SIGNER_UNKNOWN
    assert verified(other, other.archive).leaves > 0


def without_payloads(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if not name.startswith("payloads/")}


def test_leaves_that_are_left_out_at_the_ends_are_missed(pristine: PristineExport) -> None:
    files = unpacked(pristine.archive)
    lines = files["leaves.jsonl"].splitlines(keepends=True)
    manifest = json.loads(files["manifest.json"])
    cut = {**files, "leaves.jsonl": b"".join(lines[2:])}
    missed = (Reason.LEAVES_INCOMPLETE, Reason.COMMITMENT_ABSENT)
    assert reason(pristine, packed(cut)) in missed
    # A forger who names a later first leaf has the leaf before it contradict the time that was asked for.
    assert reason(pristine, packed(without_payloads(cut), first_index=3)) is Reason.LEAVES_INCOMPLETE
    short = {**files, "leaves.jsonl": b"".join(lines[:-2])}
    earlier: dict[str, Any] = {"stop_index": manifest["stop_index"] - 3}
    assert reason(pristine, packed(short, **earlier)) in missed


def test_the_program_says_what_is_wrong_in_a_line_and_by_its_status(
    pristine: PristineExport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(7)
    file = tmp_path / "export.zip"
    keys = [option for key in pristine.keys for option in ("--key", key)]
    for _ in range(20):
        archive = bytearray(pristine.archive)
        archive[chance.randrange(4, len(archive))] ^= 1 << chance.randrange(8)
        file.write_bytes(archive)
        assert main([str(file), *keys]) == 1
        assert capsys.readouterr().err.startswith("NOT PROVEN ")
    file.write_bytes(pristine.archive)
    assert main([str(file), *keys, "--extract", "100000"]) == 1
    assert main([str(file), *keys, "--platform-proof", str(file)]) == 2
    assert main([str(tmp_path / "none.zip"), *keys]) == 2
    assert main([str(file), "--key", "nonsense"]) == 1
