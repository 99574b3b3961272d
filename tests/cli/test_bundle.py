"""Bundles: what is packed is verified, by us and by coreutils, and nothing that a hostile directory holds gets past."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lionrock.audit.canonical_json import canonical_json
from lionrock.cli import bundle
from lionrock.cli.bundles.manifest import (
    MANIFEST_NAME,
    NOTE_NAME,
    SUMS_NAME,
    Artifact,
    File,
    ManifestInvalid,
    make_manifest,
    parse_manifest,
    sums,
)
from lionrock.cli.errors import CommandError
from lionrock.tlog.note import Ed25519Signer

IMAGE = "lionrock.internal/lionrock/gateway:0.1.0"
LAYER = b"not really a layer" * 1000


def docker_archive(path: Path, name: str = IMAGE) -> Path:
    config = json.dumps({"config": {}}).encode()
    digest = sha256(config).hexdigest()
    manifest = json.dumps([{"Config": f"{digest}.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as archive:
        for member, content in ((f"{digest}.json", config), ("layer.tar", LAYER), ("manifest.json", manifest)):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def oci_layout(directory: Path, name: str = "lionrock/audit:0.1.0") -> Path:
    blob = b'{"schemaVersion":2}'
    digest = sha256(blob).hexdigest()
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / digest).write_bytes(blob)
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    described = {"digest": f"sha256:{digest}", "size": len(blob), "annotations": {"org.opencontainers.image.ref.name": name}}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    return directory


def chart_archive(path: Path, name: str = "lionrock", version: str = "0.1.0") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, text in ((f"{name}/values.yaml", "{}"), (f"{name}/Chart.yaml", f"name: {name}\nversion: {version}\n")):
            info = tarfile.TarInfo(member)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def gguf(path: Path) -> Path:
    path.write_bytes(b"GGUF" + bytes(5000))
    return path


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    contents = bundle.Contents(
        [str(docker_archive(tmp_path / "gateway.tar")), str(oci_layout(tmp_path / "audit"))],
        [chart_archive(tmp_path / "lionrock-0.1.0.tgz")],
        [f"small={gguf(tmp_path / 'model.gguf')}"],
    )
    directory = tmp_path / "bundle"
    assert bundle.create(directory, contents, None, tmp_path / "state", as_json=True) == 0
    return directory


def problems(directory: Path, capsys: pytest.CaptureFixture[str], *, keys: tuple[str, ...] = ()) -> set[tuple[str, str]]:
    capsys.readouterr()
    status = bundle.verify(directory, keys, None, as_json=True)
    *findings, verdict = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {(finding["problem"], finding["path"]) for finding in findings}
    assert verdict["verified"] == (status == 0) == (not found)
    return found


def test_what_is_packed_is_verified_and_listed(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(packed, capsys) == set()
    bundle.show(packed, as_json=True)
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()][:-1]
    assert [(entry["kind"], entry["name"], entry["version"]) for entry in listed] == [
        ("chart", "lionrock", "0.1.0"),
        ("image", IMAGE, "0.1.0"),
        ("image", "lionrock/audit:0.1.0", "0.1.0"),
        ("model", "small", "gguf"),
    ]
    assert listed[-1]["digest"] == f"sha256:{sha256(b'GGUF' + bytes(5000)).hexdigest()}"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="coreutils are not installed")
def test_coreutils_alone_check_a_bundle(packed: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", SUMS_NAME]
    assert subprocess.run(command, cwd=packed, check=False, capture_output=True).returncode == 0
    (packed / "charts" / "lionrock-0.1.0.tgz").write_bytes(b"another")
    assert subprocess.run(command, cwd=packed, check=False, capture_output=True).returncode == 1


def test_equal_contents_make_equal_bundles(packed: Path, tmp_path: Path) -> None:
    again = bundle.Contents(
        [str(tmp_path / "audit"), str(tmp_path / "gateway.tar")],
        [tmp_path / "lionrock-0.1.0.tgz"],
        [f"small={tmp_path / 'model.gguf'}"],
    )
    bundle.create(tmp_path / "again", again, None, None, as_json=True)
    assert (tmp_path / "again" / MANIFEST_NAME).read_bytes() == (packed / MANIFEST_NAME).read_bytes()
    assert (tmp_path / "again" / SUMS_NAME).read_bytes() == (packed / SUMS_NAME).read_bytes()


def test_every_missing_changed_and_extra_file_is_named(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((packed / "images").glob("*.tar"))
    content = image.read_bytes()
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (packed / "charts" / "lionrock-0.1.0.tgz").unlink()
    with (packed / "models" / "small" / "model.gguf").open("ab") as model:
        model.write(b"x")
    (packed / "models" / "small" / "more.bin").write_bytes(b"")
    (packed / "empty").mkdir()
    assert problems(packed, capsys) == {
        ("changed", f"images/{image.name}"),
        ("missing", "charts/lionrock-0.1.0.tgz"),
        ("changed", "models/small/model.gguf"),
        ("extra", "models/small/more.bin"),
        ("extra", "empty"),
    }


def test_links_and_special_files_are_refused_and_not_followed(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chart, model = packed / "charts" / "lionrock-0.1.0.tgz", packed / "models" / "small" / "model.gguf"
    chart.rename(tmp_path / "elsewhere.tgz")
    chart.symlink_to(tmp_path / "elsewhere.tgz")  # the right bytes, but not in the bundle
    model.unlink()
    os.mkfifo(model)  # reading it would wait for ever
    (packed / "images").rename(tmp_path / "images")
    (packed / "images").symlink_to(tmp_path / "images")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(packed / "socket"))
    found = problems(packed, capsys)
    assert ("refused", "charts/lionrock-0.1.0.tgz") in found
    assert ("refused", "models/small/model.gguf") in found
    assert ("extra", "socket") in found
    assert {path for problem, path in found if problem == "refused" and path.startswith("images/")}
    assert ("extra", "images") in found


def test_a_changed_manifest_does_not_verify_with_the_sums_of_the_old_one(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = parse_manifest((packed / MANIFEST_NAME).read_bytes())
    (packed / MANIFEST_NAME).write_bytes(replace(manifest, made_by="somebody else").encode())
    assert problems(packed, capsys) == {("changed", SUMS_NAME)}


@pytest.fixture
def signer() -> Ed25519Signer:
    return Ed25519Signer("releases.example", Ed25519PrivateKey.generate())


@pytest.fixture
def signed(packed: Path, tmp_path: Path, signer: Ed25519Signer) -> Path:
    key_file = tmp_path / "release.key"
    key_file.write_text(f"{signer.encode()}\n")
    directory = tmp_path / "signed"
    bundle.create(directory, bundle.Contents([], [tmp_path / "lionrock-0.1.0.tgz"], []), key_file, None, as_json=True)
    return directory


def test_a_signature_is_checked_when_a_key_is_given(
    packed: Path, signed: Path, signer: Ed25519Signer, capsys: pytest.CaptureFixture[str]
) -> None:
    key = str(signer.verifier_key)
    assert problems(signed, capsys, keys=(key,)) == set()
    assert problems(signed, capsys) == set()
    assert problems(packed, capsys, keys=(key,)) == {("unsigned", NOTE_NAME)}
    other = Ed25519Signer("releases.example", Ed25519PrivateKey.generate())
    assert problems(signed, capsys, keys=(str(other.verifier_key),)) == {("unsigned", NOTE_NAME)}


def test_a_signature_does_not_vouch_for_another_manifest(
    packed: Path, signed: Path, signer: Ed25519Signer, capsys: pytest.CaptureFixture[str]
) -> None:
    (packed / NOTE_NAME).write_bytes((signed / NOTE_NAME).read_bytes())
    assert problems(packed, capsys, keys=(str(signer.verifier_key),)) == {("unsigned", NOTE_NAME)}


def test_a_bundle_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"not a tar file")
    contents = bundle.Contents([str(docker_archive(tmp_path / "a.tar")), str(broken)], [], [])
    with pytest.raises(CommandError, match=r"broken\.tar"):
        bundle.create(tmp_path / "bundle", contents, None, None, as_json=True)
    twice = bundle.Contents([str(tmp_path / "a.tar"), str(docker_archive(tmp_path / "b.tar"))], [], [])
    with pytest.raises(CommandError, match="same place"):
        bundle.create(tmp_path / "bundle", twice, None, None, as_json=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "b.tar", "broken.tar"}


def test_an_existing_directory_is_never_written_to(packed: Path, tmp_path: Path) -> None:
    before = (packed / MANIFEST_NAME).read_bytes()
    with pytest.raises(CommandError, match="exists"):
        bundle.create(packed, bundle.Contents([str(tmp_path / "gateway.tar")], [], []), None, None, as_json=True)
    assert (packed / MANIFEST_NAME).read_bytes() == before


def test_an_image_comes_out_of_a_store_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = docker_archive(tmp_path / "stored.tar")
    program = tmp_path / "bin" / "docker"  # stands in for a store, whose own correctness is not the question
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1 $2 $4" = "save --output {IMAGE}" ] && cp {archive} "$3"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    bundle.create(tmp_path / "bundle", bundle.Contents([f"docker:{IMAGE}"], [], []), None, None, as_json=True)
    assert [path.name for path in (tmp_path / "bundle" / "images").iterdir()] == ["lionrock.internal_lionrock_gateway_0.1.0.tar"]
    with pytest.raises(CommandError, match="could not export"):
        bundle.create(tmp_path / "other", bundle.Contents(["docker:unknown"], [], []), None, None, as_json=True)


# ---- Hostile manifests.

HASH = "0" * 64
GOOD: dict[str, Any] = {
    "artifacts": [{"digest": f"sha256:{HASH}", "kind": "image", "name": "n", "path": "images/a", "version": ""}],
    "files": [{"path": "images/a", "sha256": HASH, "size": 1}],
    "format": "lionrock.bundle/v1",
    "made_by": "lionrock 0.1.0",
}


RAW = canonical_json(GOOD)


def changed(**changes: Any) -> dict[str, Any]:
    return {**GOOD, **changes}


def file(path: str, size: int = 1, digest: str = HASH) -> dict[str, Any]:
    return {"path": path, "sha256": digest, "size": size}


def artifact(path: str = "images/a", **changes: Any) -> dict[str, Any]:
    return {**GOOD["artifacts"][0], "path": path, **changes}


def test_the_manifest_that_the_others_are_made_from_is_good() -> None:
    assert parse_manifest(canonical_json(GOOD)).files == (File("images/a", HASH, 1),)


@pytest.mark.parametrize(
    "document",
    [
        *(
            changed(artifacts=[artifact(path)], files=[file(path)])
            for path in (
                "/etc/passwd", "../a", "images/../a", "images/../../a", "images//a", "images/.", "images", "images/a\\b",
                "images/a\nb",
                "images/a\x1b[2J", "images/\u202ea", "images/" + "a" * 256, "charts/a", "manifest.json", "", "SHA256SUMS",
            )
        ),
        changed(files=[file("images/a/" + "b/" * 600 + "c")]),
        changed(files=[file("images/a", size=-1)]),
        changed(files=[file("images/a", digest="0" * 63)]),
        changed(files=[file("images/a", digest="A" * 64)]),
        changed(files=[file("images/a"), file("images/a")]),
        changed(files=[file("images/a"), file("images/a/b")]),
        changed(files=[file("images/a"), file("images/b")]),
        changed(files=[]),
        changed(artifacts=[artifact(kind="program")]),
        changed(artifacts=[artifact(name="n" * 513)]),
        changed(artifacts=[artifact(name="\x1b]0;title\x07")]),
        changed(artifacts=[artifact(digest="md5:0")]),
        changed(artifacts=[artifact(), artifact("images/b")]),
        changed(format="lionrock.bundle/v2"),
        changed(more="members"),
    ],
    ids=repr,
)  # fmt: skip
def test_hostile_manifests_are_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ManifestInvalid):
        parse_manifest(canonical_json(document))


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format":"lionrock.bundle/v1"}',
        RAW + b"\n", json.dumps(GOOD, indent=1).encode(), RAW.replace(b'"made_by"', b'"made_by":"x","made_by"'),
        *(RAW.replace(b'"size":1', b'"size":' + size) for size in (b"1.0", b"true", b"1e3", b"9" * 31, b"1" + b"0" * 5000)),
    ],
    ids=lambda raw: repr(raw[:40]),
)  # fmt: skip
def test_what_is_not_the_canonical_form_is_refused(raw: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        parse_manifest(raw)


MEMBERS = st.sampled_from(sorted(GOOD)) | st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(sorted(GOOD)) | st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(json_values | st.fixed_dictionaries({key: st.just(value) | json_values for key, value in GOOD.items()}))
def test_parsing_accepts_only_what_encodes_to_the_same_bytes(document: Any) -> None:
    raw = json.dumps(document).encode()
    try:
        manifest = parse_manifest(raw)
    except ManifestInvalid:
        return
    assert manifest.encode() == raw


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(st.lists(names, min_size=1, max_size=8, unique=True))
@example(["0/0"])
def test_a_manifest_that_can_be_made_survives_being_read_again(parts: list[str]) -> None:
    files = [File(f"models/m/{part}", HASH, len(part)) for part in parts]
    try:
        manifest = make_manifest([Artifact("model", "m", "gguf", f"sha256:{HASH}", "models/m")], files, "test")
    except ManifestInvalid:
        return
    assert parse_manifest(manifest.encode()) == manifest
    lines = sums(manifest, HASH).decode().splitlines()
    assert lines == [f"{HASH}  {path}" for path in sorted([MANIFEST_NAME, *(file.path for file in files)])]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), which=st.integers(0, 10), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(packed: Path, position: float, which: int, bit: int) -> None:
    files = sorted(path for path in packed.rglob("*") if path.is_file())
    target = files[which % len(files)]
    content = bytearray(target.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    before = target.read_bytes()
    target.write_bytes(content)
    try:
        assert bundle.verify(packed, (), None, as_json=True) == 1
    finally:
        target.write_bytes(before)
    assert bundle.verify(packed, (), None, as_json=True) == 0
