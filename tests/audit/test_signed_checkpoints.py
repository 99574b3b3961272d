"""The second place: what a power cut may do to it, and what is damage."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.audit.failures import StoreFailed
from lionrock.audit.signed_checkpoints import SignedCheckpoints, read_batches

SECTOR_BYTES = 512
ORIGINS = [f"platform/audit/{tenant}" for tenant in ("bank", "broker", "insurer")]


def record(path: Path, *rounds: str) -> None:
    with closing(SignedCheckpoints(path)) as signed:
        for said in rounds:
            signed.record({origin: f"{origin} {said} {'.' * 300}" for origin in ORIGINS})


def last(path: Path) -> set[str]:
    with closing(SignedCheckpoints(path)) as signed:
        return {checkpoint.split(" ")[1] for checkpoint in signed.last().values()}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_batch_that_a_power_cut_tore_in_any_sectors_is_dropped_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("torn") / "signed.jsonl"
    record(path, "first")
    with closing(SignedCheckpoints(path)) as signed:
        durable = path.read_bytes()
        signed.record({origin: f"{origin} second {'.' * 300}" for origin in ORIGINS})
    content = path.read_bytes()
    assert content.startswith(durable)
    torn = bytearray(durable)
    for begin in range(len(durable) // SECTOR_BYTES * SECTOR_BYTES, len(content), SECTOR_BYTES):
        end, position = min(begin + SECTOR_BYTES, len(content)), max(begin, len(durable))
        kind = data.draw(st.sampled_from(["kept", "zeros", "noise"]))
        noise = data.draw(st.binary(max_size=SECTOR_BYTES)) if kind == "noise" else b""
        new = content[begin:end] if kind == "kept" else noise.ljust(end - begin, b"\x00")[: end - begin]
        torn[position:end] = new[position - begin :]
    torn = torn[: data.draw(st.integers(len(durable), len(torn)))]
    path.write_bytes(torn)
    assert last(path) == ({"second"} if bytes(torn) == content else {"first"})


def test_damage_that_no_power_cut_does_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signed.jsonl"
    record(path, "first", "second", "third")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1][:40] + b"\n", *lines[2:]]))
    with pytest.raises(StoreFailed, match="damaged in line 2"):
        SignedCheckpoints(path)
    path.write_bytes(b"x" + lines[0])
    with pytest.raises(StoreFailed, match="damaged in line 1"):
        read_batches(path)


def test_the_form_of_earlier_versions_is_read(tmp_path: Path) -> None:
    path = tmp_path / "signed.jsonl"
    path.write_text(json.dumps({"origin": "a", "checkpoint": "1"}) + "\n" + json.dumps({"origin": "a", "checkpoint": "2"}) + "\n")
    assert read_batches(path) == [{"a": "1"}, {"a": "2"}]
