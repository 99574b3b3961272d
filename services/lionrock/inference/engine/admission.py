"""What every engine asks of a request before it takes it, whatever runs the model."""

from __future__ import annotations

from lionrock.inference.engine.engine import check_sampling
from lionrock.inference.engine.errors import InvalidRequest, PromptTooLong, UnknownTokenId
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sequence import Request


def check_request(request: Request, spec: RunnerSpec, context_window: int) -> None:
    """Raise PromptTooLong, UnknownTokenId, InvalidRequest or UnsupportedSamplingOption for a request that cannot run.

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
