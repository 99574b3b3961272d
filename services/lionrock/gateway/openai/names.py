"""Names of our fields as the HTTP API has them, for errors that are found in the message that a request became."""

from __future__ import annotations

import re

from lionrock.gateway.openai.extensions import MEMBER

_RENAMED = {
    "data_class": f"{MEMBER}.data_class",
    "case_id": f"{MEMBER}.case_id",
    "conversation_id": f"{MEMBER}.conversation_id",
    "purpose": f"{MEMBER}.purpose",
    "subject_ids": f"{MEMBER}.subject_ids",
    "sampling.top_k": f"{MEMBER}.top_k",
    "sampling.min_p": f"{MEMBER}.min_p",
    "sampling.repetition_penalty": f"{MEMBER}.repetition_penalty",
    "sampling.max_tokens": "max_completion_tokens",
    "constraint": "response_format",
    "constraint.json_schema": "response_format.json_schema.schema",
    "constraint.regex": f"{MEMBER}.regex",
    "constraint.ebnf": f"{MEMBER}.ebnf",
    "constraint.choice.values": f"{MEMBER}.choice",
}


def parameter(field: str) -> str:
    """Return the name in a request of the HTTP API of a field of ChatRequest; every other name is its own."""
    path, subscript = re.match(r"([^\[]*)(.*)", field, re.DOTALL).groups()  # type: ignore[union-attr]  # matches everything
    return _RENAMED.get(path, path.removeprefix("sampling.")) + subscript
