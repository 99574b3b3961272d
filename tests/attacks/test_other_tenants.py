"""Nobody learns of another tenant's objects: for every RPC, by every role, by every field that names one.

What is asked for exists in one call and not in the other, and the two answers must be the same. The RPCs are found by the
descriptors of what the gateway registers, so that none can be forgotten.
"""

from __future__ import annotations

import grpc
from google.protobuf.descriptor import MethodDescriptor

from access_table import ACTIONS as TABLE
from access_table import permitted
from attacks.answers import Answer, answer
from attacks.rpcs import ACTIONS, Kind, Way, methods_of, name_of, sensible, unknown_fields, ways_of
from attacks.tenants import BANK, BROKER, STRANGER, AttackedMesh, Belongings
from lionrock.audit.v1 import records_pb2 as rec
from lionrock.audit.v1.records_pb2_grpc import RecordsServiceStub
from lionrock.gateway.v1 import api_key_pb2 as keys
from lionrock.gateway.v1 import break_glass_pb2 as emergencies
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1 import review_pb2 as reviews
from lionrock.gateway.v1.api_key_pb2_grpc import ApiKeyServiceStub
from lionrock.gateway.v1.break_glass_pb2_grpc import BreakGlassServiceStub
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from lionrock.gateway.v1.review_pb2_grpc import ReviewServiceStub
from lionrock.tenancy.vocabulary import ROLES

MAY = permitted(TABLE)
NO_STATUS_OF_OURS = {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS"}
CLAIMS = [
    ("lionrock-tenant", BANK),
    ("x-tenant", BANK),
    ("tenant", BANK),
    ("lionrock-roles", "privacy_officer,regulator"),
    ("x-forwarded-client-cert", f"URI=spiffe://lionrock.local/tenant/{BANK}/user/regulator"),
    ("x-spiffe-id", f"spiffe://lionrock.local/tenant/{BANK}/user/regulator"),
]
"""Metadata by which a caller says that they are the bank's."""


def expected(method: MethodDescriptor, role: str) -> tuple[str, str] | None:
    """The refusal that docs/access.md promises a role; None: the call is permitted."""
    action = ACTIONS[name_of(method)]
    if name_of(method) == "GatewayStatsService.GetModelStats":
        return "PERMISSION_DENIED", "CALLER_NOT_PERMITTED"
    if action is None:
        return "UNIMPLEMENTED", "METHOD_NOT_FOUND"
    if role == STRANGER:
        return "UNAUTHENTICATED", "UNKNOWN_PRINCIPAL"
    return None if role in MAY[action] else ("PERMISSION_DENIED", "ROLE_NOT_PERMITTED")


def test_no_rpc_and_no_field_has_been_forgotten(attacked: AttackedMesh) -> None:
    methods = methods_of(attacked.registrations)
    assert {name_of(method) for method in methods} <= ACTIONS.keys(), "say in rpcs.py who may call it"
    assert [field for method in methods for field in unknown_fields(method)] == [], "say in rpcs.py what it names"
    assert {way.kind for method in methods for way in ways_of(method)} == set(Kind)


async def test_every_role_is_refused_exactly_what_the_table_says(attacked: AttackedMesh) -> None:
    refusals: dict[tuple[str, str], set[tuple[object, ...]]] = {}
    async with attacked.in_every_role() as channels, attacked.without_certificate() as nobody:
        for method in methods_of(attacked.registrations):
            for role, channel in channels.items():
                got = await answer(channel, method, sensible(method))
                wanted = expected(method, role)
                where = f"{role}: {name_of(method)}: {got}"
                assert got.status not in NO_STATUS_OF_OURS, where
                if wanted is None:
                    assert got.reason not in ("ROLE_NOT_PERMITTED", "CALLER_NOT_PERMITTED", "UNKNOWN_PRINCIPAL"), where
                    continue
                assert (got.status, got.reason) == wanted, where
                refusals.setdefault(wanted, set()).add(got.told)
            got = await answer(nobody, method, sensible(method))
            assert (got.status, got.reason) == (
                expected(method, STRANGER) if ACTIONS[name_of(method)] is None else ("UNAUTHENTICATED", "CREDENTIAL_MISSING")
            )
    assert {wanted: len(told) for wanted, told in refusals.items()} == dict.fromkeys(refusals, 1), "one refusal is as another"


async def test_what_another_tenant_has_is_as_what_nobody_has(attacked: AttackedMesh, theirs: Belongings) -> None:
    ways = [way for method in methods_of(attacked.registrations) for way in ways_of(method)]
    indices = [way for way in ways if way.kind is Kind.LEAF]
    async with attacked.in_every_role() as channels:
        for way in indices:
            for role, channel in channels.items():
                await compare(channel, way, theirs, role)
        own = await RecordsServiceStub(channels["auditor"]).GetLogStats(rec.GetLogStatsRequest())
        assert own.leaves < int(theirs.ids[Kind.LEAF]), "until here the indices that were asked for were another's alone"
        for way in ways:
            if way not in indices:
                for role, channel in channels.items():
                    await compare(channel, way, theirs, role)
    assert len(ways) > 20
    await unharmed(attacked, theirs)


async def compare(channel: grpc.aio.Channel, way: Way, theirs: Belongings, role: str, *, allowed_less: bool = False) -> None:
    """Ask for what the bank has, saying that one is the bank, and for what nobody has.

    `allowed_less`: the caller may be refused more than its role is.
    """
    real, missing = theirs.ids[way.kind], theirs.missing(way.kind)
    absent = await answer(channel, way.method, way.request(missing), missing)
    foreign = await answer(channel, way.method, way.request(real), real, CLAIMS)
    assert foreign.told == absent.told, f"{role}: {way}"
    assert foreign.status not in NO_STATUS_OF_OURS, f"{role}: {way}: {foreign}"
    wanted = expected(way.method, role)
    assert allowed_less or wanted in (None, (foreign.status, foreign.reason)), f"{role}: {way}: {foreign}"
    found = [word for word in theirs.words if word.encode() in foreign.raw.replace(str(real).encode(), b"")]
    assert found == [], f"{role}: {way}"


async def unharmed(mesh: AttackedMesh, theirs: Belongings) -> None:
    """All that the bank had is there, and its log has no leaf more than its own last reading left."""
    request_id = str(theirs.ids[Kind.REQUEST])
    async with mesh.as_("privacy_officer", BANK) as officer:
        records = RecordsServiceStub(officer)
        assert (await records.GetLogStats(rec.GetLogStatsRequest())).leaves == int(theirs.ids[Kind.LEAF]) + 1
        read = await records.ReadRecord(rec.ReadRecordRequest(request_id=request_id))
        assert theirs.words[0].encode() in read.prompt
        assert not read.corrections
        holds = [hold.hold_id async for hold in records.ListHolds(rec.ListHoldsRequest())]
        assert theirs.ids[Kind.HOLD] in holds
    async with mesh.as_("user", BANK) as user:
        assert (await GatewayServiceStub(user).GetReceipt(gw.GetReceiptRequest(request_id=request_id))).receipt.tlog_proof
    async with mesh.as_("reviewer", BANK) as reviewer:
        waiting = (await ReviewServiceStub(reviewer).ListReviews(reviews.ListReviewsRequest(page_size=100))).reviews
        assert request_id in [review.request_id for review in waiting]
    async with mesh.as_("tenant_admin", BANK) as admin:
        listed = (await ApiKeyServiceStub(admin).ListApiKeys(keys.ListApiKeysRequest(page_size=100))).keys
    async with mesh.as_("security", BANK) as guard:
        asked_for = (
            await BreakGlassServiceStub(guard).ListEmergencies(emergencies.ListEmergenciesRequest(page_size=100))
        ).emergencies
    assert [(one.emergency_id, one.state) for one in asked_for] == [
        (theirs.ids[Kind.EMERGENCY], emergencies.EMERGENCY_STATE_REQUESTED)
    ]
    ours = [key for key in listed if key.key_id == theirs.ids[Kind.API_KEY]]
    assert [(key.HasField("revoked_at"), key.HasField("retires_at")) for key in ours] == [(False, False)]


async def test_no_list_and_no_answer_has_anything_of_another_tenant(attacked: AttackedMesh, theirs: Belongings) -> None:
    answers: list[tuple[str, Answer]] = []
    async with attacked.in_every_role(ROLES) as channels:
        for method in methods_of(attacked.registrations):
            answers += [
                (f"{role}: {name_of(method)}", await answer(channel, method, sensible(method)))
                for role, channel in channels.items()
            ]
    shown = {where: [trace for trace in theirs.traces if trace in got.raw] for where, got in answers}
    assert {where: traces for where, traces in shown.items() if traces} == {}
    assert f"/{BROKER}" in "".join(repr(got.raw) for _, got in answers), "some answers name the tenant's own log"
    assert f"audit/{BANK}" not in "".join(repr(got.raw) for _, got in answers)
