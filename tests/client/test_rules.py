"""The rules that need no wire: when a call may be repeated, which error a reason is, which order a stream may have."""

from __future__ import annotations

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from lionrock.chassis.errors import RemoteError
from lionrock.client import errors
from lionrock.client.chat import ChatProgress
from lionrock.client.errors import call_error
from lionrock.client.retry import RetryPolicy
from lionrock.gateway.v1 import gateway_pb2 as gw


def wait(
    error: errors.CallError, attempt: int = 1, *, received: bool = False, left_s: float = 60, draw: float = 0.0
) -> float | None:
    return RetryPolicy().wait_s(error, attempt, received=received, left_s=left_s, random=lambda: draw)


@given(st.sampled_from(list(StatusCode)), st.none() | st.floats(0, 5), st.booleans(), st.integers(1, 5))
def test_only_unavailable_or_exhausted_with_a_time_and_nothing_received_is_repeated(
    status: StatusCode, retry_after_s: float | None, received: bool, attempt: int
) -> None:
    repeated = wait(call_error(RemoteError(status, "ANY", "", retry_after_s=retry_after_s)), attempt, received=received) is not None
    safe = status in (StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED) and retry_after_s is not None
    assert repeated == (safe and not received and attempt < 3)


def test_the_wait_is_the_servers_lengthened_by_at_most_the_jitter() -> None:
    error = call_error(RemoteError(StatusCode.UNAVAILABLE, "ANY", "", retry_after_s=2))
    assert wait(error) == 2
    assert wait(error, draw=0.999) == pytest.approx(3, abs=0.01)
    assert wait(error, left_s=1.9) is None
    assert wait(call_error(RemoteError(StatusCode.UNAVAILABLE, "ANY", "", retry_after_s=11))) is None


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (StatusCode.PERMISSION_DENIED, "PROMPT_BLOCKED", errors.PromptBlocked),
        (StatusCode.PERMISSION_DENIED, "ROLE_NOT_PERMITTED", errors.NotPermitted),
        (StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG", errors.PromptTooLong),
        (StatusCode.RESOURCE_EXHAUSTED, "TENANT_QUOTA", errors.TenantQuota),
        (StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE", errors.AuditUnavailable),
        (StatusCode.UNAVAILABLE, None, errors.Unreachable),
        (StatusCode.UNAVAILABLE, "SHUTTING_DOWN", errors.Unavailable),
        (StatusCode.INTERNAL, "INTERNAL_ERROR", errors.ServerFault),
        (StatusCode.UNKNOWN, None, errors.ServerFault),
        (StatusCode.NOT_FOUND, "PROMPT_BLOCKED", errors.NotFound),
    ],
)
def test_reason_and_status_together_choose_the_error(
    status: StatusCode, reason: str | None, expected: type[errors.CallError]
) -> None:
    assert type(call_error(RemoteError(status, reason, "text"))) is expected


STARTED = gw.ChatResponse(started=gw.ChatResponse.Started(request_id="r"))
DELTA = gw.ChatResponse(delta=gw.ChatResponse.Delta(text="x", tokens=1))
FINISHED = gw.ChatResponse(finished=gw.ChatResponse.Finished())


@given(st.lists(st.sampled_from([STARTED, DELTA, FINISHED, gw.ChatResponse()]), max_size=5))
def test_only_a_complete_stream_in_order_is_an_answer(stream: list[gw.ChatResponse]) -> None:
    well_formed = stream[:1] == [STARTED] and stream[-1:] == [FINISHED] and all(response is DELTA for response in stream[1:-1])
    progress = ChatProgress()
    try:
        for response in stream:
            progress.accept(response)
        progress.ended()
    except errors.StreamBroken:
        assert not well_formed
    else:
        assert well_formed
        assert progress.answer().text == "x" * (len(stream) - 2)
