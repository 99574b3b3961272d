"""YaRN's rotary frequencies (Peng et al. 2023, §3.2): fast pairs keep their angle, slow ones are slowed, with a ramp between."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lionrock.inference.model.config import YarnScaling


def yarn_frequencies(frequencies: Tensor, theta: float, scaling: YarnScaling) -> Tensor:
    """Scale the plain frequencies of a model with that theta. frequencies: [d / 2], fastest first; returns the same shape."""
    pairs = len(frequencies)

    def pair_of(turns: float) -> float:
        """Find the pair, whole or not, that turns so often within the original context."""
        return pairs * math.log(scaling.original_context / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, 2.0 * pairs - 1)
    width = high - low if high != low else 0.001
    slowed = ((torch.arange(pairs, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies / scaling.factor * slowed + frequencies * (1 - slowed)
