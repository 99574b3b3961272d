"""The safetensors header reader against the format's own library, and against hostile headers."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from lionrock.modelstore.errors import ModelFileCorrupt, ModelFormatUnsupported, ModelStoreError
from lionrock.modelstore.safetensors_header import read_safetensors_header


def with_header(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def test_file_of_the_library_reads_with_names_shapes_and_types(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(save({"b": np.zeros((2, 3), np.float16), "a": np.ones((4,), np.int64)}, metadata={"format": "pt"}))
    tensors = {tensor.name: tensor for tensor in read_safetensors_header(path)}
    assert {name: (t.shape, t.dtype, t.elements) for name, t in tensors.items()} == {"a": ((4,), "I64", 4), "b": ((2, 3), "F16", 6)}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 8,
        (2**40).to_bytes(8, "little"),
        with_header(b"["),
        with_header([]),
        with_header({"w": None}),
        with_header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
        with_header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345"),
        with_header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        with_header({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}),
        with_header({"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"1234"),
        with_header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"),
        with_header(b'{"w":' + b"[" * 100_000),
    ],
)
def test_contradictory_header_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ModelFileCorrupt):
        read_safetensors_header(path)


def test_unknown_element_type_is_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(with_header({"w": {"dtype": "Q3", "shape": [1], "data_offsets": [0, 4]}}, b"1234"))
    with pytest.raises(ModelFormatUnsupported):
        read_safetensors_header(path)


@settings(max_examples=200, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_read_or_are_refused_by_name(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(save({"a": np.zeros((2, 2), np.float32), "b": np.zeros((3,), np.float32)}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with suppress(ModelStoreError):
        read_safetensors_header(path)
