"""The service on a real chassis server, over mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from audit_harness import PLATFORM, Place
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lionrock.audit import errors as wire_errors
from lionrock.audit import failures
from lionrock.audit.__main__ import CALLERS, SERVICE_NAME
from lionrock.audit.platform_log import PlatformLog
from lionrock.audit.servicer import AuditServicer
from lionrock.audit.settings import AuditSettings
from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.v1.audit_pb2_grpc import AuditServiceStub, add_AuditServiceServicer_to_server
from lionrock.audit.verify import check_opening, verify_receipt
from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import RemoteError, remote_error
from lionrock.chassis.ids import uuid7
from lionrock.chassis.server import Registration, start_server
from lionrock.chassis.settings import PeerSettings, ServerSettings, TlsSettings
from lionrock.common.v1 import context_pb2, sampling_pb2
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.keys import VerifierKey
from lionrock.tlog.merkle import leaf_hash, verify_consistency, verify_inclusion
from lionrock.tlog.note import open_note
from lionrock.tlog.proof import TlogProof
from mesh_ca import TRUST_DOMAIN, DevCa


def context(tenant: str = "bank", request_id: str | None = None, **changes: Any) -> context_pb2.RequestContext:
    values: dict[str, Any] = {
        "request_id": request_id or uuid7(),
        "tenant": tenant,
        "actor": f"spiffe://{TRUST_DOMAIN}/tenant/{tenant}/user/ada",
        "auth_method": context_pb2.AUTH_METHOD_MTLS,
        "roles": ["auditor"],
        "purpose": "customer_support",
        "territory": "HK",
        "profile": "default",
    }
    return context_pb2.RequestContext(**values | changes)


def intent(*, tenant: str = "bank", event_id: str | None = None, prompt: bytes = b"", **fields: Any) -> pb.AppendRequest:
    body = pb.Intent(action="chat", model="smollm2", prompt=prompt)
    return pb.AppendRequest(context=fields.pop("context", context(tenant)), event_id=event_id or uuid7(), intent=body, **fields)


@dataclass(frozen=True, slots=True)
class Service:
    """A running audit service, and a way to call it."""

    ca: DevCa
    port: int
    stub: Any
    platform_log: PlatformLog

    def calling(self, tls: TlsSettings) -> AbstractAsyncContextManager[grpc.aio.Channel]:
        peer = PeerSettings(target=f"127.0.0.1:{self.port}", service="audit", timeout_s=10)
        return open_channel(peer, tls, name="test")


@asynccontextmanager
async def running(place: Place, **options: Any) -> AsyncIterator[Service]:
    ca = DevCa(place.root / "mesh")
    settings = AuditSettings(
        server=ServerSettings(tls=ca.issue("audit"), trust_domain=TRUST_DOMAIN),
        platform=PLATFORM,
        tenants=("bank", "broker"),
        store_file=place.store_file,
        key_dir=place.key_dir,
    )
    async with place.open_all(**options) as (logs, platform_log):
        registration = Registration(add_AuditServiceServicer_to_server, AuditServicer(logs, platform_log), SERVICE_NAME, CALLERS)
        server = await start_server(settings, "audit", [registration])
        try:
            peer = PeerSettings(target=f"127.0.0.1:{server.port}", service="audit", timeout_s=10)
            async with open_channel(peer, ca.issue("gateway"), name="gateway") as channel:
                yield Service(ca, server.port, AuditServiceStub(channel), platform_log)
        finally:
            await server.stop()


@pytest.fixture
async def service(place: Place) -> AsyncIterator[Service]:
    async with running(place) as started:
        yield started


async def failure(call: Any) -> RemoteError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return remote_error(caught.value)


async def keys_of(service: Service, tenant: str = "bank") -> list[str]:
    return list((await service.stub.ListKeys(pb.ListKeysRequest(context=context(tenant)))).verifier_keys)


async def test_a_request_leaves_an_intent_an_outcome_and_a_receipt_that_verifies_offline(service: Service) -> None:
    ctx = context(case_id="CASE-9")
    opened = await service.stub.Append(intent(context=ctx, prompt="客戶想知道利率".encode()))
    assert opened.position.origin == f"{PLATFORM}/audit/bank"
    assert not opened.HasField("receipt")
    outcome = pb.Outcome(intent_index=opened.position.leaf_index, status=pb.OUTCOME_STATUS_ANSWERED, answer="4.5 厘".encode())
    closed = await service.stub.Append(pb.AppendRequest(context=ctx, event_id=ctx.request_id, outcome=outcome, want_receipt=True))
    assert closed.receipt.position == closed.position
    leaf = verify_receipt(closed.receipt.tlog_proof, await keys_of(service))
    assert leaf.leaf_hash == closed.position.leaf_hash
    assert leaf.fields["ts"].startswith(closed.position.recorded_at.ToDatetime().strftime("%Y-%m-%dT%H:%M:%S.%f"))
    assert (leaf.fields["status"], leaf.fields["intent_index"], leaf.fields["case_id"]) == ("answered", 0, "CASE-9")
    check_opening(leaf, "answer", closed.salt, "4.5 厘".encode())
    found = await service.stub.GetReceipt(pb.GetReceiptRequest(context=context(), event_id=ctx.request_id))
    assert verify_receipt(found.receipt.tlog_proof, await keys_of(service)) == leaf
    by_index = await service.stub.GetReceipt(pb.GetReceiptRequest(context=context(), leaf_index=0))
    assert verify_receipt(by_index.receipt.tlog_proof, await keys_of(service)).fields["type"] == "intent"


async def test_checkpoints_are_joined_by_consistency_proofs(service: Service) -> None:
    first = verify_receipt((await service.stub.Append(intent(want_receipt=True))).receipt.tlog_proof, await keys_of(service))
    for _ in range(4):
        last = await service.stub.Append(intent(want_receipt=True))
    leaf = verify_receipt(last.receipt.tlog_proof, await keys_of(service))
    proof = await service.stub.GetConsistencyProof(pb.GetConsistencyProofRequest(context=context(), first_size=1))
    verify_consistency(1, 5, first.root, leaf.root, proof.hashes)
    latest = (await service.stub.GetCheckpoint(pb.GetCheckpointRequest(context=context()))).checkpoint
    assert proof.checkpoint == latest
    assert latest.startswith(f"{PLATFORM}/audit/bank\n5\n")


async def test_a_leaf_is_proven_through_the_platforms_log(service: Service) -> None:
    request = intent()
    await service.stub.Append(request)
    wanted = pb.ProveLeafRequest(context=request.context, event_id=request.event_id)
    error = await failure(service.stub.ProveLeaf(wanted))
    assert (error.status, error.reason) == (grpc.StatusCode.UNAVAILABLE, "LEAF_NOT_COVERED")
    assert error.retry_after_s
    service.platform_log.attest(*await service.platform_log.advance())
    proven = await service.stub.ProveLeaf(wanted)
    keys = await service.stub.ListKeys(pb.ListKeysRequest(context=request.context))
    assert keys.platform_verifier_keys == [service.platform_log.verifier_key]
    below, above = TlogProof.parse(proven.receipt.tlog_proof), TlogProof.parse(proven.platform_proof)
    assert above.leaf == below.checkpoint.encode()
    whole = Checkpoint.parse(open_note(above.checkpoint, [VerifierKey.parse(keys.platform_verifier_keys[0])]).text)
    verify_inclusion(above.leaf_index, whole.size, leaf_hash(above.leaf), above.path, whole.root)


async def test_leaves_are_listed_in_bounded_pages_and_for_the_own_tenant_only(service: Service) -> None:
    for _ in range(6):
        await asyncio.gather(*(service.stub.Append(intent()) for _ in range(100)))
    await service.stub.Append(intent(tenant="broker"))
    pages = [page async for page in service.stub.ListLeaves(pb.ListLeavesRequest(context=context(), start=10, limit=10_000))]
    assert [leaf.leaf_index for page in pages for leaf in page.leaves] == list(range(10, 600))
    assert len(pages) > 1
    assert max(page.ByteSize() for page in pages) < 512 * 1024
    pages = [page async for page in service.stub.ListLeaves(pb.ListLeavesRequest(context=context("broker"), limit=10))]
    assert [leaf.leaf_index for page in pages for leaf in page.leaves] == [0]
    assert [page async for page in service.stub.ListLeaves(pb.ListLeavesRequest(context=context(), start=2**64 - 1, limit=1))] == []


async def test_a_call_without_a_context_reads_nothing(service: Service) -> None:
    for call in (
        service.stub.GetReceipt(pb.GetReceiptRequest(leaf_index=0)),
        service.stub.GetCheckpoint(pb.GetCheckpointRequest()),
        service.stub.GetConsistencyProof(pb.GetConsistencyProofRequest(first_size=1)),
        service.stub.ListKeys(pb.ListKeysRequest()),
    ):
        refused = await failure(call)
        assert (refused.reason, refused.field_violations[0][0]) == ("INVALID_FIELD", "context")


async def test_every_refusal_has_its_status_and_reason(service: Service, place: Place) -> None:
    ctx = context()
    event_id = uuid7()
    await service.stub.Append(intent(context=ctx, event_id=event_id))
    done = pb.Outcome(intent_index=0, status=pb.OUTCOME_STATUS_FAILED, reason="INTERNAL_ERROR")
    await service.stub.Append(pb.AppendRequest(context=ctx, event_id=uuid7(), outcome=done))
    large = pb.GuardrailSummary(action="mask", findings={f"rule.with.a.long.name.{number}": 1 for number in range(64)})
    too_large = intent()
    too_large.intent.prompt_verdict.CopyFrom(large)
    stray = pb.Outcome(intent_index=7, status=pb.OUTCOME_STATUS_FAILED)
    unknown_enum = intent()
    unknown_enum.context.data_class = 99  # type: ignore[assignment]
    cases = [
        (service.stub.Append(intent(context=ctx, event_id=event_id, prompt=b"other")), "ALREADY_EXISTS", "EVENT_ALREADY_RECORDED"),
        (
            service.stub.Append(pb.AppendRequest(context=ctx, event_id=uuid7(), outcome=done)),
            "FAILED_PRECONDITION",
            "INTENT_CLOSED",
        ),
        (service.stub.Append(pb.AppendRequest(context=ctx, event_id=uuid7(), outcome=stray)), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (service.stub.Append(too_large), "INVALID_ARGUMENT", "LEAF_TOO_LARGE"),
        (service.stub.Append(unknown_enum), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (service.stub.Append(intent(tenant="stranger")), "NOT_FOUND", "LOG_NOT_FOUND"),
        (service.stub.GetReceipt(pb.GetReceiptRequest(context=context(), leaf_index=99)), "NOT_FOUND", "LEAF_NOT_FOUND"),
        (
            service.stub.GetReceipt(pb.GetReceiptRequest(context=context("broker"), event_id=event_id)),
            "NOT_FOUND",
            "LEAF_NOT_FOUND",
        ),
        (service.stub.GetCheckpoint(pb.GetCheckpointRequest(context=context("stranger"))), "NOT_FOUND", "LOG_NOT_FOUND"),
        (
            service.stub.GetConsistencyProof(pb.GetConsistencyProofRequest(context=context(), first_size=3)),
            "INVALID_ARGUMENT",
            "TREE_SIZE_OUT_OF_RANGE",
        ),
        (
            service.stub.GetConsistencyProof(
                pb.GetConsistencyProofRequest(context=context(), first_size=2**64 - 1, second_size=2**64 - 1)
            ),
            "INVALID_ARGUMENT",
            "TREE_SIZE_OUT_OF_RANGE",
        ),
    ]
    for call, status, reason in cases:
        error = await failure(call)
        assert (error.status.name, error.reason) == (status, reason)


async def test_a_log_that_was_rolled_back_refuses_on_the_wire(place: Place) -> None:
    async with running(place) as service:
        await service.stub.Append(intent())
    for file in place.store_file.parent.iterdir():
        file.unlink()
    async with running(place) as service:
        error = await failure(service.stub.Append(intent()))
        assert (error.status.name, error.reason) == ("FAILED_PRECONDITION", "LOG_READ_ONLY")
        assert str(place.root) not in error.message


async def test_a_full_queue_is_overload_with_a_time_to_come_back() -> None:
    error = wire_errors.mesh_error(failures.QueueFull("full"))
    assert (error.status.name, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert error.retry_after_s is not None


async def test_a_failed_store_is_unavailable_and_names_no_file() -> None:
    error = wire_errors.mesh_error(failures.StoreFailed("writing /secret/path: disk I/O error"))
    assert (error.status.name, error.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
    assert "/secret" not in error.message


@pytest.mark.parametrize("identity", ["service/inference", "service/audit", "tenant/bank/user/ada"])
async def test_only_the_gateway_may_call(service: Service, identity: str) -> None:
    tls = service.ca.issue(spiffe_id=f"spiffe://{TRUST_DOMAIN}/{identity}")
    async with service.calling(tls) as channel:
        error = await failure(AuditServiceStub(channel).Append(intent()))
    assert (error.status.name, error.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED")


HOSTILE_TEXT = st.text(max_size=40) | st.sampled_from(["", "a" * 5000, "\x00", "bank/../broker", "港" * 300])


def _hostile(data: st.DataObject) -> tuple[str, Any]:
    """Draw the name of a method and a request for it."""
    ctx = context()
    if data.draw(st.booleans()):
        field = data.draw(st.sampled_from(["request_id", "tenant", "actor", "purpose", "case_id", "territory", "profile"]))
        setattr(ctx, field, data.draw(HOSTILE_TEXT))
        ctx.auth_method = data.draw(st.integers(-1, 5))  # type: ignore[assignment]
        ctx.data_class = data.draw(st.integers(-1, 7))  # type: ignore[assignment]
    kind = data.draw(st.sampled_from(["intent", "outcome", "receipt", "list", "consistency"]))
    if kind == "intent":
        params = sampling_pb2.SamplingParams(temperature=data.draw(st.floats(width=32)), seed=data.draw(st.integers(0, 2**64 - 1)))
        body = pb.Intent(action=data.draw(st.just("chat") | HOSTILE_TEXT), model=data.draw(HOSTILE_TEXT), sampling=params)
        return "Append", pb.AppendRequest(context=ctx, event_id=uuid7(), intent=body)
    if kind == "outcome":
        end = pb.Outcome(
            intent_index=data.draw(st.integers(0, 2**64 - 1)),
            status=data.draw(st.integers(-3, 9)),  # type: ignore[arg-type]
            finish_reason=data.draw(st.integers(-3, 9)),  # type: ignore[arg-type]
            reason=data.draw(st.just("X") | HOSTILE_TEXT),
        )
        end.total_time.seconds = data.draw(st.integers(-(2**63), 2**63 - 1))
        end.total_time.nanos = data.draw(st.integers(-(2**31), 2**31 - 1))
        return "Append", pb.AppendRequest(context=ctx, event_id=uuid7(), outcome=end)
    if kind == "receipt":
        return "GetReceipt", pb.GetReceiptRequest(context=ctx, leaf_index=data.draw(st.integers(0, 2**64 - 1)))
    if kind == "consistency":
        first, second = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 2**64 - 1))
        return "GetConsistencyProof", pb.GetConsistencyProofRequest(context=ctx, first_size=first, second_size=second)
    start, limit = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 2**32 - 1))
    return "ListLeaves", pb.ListLeavesRequest(context=ctx, start=start, limit=limit)


@pytest.mark.parametrize("field", ["outcome.intent_index", "outcome.total_time", "outcome.time_to_first_token"])
async def test_a_number_beyond_what_a_leaf_can_hold_is_refused_by_its_field(service: Service, field: str) -> None:
    end = pb.Outcome(status=pb.OUTCOME_STATUS_ABORTED, reason="CLIENT_CANCELLED")
    if field == "outcome.intent_index":
        end.intent_index = 2**53
    else:
        getattr(end, field.removeprefix("outcome.")).seconds = 2**53
    error = await failure(service.stub.Append(pb.AppendRequest(context=context(), event_id=uuid7(), outcome=end)))
    assert (error.status.name, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert [name for name, _ in error.field_violations] == [field]


async def _status(stub: Any, method: str, request: Any) -> grpc.StatusCode:
    try:
        call = getattr(stub, method)(request)
        await (_drain(call) if method == "ListLeaves" else call)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def _drain(pages: Any) -> None:
    async for _ in pages:
        pass


async def test_hostile_requests_get_a_precise_status_and_the_log_goes_on(service: Service) -> None:
    # hypothesis drives coroutines only through a loop of its own, so it runs beside the server's.
    loop = asyncio.get_running_loop()

    def drive() -> None:
        @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.data())
        def each(data: st.DataObject) -> None:
            method, request = _hostile(data)
            status = asyncio.run_coroutine_threadsafe(_status(service.stub, method, request), loop).result(timeout=20)
            assert status not in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}

        each()

    await asyncio.to_thread(drive)
    assert (await service.stub.Append(intent(want_receipt=True))).HasField("receipt")


def _settings(tmp_path: Path, **changes: Any) -> AuditSettings:
    tls = TlsSettings(cert_file=tmp_path / "c", key_file=tmp_path / "k", ca_file=tmp_path / "a")
    values: dict[str, Any] = {
        "server": ServerSettings(tls=tls, trust_domain=TRUST_DOMAIN),
        "platform": PLATFORM,
        "tenants": ("bank",),
        "store_file": tmp_path / "audit.db",
        "key_dir": tmp_path / "keys",
    }
    return AuditSettings(**values | changes)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("tenants", ()), ("tenants", ("../etc",)), ("platform", "with+plus"), ("orphan_after_s", 5), ("max_batch", 0), ("unknown", 1)],
)
def test_bad_settings_are_named(tmp_path: Path, setting: str, value: object) -> None:
    assert _settings(tmp_path).max_batch > 0
    with pytest.raises(ValidationError, match=setting):
        _settings(tmp_path, **{setting: value})


def decision(**changes: Any) -> pb.AppendRequest:
    values: dict[str, Any] = {"operation": "consent.recorded", "object_id": "consent-1", "details": {"purpose": "marketing"}}
    asker = context(**changes.pop("context", {}))
    return pb.AppendRequest(context=asker, event_id=uuid7(), governance=pb.Governance(**values | changes), want_receipt=True)


async def test_a_decision_is_recorded_with_a_receipt_that_verifies(service: Service) -> None:
    said = "佢打電話嚟問。".encode()
    appended = await service.stub.Append(decision(statement=said, subject_ids=["c-1"]))
    leaf = verify_receipt(appended.receipt.tlog_proof, await keys_of(service))
    assert (leaf.fields["type"], leaf.fields["operation"]) == ("governance", "consent.recorded")
    check_opening(leaf, "statement", appended.salt, said)


@pytest.mark.parametrize(
    "changes",
    [
        {"operation": "Review.Released"},
        {"operation": "review"},
        {"object_id": ""},
        {"object_id": "what a person wrote"},
        {"details": {"Name": "x"}},
        {"details": {"name": "two\nlines"}},
        {"details": {f"n{number}": "x" for number in range(13)}},
        {"context": {"break_glass_id": "not-an-id"}},
        {"statement": b"\xff"},
        {"subject_ids": ["c-1", "c-1"]},
    ],
)
async def test_what_is_no_decision_is_refused_at_the_door(service: Service, changes: dict[str, Any]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.stub.Append(decision(**changes))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
