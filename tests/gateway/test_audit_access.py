"""The gateway's door to the real audit service: from a chat to the erasure of its record, by role."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from audit_process import AuditProcess
from lionrock.audit.records import permissions
from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.audit.v1 import audit_pb2_grpc as audit_rpc
from lionrock.audit.v1 import records_pb2 as rec
from lionrock.audit.v1 import records_pb2_grpc as rec_rpc
from lionrock.audit.verify import verify_receipt
from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.ids import uuid7
from lionrock.chassis.settings import PeerSettings
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.access_policies import AccessPolicies, packaged_roles
from lionrock.gateway.audit_access import CALL_ACTIONS
from lionrock.gateway.authorization import AccessRequest, Action, Denial
from lionrock.gateway.tenants import Grant, Principal, Tenant, TenantName
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1 import gateway_pb2_grpc as gateway_rpc
from lionrock.tenancy.vocabulary import ROLES as KNOWN_ROLES
from mesh_ca import TRUST_DOMAIN, DevCa
from scripted_mesh import ScriptedMesh, tenant

ROLES = (*KNOWN_ROLES, "stranger")
SERVICES = {
    "RecordsService": rec.DESCRIPTOR.services_by_name["RecordsService"],
    "AuditService": audit.DESCRIPTOR.services_by_name["AuditService"],
}
METHODS: list[MethodDescriptor] = [method for service in SERVICES.values() for method in service.methods]

INNER = ("Append", "ReadReleased")
"""What the gateway calls for itself, and passes on from nobody."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AuditProcess]]:
    directory = tmp_path_factory.mktemp("door")
    process = AuditProcess(directory, DevCa(directory))
    yield directory, process
    process.stop()


@pytest.fixture
async def door(service: tuple[Path, AuditProcess]) -> AsyncIterator[ScriptedMesh]:
    """A gateway before the real audit service; each role is a kind of workload."""
    directory, process = service
    mesh = ScriptedMesh(directory)
    mesh.targets = {"audit": process.target}
    mesh.tenants = [with_roles("bank"), with_roles("broker")]
    async with mesh.running():
        yield mesh


def with_roles(name: str) -> dict[str, Any]:
    settings = tenant(name, data_classes=["personal", "suspicion"])
    for role in KNOWN_ROLES:
        principal = {
            "spiffe_id": f"spiffe://{TRUST_DOMAIN}/tenant/{name}/workload/{role.replace('_', '-')}",
            "roles": [role],
            "purposes": ["oversight"],
            "data_classes": ["personal", "suspicion"],
            "not_after": "2100-01-01T00:00:00Z",
        }
        settings["principals"].append(principal)
    return settings


@asynccontextmanager
async def as_role(mesh: ScriptedMesh, role: str, tenant: str = "bank") -> AsyncIterator[grpc.aio.Channel]:
    identity = mesh.ca.issue(spiffe_id=f"spiffe://{TRUST_DOMAIN}/tenant/{tenant}/workload/{role.replace('_', '-')}")
    peer = PeerSettings(target=mesh.targets["gateway"], service="gateway", timeout_s=10)
    async with open_channel(peer, identity, name="test") as channel:
        yield channel


async def test_a_record_is_read_and_erased_through_the_gateway(door: ScriptedMesh, ask: Any, hear: Any) -> None:
    async with door.calling() as gateway:
        heard = await hear(gateway.Chat(ask("What is my balance?", subject_ids=["c-77"], case_id="case-1")))
        keys = (await gateway.ListAuditKeys(gw.ListAuditKeysRequest())).verifier_keys
    request_id = heard.started.request_id
    async with as_role(door, "privacy_officer") as channel:
        records = rec_rpc.RecordsServiceStub(channel)
        read = await records.ReadRecord(rec.ReadRecordRequest(request_id=request_id))
        assert json.loads(read.prompt)["messages"][0]["content"] == "What is my balance?"
        assert read.answer.decode() == heard.text
        scope = rec.RecordScope(subject_id="c-77")
        found = [one async for one in records.SearchSubject(rec.SearchSubjectRequest(scope=scope, limit=10))]
        assert [one.request_id for one in found] == [request_id]
        erased = await records.EraseSubject(rec.EraseSubjectRequest(scope=scope, basis="PDPO s.26"))
        assert erased.erased_records == 1
        leaf = verify_receipt(erased.receipt.tlog_proof, keys)
        assert (leaf.fields["type"], leaf.fields["basis"], leaf.fields["record_count"]) == ("erasure", "PDPO s.26", 1)
        assert leaf.fields["actor"].endswith("/workload/privacy-officer")
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await records.ReadRecord(rec.ReadRecordRequest(request_id=request_id))
        assert remote_error(gone.value).reason == "RECORD_ERASED"


async def record_of(door: ScriptedMesh, prompt: bytes, answer: bytes, stop: Sequence[str] = ()) -> str:
    """Record a request as the gateway does. Returns its id."""
    purpose = {"purpose": "customer_support", "territory": "HK", "profile": "default"}
    roles = {"roles": ["user"], "auth_method": ctx.AUTH_METHOD_MTLS, "actor": f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/ada"}
    context = ctx.RequestContext(request_id=uuid7(), tenant="bank", data_class=ctx.DATA_CLASS_PERSONAL, **purpose, **roles)
    asked = audit.Intent(action="chat", model="smollm2", prompt=prompt)
    asked.sampling.stop.extend(stop)
    peer = PeerSettings(target=door.targets["audit"], service="audit", timeout_s=30)
    async with open_channel(peer, door.ca.issue("gateway"), name="test") as channel:
        log = audit_rpc.AuditServiceStub(channel)
        told = await log.Append(audit.AppendRequest(context=context, event_id=uuid7(), intent=asked))
        answered = audit.Outcome(intent_index=told.position.leaf_index, status=audit.OUTCOME_STATUS_ANSWERED, answer=answer)
        await log.Append(audit.AppendRequest(context=context, event_id=uuid7(), outcome=answered))
    return context.request_id


async def test_a_record_that_fits_no_message_is_streamed_in_bounded_pieces(door: ScriptedMesh) -> None:
    prompt, answer = b"\xe5\x95\x8f" * 2_700_000, bytes(range(256)) * 31_000  # each near the limit of a message
    request_id = await record_of(door, prompt, answer, ["stop here"])
    async with as_role(door, "privacy_officer") as channel:
        records = rec_rpc.RecordsServiceStub(channel)
        await records.CorrectRecord(rec.CorrectRecordRequest(request_id=request_id, statement="no, that"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await records.ReadRecord(rec.ReadRecordRequest(request_id=request_id))
        assert remote_error(refused.value).reason == "RECORD_TOO_LARGE"
        before = (await records.GetLogStats(rec.GetLogStatsRequest())).leaves
        pieces = [piece async for piece in records.StreamRecord(rec.StreamRecordRequest(request_id=request_id))]
        after = (await records.GetLogStats(rec.GetLogStatsRequest())).leaves
    assert (pieces[0].position.leaf_index, after) == (before, before + 1)  # one leaf of this reading
    assert max(piece.ByteSize() for piece in pieces) < 257 * 1024
    assert [piece.WhichOneof("piece") for piece in pieces].index("position") == 0
    said: dict[str, bytes] = {}
    for piece in pieces[1:]:
        if piece.HasField("part"):
            kind = piece.part.opening.kind
            assert len(piece.part.opening.salt) == 32
            said[kind] = b""
        else:
            said[kind] += piece.data
    assert said == {"prompt": prompt, "stop": b'["stop here"]', "answer": answer, "correction": b"no, that"}


async def test_the_largest_record_that_fits_a_message_is_read_in_one(door: ScriptedMesh) -> None:
    request_id = await record_of(door, b"q" * 4_100_000, b"a" * 4_200_000)
    async with as_role(door, "reviewer") as channel:
        read = await rec_rpc.RecordsServiceStub(channel).ReadRecord(rec.ReadRecordRequest(request_id=request_id))
    assert (len(read.prompt), len(read.answer)) == (4_100_000, 4_200_000)


async def test_a_reader_who_leaves_in_the_middle_of_a_stream_holds_nothing_up(door: ScriptedMesh) -> None:
    request_id = await record_of(door, b"q" * 7_000_000, b"a" * 7_000_000)
    async with as_role(door, "reviewer") as channel:
        records = rec_rpc.RecordsServiceStub(channel)
        for _ in range(5):
            call = records.StreamRecord(rec.StreamRecordRequest(request_id=request_id))
            async for piece in call:
                if piece.WhichOneof("piece") == "data":
                    break
            call.cancel()
        sizes = [len(piece.data) async for piece in records.StreamRecord(rec.StreamRecordRequest(request_id=request_id))]
    assert sum(sizes) == 14_000_000


# Who may call what: generated from the protos, so that no call is forgotten.


def sensible(method: MethodDescriptor) -> Any:
    """A request that passes its rules and changes nothing that others rely on."""
    request = message_factory.GetMessageClass(method.input_type)()
    values = {
        "request_id": uuid7(),
        "event_id": uuid7(),
        "hold_id": uuid7(),
        "limit": 5,
        "first_size": 1,
        "basis": "asked",
        "reason": "inquiry",
        "statement": "not so",
        "subject_id": "nobody",
        "ground": "PDPO s.20",
        "particulars": "because",
        "request": rec.REFUSED_REQUEST_ACCESS,
        "tenant": "nobody",
    }
    for field in method.input_type.fields:
        if field.name == "scope":
            request.scope.subject_id = "nobody"
        elif field.name in values and field.message_type is None:
            setattr(request, field.name, values[field.name])
    if method.name == "Export":  # of nothing
        getattr(request, "from").FromJsonString("2100-01-01T00:00:00Z")
    return request


async def reason_of(channel: grpc.aio.Channel, method: MethodDescriptor, request: Any) -> str | None:
    """Call, read what comes, and return the reason of the refusal; None without one."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    answer = message_factory.GetMessageClass(method.output_type).FromString
    try:
        if method.server_streaming:
            call = channel.unary_stream(path, type(request).SerializeToString, answer)(request, timeout=10)
            async for _ in call:
                pass
        else:
            await channel.unary_unary(path, type(request).SerializeToString, answer)(request, timeout=10)
    except grpc.aio.AioRpcError as error:
        return remote_error(error).reason
    return None


async def test_every_call_is_permitted_by_role_as_the_table_says_at_the_gateway_and_behind_it(
    door: ScriptedMesh, service: tuple[Path, AuditProcess]
) -> None:
    inner = PeerSettings(target=service[1].target, service="audit", timeout_s=10)
    async with open_channel(inner, door.ca.issue("gateway"), name="test") as behind:
        for role in ROLES:
            async with as_role(door, role) as channel:
                for method in METHODS:
                    await try_call(channel, behind, role, method)


async def try_call(channel: grpc.aio.Channel, behind: grpc.aio.Channel, role: str, method: MethodDescriptor) -> None:
    """Call in a role through the gateway, and as the gateway would; compare with the table."""
    if method.name in INNER:
        assert await reason_of(channel, method, message_factory.GetMessageClass(method.input_type)()) == "METHOD_NOT_FOUND"
        return
    permitted = permissions.CALL_ACTIONS[method.name] in permissions.ROLE_ACTIONS.get(role, ())
    outside = await reason_of(channel, method, sensible(method))
    if role == "stranger":
        assert outside == "UNKNOWN_PRINCIPAL", method.name
    else:
        assert (outside != "ROLE_NOT_PERMITTED") is permitted, (role, method.name, outside)
    request = sensible(method)
    request.context.CopyFrom(context_of(role))
    inside = await reason_of(behind, method, request)
    assert (inside != "ROLE_NOT_PERMITTED") is permitted, (role, method.name, inside)


def context_of(role: str, tenant: str = "bank") -> ctx.RequestContext:
    return ctx.RequestContext(
        request_id=uuid7(),
        tenant=tenant,
        actor=f"spiffe://{TRUST_DOMAIN}/tenant/{tenant}/user/ada",
        auth_method=ctx.AUTH_METHOD_MTLS,
        roles=[role],
        purpose="oversight",
        territory="HK",
        profile="default",
    )


def test_the_gateways_table_is_the_audit_services() -> None:
    assert set(KNOWN_ROLES) == set(permissions.ROLE_ACTIONS)
    policies = AccessPolicies(packaged_roles())
    shared = {action.value for action in permissions.Action}
    for role, permitted in permissions.ROLE_ACTIONS.items():
        who = in_role(role)
        decided = {action for action in shared if policies.decide(who, AccessRequest(Action(action))).allowed}
        assert decided == {action.value for action in permitted}, role
    calls = {name: action.value for methods in CALL_ACTIONS.values() for name, action in methods.items()}
    assert calls == {name: action.value for name, action in permissions.CALL_ACTIONS.items()}
    assert {method.name for method in METHODS} == {*calls, *INNER}
    assert shared < {action.value for action in Action}
    assert permissions.ROLE_ACTIONS["platform_operator"] == frozenset()


def test_the_same_roles_are_behind_the_wall_at_the_gateway_and_in_the_audit_service() -> None:
    policies = AccessPolicies(packaged_roles())
    asked = AccessRequest(Action.READ_RECORD, data_class="suspicion")
    readers = [role for role in KNOWN_ROLES if permissions.Action.READ_RECORD in permissions.ROLE_ACTIONS[role]]
    denials = {role: policies.decide(in_role(role), asked).denial for role in readers}
    assert denials == {role: None if permissions.is_cleared([role]) else Denial.DATA_CLASS for role in readers}
    assert set(readers) >= permissions.CLEARED_ROLES


def in_role(role: str) -> Principal:
    end = datetime(2100, 1, 1, tzinfo=UTC)
    grant = Grant((role,), ("oversight",), frozenset({"*"}), frozenset({"personal", "suspicion"}), "default", not_after=end)
    return Principal("spiffe://td/tenant/bank/user/ada", Tenant(TenantName("bank"), "HK", 4, {}), grant)


async def test_nobody_says_for_himself_who_asks(door: ScriptedMesh) -> None:
    tried = set()
    for role in ("privacy_officer", "tenant_admin"):  # one of them may make each call
        async with as_role(door, role) as channel:
            for method in METHODS:
                if method.name in INNER or permissions.CALL_ACTIONS[method.name] not in permissions.ROLE_ACTIONS[role]:
                    continue
                tried.add(method.name)
                request = sensible(method)
                request.context.CopyFrom(context_of("regulator", "broker"))
                assert await reason_of(channel, method, request) == "INVALID_FIELD", method.name
    assert tried == {method.name for method in METHODS} - set(INNER)


async def test_an_inner_service_does_not_come_through_the_door(door: ScriptedMesh) -> None:
    peer = PeerSettings(target=door.targets["gateway"], service="gateway", timeout_s=10)
    async with open_channel(peer, door.ca.issue("guardrails"), name="test") as channel:
        for method in METHODS:
            assert await reason_of(channel, method, sensible(method)) in ("CALLER_NOT_PERMITTED", "METHOD_NOT_FOUND")


async def test_another_tenant_sees_nothing(door: ScriptedMesh, ask: Any, hear: Any) -> None:
    async with door.calling() as gateway:
        heard = await hear(gateway.Chat(ask("Private.", subject_ids=["c-1"])))
    async with as_role(door, "auditor", "broker") as channel:
        records = rec_rpc.RecordsServiceStub(channel)
        read = SERVICES["RecordsService"].methods_by_name["ReadRecord"]
        wanted = rec.ReadRecordRequest(request_id=heard.started.request_id)
        assert await reason_of(channel, read, wanted) == "VAULT_DISABLED"
        stats = await records.GetLogStats(rec.GetLogStatsRequest())
        assert (stats.leaves, dict(stats.records)) == (0, {})


async def test_retention_and_holds_refuse_with_what_the_caller_needs_to_know(door: ScriptedMesh, ask: Any, hear: Any) -> None:
    async with door.calling() as gateway:
        await hear(gateway.Chat(ask("Advise me.", subject_ids=["c-ret"], purpose="drafting")))
        await hear(gateway.Chat(ask("Chat.", subject_ids=["c-held"])))
    async with as_role(door, "privacy_officer") as channel:
        records = rec_rpc.RecordsServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as retained:
            await records.EraseSubject(rec.EraseSubjectRequest(scope=rec.RecordScope(subject_id="c-ret"), basis="asked"))
        error = remote_error(retained.value)
        assert (error.status.name, error.reason, error.metadata["records"]) == ("FAILED_PRECONDITION", "RETENTION_APPLIES", "1")
        assert error.metadata["until"].endswith("Z")
        scope = rec.RecordScope(subject_id="c-held")
        placed = await records.PlaceHold(rec.PlaceHoldRequest(scope=scope, reason="litigation"))
        held = [one async for one in records.ListHolds(rec.ListHoldsRequest())]
        assert [(one.scope.subject_id, one.reason) for one in held if one.hold_id == placed.hold_id] == [("c-held", "litigation")]
        partly = await records.EraseSubject(rec.EraseSubjectRequest(scope=scope, basis="asked", allow_partial=True))
        assert (partly.erased_records, dict(partly.kept_records)) == (0, {"LEGAL_HOLD_APPLIES": 1})
        await records.ReleaseHold(rec.ReleaseHoldRequest(hold_id=placed.hold_id))
        assert (await records.EraseSubject(rec.EraseSubjectRequest(scope=scope, basis="asked"))).erased_records == 1


async def test_leaves_of_suspicion_are_withheld_from_whoever_is_not_cleared(door: ScriptedMesh, ask: Any, hear: Any) -> None:
    question = ask("STR?", data_class=ctx.DATA_CLASS_SUSPICION, case_id="CASE-STR", purpose="oversight")
    async with as_role(door, "user") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await hear(gateway_rpc.GatewayServiceStub(channel).Chat(question))
        assert remote_error(refused.value).reason == "DATA_CLASS_NOT_PERMITTED"
    async with as_role(door, "mlro") as channel:
        heard = await hear(gateway_rpc.GatewayServiceStub(channel).Chat(question))
    hidden: dict[str, set[int]] = {}
    for role in ("auditor", "regulator"):
        async with as_role(door, role) as channel:
            log = audit_rpc.AuditServiceStub(channel)
            leaves = [leaf async for page in log.ListLeaves(audit.ListLeavesRequest(limit=10_000)) for leaf in page.leaves]
            hidden[role] = {leaf.leaf_index for leaf in leaves if not leaf.data}
            assert all(len(leaf.withheld_leaf_hash) == 32 for leaf in leaves if not leaf.data)
            assert any(b"CASE-STR" in leaf.data for leaf in leaves) is (role == "regulator")
            receipt = SERVICES["AuditService"].methods_by_name["GetReceipt"]
            wanted = audit.GetReceiptRequest(event_id=heard.started.request_id)
            assert await reason_of(channel, receipt, wanted) == ("LEAF_NOT_FOUND" if role == "auditor" else None)
            search = SERVICES["RecordsService"].methods_by_name["ReadRecord"]
            expected = "RECORD_NOT_FOUND" if role == "auditor" else None
            assert await reason_of(channel, search, rec.ReadRecordRequest(request_id=heard.started.request_id)) == expected
    assert hidden["regulator"] == set()
    assert heard.finished.receipt.position.leaf_index in hidden["auditor"]


async def test_a_stream_that_its_reader_leaves_is_left_by_the_gateway_too(door: ScriptedMesh) -> None:
    async with as_role(door, "auditor") as channel:
        log = audit_rpc.AuditServiceStub(channel)
        call = log.ListLeaves(audit.ListLeavesRequest(limit=10_000))
        await anext(aiter(call))
        call.cancel()
        assert (await log.GetCheckpoint(audit.GetCheckpointRequest())).checkpoint


async def test_no_person_and_no_word_is_in_the_services_log(
    door: ScriptedMesh, service: tuple[Path, AuditProcess], ask: Any, hear: Any
) -> None:
    canary = "canary-5b1e"
    async with door.calling() as gateway:
        await hear(gateway.Chat(ask(canary, subject_ids=[canary])))
    async with as_role(door, "privacy_officer") as channel:
        records = rec_rpc.RecordsServiceStub(channel)
        scope = rec.RecordScope(subject_id=canary)
        await records.LogRefusal(
            rec.LogRefusalRequest(request=rec.REFUSED_REQUEST_ACCESS, subject_id=canary, ground="s.20", particulars=canary)
        )
        await records.PlaceHold(rec.PlaceHoldRequest(scope=scope, reason="inquiry"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await records.EraseSubject(rec.EraseSubjectRequest(scope=scope, basis="asked"))
    assert canary not in str(refused.value)
    assert canary not in "".join(service[1].log)
