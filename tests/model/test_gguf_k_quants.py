"""Blocks of random bytes, unpacked as the gguf package unpacks them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from lionrock.inference.model.gguf_file import GgufFile

ROWS, COLUMNS = 37, 8 * 256


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_any_slice_of_any_blocks_equals_the_gguf_packages_dequantisation(tmp_path: Path, name: str) -> None:
    kind = GGMLQuantizationType[name]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(3).integers(0, 256, (ROWS, COLUMNS // block, block_bytes), dtype=np.uint8)
    for first in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "IQ4_XS": (0,)}.get(name, (0, 2)):
        raw[..., first + 1] &= 0b10111011  # finite float16, as any converter writes
    raw = raw.reshape(ROWS, -1)
    writer = GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tensor("t", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = torch.from_numpy(dequantize(raw, kind))
    assert expected.isfinite().all()
    file = GgufFile(tmp_path / "t.gguf")
    for rows, columns in ((range(ROWS), range(COLUMNS)), (range(5, 6), range(300, 301)), (range(30, 37), range(511, 1025))):
        found = file.read("t", rows, columns, torch.float32)
        assert torch.equal(found, expected[rows.start : rows.stop, columns.start : columns.stop])
