"""The compiled kernels as Python sees them: two structures and three functions, called without the interpreter's lock.

The structures mirror those of `kernels.cpp`; their sizes and a version are compared when the library is opened. Addresses are plain
numbers: whoever makes an operation keeps the tensors alive that it points to.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Sequence as Seq
from enum import IntEnum
from pathlib import Path

import torch
from torch import Tensor

from lionrock.inference.model.native.build import KernelsUnavailable

_ABI_VERSION = 2
_I32, _I64, _F32, _ADDRESS = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p

KV_BLOCK_TOKENS = 16
"""Tokens of a KV block, which the kernels have built in."""
MOST_HEAD_DIM = 256


class Kind(IntEnum):
    """What an operation does; see `kernels.cpp`."""

    EMBED = 0
    NORM = 1
    LINEAR = 2
    GATED_LINEAR = 3
    ROTATE = 4
    ATTEND = 5
    GATE = 6
    ADD = 7
    LARGEST = 8


class Store(IntEnum):
    """What becomes of a product."""

    PLAIN = 0
    ADD = 1
    FLOAT = 2


class Format(IntEnum):
    """How a matrix's weights, and the rows that they are multiplied with, are held."""

    PLAIN = 0
    INT8_INT8 = 1
    INT8_INT16 = 2
    INT4_INT16 = 3


class Operation(ctypes.Structure):
    """LionrockOperation."""

    _fields_ = (
        ("kind", _I32), ("bfloat16", _I32), ("store", _I32), ("sampled", _I32), ("format", _I32),
        ("input", _ADDRESS), ("output", _ADDRESS), ("weight", _ADDRESS), ("weight2", _ADDRESS), ("bias", _ADDRESS),
        ("bias2", _ADDRESS), ("addend", _ADDRESS), ("keys", _ADDRESS), ("values", _ADDRESS), ("cos", _ADDRESS), ("sin", _ADDRESS),
        ("input_stride", _I64), ("output_stride", _I64), ("addend_stride", _I64), ("inputs", _I64), ("outputs", _I64),
        ("head_dim", _I64), ("query_heads", _I64), ("kv_heads", _I64), ("rotary", _I64), ("table_stride", _I64),
        ("positions", _I64), ("epsilon", _F32), ("scale", _F32),
    )  # fmt: skip


class _Step(ctypes.Structure):
    """LionrockStep."""

    _fields_ = (
        ("tokens", _I64), ("rows", _I64), ("samples", _I64), ("blocks", _I64),
        ("token_ids", _ADDRESS), ("starts", _ADDRESS), ("lengths", _ADDRESS), ("table_offsets", _ADDRESS), ("tables", _ADDRESS),
        ("table_length", _I64), ("sampled", _ADDRESS),
    )  # fmt: skip


class Step:
    """Rows, tokens and block tables of one step, in memory that the kernels read."""

    __slots__ = ("_arrays", "address", "samples", "structure", "tokens")

    def __init__(
        self,
        token_ids: Seq[int] | array[int],
        starts: Seq[int],
        lengths: Seq[int],
        table_offsets: Seq[int],
        tables: Seq[int] | array[int],
        sampled: Seq[int],
        blocks: int,
    ) -> None:
        """token_ids: of all rows, one row after another. blocks: of the cache."""
        self._arrays = [array("q", column) for column in (token_ids, starts, lengths, table_offsets, tables, sampled)]
        self.tokens, self.samples = len(token_ids), len(sampled)
        at = [column.buffer_info()[0] for column in self._arrays]
        self.structure = _Step(
            self.tokens, len(starts), self.samples, blocks, at[0], at[1], at[2], at[3], at[4], len(tables), at[5]
        )
        self.address = ctypes.addressof(self.structure)


class Program:
    """Operations that run one after another in one call."""

    __slots__ = ("_operations", "address", "length")

    def __init__(self, operations: Seq[Operation]) -> None:
        """Copy the operations into one array."""
        self._operations = (Operation * len(operations))(*operations)
        self.address = ctypes.addressof(self._operations)
        self.length = len(operations)


class Library:
    """The opened kernels."""

    def __init__(self, path: Path) -> None:
        """Open a library. Raises KernelsUnavailable when it cannot be loaded or is another version's."""
        try:
            library = ctypes.CDLL(str(path))
            version = int(library.lionrock_abi_version())
            sizes = (int(library.lionrock_operation_bytes()), int(library.lionrock_step_bytes()))
        except (OSError, AttributeError) as error:
            raise KernelsUnavailable(f"the compiled kernels cannot be loaded: {type(error).__name__}") from error
        if version != _ABI_VERSION or sizes != (ctypes.sizeof(Operation), ctypes.sizeof(_Step)):
            raise KernelsUnavailable("the compiled kernels speak another version")
        self.path = path
        self._run = library.lionrock_run
        self._run.argtypes, self._run.restype = (_ADDRESS, _ADDRESS, _I64, _I32), _I32
        self._pack = library.lionrock_pack
        self._pack.argtypes, self._pack.restype = (_ADDRESS, _ADDRESS, _I64, _I64, _I32, _I32), None
        self._quantised_bytes = library.lionrock_quantised_bytes
        self._quantised_bytes.argtypes, self._quantised_bytes.restype = (_I32, _I64, _I64), _I64
        self._use_large_pages = library.lionrock_use_large_pages
        self._use_large_pages.argtypes, self._use_large_pages.restype = (_ADDRESS, _I64), None
        self._packed_elements = library.lionrock_packed_elements
        self._packed_elements.argtypes, self._packed_elements.restype = (_I64, _I64), _I64

    def run(self, step: Step, program: Program) -> None:
        """Run a program on as many threads as PyTorch uses. Raises ValueError for a step that does not fit it."""
        failure = self._run(step.address, program.address, program.length, torch.get_num_threads())
        if failure:
            raise ValueError(_FAILURES[failure])

    def packed_elements(self, outputs: int, inputs: int) -> int:
        """Elements that a matrix takes in panels."""
        return int(self._packed_elements(outputs, inputs))

    def quantised_bytes(self, layout: Format, outputs: int, inputs: int) -> int:
        """Bytes that a matrix takes in the panels of a format."""
        return int(self._quantised_bytes(layout, outputs, inputs))

    def use_large_pages(self, memory: Tensor) -> None:
        """Advise the system to put a tensor that is about to be written on large pages."""
        self._use_large_pages(memory.data_ptr(), memory.nbytes)

    def pack(self, weight: Tensor, into: Tensor) -> None:
        """Bring a contiguous matrix [outputs, inputs] into panels. into: flat, packed_elements long, of the same type."""
        outputs, inputs = weight.shape
        assert weight.is_contiguous()
        assert into.numel() == self.packed_elements(outputs, inputs)
        bfloat16 = int(weight.dtype is torch.bfloat16)
        self._pack(weight.data_ptr(), into.data_ptr(), outputs, inputs, bfloat16, torch.get_num_threads())


_FAILURES = {
    1: "the step's rows do not add up",
    2: "a token id lies outside the table",
    3: "a block lies outside the cache",
    4: "a position lies outside the rotation's table",
    5: "an operation is unknown",
}


@functools.cache
def open_library(path: Path) -> Library:
    """Open a library once a process. Raises KernelsUnavailable."""
    return Library(path)
