"""Errors survive the wire, stay small, and are all documented."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from lionrock.chassis import errors
from lionrock.chassis.errors import (
    DETAILS_KEY,
    MAX_DETAILS_BYTES,
    InvalidField,
    MeshError,
    Overloaded,
    RemoteError,
    encode_status,
    remote_error,
)
from lionrock.chassis.reasons import Reason, all_reasons, markdown_table


def as_received(error: MeshError) -> RemoteError:
    trailing = grpc.aio.Metadata((DETAILS_KEY, encode_status(error)))
    return remote_error(grpc.aio.AioRpcError(error.status, grpc.aio.Metadata(), trailing, error.message))


@given(
    message=st.text(max_size=3000),
    fields=st.lists(st.tuples(st.text(max_size=300), st.text(max_size=300)), max_size=60),
    quotas=st.lists(st.tuples(st.text(max_size=300), st.text(max_size=300)), max_size=60),
    retry_after_s=st.none() | st.floats(min_value=0, max_value=1e6),
)
def test_details_never_outgrow_trailing_metadata_and_the_reason_always_arrives(
    message: str, fields: list[tuple[str, str]], quotas: list[tuple[str, str]], retry_after_s: float | None
) -> None:
    error = InvalidField(message, field_violations=fields, quota_violations=quotas, retry_after_s=retry_after_s)
    assert len(encode_status(error)) <= MAX_DETAILS_BYTES
    received = as_received(error)
    assert (received.status, received.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert received.field_violations == tuple(fields[: len(received.field_violations)])
    if retry_after_s is not None:
        assert received.retry_after_s is not None
        assert abs(received.retry_after_s - retry_after_s) < 1e-6


@given(data=st.binary(max_size=200))
def test_details_that_do_not_decode_leave_the_status(data: bytes) -> None:
    trailing = grpc.aio.Metadata((DETAILS_KEY, data))
    received = remote_error(grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailing, "x"))
    assert received.status is grpc.StatusCode.ABORTED


def test_details_of_another_domain_give_no_reason() -> None:
    status = status_pb2.Status(code=8)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="RATE_LIMIT_EXCEEDED", domain="googleapis.com"))
    trailing = grpc.aio.Metadata((DETAILS_KEY, status.SerializeToString()))
    error = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailing, "x")
    assert remote_error(error).reason is None


def test_a_connection_that_fails_is_an_error_without_a_reason() -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "no route")
    received = remote_error(error)
    assert (received.status, received.reason, received.message) == (grpc.StatusCode.UNAVAILABLE, None, "no route")


def test_the_text_of_a_remote_error_says_status_and_reason() -> None:
    assert str(as_received(Overloaded("busy"))) == "RESOURCE_EXHAUSTED OVERLOADED: busy"


def test_every_reason_of_the_chassis_is_in_the_tree_at_the_top_of_its_module() -> None:
    tree = errors.__doc__ or ""
    for reason in all_reasons():
        if reason.room == "chassis":
            line = next(line for line in tree.splitlines() if line.split() and line.split()[-1] == reason.reason)
            assert reason.status in line.split()


def test_the_table_has_one_row_a_reason() -> None:
    reasons = [Reason("OVERLOADED", "RESOURCE_EXHAUSTED", "audit", "Busy | really."), Reason("A", "ABORTED", "chassis", "Meaning.")]
    assert markdown_table(reasons).splitlines() == [
        "| Reason | Status | From | Meaning |",
        "|---|---|---|---|",
        "| `OVERLOADED` | `RESOURCE_EXHAUSTED` | audit | Busy \\| really. |",
        "| `A` | `ABORTED` | chassis | Meaning. |",
    ]
