"""Log-probabilities in the forms of OpenAI's API. Source: its reference, "The chat completion object", "The completion object".

A completion's `text_offset` is left out: text that was masked stands in the answer in another length than it was written in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lionrock.gateway.v1 import gateway_pb2 as gw


def chat_logprobs(told: Sequence[gw.TokenLogprob]) -> dict[str, Any]:
    """Return the member `logprobs` of a choice of a chat completion."""
    content = [{**_entry(token), "top_logprobs": [_entry(other) for other in token.top]} for token in told]
    return {"content": content, "refusal": None}


def completion_logprobs(told: Sequence[gw.TokenLogprob]) -> dict[str, Any]:
    """Return the member `logprobs` of a choice of a completion."""
    return {
        "tokens": [_text(token.token) for token in told],
        "token_logprobs": [token.logprob for token in told],
        "top_logprobs": [{_text(other.token): other.logprob for other in token.top} for token in told],
    }


def _entry(told: gw.TokenLogprob | gw.TokenLogprob.Alternative) -> dict[str, Any]:
    return {"token": _text(told.token), "logprob": told.logprob, "bytes": list(told.token)}


def _text(token: bytes) -> str:
    """Return a token as text: what is no text alone as the escapes of its bytes, as OpenAI does."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
