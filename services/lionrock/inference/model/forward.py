"""A step's way through one rank's model, by PyTorch alone or by the native kernels; the worker does not know which.

Which it is was decided before the weights were loaded, because they lie in the layout of whoever multiplies with them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lionrock.inference.engine.batch import BatchRow
from lionrock.inference.model.attention import KVCache, lay_out
from lionrock.inference.model.layers import RotaryEmbedding
from lionrock.inference.model.native.build import (
    KernelsUnavailable,
    NativeKernels,
    default_directory,
    find_or_compile,
    level_of_this_machine,
)
from lionrock.inference.model.native.library import Library, open_library
from lionrock.inference.model.native.program import NativeForward, supports
from lionrock.inference.model.transformer import Transformer

log = logging.getLogger("lionrock.inference")


class Forward(Protocol):
    """One rank's model over its cache. Call `begin` for a step, then `hidden`, then `logits` in the last stage."""

    @property
    def kernels(self) -> str:
        """Whose kernels they are: "torch" or "native"."""
        ...

    def begin(self, rows: Seq[BatchRow]) -> int:
        """Take in a step's rows. Returns its tokens."""
        ...

    def hidden(self, received: Tensor | None) -> Tensor:
        """Run this stage's layers. received: [T, hidden] of the stage before, None in the first.

        Returns [T, hidden], which may change with the next step.
        """
        ...

    def logits(self) -> Tensor:
        """Score the vocabulary rows of this rank for each sampled token, after `hidden`.

        Returns [samples, rows] float32, which may change with the next step.
        """
        ...

    def greedy(self) -> list[int]:
        """Choose the most likely of this rank's vocabulary rows for each sampled token, after `hidden`; the first of equals."""
        ...


class TorchForward:
    """PyTorch's operations on any device."""

    kernels = "torch"

    def __init__(self, model: Transformer, rope: RotaryEmbedding, cache: KVCache, device: torch.device) -> None:
        """Take a loaded model and its cache."""
        self._model, self._rope, self._cache, self._device = model, rope, cache, device

    def begin(self, rows: Seq[BatchRow]) -> int:
        """See Forward."""
        self._layout = lay_out(rows, self._cache.block_size, self._device)
        return len(self._layout.token_ids)

    def hidden(self, received: Tensor | None) -> Tensor:
        """See Forward."""
        x = self._layout.token_ids if received is None else received
        self._hidden = self._model.forward(x, self._rope, self._cache, self._layout)
        return self._hidden

    def logits(self) -> Tensor:
        """See Forward."""
        return self._model.logits(self._hidden[self._layout.sampled])

    def greedy(self) -> list[int]:
        """See Forward."""
        return [int(token_id) for token_id in self.logits().argmax(dim=-1).tolist()]


def native_library(
    wanted: NativeKernels, dtype: torch.dtype, device: torch.device, block_size: int, directory: Path | None = None
) -> Library | None:
    """Return the native kernels for such a model, compiled now if they never were, or None where PyTorch does the work.

    directory: of compiled kernels; None: the user's cache. Raises KernelsUnavailable when they are required and there are none.
    """
    if wanted == "off":
        return None
    try:
        if not supports(dtype, device, block_size):
            raise KernelsUnavailable(f"there are none for {dtype} on {device.type}")
        level = level_of_this_machine()
        library = open_library(find_or_compile(directory or default_directory(), level))
    except KernelsUnavailable as error:
        if wanted == "required":
            raise
        log.info("kernels: torch (%s)", error)
        return None
    log.info("kernels: native (%s)", level.name)
    return library


def make_forward(
    model: Transformer, rope: RotaryEmbedding, cache: KVCache, dtype: torch.dtype, device: torch.device, native: Library | None
) -> Forward:
    """Put a loaded model over its cache. native: what its weights were packed for."""
    if native is None:
        return TorchForward(model, rope, cache, device)
    return NativeForward(model, rope, cache, native, dtype)
