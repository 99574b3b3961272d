"""What the commands of `lionrock review` do: show the queue of held answers, decide on them, fetch an own one.

Knows how a review is shown. Texts of models and people are written without control characters, which could steer a terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from google.protobuf.json_format import MessageToDict

from lionrock.cli.audit_door import Where, shown_time
from lionrock.cli.call_errors import calls_explained
from lionrock.cli.chat import connection
from lionrock.cli.errors import EXIT_PENDING, EXIT_REFUSED
from lionrock.cli.receipts import Opening, has_receipt, save_opening
from lionrock.gateway.v1 import review_pb2 as pb
from lionrock.gateway.v1.review_pb2_grpc import ReviewServiceStub

_PAGE = 200
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STATES = {
    pb.REVIEW_DECISION_UNSPECIFIED: "waiting",
    pb.REVIEW_DECISION_RELEASE: "released",
    pb.REVIEW_DECISION_REFUSE: "refused",
    pb.REVIEW_DECISION_EXPIRED: "expired",
}


@contextmanager
def _service(where: Where) -> Iterator[ReviewServiceStub]:
    """Connect. Raises MeshNotRunning, CommandError."""
    opened = connection(where.state, where.door)
    try:
        with opened.channel() as channel, calls_explained():
            yield ReviewServiceStub(channel)
    finally:
        opened.close()


def show_all(where: Where, *, decided: bool, as_json: bool) -> int:
    """List held answers, oldest first."""
    with _service(where) as service:
        reviews = list(_all(service, where.timeout_s, decided=decided))
    for review in reviews:
        print(_json(review) if as_json else _line(review))
    if not reviews and not as_json:
        print("no answer waits for a reviewer", file=sys.stderr)
    return 0


def show(where: Where, request_id: str, *, as_json: bool) -> int:
    """Show one with its texts; the audit log says that they were read."""
    with _service(where) as service:
        shown = service.GetReview(pb.GetReviewRequest(request_id=request_id), timeout=where.timeout_s)
    if as_json:
        print(_json(shown))
        return 0
    print(_line(shown.review))
    for turn in json.loads(shown.prompt)["messages"]:
        print(f"\n{turn['role']}:\n{_plain(turn['content'])}")
    print(f"\nanswer:\n{_plain(shown.answer)}")
    return 0


def decide(where: Where, request_id: str, decision: pb.ReviewDecision.ValueType, reason: str, *, as_json: bool) -> int:
    """Release or refuse an answer."""
    request = pb.DecideReviewRequest(request_id=request_id, decision=decision, reason=reason)
    with _service(where) as service:
        receipt = service.DecideReview(request, timeout=where.timeout_s).receipt
    position = receipt.position
    if as_json:
        shown = {"request_id": request_id, "decision": _STATES[decision], "tlog_proof": receipt.tlog_proof}
        print(json.dumps(shown, ensure_ascii=False))
    else:
        print(f"{_STATES[decision]} {request_id}: leaf {position.leaf_index} of {position.origin}")
    return 0


def answer(where: Where, request_id: str, *, as_json: bool) -> int:
    """Print what became of an own held answer, and keep what opens its receipt once it is released.

    Returns EXIT_PENDING while it waits, EXIT_REFUSED when it is not released.
    """
    with _service(where) as service:
        told = service.GetHeldAnswer(pb.GetHeldAnswerRequest(request_id=request_id), timeout=where.timeout_s)
    if told.decision == pb.REVIEW_DECISION_RELEASE and has_receipt(where.state, request_id):
        save_opening(where.state, Opening(request_id, told.answer, told.answer_salt, b""))
    waiting, released = told.decision == pb.REVIEW_DECISION_UNSPECIFIED, told.decision == pb.REVIEW_DECISION_RELEASE
    if as_json:
        print(_json(told))
    elif released:
        print(_plain(told.answer) if sys.stdout.isatty() else told.answer)
    elif waiting:
        print(f"waits for a reviewer until {shown_time(told.expires_at)}", file=sys.stderr)
    else:
        print(f"{_STATES[told.decision]}: {told.safe_message}", file=sys.stderr)
    return 0 if released else EXIT_PENDING if waiting else EXIT_REFUSED


def _all(service: ReviewServiceStub, timeout_s: float, *, decided: bool) -> Iterator[pb.Review]:
    request = pb.ListReviewsRequest(page_size=_PAGE, include_decided=decided)
    while True:
        page = service.ListReviews(request, timeout=timeout_s)
        yield from page.reviews
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _line(review: pb.Review) -> str:
    cause = pb.HoldCause.Name(review.cause).removeprefix("HOLD_CAUSE_").lower()
    state = _STATES[review.decision]
    if review.decision == pb.REVIEW_DECISION_UNSPECIFIED:
        state = f"waiting until {shown_time(review.expires_at)}"
    elif review.decided_by:
        state += f" by {review.decided_by}"
    case = f"  case {review.case_id}" if review.case_id else ""
    return f"{review.request_id}  {shown_time(review.held_since)}  {review.purpose}  {cause}  {review.author}{case}  {state}"


def _json(message: pb.Review | pb.GetReviewResponse | pb.GetHeldAnswerResponse) -> str:
    return json.dumps(MessageToDict(message, preserving_proto_field_name=True), ensure_ascii=False)


def _plain(text: str) -> str:
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)
