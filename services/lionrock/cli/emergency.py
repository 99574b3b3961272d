"""What the commands of `lionrock emergency` do: ask the gateway for emergency access, decide on it, end it, list it.

What a command makes is on standard output; what is said about it goes to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from google.protobuf.json_format import MessageToDict

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.cli.audit_door import Where, shown_time
from lionrock.cli.call_errors import calls_explained
from lionrock.cli.chat import connection
from lionrock.gateway.v1 import break_glass_pb2 as pb
from lionrock.gateway.v1.break_glass_pb2_grpc import BreakGlassServiceStub

_PAGE = 200


@contextmanager
def _service(where: Where) -> Iterator[BreakGlassServiceStub]:
    """Connect as the owner of a credential. Raises MeshNotRunning, CommandError."""
    opened = connection(where.state, where.door)
    try:
        with opened.channel() as channel, calls_explained():
            yield BreakGlassServiceStub(channel)
    finally:
        opened.close()


def request(where: Where, reason: str, duration: timedelta, *, suspicion: bool, as_json: bool) -> int:
    """Ask for it and print its id."""
    asked = pb.RequestEmergencyRequest(reason=reason, suspicion=suspicion)
    asked.duration.FromTimedelta(duration)
    with _service(where) as service:
        made = service.RequestEmergency(asked, timeout=where.timeout_s)
    emergency = made.emergency
    if as_json:
        return _printed(emergency, made.position)
    print(emergency.emergency_id)
    who = "an mlro" if suspicion else "a privacy_officer or an mlro"
    print(f"{who} decides by {shown_time(emergency.ends_at)}: lionrock emergency approve {emergency.emergency_id}", file=sys.stderr)
    return 0


def approve(where: Where, emergency_id: str, reason: str, *, as_json: bool) -> int:
    """Open it."""
    with _service(where) as service:
        asked = pb.ApproveEmergencyRequest(emergency_id=emergency_id, reason=reason)
        done = service.ApproveEmergency(asked, timeout=where.timeout_s)
    if as_json:
        return _printed(done.emergency, done.receipt.position)
    until = shown_time(done.emergency.ends_at)
    print(f"approved {emergency_id} for {done.emergency.requested_by}: until {until}, leaf {done.receipt.position.leaf_index}")
    print(f"in force everywhere from {shown_time(done.effective_at)} at the latest", file=sys.stderr)
    return 0


def deny(where: Where, emergency_id: str, reason: str, *, as_json: bool) -> int:
    """Refuse it."""
    with _service(where) as service:
        done = service.DenyEmergency(pb.DenyEmergencyRequest(emergency_id=emergency_id, reason=reason), timeout=where.timeout_s)
    if as_json:
        return _printed(done.emergency, done.receipt.position)
    print(f"denied {emergency_id}: leaf {done.receipt.position.leaf_index}")
    return 0


def end(where: Where, emergency_id: str, *, as_json: bool) -> int:
    """End it."""
    with _service(where) as service:
        done = service.EndEmergency(pb.EndEmergencyRequest(emergency_id=emergency_id), timeout=where.timeout_s)
    if as_json:
        return _printed(done.emergency, done.receipt.position)
    print(f"ended {emergency_id}: leaf {done.receipt.position.leaf_index}")
    print(f"refused everywhere from {shown_time(done.effective_at)} at the latest", file=sys.stderr)
    return 0


def show_all(where: Where, *, closed: bool, as_json: bool) -> int:
    """List the tenant's emergencies, newest first."""
    with _service(where) as service:
        found = list(_all(service, where.timeout_s, closed=closed))
    for one in found:
        if as_json:
            print(json.dumps(_fields(one), ensure_ascii=False))
            continue
        until = "lapses" if one.state == pb.EMERGENCY_STATE_REQUESTED else "until"
        what = "records and suspicion" if one.suspicion else "records"
        by = f"  decided by {one.decided_by}" if one.decided_by else ""
        print(f"{one.emergency_id}  {_state(one):<9}  {until} {shown_time(one.ends_at)}  {what}  {one.requested_by}{by}")
    if not found and not as_json:
        print("no emergencies" if closed else "no emergency is asked for or in force", file=sys.stderr)
    return 0


def _all(service: BreakGlassServiceStub, timeout_s: float, *, closed: bool) -> Iterator[pb.Emergency]:
    asked = pb.ListEmergenciesRequest(page_size=_PAGE, include_closed=closed)
    while True:
        page = service.ListEmergencies(asked, timeout=timeout_s)
        yield from page.emergencies
        if not page.next_page_token:
            return
        asked.page_token = page.next_page_token


def _printed(emergency: pb.Emergency, position: audit.LeafPosition) -> int:
    print(json.dumps({**_fields(emergency), "leaf_index": position.leaf_index}, ensure_ascii=False))
    return 0


def _fields(emergency: pb.Emergency) -> dict[str, Any]:
    return {**MessageToDict(emergency, preserving_proto_field_name=True), "state": _state(emergency)}


def _state(emergency: pb.Emergency) -> str:
    return pb.EmergencyState.Name(emergency.state).removeprefix("EMERGENCY_STATE_").lower()
