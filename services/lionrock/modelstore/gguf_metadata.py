"""A bounded reader of what a GGUF file says about itself: metadata and the table of tensors, never tensor data.

Reads GGUF versions 2 and 3, little-endian, as specified in ggml's docs/gguf.md. Every count and length is checked against both a
limit and the bytes that the file really has before anything is allocated, because the file comes from a stranger. Token lists are
the bulk of the metadata, so arrays are kept only where asked for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from lionrock.modelstore.errors import ModelFileCorrupt, ModelFileMissing, ModelFormatUnsupported

MAX_METADATA_ENTRIES = 8_192
MAX_TENSORS = 262_144
MAX_KEY_BYTES = 65_535  # the format's own limit
MAX_STRING_BYTES = 8 * 1024 * 1024  # the longest string is a chat template
MAX_ARRAY_ITEMS = 4_194_304
MAX_HEADER_BYTES = 512 * 1024 * 1024  # metadata and tensor table together
MAX_DIMENSIONS = 8
_BUFFER_BYTES = 256 * 1024

Scalar = bool | int | float | str

# Value types by number: struct format of the scalars; 8 is a string, 9 an array.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

# ggml_type by number: name, elements a block, bytes a block.
GGML_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}


@dataclass(frozen=True, slots=True)
class ArrayLength:
    """Stands for an array that was not asked for."""

    items: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: ggml's dimensions (fastest first), type name, and extent in the file in bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata by key (scalars, tuples, ArrayLength for arrays not kept) and tensors in the file's order."""

    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]


def read_gguf_header(path: Path, *, arrays: Collection[str] = ()) -> GgufHeader:
    """Read metadata and tensor table; `arrays`: keys of the arrays to keep.

    Raises ModelFileMissing, ModelFileCorrupt (also for tensors that reach past the end of the file), ModelFormatUnsupported.
    """
    try:
        with path.open("rb", buffering=_BUFFER_BYTES) as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _Reader(file, path, size).header(arrays)
    except OSError as error:
        raise ModelFileMissing(f"{path} cannot be read: {error.strerror}") from None


class _Reader:
    """One pass over a header."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._file, self._path, self._size, self._at = file, path, size, 0
        self._limit = min(size, MAX_HEADER_BYTES)

    def header(self, arrays: Collection[str]) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise ModelFormatUnsupported(f"{self._path} is not a GGUF file")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ModelFormatUnsupported(f"{self._path} is GGUF version {version} or big-endian; little-endian 2 and 3 are read")
        tensor_count = self._bounded(self._scalar("<Q"), MAX_TENSORS, "tensors")
        entry_count = self._bounded(self._scalar("<Q"), MAX_METADATA_ENTRIES, "metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self._string(MAX_KEY_BYTES)
            if key in metadata:
                raise self._corrupt("a metadata key stands twice")
            metadata[key] = self._value(self._scalar("<I"), keep=key in arrays)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 65_536 or alignment & (alignment - 1):
            raise self._corrupt("general.alignment is not a power of two from 8 to 65536")
        infos = [self._tensor() for _ in range(tensor_count)]
        return GgufHeader(metadata, self._placed(infos, alignment))

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(MAX_KEY_BYTES)
        dimensions = self._bounded(self._scalar("<I"), MAX_DIMENSIONS, "dimensions of a tensor")
        shape = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
        return name, shape, self._scalar("<I"), self._scalar("<Q")

    def _placed(self, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> tuple[TensorInfo, ...]:
        """Tensors with their extents, checked against the file's size and each other."""
        base = -(-self._at // alignment) * alignment
        tensors = []
        for name, shape, number, offset in infos:
            if number not in GGML_TYPES:
                raise ModelFormatUnsupported(f"{self._path} has a tensor of ggml type {number}, which is not known")
            type_name, block_elements, block_bytes = GGML_TYPES[number]
            if 0 in shape or (shape and shape[0] % block_elements):
                raise self._corrupt("a tensor's shape does not fit its type")
            extent = math.prod(shape) // block_elements * block_bytes
            if offset % alignment or base + offset + extent > self._size:
                raise self._corrupt("a tensor lies outside the file or off its alignment: the file is truncated or mislabelled")
            tensors.append(TensorInfo(name, shape, type_name, base + offset, extent))
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise self._corrupt("a tensor's name stands twice")
        ordered = sorted(tensors, key=lambda tensor: tensor.offset)
        if any(a.offset + a.bytes > b.offset for a, b in pairwise(ordered)):
            raise self._corrupt("two tensors overlap")
        return tuple(tensors)

    def _value(self, type_number: int, *, keep: bool) -> Any:
        if type_number == _STRING:
            return self._string(MAX_STRING_BYTES)
        if type_number == _ARRAY:
            return self._array(keep=keep)
        if type_number in _SCALARS:
            return self._scalar(_SCALARS[type_number])
        raise self._corrupt(f"a metadata value has type {type_number}, which GGUF does not define")

    def _array(self, *, keep: bool) -> tuple[Any, ...] | ArrayLength:
        item_type, items = self._scalar("<I"), self._bounded(self._scalar("<Q"), MAX_ARRAY_ITEMS, "items of an array")
        if item_type == _STRING:
            if keep:
                return tuple(self._string(MAX_STRING_BYTES) for _ in range(items))
            self._skip_strings(items)
            return ArrayLength(items)
        if item_type not in _SCALARS:
            raise ModelFormatUnsupported(f"{self._path} has an array of type {item_type}; arrays of scalars and strings are read")
        letter = _SCALARS[item_type][1]
        packed = self._take(items * struct.calcsize("<" + letter))
        return struct.unpack(f"<{items}{letter}", packed) if keep else ArrayLength(items)

    def _skip_strings(self, items: int) -> None:
        for _ in range(items):
            self._take(self._bounded(self._scalar("<Q"), MAX_STRING_BYTES, "bytes of a string"))

    def _string(self, limit: int) -> str:
        raw = self._take(self._bounded(self._scalar("<Q"), limit, "bytes of a string"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._corrupt("a string is not UTF-8") from None

    def _scalar(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _take(self, count: int) -> bytes:
        self._at += count
        if self._at > self._limit:
            raise self._corrupt(f"its header goes past the end of the file or past {MAX_HEADER_BYTES} bytes")
        taken = self._file.read(count)
        if len(taken) != count:
            raise self._corrupt("the file became shorter while it was read")
        return taken

    def _bounded(self, value: int, limit: int, what: str) -> int:
        if value > limit:
            raise self._corrupt(f"it claims {value} {what}; {limit} are allowed")
        return value

    def _corrupt(self, why: str) -> ModelFileCorrupt:
        return ModelFileCorrupt(f"{self._path}: {why}")
