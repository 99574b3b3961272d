"""Memory of large tensors that a loader fills and lets go, in mappings of their own.

A loaded matrix lives until it is packed into another layout, next to memory that stays. On the heap it would leave holes that later
matrices do not fit: measured, a load of 400 MB then took 60 MB more than it had to. What is mapped goes back to the system whole.
Knows nothing of models.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

_LEAST_BYTES = 1 << 18  # smaller ones leave small holes


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a contiguous tensor of that shape with any content; a large one on the host in a mapping that dies with it."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LEAST_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape)
