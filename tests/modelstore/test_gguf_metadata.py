"""The bounded GGUF reader: equal to ggml's own reader on a real file, and unmoved by hostile ones."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gguf as ggml
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lionrock.modelstore.errors import ModelFileCorrupt, ModelFormatUnsupported, ModelStoreError
from lionrock.modelstore.gguf_metadata import GGML_TYPES, ArrayLength, read_gguf_header
from models import smollm2_path

ARRAYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")


def test_real_file_reads_as_ggmls_own_reader_reads_it() -> None:
    header = read_gguf_header(smollm2_path(), arrays=ARRAYS)
    reference = ggml.GGUFReader(smollm2_path())
    for key, field in reference.fields.items():
        if not key.startswith("GGUF."):
            expected = field.contents()
            kept = key in ARRAYS or not isinstance(expected, list)
            assert header.metadata[key] == (
                tuple(expected) if kept and isinstance(expected, list) else expected if kept else ArrayLength(1)
            )
    assert [(t.name, t.shape, t.type, t.offset, t.bytes) for t in header.tensors] == [
        (t.name, tuple(int(n) for n in t.shape), t.tensor_type.name, int(t.data_offset), int(t.n_bytes)) for t in reference.tensors
    ]


def test_table_of_tensor_types_is_ggmls() -> None:
    for number, (name, block_elements, block_bytes) in GGML_TYPES.items():
        kind = ggml.GGMLQuantizationType(number)
        assert (kind.name, ggml.GGML_QUANT_SIZES[kind]) == (name, (block_elements, block_bytes))


def test_arrays_are_kept_only_where_asked_for(gguf_file: Path) -> None:
    assert read_gguf_header(gguf_file).metadata["tokenizer.ggml.tokens"] == ArrayLength(3)
    assert read_gguf_header(gguf_file, arrays=["tokenizer.ggml.tokens"]).metadata["tokenizer.ggml.tokens"] == ("a", "b", "ab")


def test_every_truncation_is_named(gguf_file: Path, gguf: Callable[..., bytes]) -> None:
    whole = gguf()
    for length in range(len(whole)):
        gguf_file.write_bytes(whole[:length])
        with pytest.raises(ModelFileCorrupt):
            read_gguf_header(gguf_file)


@pytest.mark.parametrize(
    ("at", "layout", "value"),
    [
        (8, "<Q", 2**63),  # tensors
        (16, "<Q", 2**63),  # metadata entries
        (24, "<Q", 2**63),  # length of the first key
        (24, "<Q", 2**31),
    ],
)
def test_enormous_claims_are_refused_without_allocating(
    gguf_file: Path, gguf: Callable[..., bytes], at: int, layout: str, value: int
) -> None:
    raw = bytearray(gguf())
    struct.pack_into(layout, raw, at, value)
    gguf_file.write_bytes(raw)
    tracemalloc.start()
    with pytest.raises(ModelFileCorrupt):
        read_gguf_header(gguf_file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 1024 * 1024


def test_tensor_outside_of_the_file_is_refused(gguf_file: Path, gguf: Callable[..., bytes]) -> None:
    gguf_file.write_bytes(gguf(tensors=[("w", (32, 4)), ("v", (32, 2**40))]))
    with pytest.raises(ModelFileCorrupt, match="outside the file"):
        read_gguf_header(gguf_file)


def test_same_tensor_twice_is_refused(gguf_file: Path, gguf: Callable[..., bytes]) -> None:
    gguf_file.write_bytes(gguf(tensors=[("w", (8,)), ("w", (8,))]))
    with pytest.raises(ModelFileCorrupt, match="twice"):
        read_gguf_header(gguf_file)


@pytest.mark.parametrize("version", [1, 4, 0x03000000])
def test_other_versions_and_byte_orders_are_unsupported(gguf_file: Path, gguf: Callable[..., bytes], version: int) -> None:
    raw = bytearray(gguf())
    struct.pack_into("<I", raw, 4, version)
    gguf_file.write_bytes(raw)
    with pytest.raises(ModelFormatUnsupported):
        read_gguf_header(gguf_file)


@settings(max_examples=400, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_read_or_are_refused_by_name(gguf_file: Path, gguf: Callable[..., bytes], data: st.DataObject) -> None:
    raw = bytearray(gguf())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x09\0\0\0"])))
        raw[at : at + len(patch)] = patch
    gguf_file.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with suppress(ModelStoreError):
        read_gguf_header(gguf_file, arrays=ARRAYS)


@settings(max_examples=200, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=256))
def test_noise_is_refused_by_name(gguf_file: Path, raw: bytes) -> None:
    gguf_file.write_bytes(raw)
    with pytest.raises(ModelStoreError):
        read_gguf_header(gguf_file)
