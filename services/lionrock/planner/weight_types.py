"""The types in which weights are held, and the bytes that one matrix takes in them. All sizes are bytes.

Sources: `model/quantisation.py` and `model/native/` for the types that are made when weights are loaded, DeepSeek-V3's checkpoints
for fp8. Knows no models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

DTYPE_BYTES: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}

# The CPU's native kernels keep a matrix in panels of so many outputs, the last one padded, if its inputs come in pairs.
PANEL_OUTPUTS: Final = 48
# Elsewhere PyTorch multiplies with a matrix of integers by unpacking it: codes, and three tensors in float32 at once.
UNPACKED_BYTES: Final = 13


@dataclass(frozen=True, slots=True)
class WeightType:
    """How the matrices of layers are held, where that is not the type of activations."""

    bits: int
    """Of an element."""
    block: tuple[int, int]
    """Rows and columns that share a scale. Blocks of one row are filled up with zeros at the end of a row."""
    scale_bytes: int
    """Of a block: its scale, and its minimum where there is one."""
    made_when_loaded: bool = True
    """Whether Lionrock's engine rounds to it; the rest exist in checkpoints, and in engines that keep those as they are."""
    head: str | None = None
    """Type of the output head, which is then apart from a tied embedding table; None: the type of activations."""

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix that begins at a block's edge."""
        high, wide = self.block
        blocks = -(-rows // high) * -(-columns // wide)
        numbers = rows * columns if high > 1 else blocks * wide
        return numbers * self.bits // 8 + blocks * self.scale_bytes


WEIGHT_TYPES: Final[Mapping[str, WeightType]] = {
    "fp8": WeightType(8, (128, 128), 4, made_when_loaded=False),  # DeepSeek-V3's layout: float8_e4m3, a float32 scale a block
    "int8-w8a8": WeightType(8, (1, 64), 4, head="int8-w8a8"),  # float32 scales
    "int8-weight-only": WeightType(8, (1, 32), 4, head="int8-weight-only"),
    "int4-weight-only": WeightType(4, (1, 32), 4, head="int8-weight-only"),  # scale and minimum in float16
}
"""By the names that plans and settings use. What they leave in the type of activations: embedding, norms, biases, routers."""


def matrix_bytes(rows: int, columns: int, dtype: str, weight_dtype: str | None) -> int:
    """Bytes of a matrix that is multiplied with. weight_dtype: a key of WEIGHT_TYPES; None: it is held as dtype."""
    if weight_dtype is None:
        return rows * columns * DTYPE_BYTES[dtype]
    return WEIGHT_TYPES[weight_dtype].matrix_bytes(rows, columns)


def panel_bytes(rows: int, columns: int, dtype: str, weight_dtype: str | None) -> int:
    """Bytes that a CPU holds beyond the matrix's own: it fills the last panel up. rows: outputs; columns: inputs."""
    if weight_dtype is None and columns % 2:
        return 0  # half a pair is left: no panels
    whole = -(-rows // PANEL_OUTPUTS) * PANEL_OUTPUTS
    return matrix_bytes(whole, columns, dtype, weight_dtype) - matrix_bytes(rows, columns, dtype, weight_dtype)
