"""Finding weights and naming them by digest."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from lionrock.modelstore.catalogue import CATALOGUE
from lionrock.modelstore.errors import (
    DigestMismatch,
    ModelFileCorrupt,
    ModelFileMissing,
    ModelFormatUnsupported,
    ModelNameInvalid,
)
from lionrock.modelstore.source import locate, open_source
from lionrock.modelstore.store import ModelStore
from models import smollm2_path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    names = ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"]
    for index, name in enumerate(names):
        (directory / name).write_bytes(save({f"w{index}": np.full((4,), index, np.float32)}))
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(names)}})
    )
    (directory / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "hidden_size": 4,
                "vocab_size": 8,
                "max_position_embeddings": 16,
            }
        )
    )
    return directory


def test_gguf_is_named_by_the_digest_of_its_bytes() -> None:
    source = open_source("smollm2", smollm2_path())
    assert source.weights_digest == f"sha256:{CATALOGUE[0].file_sha256}"
    assert (source.format, source.files, source.directory) == ("gguf", (smollm2_path(),), smollm2_path().parent)


def test_safetensors_are_named_as_sha256sum_lists_them(checkpoint: Path) -> None:
    listing = subprocess.run("sha256sum *.safetensors", shell=True, cwd=checkpoint, capture_output=True, check=True).stdout
    assert open_source("m", checkpoint).weights_digest == f"sha256:{hashlib.sha256(listing).hexdigest()}"


def test_index_says_which_files_belong_to_the_model(checkpoint: Path) -> None:
    (checkpoint / "consolidated.safetensors").write_bytes(save({"other": np.zeros((1,), np.float32)}))
    assert [file.name for file in locate("m", checkpoint).files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_indexed_file_that_is_not_there_is_missing(checkpoint: Path) -> None:
    (checkpoint / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ModelFileMissing):
        locate("m", checkpoint)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "passwd", 7, ["x"], ""])
def test_index_names_only_files_beside_it(checkpoint: Path, name: object) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ModelFileCorrupt):
        locate("m", checkpoint)


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", ".hidden", "a..b", "x" * 129, "名"])
def test_unusable_names_are_refused(name: str, checkpoint: Path) -> None:
    with pytest.raises(ModelNameInvalid):
        locate(name, checkpoint)


def test_file_of_another_kind_is_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelFormatUnsupported):
        locate("m", path)


def test_part_of_a_split_gguf_is_unsupported(tmp_path: Path, gguf_file: Path) -> None:
    path = tmp_path / "big-00001-of-00003.gguf"
    gguf_file.rename(path)
    with pytest.raises(ModelFormatUnsupported, match="3 parts"):
        locate("m", path)


def test_nothing_to_serve_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelFileMissing):
        locate("m", tmp_path)
    with pytest.raises(ModelFileMissing):
        locate("m", tmp_path / "nowhere")


def test_registered_model_is_not_read_again_until_it_is_touched(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path / "store")
    first = store.pull(str(checkpoint), name="m")
    reads: list[Path] = []
    monkeypatch.setattr("lionrock.modelstore.source.sha256_file", lambda path, on_bytes=None: reads.append(path) or "0" * 64)
    assert store.get("m") == first
    assert open_source("m", tmp_path / "store" / "m") == first
    assert reads == []


def test_touched_file_is_read_again_and_accepted_if_its_bytes_are_the_same(tmp_path: Path, checkpoint: Path) -> None:
    store = ModelStore(tmp_path / "store")
    first = store.pull(str(checkpoint), name="m")
    os.utime(first.files[0], ns=(1, 1))
    assert store.get("m") == first


def test_changed_file_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    store = ModelStore(tmp_path / "store")
    first = store.pull(str(checkpoint), name="m")
    first.files[0].write_bytes(save({"w1": np.full((4,), 9, np.float32)}))
    os.utime(first.files[0], ns=(1, 1))
    with pytest.raises(DigestMismatch):
        store.get("m")
    with pytest.raises(DigestMismatch):
        open_source("m", tmp_path / "store" / "m")
