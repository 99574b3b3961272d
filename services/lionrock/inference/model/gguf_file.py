"""GGUF files: header, and tensors read in slices of rows and columns, dequantised on the way. No model, no policy.

The file is mapped, not read: a slice touches its own pages. Every count, length and offset of the header is checked against the
file before use, so that a hostile file gets a named error. Common types are dequantised with a few tensor operations a chunk;
the others through the `gguf` package. Source: the GGUF specification (version 3) and ggml's block layouts.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from lionrock.inference.model.errors import MalformedWeights, MissingTensor, TruncatedWeights, UnsupportedModel
from lionrock.inference.model.gguf_k_quants import q4_k, q5_k, q6_k

_MAX_ENTRIES = 1 << 16  # of metadata
_MAX_TENSORS = 1 << 18
_MAX_DIMENSIONS = 4
_CHUNK_NUMBERS = 1 << 18  # dequantised at a time: 1 MiB of float32, which stays in the cache
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

Metadata = dict[str, int | float | bool | str]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies."""

    shape: tuple[int, ...]
    """Rows first (GGUF writes them last)."""
    kind: GGMLQuantizationType
    offset: int
    """Bytes from the start of the file."""
    row_bytes: int


class GgufFile:
    """One mapped file. `metadata` holds scalars and strings; arrays (the tokenizer) are skipped."""

    def __init__(self, path: Path) -> None:
        """Map the file and read its header. Raises TruncatedWeights, MalformedWeights, UnsupportedModel."""
        self.path = path
        with path.open("rb") as file:
            if path.stat().st_size < 24:
                raise TruncatedWeights(f"{path.name} is shorter than a GGUF header")
            # A private writable mapping: PyTorch wants writable memory, and nothing is written.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        cursor = _Cursor(self._map, path.name)
        if cursor.bytes(4) != b"GGUF":
            raise MalformedWeights(f"{path.name} is not a GGUF file")
        version = cursor.word()
        if version not in (2, 3):
            raise UnsupportedModel(f"{path.name} has GGUF version {version}; 2 and 3 (little-endian) are read")
        tensors, entries = cursor.count(), cursor.count()
        if tensors > _MAX_TENSORS or entries > _MAX_ENTRIES:
            raise MalformedWeights(f"{path.name} claims {tensors} tensors and {entries} metadata entries")
        self.metadata: Metadata = {}
        for _ in range(entries):
            key = cursor.string()
            value = cursor.value(cursor.word())
            if value is not None:
                self.metadata[key] = value
        infos = [cursor.tensor_info() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment > 1 << 16 or alignment % 8:
            raise MalformedWeights(f"{path.name} has an impossible alignment")
        if any(offset % alignment for _, _, _, offset in infos):
            raise MalformedWeights(f"{path.name} has a tensor that is not aligned")
        data = -(-cursor.at // alignment) * alignment
        self.tensors = {name: self._place(name, shape, kind, data + offset) for name, shape, kind, offset in infos}

    def _place(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        try:
            quantization = GGMLQuantizationType(kind)
            block, block_bytes = GGML_QUANT_SIZES[quantization]
        except (ValueError, KeyError):
            raise UnsupportedModel(f"{self.path.name}: tensor {name} has unknown type {kind}") from None
        if shape[-1] % block:
            raise MalformedWeights(f"{self.path.name}: rows of tensor {name} are no whole number of blocks")
        row_bytes = shape[-1] // block * block_bytes
        rows = 1
        for size in shape[:-1]:
            rows *= size
        if offset + rows * row_bytes > len(self._map):
            raise TruncatedWeights(f"{self.path.name}: tensor {name} reaches past the end of the file")
        return GgufTensor(shape, quantization, offset, row_bytes)

    def read(self, name: str, rows: range | None, columns: range | None, dtype: torch.dtype) -> Tensor:
        """Read a slice of a matrix, or of a vector (`columns` None; `rows` then counts its elements). None: all.

        Raises MissingTensor, MalformedWeights.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise MissingTensor(f"{self.path.name} has no tensor {name}")
        if len(tensor.shape) > 2:
            raise MalformedWeights(f"{self.path.name}: tensor {name} has {len(tensor.shape)} dimensions; 1 or 2 are read")
        height, width = tensor.shape if len(tensor.shape) == 2 else (1, tensor.shape[0])
        if len(tensor.shape) == 1:
            rows, columns = range(1), rows
        rows, columns = rows or range(height), columns or range(width)
        assert 0 <= rows.start < rows.stop <= height, "rows out of range"
        assert 0 <= columns.start < columns.stop <= width, "columns out of range"
        block, block_bytes = GGML_QUANT_SIZES[tensor.kind]
        raw = torch.frombuffer(
            self._map, dtype=torch.uint8, count=len(rows) * tensor.row_bytes, offset=tensor.offset + rows.start * tensor.row_bytes
        ).view(len(rows), tensor.row_bytes)
        first, last = columns.start // block, -(-columns.stop // block)
        raw = raw[:, first * block_bytes : last * block_bytes]
        values = _dequantise(raw, tensor.kind, dtype)
        values = values[:, columns.start - first * block : columns.stop - first * block]
        return values[0] if len(tensor.shape) == 1 else values


class _Cursor:
    """Reads a header, checking every step against the end of the file."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self._data = data
        self._name = name
        self.at = 0

    def bytes(self, count: int) -> bytes:
        """Take that many bytes."""
        end = self.at + count
        if end > len(self._data):
            raise TruncatedWeights(f"{self._name}: the header reaches past the end of the file")
        taken = self._data[self.at : end]
        self.at = end
        return taken

    def scalar(self, kind: int) -> int | float | bool:
        """Take a number of one of GGUF's types."""
        layout = _SCALARS.get(kind)
        if layout is None:
            raise MalformedWeights(f"{self._name}: unknown metadata type {kind}")
        (value,) = struct.unpack(layout, self.bytes(struct.calcsize(layout)))
        assert isinstance(value, (int, float))
        return value

    def count(self) -> int:
        """Take an unsigned 64-bit number."""
        return int.from_bytes(self.bytes(8), "little")

    def word(self) -> int:
        """Take an unsigned 32-bit number."""
        return int.from_bytes(self.bytes(4), "little")

    def string(self) -> str:
        """Take a string."""
        length = self.count()
        try:
            return self.bytes(length).decode()
        except UnicodeDecodeError:
            raise MalformedWeights(f"{self._name}: a metadata string is not UTF-8") from None

    def value(self, kind: int) -> int | float | bool | str | None:
        """Take a metadata value; an array is skipped and gives None."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(kind)
        item, count = self.word(), self.count()
        if item == _STRING:
            self._skip_strings(count)
        elif item in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[item]))
        else:
            raise MalformedWeights(f"{self._name}: unknown array type {item}")
        return None

    def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Take a tensor's name, shape (rows first), type and offset from the start of the data."""
        name, dimensions = self.string(), self.word()
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise MalformedWeights(f"{self._name}: a tensor has {dimensions} dimensions")
        shape = tuple(reversed([self.count() for _ in range(dimensions)]))
        if min(shape) < 1:
            raise MalformedWeights(f"{self._name}: a tensor has an empty dimension")
        return name, shape, self.word(), self.count()

    def _skip(self, count: int) -> None:
        if self.at + count > len(self._data):
            raise TruncatedWeights(f"{self._name}: the header reaches past the end of the file")
        self.at += count

    def _skip_strings(self, count: int) -> None:
        """Pass over strings without making them: a tokenizer has hundreds of thousands."""
        data, at, end = self._data, self.at, len(self._data) - 8
        for _ in range(count):
            if at > end:
                break
            at += 8 + int.from_bytes(data[at : at + 8], "little")
        else:
            if at <= len(data):
                self.at = at
                return
        raise TruncatedWeights(f"{self._name}: the header reaches past the end of the file")


def _dequantise(raw: Tensor, kind: GGMLQuantizationType, dtype: torch.dtype) -> Tensor:
    """Turn rows of blocks into numbers. raw: [R, B × block bytes] uint8; returns [R, B × block]."""
    plain = _PLAIN.get(kind)
    if plain is not None:
        return raw.contiguous().view(plain).to(dtype)
    unpack = _UNPACK.get(kind)
    if unpack is None:
        return _through_package(raw, kind, dtype)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    height, width = raw.shape[0], raw.shape[1] // block_bytes
    blocks = raw.reshape(height * width, block_bytes)
    result = torch.empty(height * width, block, dtype=dtype)
    step = _CHUNK_NUMBERS // block
    scratch = torch.empty(min(step, height * width), block)
    for start in range(0, height * width, step):
        chunk = blocks[start : start + step]
        result[start : start + step] = unpack(chunk, scratch[: chunk.shape[0]])
    return result.view(height, width * block)


def _half(chunk: Tensor, first: int) -> Tensor:
    """Read the float16 at a byte of every block. Returns [n, 1] float32."""
    return chunk[:, first : first + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor, out: Tensor) -> Tensor:
    """Spread bytes into their low halves, then their high halves. packed: [n, 16]; out: [n, 32]."""
    halves = out.view(-1, 2, 16)
    halves[:, 0] = packed & 15
    halves[:, 1] = packed >> 4
    return out


def _q8_0(chunk: Tensor, out: Tensor) -> Tensor:
    return out.copy_(chunk[:, 2:].view(torch.int8)).mul_(_half(chunk, 0))


def _q4_0(chunk: Tensor, out: Tensor) -> Tensor:
    return _nibbles(chunk[:, 2:], out).sub_(8.0).mul_(_half(chunk, 0))


def _q4_1(chunk: Tensor, out: Tensor) -> Tensor:
    return _nibbles(chunk[:, 4:], out).mul_(_half(chunk, 0)).add_(_half(chunk, 2))


def _through_package(raw: Tensor, kind: GGMLQuantizationType, dtype: torch.dtype) -> Tensor:
    """Dequantise the rarer types."""
    from gguf.quants import dequantize

    try:
        return torch.from_numpy(dequantize(raw.contiguous().numpy(), kind)).to(dtype)
    except NotImplementedError:
        raise UnsupportedModel(f"GGUF type {kind.name} is not offered") from None


_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_UNPACK: dict[GGMLQuantizationType, Callable[[Tensor, Tensor], Tensor]] = {
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q4_K: q4_k,
    GGMLQuantizationType.Q5_K: q5_k,
    GGMLQuantizationType.Q6_K: q6_k,
}
