"""What every engine asks of a request before it takes it, whatever runs the model."""

from __future__ import annotations

import math
from typing import Final

from lionrock.inference.engine.errors import (
    InvalidRequest,
    PromptTooLong,
    UnknownTokenId,
    UnsupportedOutputConstraint,
    UnsupportedSamplingOption,
)
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sequence import Request, Sampling

_NOT_ASKED_FOR: Final = Sampling()
_ADJUSTING: Final = ("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")
_ALWAYS_OFFERED: Final = frozenset({"temperature", "seed", "max_tokens", "stop_token_ids", "ignore_eos"})

MAX_STOPS: Final = 16
MAX_STOP_CHARACTERS: Final = 256
MAX_BIASES: Final = 1024


def check_request(request: Request, spec: RunnerSpec, context_window: int) -> None:
    """Raise PromptTooLong, UnknownTokenId, InvalidRequest, UnsupportedSamplingOption or UnsupportedOutputConstraint.

    context_window: prompt and answer together, in tokens, within what the KV cache holds.
    """
    token_ids = request.token_ids
    if not 0 <= request.resumed_tokens < max(1, len(token_ids)):
        raise InvalidRequest("resumed_tokens", "must leave at least one token of prompt")
    if not token_ids:
        raise InvalidRequest("token_ids", "must not be empty")
    # A resumed answer may end exactly at the window; a fresh prompt must leave room for one token.
    if len(token_ids) - (request.resumed_tokens > 0) >= context_window:
        raise PromptTooLong(len(token_ids), context_window)
    if min(token_ids) < 0 or max(token_ids) >= spec.vocab_size:
        index = next(i for i, token_id in enumerate(token_ids) if not 0 <= token_id < spec.vocab_size)
        raise UnknownTokenId(index, spec.vocab_size)
    check_sampling(request.sampling, spec)
    if request.constraint is not None and "constraint" not in spec.sampling_options:
        raise UnsupportedOutputConstraint


def adjusts_logits(request: Request) -> bool:
    """Whether what a position may become depends on the tokens before it by more than the model: then drafts cannot be checked."""
    asked = any(getattr(request.sampling, name) != getattr(_NOT_ASKED_FOR, name) for name in _ADJUSTING)
    return asked or request.constraint is not None


def check_sampling(sampling: Sampling, spec: RunnerSpec) -> None:
    """Raise UnsupportedSamplingOption for an option that is set and not offered, InvalidRequest for a value out of range."""
    offered = _ALWAYS_OFFERED | spec.sampling_options
    for name in Sampling.__dataclass_fields__:
        if name not in offered and getattr(sampling, name) != getattr(_NOT_ASKED_FOR, name):
            raise UnsupportedSamplingOption(name)
    s = sampling
    ranges = (
        ("temperature", s.temperature, 0.0 <= s.temperature <= 100.0, "0 to 100"),
        ("top_p", s.top_p, 0.0 < s.top_p <= 1.0, "above 0, at most 1"),
        ("min_p", s.min_p, 0.0 <= s.min_p <= 1.0, "0 to 1"),
        ("top_k", s.top_k, s.top_k is None or 1 <= s.top_k <= 1_000_000, "1 to 1000000"),
        ("repetition_penalty", s.repetition_penalty, 0.0 < s.repetition_penalty <= 10.0, "above 0, at most 10"),
        ("presence_penalty", s.presence_penalty, -2.0 <= s.presence_penalty <= 2.0, "-2 to 2"),
        ("frequency_penalty", s.frequency_penalty, -2.0 <= s.frequency_penalty <= 2.0, "-2 to 2"),
        ("seed", s.seed, s.seed is None or 0 <= s.seed < 1 << 64, "0 to 2^64 - 1"),
        ("max_tokens", s.max_tokens, s.max_tokens is None or 1 <= s.max_tokens < 1 << 31, "at least 1"),
        ("logprobs", s.logprobs, s.logprobs is None or 0 <= s.logprobs <= 20, "0 to 20"),
    )
    for name, value, holds, allowed in ranges:
        if not holds or (isinstance(value, float) and not math.isfinite(value)):
            raise InvalidRequest(f"sampling.{name}", f"must be {allowed}")
    if s.temperature > 0 and s.seed is None:
        raise InvalidRequest("sampling.seed", "is required when the temperature is above 0")
    if len(s.stop_token_ids) > 64:
        raise InvalidRequest("sampling.stop_token_ids", "must have at most 64 ids")
    if len(s.stop) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_CHARACTERS and _is_text(stop) for stop in s.stop):
        raise InvalidRequest("sampling.stop", f"must be at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters")
    if len(s.logit_bias) > MAX_BIASES:
        raise InvalidRequest("sampling.logit_bias", f"must have at most {MAX_BIASES} entries")
    for token_id, bias in s.logit_bias.items():
        if not 0 <= token_id < spec.vocab_size:
            raise InvalidRequest("sampling.logit_bias", "names an id outside the vocabulary")
        if not -100.0 <= bias <= 100.0:
            raise InvalidRequest("sampling.logit_bias", "must be -100 to 100")


def _is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)
