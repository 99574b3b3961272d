"""From an exception in a handler to the status that its caller gets.

One place, so that one rule holds: a `MeshError` says what it says, a dependency's failure keeps its kind, and everything else
becomes INTERNAL with an id. The id leads to a log line with the exception's type and place; its text goes nowhere, because it may
quote payload.
"""

from __future__ import annotations

import logging
from typing import Any

import grpc

from lionrock.chassis.errors import (
    DETAILS_KEY,
    MAX_MESSAGE_CHARS,
    DeadlineExceeded,
    DependencyUnavailable,
    Internal,
    MeshError,
    Overloaded,
    RemoteError,
    encode_status,
    remote_error,
)
from lionrock.chassis.ids import uuid7
from lionrock.chassis.logs import exception_fields

log = logging.getLogger("lionrock.chassis")


def mesh_error(error: Exception) -> MeshError:
    """Return what the caller may know of an error; the unknown becomes Internal with an id that the log line carries."""
    if isinstance(error, grpc.aio.AioRpcError):
        error = remote_error(error)
    if isinstance(error, RemoteError):
        match error.status:
            case grpc.StatusCode.UNAVAILABLE:
                return DependencyUnavailable("a service that is needed does not answer", retry_after_s=error.retry_after_s)
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return Overloaded("a service that is needed is busy", retry_after_s=error.retry_after_s)
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return DeadlineExceeded("a service that is needed did not answer in time")
    if isinstance(error, MeshError) and error.status not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return error
    error_id = uuid7()
    fields = {"error_id": error_id, **exception_fields(error)}
    if isinstance(error, RemoteError):
        fields.update(remote_status=error.status.name, remote_reason=error.reason)
    log.error("internal error", extra=fields)
    return Internal("internal error", metadata={"error_id": error_id})


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: MeshError) -> None:
    """End the RPC with an error's status and details; trailing metadata that the handler set is kept."""
    trailing = (*(context.trailing_metadata() or ()), (DETAILS_KEY, encode_status(error)))
    await context.abort(error.status, error.message[:MAX_MESSAGE_CHARS], trailing)
