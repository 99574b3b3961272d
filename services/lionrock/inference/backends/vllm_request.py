"""Requests in vLLM's words. What vLLM would do differently is refused here by name, never passed on.

Refused: temperatures that vLLM changes or forbids; and on a resumed answer, whose tokens vLLM would take for prompt, whatever looks
back at the answer: draws of a seed, presence and frequency penalties, constraints. Constraints are judged and compiled as the torch
engine does, and vLLM gets the grammar; what xgrammar lets through wrongly (see `engine.answer_filter`) it lets through here.
Source: vLLM 0.32, `vllm/sampling_params.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lionrock.inference.engine.errors import InvalidRequest, UnsupportedSamplingOption
from lionrock.inference.engine.sequence import Request

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

SAMPLING_OPTIONS: Final = frozenset(
    {"top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs"}
)
"""Fields of `Sampling` that vLLM honours for every model, beyond those that every engine does."""

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0
"""vLLM raises what is between 0 and the lowest, and refuses what is above the highest."""


def check_for_vllm(request: Request) -> None:
    """Raise InvalidRequest or UnsupportedSamplingOption for what vLLM would do otherwise than asked."""
    sampling = request.sampling
    if sampling.temperature != 0 and not LOWEST_TEMPERATURE <= sampling.temperature <= HIGHEST_TEMPERATURE:
        raise InvalidRequest("sampling.temperature", "must be 0, or 0.01 to 2, on the vllm backend")
    if not request.resumed_tokens:
        return
    looks_back = (
        ("seed", sampling.temperature > 0),
        ("presence_penalty", sampling.presence_penalty != 0),
        ("frequency_penalty", sampling.frequency_penalty != 0),
        ("constraint", request.constraint is not None),
    )
    for name, asked_for in looks_back:
        if asked_for:
            raise UnsupportedSamplingOption(f"{name} of a resumed answer")


def sampling_params(
    request: Request, max_new_tokens: int, stop_token_ids: frozenset[int], ebnf: str | None = None
) -> SamplingParams:
    """Return vLLM's parameters.

    max_new_tokens: resumed ones taken off. stop_token_ids: the model's own among them, unless the request ignores these.
    ebnf: the constraint as a grammar.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    sampling = request.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or 0,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        seed=sampling.seed if sampling.temperature > 0 else None,
        max_tokens=max_new_tokens,
        stop_token_ids=sorted(stop_token_ids),
        ignore_eos=True,  # the model's own are among stop_token_ids
        logprobs=sampling.logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=None if ebnf is None else StructuredOutputsParams(grammar=ebnf),
        skip_clone=True,
    )
