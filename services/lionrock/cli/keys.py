"""What the commands of `lionrock keys` do: ask the gateway for API keys, and show them.

A key's secret is on standard output and nowhere else, once; whatever is said about it goes to standard error, so that a pipe holds
the key alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.json_format import MessageToDict

from lionrock.cli.audit_door import Where, shown_time
from lionrock.cli.call_errors import calls_explained
from lionrock.cli.chat import connection
from lionrock.gateway.v1 import api_key_pb2 as pb
from lionrock.gateway.v1.api_key_pb2_grpc import ApiKeyServiceStub

_PAGE = 200


@dataclass(frozen=True, slots=True)
class Scope:
    """What a key shall be able to do."""

    description: str
    roles: Sequence[str]
    purposes: Sequence[str]
    models: Sequence[str]
    data_classes: Sequence[str]
    lifetime: timedelta


@contextmanager
def _service(where: Where) -> Iterator[ApiKeyServiceStub]:
    """Connect as the owner of a certificate. Raises MeshNotRunning, CommandError."""
    opened = connection(where.state, where.door)
    try:
        with opened.channel() as channel, calls_explained():
            yield ApiKeyServiceStub(channel)
    finally:
        opened.close()


def create(where: Where, scope: Scope, *, as_json: bool) -> int:
    """Make a key and print it."""
    request = pb.CreateApiKeyRequest(
        description=scope.description,
        roles=scope.roles,
        purposes=scope.purposes,
        models=scope.models,
        data_classes=scope.data_classes,
    )
    request.lifetime.FromTimedelta(scope.lifetime)
    with _service(where) as service:
        made = service.CreateApiKey(request, timeout=where.timeout_s)
    return _shown(made.key, made.secret, as_json=as_json)


def rotate(where: Where, key_id: str, overlap: timedelta, *, as_json: bool) -> int:
    """Make the successor of a key and print it."""
    request = pb.RotateApiKeyRequest(key_id=key_id)
    request.overlap.FromTimedelta(overlap)
    with _service(where) as service:
        made = service.RotateApiKey(request, timeout=where.timeout_s)
    return _shown(made.key, made.secret, as_json=as_json)


def revoke(where: Where, key_id: str) -> int:
    """End a key."""
    with _service(where) as service:
        ended = service.RevokeApiKey(pb.RevokeApiKeyRequest(key_id=key_id), timeout=where.timeout_s)
    print(f"revoked {key_id}: refused everywhere from {shown_time(ended.effective_at)} at the latest")
    return 0


def show_all(where: Where, *, as_json: bool) -> int:
    """List the tenant's keys."""
    with _service(where) as service:
        keys = list(_all(service, where.timeout_s))
    for key in keys:
        if as_json:
            print(json.dumps(MessageToDict(key, preserving_proto_field_name=True), ensure_ascii=False))
        else:
            print(f"{key.key_id}  {_end(key):<32}  {','.join(key.roles)}  {','.join(key.purposes)}  {key.description}")
    if not keys and not as_json:
        print("no API keys", file=sys.stderr)
    return 0


def _all(service: ApiKeyServiceStub, timeout_s: float) -> Iterator[pb.ApiKey]:
    request = pb.ListApiKeysRequest(page_size=_PAGE)
    while True:
        page = service.ListApiKeys(request, timeout=timeout_s)
        yield from page.keys
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _end(key: pb.ApiKey) -> str:
    if key.HasField("revoked_at"):
        return f"revoked {shown_time(key.revoked_at)}"
    if key.HasField("retires_at"):
        return f"retires {shown_time(key.retires_at)}"
    return f"expires {shown_time(key.expires_at)}"


def _shown(key: pb.ApiKey, secret: str, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({**MessageToDict(key, preserving_proto_field_name=True), "secret": secret}, ensure_ascii=False))
    else:
        print(secret)
        print(f"key {key.key_id}, {_end(key)}; it is shown this once", file=sys.stderr)
    return 0
