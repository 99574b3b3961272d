"""Errors between replica and front: everything that a caller may see survives, and nothing else crosses."""

from __future__ import annotations

import pytest

from lionrock.chassis.errors import Internal, InvalidField, MeshError
from lionrock.inference.engine import errors as engine_errors
from lionrock.inference.errors import EngineFull, PromptTooLong, ShardGroupLost, decode_error, encode_error, mesh_error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (engine_errors.PromptTooLong(9000, 8192), "PROMPT_TOO_LONG"),
        (engine_errors.UnknownTokenId(3, 49152), "UNKNOWN_TOKEN_ID"),
        (engine_errors.InvalidRequest("sampling.seed", "is required"), "INVALID_FIELD"),
        (engine_errors.UnsupportedSamplingOption("stop"), "UNSUPPORTED_SAMPLING_OPTION"),
        (engine_errors.UnsupportedOutputConstraint(), "UNSUPPORTED_OUTPUT_CONSTRAINT"),
        (engine_errors.InvalidConstraint("regex", "unbalanced ("), "INVALID_CONSTRAINT"),
        (engine_errors.EngineFull(1.5), "ENGINE_FULL"),
        (engine_errors.EngineDraining(), "SHUTTING_DOWN"),
        (engine_errors.RequestExpired(), "DEADLINE_EXCEEDED"),
        (engine_errors.ShardGroupLost("rank 1 died"), "SHARD_GROUP_LOST"),
    ],
)
def test_every_engine_error_has_a_reason_that_survives_the_crossing(error: engine_errors.EngineError, reason: str) -> None:
    told = mesh_error(error)
    crossed = decode_error(encode_error(told))
    assert told.reason == crossed.reason == reason
    assert type(crossed) is type(told)
    assert crossed.message == told.message


def test_details_survive_the_crossing() -> None:
    for error in (
        EngineFull("full", retry_after_s=2.5),
        PromptTooLong("long", metadata={"prompt_tokens": "9"}),
        InvalidField("bad", field_violations=[("a.b", "must be so")]),
        ShardGroupLost("lost", retry_after_s=1),
    ):
        crossed = decode_error(encode_error(error))
        for name in ("retry_after_s", "metadata", "field_violations", "quota_violations"):
            assert getattr(crossed, name) == getattr(error, name)


def test_what_the_front_does_not_know_is_internal() -> None:
    class Strange(MeshError):
        """A reason of a newer release."""

        status, reason = Internal.status, "STRANGE"

    assert isinstance(decode_error(encode_error(Strange("words"))), Internal)
