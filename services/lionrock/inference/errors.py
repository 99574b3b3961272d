"""What inference refuses or loses on the wire, and how an error crosses from a Ray replica to the front without its traceback.

MeshError
├─ ModelNotFound                NOT_FOUND            MODEL_NOT_FOUND
├─ PromptTooLong                INVALID_ARGUMENT     PROMPT_TOO_LONG
├─ UnknownTokenId               INVALID_ARGUMENT     UNKNOWN_TOKEN_ID
├─ UnsupportedSamplingOption    UNIMPLEMENTED        UNSUPPORTED_SAMPLING_OPTION
├─ UnsupportedOutputConstraint  UNIMPLEMENTED        UNSUPPORTED_OUTPUT_CONSTRAINT
├─ InvalidConstraint            INVALID_ARGUMENT     INVALID_CONSTRAINT
├─ EngineFull                   RESOURCE_EXHAUSTED   ENGINE_FULL
├─ ModelNotReady                UNAVAILABLE          MODEL_NOT_READY
└─ ShardGroupLost               UNAVAILABLE          SHARD_GROUP_LOST
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import grpc

from lionrock.chassis.errors import DeadlineExceeded, Internal, InvalidField, MeshError, ShuttingDown
from lionrock.inference.engine import errors as engine_errors


class ModelNotFound(MeshError):
    """No model of that name is served here."""

    status, reason = grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"


class PromptTooLong(MeshError):
    """The prompt leaves no room for an answer in the model's context window."""

    status, reason = grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG"


class UnknownTokenId(MeshError):
    """A token id lies outside the model's vocabulary."""

    status, reason = grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_TOKEN_ID"


class UnsupportedSamplingOption(MeshError):
    """The model's engine does not offer a sampling option that was set."""

    status, reason = grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED_SAMPLING_OPTION"


class UnsupportedOutputConstraint(MeshError):
    """The model's engine cannot enforce the asked output constraint."""

    status, reason = grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED_OUTPUT_CONSTRAINT"


class InvalidConstraint(MeshError):
    """The output constraint is malformed, matches nothing, or asks for more than is enforced; the field violation says what."""

    status, reason = grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONSTRAINT"


class EngineFull(MeshError):
    """The engine's waiting queue is full; RetryInfo says when a place is likely."""

    status, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "ENGINE_FULL"


class ModelNotReady(MeshError):
    """No replica of the model takes requests yet; nothing was generated, and RetryInfo says when to come back."""

    status, reason = grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY"


class ShardGroupLost(MeshError):
    """A shard of the model died or froze; tokens already sent are valid, and the caller may resume after RetryInfo's delay."""

    status, reason = grpc.StatusCode.UNAVAILABLE, "SHARD_GROUP_LOST"


# What a caller is told to wait before it resumes: a shard group restarts in place within seconds.
RESTART_RETRY_AFTER_S: Final = 1.0

_CROSSING: Final[Mapping[str, type[MeshError]]] = {
    kind.reason: kind
    for kind in (
        ModelNotFound,
        PromptTooLong,
        UnknownTokenId,
        UnsupportedSamplingOption,
        UnsupportedOutputConstraint,
        InvalidConstraint,
        EngineFull,
        ModelNotReady,
        ShardGroupLost,
        InvalidField,
        DeadlineExceeded,
        ShuttingDown,
        Internal,
    )
}


def mesh_error(error: engine_errors.EngineError) -> MeshError:
    """Return the wire's error for one of the engine's."""
    match error:
        case engine_errors.PromptTooLong():
            counts = {"prompt_tokens": str(error.prompt_tokens), "context_window": str(error.context_window)}
            return PromptTooLong(str(error), metadata=counts)
        case engine_errors.UnknownTokenId():
            return UnknownTokenId(str(error), field_violations=[(f"token_ids[{error.index}]", "is not in the vocabulary")])
        case engine_errors.UnsupportedSamplingOption():
            return UnsupportedSamplingOption(str(error), metadata={"option": error.field})
        case engine_errors.UnsupportedOutputConstraint():
            return UnsupportedOutputConstraint(str(error))
        case engine_errors.InvalidConstraint():
            return InvalidConstraint(str(error), field_violations=[(error.field, error.description)])
        case engine_errors.InvalidRequest():
            return InvalidField(str(error), field_violations=[(error.field, error.description)])
        case engine_errors.EngineFull():
            return EngineFull(str(error), retry_after_s=error.retry_after_s)
        case engine_errors.EngineDraining():
            return ShuttingDown(str(error), retry_after_s=RESTART_RETRY_AFTER_S)
        case engine_errors.RequestExpired():
            return DeadlineExceeded(str(error))
        case engine_errors.ShardGroupLost():
            return ShardGroupLost(str(error), retry_after_s=RESTART_RETRY_AFTER_S)
    return Internal("the engine failed")


def encode_error(error: MeshError) -> bytes:
    """Envelope of an error: what its caller may see, and nothing else of it."""
    return json.dumps(
        {
            "reason": error.reason,
            "message": error.message,
            "metadata": error.metadata,
            "retry_after_s": error.retry_after_s,
            "fields": error.field_violations,
            "quotas": error.quota_violations,
        }
    ).encode()


def decode_error(envelope: bytes) -> MeshError:
    """Inverse of `encode_error`; an unknown reason becomes Internal."""
    told = json.loads(envelope)
    kind = _CROSSING.get(told["reason"])
    if kind is None:
        return Internal("a replica failed in a way that this front does not know")
    return kind(
        told["message"],
        metadata=told["metadata"],
        retry_after_s=told["retry_after_s"],
        field_violations=[(field, text) for field, text in told["fields"]],
        quota_violations=[(subject, text) for subject, text in told["quotas"]],
    )
