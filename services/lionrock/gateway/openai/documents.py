"""What is written about the API, from the code that serves it: the OpenAPI document, and the tables of docs/openai.md.

`python -m lionrock.gateway.openai.documents` prints the tables.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema

from lionrock.gateway.openai.chat_fields import ChatCompletionRequest, CompletionRequest
from lionrock.gateway.openai.extensions import HEADERS, MEMBER
from lionrock.gateway.openai.refused import Refused

_SCHEMAS = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string", "description": "Lionrock's reason, as in its table of reasons"},
                "lionrock": {"type": "object"},
            },
        }
    },
}

_AUDIT_KEYS = {
    "type": "object",
    "required": ["origin", "verifier_keys"],
    "properties": {
        "origin": {"type": "string", "description": "name of the tenant's log"},
        "verifier_keys": {"type": "array", "items": {"type": "string"}, "description": "C2SP signed-note verifier keys"},
    },
}
_HELD_ANSWER = {
    "type": "object",
    "required": ["lionrock"],
    "properties": {
        "lionrock": {
            "type": "object",
            "required": ["review"],
            "properties": {
                "review": {
                    "type": "object",
                    "required": ["state", "request_id", "expires_at", "path"],
                    "properties": {
                        "state": {"enum": ["pending", "released", "refused", "expired"]},
                        "request_id": {"type": "string"},
                        "expires_at": {"type": "string", "format": "date-time"},
                        "path": {"type": "string"},
                    },
                }
            },
        },
        "content": {"type": "string", "description": "the answer, once it is released"},
        "answer_salt": {"type": "string", "description": "opens the answer's commitment in its outcome leaf, Base64"},
        "refusal": {"type": "string", "description": "what to show in place of an answer that is not released"},
    },
}
_RECEIPT = {
    "type": "object",
    "required": ["request_id", "receipt"],
    "properties": {
        "request_id": {"type": "string"},
        "receipt": {
            "type": "object",
            "required": ["tlog_proof", "origin", "leaf_index"],
            "properties": {
                "tlog_proof": {"type": "string", "description": "C2SP tlog-proof of the answer's outcome"},
                "origin": {"type": "string"},
                "leaf_index": {"type": "integer"},
            },
        },
    },
}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}, "description": "by language, BCP 47"}
_NOTICES = {
    "type": "object",
    "required": ["tenant", "territory", "ai_disclosure", "purposes"],
    "properties": {
        "tenant": {"type": "string"},
        "territory": {"type": "string", "description": "requests do not leave it, ISO 3166-1 alpha-2"},
        "ai_disclosure": _TEXTS,
        "purposes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["purpose", "data_classes", "requires_consent", "exempt_from_opt_out"],
                "properties": {
                    "purpose": {"type": "string"},
                    "data_classes": {"type": "array", "items": {"type": "string"}, "description": "classes of data in use"},
                    "requires_consent": {"type": "boolean"},
                    "exempt_from_opt_out": {"type": "boolean"},
                    "notice": {
                        "type": "object",
                        "required": ["version", "digest", "consent_since", "texts"],
                        "properties": {
                            "version": {"type": "integer"},
                            "digest": {"type": "string", "description": "as in INTENT leaves of the audit log"},
                            "consent_since": {"type": "integer", "description": "oldest version to which a consent counts"},
                            "texts": _TEXTS,
                        },
                    },
                },
            },
        },
    },
}


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Refused | None, str]]:
    """Yield name, refusal and meaning of each field of a request, nested ones after the one that holds them."""
    for key, field in model.model_fields.items():
        name = prefix + (field.alias or key)
        refused = next((mark for mark in field.metadata if isinstance(mark, Refused)), None)
        yield name, refused, refused.why if refused is not None else field.description or ""
        for nested, listed in _nested(field):
            yield from rows(nested, f"{name}{'[]' if listed else ''}.")


def _nested(field: FieldInfo) -> Iterator[tuple[type[BaseModel], bool]]:
    yield from _models(field.annotation, listed=False)


def _models(kind: Any, *, listed: bool) -> Iterator[tuple[type[BaseModel], bool]]:
    origin = get_origin(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind, listed
    elif origin is Annotated:
        yield from _models(get_args(kind)[0], listed=listed)
    elif origin in (Union, types.UnionType, list):
        for argument in get_args(kind):
            yield from _models(argument, listed=listed or origin is list)


def table(model: type[BaseModel]) -> str:
    """Write the fields of a request as a Markdown table, with a line end after each row."""
    lines = ["| Field | | Meaning |", "|---|---|---|"]
    for name, refused, meaning in rows(model):
        standing = "supported" if refused is None else "refused"
        neutral = ", ".join(f"`{_json(value)}`" for value in (refused.neutral if refused is not None else ()))
        accepted = f" Accepted: {neutral}." if neutral else ""
        lines.append(f"| `{name}` | {standing} | {meaning[:1].upper()}{meaning[1:]}.{accepted} |".replace("..", "."))
    return "\n".join(lines) + "\n"


def _json(value: object) -> str:
    return json.dumps(value)


@cache
def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    _, schemas = models_json_schema(
        [(ChatCompletionRequest, "validation"), (CompletionRequest, "validation")], ref_template=_SCHEMAS
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lionrock",
            "version": "1",
            "description": "OpenAI-compatible API of the gateway. What is not listed here is refused, never ignored.",
        },
        "security": [{"bearer": []}, {"certificate": []}],
        "paths": {
            "/v1/chat/completions": _post("ChatCompletionRequest", "Answer a conversation"),
            "/v1/completions": _post("CompletionRequest", "Answer one text, asked as a user's turn"),
            "/v1/models": {"get": {"summary": "List the models that the caller may use", "responses": _answers("Models")}},
            "/v1/models/{model}": {
                "get": {
                    "summary": "Describe a model that the caller may use",
                    "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
                    "responses": _answers("The model"),
                }
            },
            "/v1/lionrock/audit-keys": {
                "get": {
                    "summary": "List the verifier keys of the log that receipts are checked against",
                    "responses": _answers("The keys", _AUDIT_KEYS),
                }
            },
            "/v1/lionrock/receipts/{request_id}": {
                "get": {
                    "summary": "Fetch the receipt of an earlier answer of the caller's tenant",
                    "parameters": [{"name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}}],
                    "responses": _answers("The receipt", _RECEIPT),
                }
            },
            "/v1/lionrock/held-answers/{request_id}": {
                "get": {
                    "summary": "Say what became of an own answer that a reviewer decides on, with its text once it is released",
                    "parameters": [{"name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}}],
                    "responses": _answers("What became of it", _HELD_ANSWER),
                }
            },
            "/v1/lionrock/notices": {
                "get": {
                    "summary": "Show for which purposes the tenant uses which kinds of data, and under which notice",
                    "responses": _answers("The privacy statement", _NOTICES),
                }
            },
            "/v1/embeddings": {"post": {"summary": "Refused: no model makes embeddings", "responses": {"400": _error("Refused")}}},
        },
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}, "certificate": {"type": "mutualTLS"}},
            "schemas": {**schemas["$defs"], "Error": _ERROR},
        },
    }


def _post(schema: str, summary: str) -> dict[str, Any]:
    own = [
        {"name": name, "in": "header", "schema": {"type": "string"}, "description": f"the same as {MEMBER}.{member}"}
        for name, member in HEADERS.items()
    ]
    timeout = {"name": "lionrock-timeout", "in": "header", "schema": {"type": "number"}, "description": "deadline in seconds"}
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": _SCHEMAS.format(model=schema)}}}}
    answers = _answers("The answer: JSON, or server-sent events with stream")
    answers["200"]["headers"] = {
        "x-request-id": {"schema": {"type": "string"}, "description": "finds the request in the audit log"},
        "lionrock-receipt": {"schema": {"type": "string"}, "description": "tlog-proof of the outcome, Base64; not in streams"},
        "lionrock-ai-generated": {"schema": {"const": "true"}},
    }
    return {"post": {"summary": summary, "parameters": [*own, timeout], "requestBody": body, "responses": answers}}


def _answers(description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {} if schema is None else {"content": {"application/json": {"schema": schema}}}
    return {"200": {"description": description, **content}, "default": _error("Refused or failed")}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"$ref": _SCHEMAS.format(model="Error")}}}}


if __name__ == "__main__":
    for request in (ChatCompletionRequest, CompletionRequest):
        print(f"\n## {request.__name__}\n\n{table(request)}", end="")
