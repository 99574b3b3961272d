"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`, with our reason as `code`.

Knows the errors of the mesh and HTTP; adds nothing to what they say. Status as in google/rpc/code.proto, but for UNIMPLEMENTED,
which clients of this API would take for a fault of the server and repeat: it is a request that will never do.
"""

from __future__ import annotations

import math
from typing import Any

from grpc import StatusCode

from lionrock.chassis.errors import DeadlineExceeded, MeshError, MethodNotFound
from lionrock.gateway.openai.names import parameter

_HTTP: dict[StatusCode, tuple[int, str]] = {
    StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error"),
    StatusCode.FAILED_PRECONDITION: (400, "invalid_request_error"),
    StatusCode.OUT_OF_RANGE: (400, "invalid_request_error"),
    StatusCode.UNIMPLEMENTED: (400, "invalid_request_error"),
    StatusCode.UNAUTHENTICATED: (401, "authentication_error"),
    StatusCode.PERMISSION_DENIED: (403, "permission_error"),
    StatusCode.NOT_FOUND: (404, "not_found_error"),
    StatusCode.ALREADY_EXISTS: (409, "conflict_error"),
    StatusCode.ABORTED: (409, "conflict_error"),
    StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    StatusCode.UNAVAILABLE: (503, "service_unavailable_error"),
    StatusCode.DEADLINE_EXCEEDED: (504, "timeout_error"),
}
_WORTH_REPEATING = frozenset({StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE})


def http_status(error: MeshError) -> int:
    """Return the status code of the answer."""
    return 404 if isinstance(error, MethodNotFound) else _HTTP.get(error.status, (500, ""))[0]


def problem(error: MeshError) -> dict[str, Any]:
    """Return the body of the answer, or of the last event of a stream that has begun."""
    _, kind = _HTTP.get(error.status, (500, "server_error"))
    fields = [(parameter(field), rule) for field, rule in error.field_violations]
    told: dict[str, Any] = {"metadata": error.metadata}
    if fields:
        told["field_violations"] = [{"field": field, "description": rule} for field, rule in fields]
    if error.quota_violations:
        told["quota_violations"] = [{"subject": subject, "description": rule} for subject, rule in error.quota_violations]
    if error.retry_after_s is not None:
        told["retry_after_s"] = error.retry_after_s
    message = error.message
    if fields:
        message = f"{message}: {'; '.join(f'{field}: {rule}' if field else rule for field, rule in fields)}"
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": fields[0][0] or None if fields else None,
            "code": error.reason,
            "lionrock": told,
        }
    }


def problem_headers(error: MeshError) -> dict[str, str]:
    """Return the headers that say whether and when to come back."""
    headers = {"x-should-retry": "true" if error.status in _WORTH_REPEATING else "false"}
    if isinstance(error, DeadlineExceeded):
        headers["x-should-retry"] = "false"  # the same time would pass again
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    if error.status is StatusCode.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    return headers
