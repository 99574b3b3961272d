"""What the commands of `lionrock consent`, `lionrock opt-out` and `lionrock notice` do: ask the gateway, and show what it answers.

A person is named by the tenant's pseudonym, which goes to the gateway and comes back in no answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.cli.audit_door import Where, shown_time
from lionrock.cli.call_errors import calls_explained
from lionrock.cli.chat import connection
from lionrock.gateway.v1 import consent_pb2 as pb
from lionrock.gateway.v1.consent_pb2_grpc import ConsentServiceStub

_PAGE = 200


@dataclass(frozen=True, slots=True)
class Agreed:
    """Who agreed to what, and how."""

    subject: str
    purpose: str
    notice_version: int
    language: str
    statement: str
    lasts: timedelta | None


@contextmanager
def _service(where: Where) -> Iterator[ConsentServiceStub]:
    """Connect as the owner of a certificate. Raises MeshNotRunning, CommandError."""
    opened = connection(where.state, where.door)
    try:
        with opened.channel() as channel, calls_explained():
            yield ConsentServiceStub(channel)
    finally:
        opened.close()


def record(where: Where, agreed: Agreed, *, as_json: bool) -> int:
    """Record a consent."""
    request = pb.RecordConsentRequest(
        subject_id=agreed.subject,
        purpose=agreed.purpose,
        notice_version=agreed.notice_version,
        language=agreed.language,
        statement=agreed.statement,
    )
    if agreed.lasts is not None:
        request.expires_at.FromDatetime(datetime.now(UTC) + agreed.lasts)
    with _service(where) as service:
        made = service.RecordConsent(request, timeout=where.timeout_s)
    return _changed("recorded", made.consent, _consent(made.consent), made.receipt, as_json=as_json)


def withdraw(where: Where, subject: str, purpose: str, statement: str, *, as_json: bool) -> int:
    """Withdraw a consent."""
    request = pb.WithdrawConsentRequest(subject_id=subject, purpose=purpose, statement=statement)
    with _service(where) as service:
        ended = service.WithdrawConsent(request, timeout=where.timeout_s)
    return _changed("withdrawn", ended.consent, _consent(ended.consent), ended.receipt, as_json=as_json)


def show(where: Where, subject: str, *, as_json: bool) -> int:
    """List what one person agreed to."""
    with _service(where) as service:
        found = service.ListConsents(pb.ListConsentsRequest(subject_id=subject), timeout=where.timeout_s)
    for consent in found.consents:
        print(_json(consent) if as_json else _consent(consent))
    if found.HasField("opt_out"):
        print(_json(found.opt_out) if as_json else _opt_out(found.opt_out))
    elif not found.consents and not as_json:
        print("nothing is recorded", file=sys.stderr)
    return 0


def opt_out(where: Where, subject: str, statement: str, *, as_json: bool) -> int:
    """Let a person opt out."""
    request = pb.SetOptOutRequest(subject_id=subject, statement=statement)
    with _service(where) as service:
        made = service.SetOptOut(request, timeout=where.timeout_s)
    return _changed("set", made.opt_out, _opt_out(made.opt_out), made.receipt, as_json=as_json)


def clear_opt_out(where: Where, subject: str, statement: str, *, as_json: bool) -> int:
    """End an opt-out."""
    request = pb.ClearOptOutRequest(subject_id=subject, statement=statement)
    with _service(where) as service:
        cleared = service.ClearOptOut(request, timeout=where.timeout_s)
    return _changed("cleared", cleared, "opt-out", cleared.receipt, as_json=as_json)


def show_opt_outs(where: Where, *, as_json: bool) -> int:
    """List the opt-outs that hold."""
    with _service(where) as service:
        found = list(_all(service, where.timeout_s))
    for each in found:
        print(_json(each) if as_json else _opt_out(each))
    if not found and not as_json:
        print("nobody opted out", file=sys.stderr)
    return 0


def show_notices(where: Where, purpose: str, *, as_json: bool) -> int:
    """Show the privacy statement, or one purpose with its texts."""
    with _service(where) as service:
        if purpose:
            notice = service.GetNotice(pb.GetNoticeRequest(purpose=purpose), timeout=where.timeout_s).notice
            print(_json(notice) if as_json else "\n".join([_notice(notice), *_texts(notice)]))
            return 0
        told = service.ListNotices(pb.ListNoticesRequest(), timeout=where.timeout_s)
    if as_json:
        print(_json(told))
        return 0
    print(f"{told.tenant}, territory {told.territory}")
    for notice in told.notices:
        print(_notice(notice))
    for language, text in sorted(told.ai_disclosure.items()):
        print(f"beside every answer, {language}: {text}")
    return 0


def _all(service: ConsentServiceStub, timeout_s: float) -> Iterator[pb.OptOut]:
    request = pb.ListOptOutsRequest(page_size=_PAGE)
    while True:
        page = service.ListOptOuts(request, timeout=timeout_s)
        yield from page.opt_outs
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _changed(what: str, message: Message, shown: str, receipt: audit.Receipt, *, as_json: bool) -> int:
    """Show a change and the leaf that proves it."""
    position = receipt.position
    if as_json:
        print(json.dumps({**_dict(message), "origin": position.origin, "leaf_index": position.leaf_index}, ensure_ascii=False))
    else:
        print(f"{what}: {shown}; leaf {position.leaf_index} of {position.origin}")
    return 0


def _consent(consent: pb.Consent) -> str:
    ends = f", until {shown_time(consent.expires_at)}" if consent.HasField("expires_at") else ""
    if consent.HasField("withdrawn_at"):
        ends = f", withdrawn {shown_time(consent.withdrawn_at)}"
    holds = "holds" if consent.holds else "does not hold"
    recorded = f"recorded {shown_time(consent.recorded_at)}{ends}"
    return f"consent {consent.consent_id}  {consent.purpose}, notice version {consent.notice_version}, {recorded}: {holds}"


def _opt_out(out: pb.OptOut) -> str:
    return f"opt-out {out.opt_out_id}  since {shown_time(out.set_at)}"


def _notice(notice: pb.Notice) -> str:
    facts = [f"data {', '.join(notice.data_classes)}"]
    if notice.requires_consent:
        facts.append(f"needs consent to notice version {notice.consent_since} or later")
    if notice.exempt_from_opt_out:
        facts.append("whether or not somebody opted out")
    if notice.version:
        facts.append(f"notice version {notice.version} {notice.digest} in {', '.join(notice.languages)}")
    return f"{notice.purpose}: {'; '.join(facts)}"


def _texts(notice: pb.Notice) -> Iterator[str]:
    for language, text in sorted(notice.texts.items()):
        yield f"\n[{language}]\n{text.rstrip()}"


def _dict(message: Message) -> dict[str, Any]:
    shown: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    shown.pop("receipt", None)
    if "leaf_index" in shown:
        shown["leaf_index"] = int(shown["leaf_index"])  # protobuf's JSON writes 64 bits as text
    return shown


def _json(message: Message) -> str:
    return json.dumps(_dict(message), ensure_ascii=False)
