"""Requests in vLLM's words, and its outputs in ours. What vLLM would do differently is refused here by name, never passed on.

Refused: temperatures that vLLM changes or forbids; and on a resumed answer, whose tokens vLLM would take for prompt, whatever looks
back at the answer: draws of a seed, presence and frequency penalties, constraints, stop strings.
Source: vLLM 0.32, `vllm/sampling_params.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from lionrock.inference.engine.errors import InvalidRequest, UnsupportedSamplingOption
from lionrock.inference.engine.sequence import Constraint, Request, Sampling, TokenLogprob

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput
    from vllm.sampling_params import SamplingParams

WITHOUT_TOKENIZER: Final = frozenset(
    {"top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs"}
)
"""Fields of `Sampling` that vLLM honours for every model, beyond those that every engine does."""
WITH_TOKENIZER: Final = WITHOUT_TOKENIZER | {"stop"}

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0
"""vLLM raises what is between 0 and the lowest, and refuses what is above the highest."""


def check_for_vllm(request: Request) -> None:
    """Raise InvalidRequest or UnsupportedSamplingOption for what vLLM would do otherwise than asked."""
    sampling = request.sampling
    if sampling.temperature != 0 and not LOWEST_TEMPERATURE <= sampling.temperature <= HIGHEST_TEMPERATURE:
        raise InvalidRequest("sampling.temperature", "must be 0, or 0.01 to 2, on the vllm backend")
    if not request.resumed_tokens:
        return
    depends_on_answer = (
        ("seed", sampling.temperature > 0),
        ("presence_penalty", sampling.presence_penalty != 0),
        ("frequency_penalty", sampling.frequency_penalty != 0),
        ("stop", bool(sampling.stop)),
        ("constraint", request.constraint is not None),
    )
    for name, asked_for in depends_on_answer:
        if asked_for:
            raise UnsupportedSamplingOption(f"{name} of a resumed answer")


def sampling_params(request: Request, max_tokens: int, stop_token_ids: frozenset[int]) -> SamplingParams:
    """Return vLLM's parameters.

    max_tokens: new ones, resumed ones taken off. stop_token_ids: the model's own among them, unless the request ignores these.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

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
        max_tokens=max_tokens,
        stop=list(sampling.stop) or None,
        stop_token_ids=sorted(stop_token_ids),
        ignore_eos=True,  # the model's own are among stop_token_ids
        logprobs=sampling.logprobs,
        detokenize=bool(sampling.stop),
        skip_special_tokens=False,
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=None if request.constraint is None else _structured_outputs(request.constraint),
        skip_clone=True,
    )


def _structured_outputs(constraint: Constraint) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    match constraint.kind:
        case "json_schema":
            return StructuredOutputsParams(json=constraint.source)
        case "regex":
            return StructuredOutputsParams(regex=constraint.source)
        case "ebnf":
            return StructuredOutputsParams(grammar=constraint.source)
        case "choice":
            return StructuredOutputsParams(choice=json.loads(constraint.source))


def new_tokens(
    completion: CompletionOutput, sampling: Sampling, stop_token_ids: frozenset[int]
) -> tuple[tuple[int, ...], tuple[TokenLogprob, ...]]:
    """Return the token ids of an output and their logarithms, without the stop token that ended it."""
    token_ids = tuple(completion.token_ids)
    if completion.finish_reason == "stop" and token_ids and token_ids[-1] in stop_token_ids:
        token_ids = token_ids[:-1]
    if sampling.logprobs is None or completion.logprobs is None:
        return token_ids, ()
    entries = zip(token_ids, list(completion.logprobs)[: len(token_ids)], strict=True)
    return token_ids, tuple(_logprob(token_id, entry, sampling.logprobs) for token_id, entry in entries)


def _logprob(token_id: int, entry: Any, count: int) -> TokenLogprob:
    """VLLM gives the chosen token and the best ones in one mapping from id to value."""
    ranked: Sequence[tuple[int, float]] = sorted(((i, value.logprob) for i, value in entry.items()), key=lambda pair: -pair[1])
    return TokenLogprob(entry[token_id].logprob, tuple(ranked[:count]))
