"""Models from an S3-compatible store: fetched over TLS with signed requests, resumed, checked; and what cannot be, by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from s3_server import BUCKET, S3Server

from lionrock.modelstore.errors import DigestMismatch, ModelFileCorrupt, ModelFileMissing, PullFailed
from lionrock.modelstore.manifest import FileRecord, Manifest, read_manifest, write_manifest
from lionrock.modelstore.object_fetch import Fetch, RemoteFile
from lionrock.modelstore.objects import Credentials, list_files, main, open_store
from lionrock.modelstore.source import open_source
from mesh_ca import DevCa
from models import Unavailable

WEIGHTS = hashlib.shake_256(b"weights").digest(20 << 20)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclasses.dataclass(frozen=True)
class Site:
    server: S3Server
    ca_file: Path

    def store(self, secret: str | None = None) -> object:
        key = Credentials(access_key_id=self.server.access_key_id, secret_access_key=secret or self.server.secret_access_key)  # type: ignore[arg-type]
        return open_store(self.server.endpoint, BUCKET, key, ca_file=self.ca_file)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("s3")
    content = directory / "content"
    for prefix in ("open/m", "entry/m", "wrong/m", "entry/wrong", "entry/lacking", "secret/m"):
        (content / prefix).mkdir(parents=True)
        (content / prefix / "config.json").write_text('{"model_type": "llama"}')
        (content / prefix / "model.safetensors").write_bytes(WEIGHTS)
        (content / prefix / "modeling_evil.py").write_text("raise SystemExit")
    for prefix, digest, file in (("m", sha256(WEIGHTS), "model.safetensors"), ("wrong", "0" * 64, "model.safetensors")):
        record = FileRecord(file, digest, len(WEIGHTS), 1_700_000_000_000_000_000)
        write_manifest(content / "entry" / prefix, Manifest("m", "safetensors", (record,), "elsewhere", "2026-01-01T00:00:00Z"))
    lacking = FileRecord("model-2.safetensors", sha256(WEIGHTS), len(WEIGHTS), 0)
    write_manifest(content / "entry/lacking", Manifest("m", "safetensors", (lacking,), "elsewhere", "2026-01-01T00:00:00Z"))
    tls = DevCa(directory).issue("s3")
    try:
        server = S3Server(content, tls, directory / "s3.log")
    except Unavailable as error:
        pytest.skip(str(error))
    yield Site(server, tls.ca_file)
    server.stop()


def fetched(site: Site, prefix: str, directory: Path) -> Fetch:
    fetch = Fetch(site.store(), directory, pause=lambda _: None)  # type: ignore[arg-type]
    fetch.fetch(list_files(site.store(), prefix), source="here")  # type: ignore[arg-type]
    return fetch


def test_a_model_is_fetched_without_its_code_and_described_so_that_nobody_digests_it_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIONROCK_OBJECTS_ACCESS_KEY_ID", site.server.access_key_id)
    monkeypatch.setenv("LIONROCK_OBJECTS_SECRET_ACCESS_KEY", site.server.secret_access_key)
    arguments = [f"--endpoint={site.server.endpoint}", f"--bucket={BUCKET}", "--prefix=open/m", f"--ca-file={site.ca_file}"]
    assert main([*arguments, f"--directory={tmp_path / 'm'}"]) == 0
    assert sorted(path.name for path in (tmp_path / "m").iterdir() if not path.name.startswith(".")) == [
        "config.json", "manifest.json", "model.safetensors",
    ]  # fmt: skip
    assert (tmp_path / "m/model.safetensors").read_bytes() == WEIGHTS
    assert [record.sha256 for record in read_manifest(tmp_path / "m").files] == [sha256(WEIGHTS)]
    monkeypatch.setattr("lionrock.modelstore.source.sha256_file", lambda path: pytest.fail("the weights were read again"))
    assert open_source("m", tmp_path / "m").weights_digest.startswith("sha256:")


def test_what_is_there_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    assert fetched(site, "open/m", tmp_path).transferred_bytes > len(WEIGHTS)
    assert fetched(site, "open/m", tmp_path).transferred_bytes == 0


def test_a_fetch_that_was_cut_off_goes_on_where_it_ended(site: Site, tmp_path: Path) -> None:
    (weights,) = (file for file in list_files(site.store(), "open/m") if file.name == "model.safetensors")  # type: ignore[arg-type]
    part, half = tmp_path / ".model.safetensors.part", len(WEIGHTS) // 2
    part.write_bytes(WEIGHTS[:half])
    state = {weights.name: {"e_tag": weights.e_tag, "size": weights.size, "sha256": None}}
    (tmp_path / ".fetched.json").write_text(json.dumps(state))
    assert fetched(site, "open/m", tmp_path).transferred_bytes < half + 1000
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_part_of_another_object_is_begun_anew(site: Site, tmp_path: Path) -> None:
    (tmp_path / ".model.safetensors.part").write_bytes(bytes(len(WEIGHTS) // 2))
    (tmp_path / ".fetched.json").write_text(json.dumps({"model.safetensors": {"e_tag": '"old"', "size": 7, "sha256": None}}))
    fetched(site, "open/m", tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


def test_an_object_that_is_replaced_meanwhile_is_not_mixed_with_the_new_one(site: Site, tmp_path: Path) -> None:
    files = [dataclasses.replace(file, e_tag='"of another version"') for file in list_files(site.store(), "open/m")]  # type: ignore[arg-type]
    with pytest.raises(PullFailed, match="was replaced in the store"):
        Fetch(site.store(), tmp_path, pause=lambda _: None).fetch(files, source="here")  # type: ignore[arg-type]


def test_a_store_entry_keeps_its_digests(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched(site, "entry/m", tmp_path)
    monkeypatch.setattr("lionrock.modelstore.source.sha256_file", lambda path: pytest.fail("the weights were read again"))
    assert open_source("m", tmp_path).files == (tmp_path / "model.safetensors",)


def test_bytes_that_the_manifest_does_not_promise_are_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch, match="manifest says 0000"):
        fetched(site, "entry/wrong", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(ModelFileMissing, match=r"names model-2\.safetensors"):
        fetched(site, "entry/lacking", tmp_path / "lacking")


def test_what_describes_a_model_is_fetched_without_its_weights(site: Site, tmp_path: Path) -> None:
    fetch = Fetch(site.store(), tmp_path)  # type: ignore[arg-type]
    fetch.fetch_heads(list_files(site.store(), "open/m"))  # type: ignore[arg-type]
    assert (tmp_path / "config.json").exists()
    assert (tmp_path / "model.safetensors").stat().st_size == len(WEIGHTS)


def test_keys_that_may_not_are_told_so_and_no_secret_is_repeated(site: Site, tmp_path: Path) -> None:
    with pytest.raises(PullFailed) as raised:
        list_files(site.store(secret="not-the-secret"), "open/m")  # type: ignore[arg-type]
    assert "not-the-secret" not in str(raised.value)
    files = list_files(site.store(), "secret/m")  # type: ignore[arg-type]
    with pytest.raises(PullFailed, match="may not"):
        Fetch(site.store(), tmp_path, pause=lambda _: None).fetch(files, source="here")  # type: ignore[arg-type]


def test_nothing_there_and_a_store_of_another_authority_are_told(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ModelFileMissing, match="nothing that is served begins with"):
        list_files(site.store(), "nowhere")  # type: ignore[arg-type]
    (tmp_path / "ca").mkdir()
    stranger = dataclasses.replace(site, ca_file=DevCa(tmp_path / "ca").issue("other").ca_file)
    with pytest.raises(PullFailed, match="cannot be listed"):
        list_files(stranger.store(), "open/m")  # type: ignore[arg-type]


def test_more_than_there_is_room_for_is_not_begun(site: Site, tmp_path: Path) -> None:
    huge = RemoteFile("open/m/model.safetensors", "model.safetensors", 1 << 60, None)
    with pytest.raises(PullFailed, match="free"):
        Fetch(site.store(), tmp_path).fetch([huge], source="here")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_names_that_leave_the_directory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [[{"path": "m/../../etc/passwd.json", "size": 1, "e_tag": None}]]
    monkeypatch.setattr("lionrock.modelstore.objects.obstore.list", lambda *_: listed)
    with pytest.raises(ModelFileCorrupt, match="does not stay within"):
        list_files(None, "m")  # type: ignore[arg-type]
