"""Emergency access, from two people's certificates to records that they read or do not, before the real audit service."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2

from audit_process import AuditProcess
from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.audit.v1 import records_pb2 as rec
from lionrock.audit.v1.audit_pb2_grpc import AuditServiceStub
from lionrock.audit.v1.records_pb2_grpc import RecordsServiceStub
from lionrock.audit.verify import verify_receipt
from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import RemoteError, remote_error
from lionrock.chassis.ids import uuid7
from lionrock.chassis.settings import PeerSettings
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.emergencies import rows
from lionrock.gateway.identity.settings import ApiKeySettings
from lionrock.gateway.state.opening import StateSettings
from lionrock.gateway.v1 import api_key_pb2 as keys
from lionrock.gateway.v1 import break_glass_pb2 as pb
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1.api_key_pb2_grpc import ApiKeyServiceStub
from lionrock.gateway.v1.break_glass_pb2_grpc import BreakGlassServiceStub
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from mesh_ca import TRUST_DOMAIN, DevCa
from oidc_issuer import OidcIssuer
from scripted_mesh import MODEL, ScriptedMesh, tenant

EVERYWHERE_S = 5.0
PEOPLE = {
    "guard": ["security"],
    "admin": ["tenant_admin", "user"],
    "risk": ["model_risk"],
    "officer": ["privacy_officer"],
    "mlro": ["mlro"],
    "both": ["security", "privacy_officer"],
    "chief": ["tenant_admin", "privacy_officer"],
    "auditor": ["auditor"],
    "teller": ["user"],
    "operator": ["platform_operator", "security"],
}
WHY = "the incident of the third of May"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AuditProcess]]:
    directory = tmp_path_factory.mktemp("emergencies")
    process = AuditProcess(directory, DevCa(directory))
    yield directory, process
    process.stop()


@dataclass
class Mesh:
    """Two gateways of one mesh that share a state."""

    scripted: ScriptedMesh
    second: ScriptedMesh
    audit: AuditProcess
    state_file: Path
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def channel(self, who: str, *, kind: str = "user", second: bool = False) -> grpc.aio.Channel:
        """As somebody of the bank."""
        mesh = self.second if second else self.scripted
        identity = mesh.ca.issue(spiffe_id=f"spiffe://{TRUST_DOMAIN}/tenant/bank/{kind}/{who}")
        peer = PeerSettings(target=mesh.targets["gateway"], service="gateway", timeout_s=20)
        return await self.stack.enter_async_context(open_channel(peer, identity, name="test"))

    async def emergencies(self, who: str, **how: Any) -> Any:
        return BreakGlassServiceStub(await self.channel(who, **how))

    async def records(self, who: str, **how: Any) -> Any:
        return RecordsServiceStub(await self.channel(who, **how))

    async def requested(self, who: str = "guard", **fields: Any) -> str:
        """Ask. Returns the id."""
        service = await self.emergencies(who)
        asked = pb.RequestEmergencyRequest(reason=WHY, duration=duration_pb2.Duration(seconds=3600), **fields)
        return str((await service.RequestEmergency(asked)).emergency.emergency_id)

    async def approved(self, who: str = "guard", by: str = "officer", **fields: Any) -> str:
        """Ask and approve. Returns the id."""
        emergency_id = await self.requested(who, **fields)
        service = await self.emergencies(by)
        await service.ApproveEmergency(pb.ApproveEmergencyRequest(emergency_id=emergency_id, reason="I spoke to them"))
        return emergency_id

    async def chat(self, who: str = "teller", **fields: Any) -> str:
        """Ask the model something. Returns the request's id."""
        gateway = GatewayServiceStub(await self.channel(who))
        request = gw.ChatRequest(messages=[{"role": "CHAT_ROLE_USER", "content": "What is my balance?"}], **fields)
        responses = [response async for response in gateway.Chat(request)]
        return str(responses[0].started.request_id)

    async def leaves(self, start: int = 0) -> list[dict[str, Any]]:
        """Leaves of the bank's log that say something of emergencies, as a regulator would see them."""
        service = AuditServiceStub(await self.channel("mlro-auditor"))
        found = []
        async for page in service.ListLeaves(audit.ListLeavesRequest(start=start, limit=10000)):
            found += [json.loads(leaf.data) for leaf in page.leaves if leaf.data]
        return [leaf for leaf in found if "break_glass_id" in leaf]

    async def of(self, emergency_id: str) -> list[dict[str, Any]]:
        return [leaf for leaf in await self.leaves() if leaf["break_glass_id"] == emergency_id]

    def change_state(self, sql: str, *values: object) -> None:
        """Change the state as somebody at the database could."""
        with closing(sqlite3.connect(self.state_file, timeout=5)) as database, database:
            database.execute(sql, values)
            database.execute("UPDATE emergency_changes SET changes = changes + 1")

    def rename(self, table: str, name: str) -> None:
        """Take a table away, or bring it back."""
        with closing(sqlite3.connect(self.state_file, timeout=5)) as database, database:
            database.execute(f"ALTER TABLE {table} RENAME TO {name}")


def bank() -> dict[str, Any]:
    settings = tenant("bank", data_classes=["personal"])
    for who, roles in {**PEOPLE, "mlro-auditor": ["mlro", "auditor"]}.items():
        person = {"spiffe_id": f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/{who}", "roles": roles, "purposes": ["testing"]}
        settings["principals"].append({**person, "data_classes": ["personal", "suspicion"]})
    robot = {"spiffe_id": f"spiffe://{TRUST_DOMAIN}/tenant/bank/workload/robot", "roles": ["security", "privacy_officer"]}
    settings["principals"].append({**robot, "purposes": ["testing"]})
    return settings


@pytest.fixture
async def mesh(service: tuple[Path, AuditProcess], tmp_path: Path) -> AsyncIterator[Mesh]:
    directory, process = service
    secret = tmp_path / "secret"
    secret.write_text("s" * 32)
    secret.chmod(0o600)
    meshes = []
    async with AsyncExitStack() as stack:
        for _ in range(2):
            scripted = TokenMesh(directory)
            scripted.targets = {"audit": process.target}
            scripted.tenants = [bank(), tenant("broker")]
            scripted.gateway_changes = {
                "state": StateSettings(sqlite_file=tmp_path / "state.db"),
                "api_keys": ApiKeySettings(secret_file=secret),
            }
            meshes.append(await stack.enter_async_context(scripted.running()))
        yield await entered(stack, Mesh(*meshes, process, tmp_path / "state.db"))


class TokenMesh(ScriptedMesh):
    """Its gateway listens for callers without a certificate too."""

    def server_settings(self, service: str, **server: Any) -> dict[str, Any]:
        return super().server_settings(service, **(server | ({"token_listen": "127.0.0.1:0"} if service == "gateway" else {})))


async def entered(stack: AsyncExitStack, mesh: Mesh) -> Mesh:
    await stack.enter_async_context(mesh.stack)
    return mesh


async def refused(call: Awaitable[Any]) -> RemoteError:
    """Expect a refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return remote_error(error.value)


async def within_s(seconds: float, question: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so."""
    async with asyncio.timeout(seconds):
        while not await question():  # noqa: ASYNC110 - another process' time is waited for
            await asyncio.sleep(0.05)


async def reads(records: Any, request_id: str) -> bool:
    """Whether a record is shown; anything but the refusals of an emergency fails."""
    try:
        await records.ReadRecord(rec.ReadRecordRequest(request_id=request_id))
    except grpc.aio.AioRpcError as error:
        if remote_error(error).reason not in ("ROLE_NOT_PERMITTED", "RECORD_NOT_FOUND"):
            raise
        return False
    return True


async def test_two_people_open_records_at_every_gateway_and_the_log_says_all_of_it(mesh: Mesh) -> None:
    asked = await mesh.chat(subject_ids=["c-77"])
    here, there = await mesh.records("guard"), await mesh.records("guard", second=True)
    assert not await reads(here, asked)
    emergency_id = await mesh.requested()
    officer = await mesh.emergencies("officer")
    (waiting,) = (await officer.ListEmergencies(pb.ListEmergenciesRequest(page_size=10))).emergencies
    assert (waiting.emergency_id, waiting.state, waiting.decided_by) == (emergency_id, pb.EMERGENCY_STATE_REQUESTED, "")
    why = await (await mesh.records("officer")).ReadRecord(rec.ReadRecordRequest(request_id=emergency_id))
    assert [said.text for said in why.statements] == [WHY]
    assert not await reads(here, asked)

    done = await officer.ApproveEmergency(pb.ApproveEmergencyRequest(emergency_id=emergency_id, reason="I spoke to them"))
    for records in (here, there):
        await within_s(EVERYWHERE_S, lambda records=records: reads(records, asked))
    scope = rec.RecordScope(subject_id="c-77")
    found = [one async for one in here.SearchSubject(rec.SearchSubjectRequest(scope=scope, limit=5))]
    assert [one.request_id for one in found] == [asked]
    archive = b"".join([piece.data async for piece in here.Export(rec.ExportRequest(with_payloads=True))])
    assert archive.startswith(b"PK")
    assert (await refused(here.EraseSubject(rec.EraseSubjectRequest(scope=scope, basis="x")))).reason == "ROLE_NOT_PERMITTED"
    held = rec.PlaceHoldRequest(scope=scope, reason="x")
    assert (await refused(here.PlaceHold(held))).reason == "ROLE_NOT_PERMITTED"

    ended = await (await mesh.emergencies("guard", second=True)).EndEmergency(pb.EndEmergencyRequest(emergency_id=emergency_id))

    async def nobody_reads() -> bool:
        return not await reads(here, asked) and not await reads(there, asked)

    await within_s(EVERYWHERE_S, nobody_reads)

    leaves = await mesh.of(emergency_id)
    told = [leaf.get("operation", leaf["type"]) for leaf in leaves if leaf["type"] == "governance"]
    assert told == ["break_glass.requested", "break_glass.approved", "break_glass.ended"]
    assert [leaf["actor"].rpartition("/")[2] for leaf in leaves if leaf["type"] == "governance"] == ["guard", "officer", "guard"]
    under_it = [leaf for leaf in leaves if leaf["type"] == "access"]
    assert {leaf["operation"] for leaf in under_it} == {"read_record", "search_subject"}
    under_it += [leaf for leaf in leaves if leaf["type"] == "export"]
    assert len({leaf["type"] for leaf in under_it}) == 2
    assert all(leaf["roles"] == ["emergency_reader", "security"] for leaf in under_it)
    assert WHY not in json.dumps(leaves)
    keys_of_log = (await GatewayServiceStub(await mesh.channel("teller")).ListAuditKeys(gw.ListAuditKeysRequest())).verifier_keys
    for receipt, operation in ((done.receipt, "break_glass.approved"), (ended.receipt, "break_glass.ended")):
        leaf = verify_receipt(receipt.tlog_proof, keys_of_log)
        assert (leaf.fields["operation"], leaf.fields["object_id"]) == (operation, emergency_id)


async def test_nobody_decides_on_their_own_and_no_key_and_no_workload_takes_part(mesh: Mesh) -> None:
    own = await mesh.requested("both")
    both = await mesh.emergencies("both")
    for call in (both.ApproveEmergency(pb.ApproveEmergencyRequest(emergency_id=own, reason="x")),
                 both.DenyEmergency(pb.DenyEmergencyRequest(emergency_id=own, reason="x"))):  # fmt: skip
        assert (await refused(call)).reason == "REQUESTER_MAY_NOT_DECIDE"
    robot = await mesh.emergencies("robot", kind="workload")
    asked = pb.RequestEmergencyRequest(reason="x", duration=duration_pb2.Duration(seconds=60))
    for call in (
        robot.RequestEmergency(asked),
        robot.ApproveEmergency(pb.ApproveEmergencyRequest(emergency_id=own, reason="x")),
        robot.EndEmergency(pb.EndEmergencyRequest(emergency_id=own)),
    ):
        assert (await refused(call)).reason == "ROLE_NOT_PERMITTED"
    for who in ("teller", "auditor", "operator"):
        service = await mesh.emergencies(who)
        assert (await refused(service.RequestEmergency(asked))).reason == "ROLE_NOT_PERMITTED"
        approve = service.ApproveEmergency(pb.ApproveEmergencyRequest(emergency_id=own, reason="x"))
        assert (await refused(approve)).reason == "ROLE_NOT_PERMITTED"


async def test_an_api_key_of_an_approver_approves_nothing(mesh: Mesh) -> None:
    emergency_id = await mesh.requested()
    wanted = keys.CreateApiKeyRequest(
        description="mine",
        roles=["tenant_admin", "privacy_officer"],
        purposes=["testing"],
        models=[MODEL],
        lifetime=duration_pb2.Duration(seconds=3600),
    )
    secret = (await ApiKeyServiceStub(await mesh.channel("chief")).CreateApiKey(wanted)).secret
    credentials = grpc.ssl_channel_credentials(mesh.scripted.ca.authority.certificate_pem)
    options = [("grpc.ssl_target_name_override", "gateway.lionrock.internal")]
    target = f"127.0.0.1:{mesh.scripted.servers['gateway'].token_port}"
    async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
        service, bearer = BreakGlassServiceStub(channel), (("authorization", f"Bearer {secret}"),)
        asked = pb.RequestEmergencyRequest(reason="x", duration=duration_pb2.Duration(seconds=60))

        async def known() -> bool:
            return (await refused(service.RequestEmergency(asked, metadata=bearer))).reason != "TOKEN_INVALID"

        await within_s(EVERYWHERE_S, known)
        for call in (
            service.RequestEmergency(asked, metadata=bearer),
            service.ApproveEmergency(pb.ApproveEmergencyRequest(emergency_id=emergency_id, reason="x"), metadata=bearer),
            service.EndEmergency(pb.EndEmergencyRequest(emergency_id=emergency_id), metadata=bearer),
        ):
            assert (await refused(call)).reason == "ROLE_NOT_PERMITTED"


async def test_of_many_who_decide_at_once_exactly_one_does_and_the_log_has_one_decision(mesh: Mesh) -> None:
    emergency_id = await mesh.requested()
    services = [await mesh.emergencies(who, second=second) for who in ("officer", "mlro") for second in (False, True)]
    calls = []
    for service in services:
        calls.append(service.ApproveEmergency(pb.ApproveEmergencyRequest(emergency_id=emergency_id, reason="yes")))
        calls.append(service.DenyEmergency(pb.DenyEmergencyRequest(emergency_id=emergency_id, reason="no")))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refusals = [remote_error(answer).reason for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert refusals == ["EMERGENCY_DECIDED"] * (len(calls) - 1)
    decisions = [leaf for leaf in await mesh.of(emergency_id) if leaf.get("operation", "") != "break_glass.requested"]
    assert len(decisions) == 1


async def test_suspicion_stays_behind_the_wall_unless_an_mlro_approved_it(mesh: Mesh) -> None:
    suspicious = await mesh.chat("mlro", data_class="DATA_CLASS_SUSPICION")
    ordinary = await mesh.chat()
    emergency_id = await mesh.approved("risk")
    risk = await mesh.records("risk")
    await within_s(EVERYWHERE_S, lambda: reads(risk, ordinary))
    error = await refused(risk.ReadRecord(rec.ReadRecordRequest(request_id=suspicious)))
    assert error.reason == "RECORD_NOT_FOUND"
    await (await mesh.emergencies("risk")).EndEmergency(pb.EndEmergencyRequest(emergency_id=emergency_id))

    wider = await mesh.requested("risk", suspicion=True)
    officer = await mesh.emergencies("officer")
    approve = pb.ApproveEmergencyRequest(emergency_id=wider, reason="x")
    missing = pb.ApproveEmergencyRequest(emergency_id=uuid7(), reason="x")
    for call in (officer.ApproveEmergency(approve), officer.ApproveEmergency(missing)):
        assert (await refused(call)).reason == "EMERGENCY_NOT_FOUND"
    assert (await refused(officer.EndEmergency(pb.EndEmergencyRequest(emergency_id=wider)))).reason == "EMERGENCY_NOT_FOUND"
    for who in ("officer", "admin", "auditor"):
        listed = await (await mesh.emergencies(who)).ListEmergencies(pb.ListEmergenciesRequest(page_size=100, include_closed=True))
        assert wider not in [one.emergency_id for one in listed.emergencies]
    own = await (await mesh.emergencies("risk")).ListEmergencies(pb.ListEmergenciesRequest(page_size=100))
    assert [one.emergency_id for one in own.emergencies] == [wider]
    await (await mesh.emergencies("mlro")).ApproveEmergency(approve)
    await within_s(EVERYWHERE_S, lambda: reads(risk, suspicious))
    leaves = await mesh.of(wider)
    assert {leaf["data_class"] for leaf in leaves if leaf["type"] == "governance"} == {"suspicion"}
    (access,) = [leaf for leaf in leaves if leaf["type"] == "access"]
    assert access["roles"] == ["emergency_cleared", "emergency_reader", "model_risk"]


async def test_a_decision_that_was_cut_off_between_leaf_and_effect_is_finished_by_the_next(mesh: Mesh) -> None:
    emergency_id = await mesh.requested()
    decision_id, officer = uuid7(), f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/officer"
    mesh.change_state(
        "UPDATE emergencies SET decision = 'approved', decided_by = ?, decision_id = ?, claimed_at_us = requested_at_us"
        " WHERE emergency_id = ?",
        officer, decision_id, emergency_id,
    )  # fmt: skip
    service = await mesh.emergencies("mlro")
    deny = pb.DenyEmergencyRequest(emergency_id=emergency_id, reason="no")
    error = await refused(service.DenyEmergency(deny))
    assert (error.reason, error.retry_after_s) == ("EMERGENCY_DECIDED", rows.CLAIM_US / 1e6)

    (requested,) = await mesh.of(emergency_id)
    context = ctx.RequestContext(
        request_id=decision_id, tenant="bank", actor=officer, auth_method=ctx.AUTH_METHOD_MTLS, roles=["privacy_officer"],
        purpose="testing", territory="HK", profile="default", break_glass_id=emergency_id, data_class=ctx.DATA_CLASS_PERSONAL,
    )  # fmt: skip
    governance = audit.Governance(operation="break_glass.approved", object_id=emergency_id, details=requested["details"])
    peer = PeerSettings(target=mesh.audit.target, service="audit", timeout_s=20)
    async with open_channel(peer, mesh.scripted.ca.issue("gateway"), name="test") as channel:
        leaf = audit.AppendRequest(context=context, event_id=decision_id, governance=governance, want_receipt=True)
        await AuditServiceStub(channel).Append(leaf)
    mesh.change_state(
        "UPDATE emergencies SET claimed_at_us = claimed_at_us - ? WHERE emergency_id = ?", rows.CLAIM_US, emergency_id
    )
    assert (await refused(service.DenyEmergency(deny))).reason == "EMERGENCY_DECIDED"
    listed = (await service.ListEmergencies(pb.ListEmergenciesRequest(page_size=10))).emergencies
    assert [(one.emergency_id, one.state) for one in listed] == [(emergency_id, pb.EMERGENCY_STATE_APPROVED)]
    asked, records = await mesh.chat(), await mesh.records("guard")
    await within_s(EVERYWHERE_S, lambda: reads(records, asked))


async def test_a_decision_whose_leaf_was_never_written_is_made_again(mesh: Mesh) -> None:
    emergency_id = await mesh.requested()
    mesh.change_state(
        "UPDATE emergencies SET decision = 'approved', decided_by = 'x', decision_id = ?, claimed_at_us = 1 WHERE emergency_id = ?",
        uuid7(), emergency_id,
    )  # fmt: skip
    service = await mesh.emergencies("officer")
    done = await service.DenyEmergency(pb.DenyEmergencyRequest(emergency_id=emergency_id, reason="no"))
    assert done.emergency.state == pb.EMERGENCY_STATE_DENIED


async def test_whoever_writes_rows_opens_nothing(mesh: Mesh) -> None:
    asked = await mesh.chat()
    emergency_id = await mesh.requested()
    mesh.change_state(
        "UPDATE emergencies SET state = 'approved', decision = 'approved', decided_by = 'x', decision_id = ?, decided_at_us = 1,"
        " claimed_at_us = 1 WHERE emergency_id = ?",
        uuid7(), emergency_id,
    )  # fmt: skip
    records, first = await mesh.records("guard"), await mesh.approved("risk")
    risk = await mesh.records("risk")
    await within_s(EVERYWHERE_S, lambda: reads(risk, asked))  # so the gateway has looked since
    assert first != emergency_id
    assert not await reads(records, asked)


async def test_it_ends_by_itself_and_the_log_says_so(mesh: Mesh) -> None:
    asked = await mesh.chat()
    emergency_id = await mesh.approved()
    records = await mesh.records("guard")
    await within_s(EVERYWHERE_S, lambda: reads(records, asked))
    mesh.change_state("UPDATE emergencies SET ends_at_us = ? WHERE emergency_id = ?", 1, emergency_id)

    async def closed() -> bool:
        return not await reads(records, asked)

    await within_s(EVERYWHERE_S, closed)

    async def expiries() -> list[dict[str, Any]]:
        return [leaf for leaf in await mesh.of(emergency_id) if leaf.get("operation") == "break_glass.expired"]

    async def said() -> bool:
        return bool(await expiries())

    await within_s(2 * EVERYWHERE_S, said)
    (leaf,) = await expiries()
    assert (leaf["details"]["recorded_by"], leaf["details"]["was"]) == ("gateway", "approved")
    listed = await (await mesh.emergencies("auditor")).ListEmergencies(pb.ListEmergenciesRequest(page_size=10, include_closed=True))
    assert [one.state for one in listed.emergencies if one.emergency_id == emergency_id] == [pb.EMERGENCY_STATE_EXPIRED]


async def test_a_stream_is_cut_when_the_emergency_ends(mesh: Mesh) -> None:
    context = ctx.RequestContext(
        request_id=uuid7(), tenant="bank", actor=f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/teller", roles=["user"],
        auth_method=ctx.AUTH_METHOD_MTLS, purpose="testing", territory="HK", profile="default", data_class=ctx.DATA_CLASS_PERSONAL,
    )  # fmt: skip
    peer = PeerSettings(target=mesh.audit.target, service="audit", timeout_s=20)
    async with open_channel(peer, mesh.scripted.ca.issue("gateway"), name="test") as channel:
        log = AuditServiceStub(channel)
        intent = audit.Intent(action="chat", model=MODEL, prompt=b"p" * (8 * 2**20 - 65536))
        opened = await log.Append(audit.AppendRequest(context=context, event_id=uuid7(), intent=intent))
        outcome = audit.Outcome(status=audit.OUTCOME_STATUS_ANSWERED, answer=b"a" * (8 * 2**20 - 65536))
        outcome.intent_index = opened.position.leaf_index
        await log.Append(audit.AppendRequest(context=context, event_id=uuid7(), outcome=outcome))
    emergency_id = await mesh.approved()
    records, other = await mesh.records("guard"), await mesh.chat()
    await within_s(EVERYWHERE_S, lambda: reads(records, other))
    stream = records.StreamRecord(rec.StreamRecordRequest(request_id=context.request_id))
    await stream.read()
    await (await mesh.emergencies("guard")).EndEmergency(pb.EndEmergencyRequest(emergency_id=emergency_id))

    async def over() -> bool:
        return not await reads(records, other)

    await within_s(EVERYWHERE_S, over)

    async def rest() -> None:
        while await stream.read() is not grpc.aio.EOF:
            pass

    assert (await refused(rest())).reason == "ROLE_NOT_PERMITTED"


async def test_while_the_log_does_not_answer_nobody_opens_anything_and_everybody_can_end(
    mesh: Mesh, tmp_path: Path, service: tuple[Path, AuditProcess]
) -> None:
    directory, process = service
    lonely = ScriptedMesh(directory)  # its audit service goes away; the others' stays
    lonely.tenants, lonely.peer_timeout_s = [bank()], 1.0
    lonely.gateway_changes = {"state": StateSettings(sqlite_file=tmp_path / "lonely.db")}
    async with lonely.running(), AsyncExitStack() as stack:
        here = Mesh(lonely, lonely, process, tmp_path / "lonely.db", stack)
        emergency_id = await here.requested()
        await lonely.kill_peer("audit")
        officer = await here.emergencies("officer")
        approve = officer.ApproveEmergency(pb.ApproveEmergencyRequest(emergency_id=emergency_id, reason="x"))
        assert (await refused(approve)).reason == "AUDIT_UNAVAILABLE"
        asked = pb.RequestEmergencyRequest(reason="x", duration=duration_pb2.Duration(seconds=60))
        assert (await refused((await here.emergencies("risk")).RequestEmergency(asked))).reason == "AUDIT_UNAVAILABLE"
        assert [
            (one.emergency_id, one.state)
            for one in (await officer.ListEmergencies(pb.ListEmergenciesRequest(page_size=10))).emergencies
        ] == [(emergency_id, pb.EMERGENCY_STATE_REQUESTED)]
        end = (await here.emergencies("guard")).EndEmergency(pb.EndEmergencyRequest(emergency_id=emergency_id))
        assert (await refused(end)).reason == "AUDIT_UNAVAILABLE"
        assert not (await officer.ListEmergencies(pb.ListEmergenciesRequest(page_size=10))).emergencies


async def test_while_the_state_cannot_be_read_no_emergency_counts_and_own_roles_do(mesh: Mesh) -> None:
    asked, emergency_id = await mesh.chat(), await mesh.approved()
    records, officer = await mesh.records("guard"), await mesh.records("officer")
    await within_s(EVERYWHERE_S, lambda: reads(records, asked))
    mesh.rename("emergency_changes", "gone")

    async def unknown() -> bool:
        try:
            await records.ReadRecord(rec.ReadRecordRequest(request_id=asked))
        except grpc.aio.AioRpcError as error:
            assert remote_error(error).reason == "STATE_UNAVAILABLE"  # noqa: PT017 - any other refusal is wrong
            return True
        return False

    await within_s(EVERYWHERE_S, unknown)
    assert await reads(officer, asked)
    mesh.rename("gone", "emergency_changes")

    async def known() -> bool:
        return not await unknown()

    await within_s(EVERYWHERE_S, known)
    access = [leaf for leaf in await mesh.of(emergency_id) if leaf["type"] == "access"]
    assert {leaf["actor"].rpartition("/")[2] for leaf in access} == {"guard"}


async def test_one_person_with_a_token_and_a_certificate_is_not_two(service: tuple[Path, AuditProcess], tmp_path: Path) -> None:
    directory, process = service
    async with OidcIssuer(tmp_path).serving() as issuer, AsyncExitStack() as stack:
        scripted = ScriptedMesh(directory)
        scripted.targets = {"audit": process.target}
        bindings = [
            {"value": "guard", "roles": ["security"], "purposes": ["testing"]},
            {"value": "officer", "roles": ["privacy_officer"], "purposes": ["testing"]},
        ]
        scripted.tenants = [{**bank(), "issuers": [issuer.spec(bindings=bindings)]}]
        scripted.gateway_changes = {"state": StateSettings(sqlite_file=tmp_path / "state.db")}
        await stack.enter_async_context(scripted.running())
        here = Mesh(scripted, scripted, process, tmp_path / "state.db", stack)
        officer = await here.emergencies("officer")  # the certificate of Ada, who is a privacy officer, and on duty tonight too

        def bearer(who: str, roles: Sequence[str]) -> list[tuple[str, str]]:
            return [("authorization", f"Bearer {issuer.token(sub=who, groups=roles)}")]

        duty = bearer("ada", ["guard"])

        async def accepted() -> bool:
            try:
                await officer.ListEmergencies(pb.ListEmergenciesRequest(page_size=1), metadata=duty)
            except grpc.aio.AioRpcError as error:
                if remote_error(error).reason != "TOKEN_INVALID":
                    raise
                return False
            return True

        await within_s(10, accepted)
        asked = pb.RequestEmergencyRequest(reason="x", duration=duration_pb2.Duration(seconds=600))
        emergency_id = (await officer.RequestEmergency(asked, metadata=duty)).emergency.emergency_id
        approve = pb.ApproveEmergencyRequest(emergency_id=emergency_id, reason="x")
        assert (await refused(officer.ApproveEmergency(approve))).reason == "REQUESTER_MAY_NOT_DECIDE"
        other = await here.emergencies("chief")
        same = other.ApproveEmergency(approve, metadata=bearer("ada", ["officer"]))
        assert (await refused(same)).reason == "REQUESTER_MAY_NOT_DECIDE"
        done = await other.ApproveEmergency(approve, metadata=bearer("bob", ["officer"]))
        assert done.emergency.decided_by == f"{issuer.url}#bob"


# A regulator's time


async def test_a_regulator_reads_until_the_inspection_ends_and_not_a_moment_longer(
    service: tuple[Path, AuditProcess], tmp_path: Path
) -> None:
    directory, process = service
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=7)
    inspector = {
        "spiffe_id": f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/inspector",
        "roles": ["regulator"],
        "purposes": ["testing"],
        "not_after": ends.isoformat(),
    }
    inspected = ScriptedMesh(directory)
    inspected.targets = {"audit": process.target}
    inspected.tenants = [bank()]
    inspected.tenants[0]["principals"].append(inspector)
    async with inspected.running(), AsyncExitStack() as stack:
        here = Mesh(inspected, inspected, process, tmp_path / "none.db", stack)
        asked, records = await here.chat(), await here.records("inspector")
        assert await reads(records, asked)
        last_read = datetime.now(UTC)
        async with asyncio.timeout(20):
            while await reads(records, asked):
                last_read = datetime.now(UTC)
        assert last_read - timedelta(seconds=1) < ends <= datetime.now(UTC)
        for call in (
            records.GetLogStats(rec.GetLogStatsRequest()),
            GatewayServiceStub(await here.channel("inspector")).ListAuditKeys(gw.ListAuditKeysRequest()),
        ):
            assert (await refused(call)).reason == "ROLE_NOT_PERMITTED"
