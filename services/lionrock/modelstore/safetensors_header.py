"""A bounded reader of a safetensors file's header: names, types, shapes and extents of tensors, never their data.

The layout is that of the safetensors format: eight bytes of header length (little-endian), a JSON header, then the data without
gaps.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lionrock.modelstore.errors import ModelFileCorrupt, ModelFileMissing, ModelFormatUnsupported

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 8

# Bits an element.
DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True, slots=True)
class SafetensorInfo:
    """One tensor: its shape, type as the file spells it, and extent in the data section in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def read_safetensors_header(path: Path) -> tuple[SafetensorInfo, ...]:
    """Read the table of tensors, ordered by place in the file.

    Raises ModelFileMissing, ModelFileCorrupt (also for a truncated file), ModelFormatUnsupported for an element type that is not
    known.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise ModelFileCorrupt(f"{path} is not a safetensors file, or it is truncated in its header")
            raw = file.read(length)
    except OSError as error:
        raise ModelFileMissing(f"{path} cannot be read: {error.strerror}") from None
    try:
        header = json.loads(raw)
        tensors = [_tensor(path, name, fields) for name, fields in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ModelFileCorrupt(f"{path} has a header that is not a table of tensors") from None
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    at = 0
    for tensor in tensors:
        if tensor.begin != at:
            raise ModelFileCorrupt(f"{path} has tensors that overlap or leave a gap")
        at = tensor.end
    if 8 + length + at != size:
        raise ModelFileCorrupt(f"{path} should have {8 + length + at} bytes and has {size}")
    return tuple(tensors)


def _tensor(path: Path, name: str, fields: Any) -> SafetensorInfo:
    dtype, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    if len(shape) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError("shape")
    if dtype not in DTYPE_BITS:
        raise ModelFormatUnsupported(f"{path} has tensors of a type that is not known")
    if (end - begin) * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
        raise ValueError("extent")
    return SafetensorInfo(name, shape, dtype, begin, end)
