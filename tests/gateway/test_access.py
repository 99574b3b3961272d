"""Who may ask what, and how much at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.common.v1 import context_pb2 as ctx
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.admission import Admission, GatewayFullError, TenantFullError
from lionrock.gateway.tenants import Grant, Principal, Tenant, TenantDirectory, TenantName, UnknownPrincipalError
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.tenancy.spec import NamedTenant
from scripted_mesh import BLOCKED_WORD, MODEL, ScriptedMesh, tenant

GRANT = Grant(("user",), ("testing",), frozenset({"*"}), frozenset({"public", "personal"}), "default")


def principal(grant: Grant = GRANT, name: str = "bank", max_streams: int = 4, who: str = "ada") -> Principal:
    own = Tenant(TenantName(name), "HK", max_streams, {})
    return Principal(f"spiffe://td/tenant/{name}/user/{who}", own, grant)


def granted(**changes: Any) -> Grant:
    fields = {name: getattr(GRANT, name) for name in Grant.__slots__}
    return Grant(**{**fields, **changes})


# The directory


def test_an_exact_id_wins_over_its_kind_and_nothing_else_matches() -> None:
    exact, kind = granted(profile="exact"), granted(profile="kind")
    base = "spiffe://td/tenant/bank"
    directory = TenantDirectory([Tenant(TenantName("bank"), "HK", 1, {f"{base}/user/ada": exact, f"{base}/user/*": kind})])

    assert directory.principal(f"{base}/user/ada").grant is exact
    assert directory.principal(f"{base}/user/bob").grant is kind
    assert directory.principal(f"{base}/user/bob").actor == f"{base}/user/bob"
    for stranger in (
        f"{base}/workload/ada",
        f"{base}/user/*",
        f"{base}/user/ada/x",
        "spiffe://td/tenant/broker/user/ada",
        base,
        "",
        f"{base}/user/{'x' * 500}",
    ):
        with pytest.raises(UnknownPrincipalError):
            directory.principal(stranger)


def test_a_principal_can_be_granted_once_only() -> None:
    one = Tenant(TenantName("a"), "HK", 1, {"spiffe://td/tenant/a/user/x": GRANT})
    with pytest.raises(ValueError, match="twice"):
        TenantDirectory([one, Tenant(TenantName("b"), "HK", 1, one.grants)])
    with pytest.raises(ValueError, match="twice"):
        TenantDirectory([one, one])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"spiffe_id": "spiffe://td/tenant/broker/user/*"}, "not of the form"),
        ({"spiffe_id": "spiffe://td/tenant/bank/*"}, "should match pattern '\\^spiffe"),
        ({"spiffe_id": "spiffe://td/service/gateway"}, "should match pattern '\\^spiffe"),
        ({"spiffe_id": "spiffe://td/tenant/bank/user/a*"}, "should match pattern '\\^spiffe"),
        ({"roles": ["emperor"]}, "should be 'auditor', 'mlro'"),
        ({"roles": ["regulator"]}, "granted for a time"),
        ({"data_classes": ["top_secret"]}, "should be 'public', 'internal'"),
        ({"purposes": ["Two Words"]}, "should match pattern"),
        ({"purposes": []}, "at least 1"),
    ],
)
def test_settings_that_would_grant_something_else_are_refused(change: dict[str, Any], complaint: str) -> None:
    grant = {"spiffe_id": "spiffe://td/tenant/bank/user/*", "purposes": ["testing"], **change}
    with pytest.raises(ValueError, match=complaint):
        NamedTenant(name="bank", principals=[grant])  # type: ignore[list-item]


# Admission


def test_a_tenant_a_caller_and_the_gateway_are_bounded_each_on_its_own() -> None:
    admission = Admission(max_streams=3)
    bank = principal(granted(max_streams=1))
    first = admission.admit(bank)
    with pytest.raises(TenantFullError):
        admission.admit(bank)
    admission.admit(principal(who="bob"))
    with pytest.raises(TenantFullError):
        admission.admit(principal(who="eve", max_streams=2))
    admission.admit(principal(name="broker"))
    with pytest.raises(GatewayFullError) as refused:
        admission.admit(principal(name="third"))
    assert 0.1 <= refused.value.retry_after_s <= 5
    first.release()
    first.release()
    assert admission.open_streams == 2
    admission.admit(bank)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 20)), max_size=60))
def test_counters_come_back_to_zero(steps: list[tuple[str, bool, int]]) -> None:
    admission = Admission(max_streams=5, clock=iter(range(10_000)).__next__)
    tickets = []
    for name, enter, which in steps:
        if enter:
            try:
                tickets.append(admission.admit(principal(name=name, max_streams=3)))
            except (TenantFullError, GatewayFullError):
                assert admission.open_streams >= 3
        elif tickets:
            tickets.pop(which % len(tickets)).release()
        assert admission.open_streams == len(tickets) <= 5
    for ticket in tickets:
        ticket.release()
    assert admission.open_streams == 0
    assert not admission._by_tenant
    assert not admission._by_actor


# On the wire


async def test_an_identity_that_no_tenant_lists_is_not_known(mesh: ScriptedMesh, ask: Any, failure: Any) -> None:
    for identity in (mesh.identity("stranger"), mesh.identity("bank", kind="workload")):
        async with mesh.calling(identity) as stub:
            for call in (stub.Chat(ask()), stub.ListModels(gw.ListModelsRequest()), stub.ListAuditKeys(gw.ListAuditKeysRequest())):
                error = await failure(call)
                assert (error.status.name, error.reason) == ("UNAUTHENTICATED", "UNKNOWN_PRINCIPAL")
    assert not mesh.engine.requests
    assert not mesh.log.leaves


async def test_an_inner_service_is_no_caller(mesh: ScriptedMesh, ask: Any, failure: Any) -> None:
    async with mesh.calling(mesh.ca.issue("audit")) as stub:
        assert (await failure(stub.Chat(ask()))).reason == "CALLER_NOT_PERMITTED"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"purpose": "marketing"}, "PURPOSE_NOT_PERMITTED"),
        ({"data_class": ctx.DATA_CLASS_SUSPICION}, "DATA_CLASS_NOT_PERMITTED"),
        ({"model": "other"}, "MODEL_NOT_PERMITTED"),
    ],
)
async def test_what_the_grant_does_not_permit_is_denied_and_recorded(
    idle_mesh: ScriptedMesh, ask: Any, failure: Any, fields: dict[str, Any], reason: str
) -> None:
    idle_mesh.tenants = [tenant("bank", models=[MODEL])]
    async with idle_mesh.running(), idle_mesh.calling() as stub:
        error = await failure(stub.Chat(ask(**fields)))
    assert (error.status.name, error.reason) == ("PERMISSION_DENIED", reason)
    assert not idle_mesh.guardrails.requests
    assert [leaf.outcome.reason for leaf in idle_mesh.log.outcomes] == [reason]


async def test_an_auditor_may_verify_and_not_ask(idle_mesh: ScriptedMesh, ask: Any, failure: Any) -> None:
    idle_mesh.tenants = [tenant("bank", roles=["auditor"])]
    async with idle_mesh.running(), idle_mesh.calling() as stub:
        assert (await failure(stub.Chat(ask()))).reason == "ROLE_NOT_PERMITTED"
        assert (await failure(stub.ListModels(gw.ListModelsRequest()))).reason == "ROLE_NOT_PERMITTED"
        assert (await stub.ListAuditKeys(gw.ListAuditKeysRequest())).verifier_keys


async def test_models_that_are_not_granted_are_not_listed_and_not_the_default(
    idle_mesh: ScriptedMesh, ask: Any, hear: Any, failure: Any
) -> None:
    idle_mesh.engine.models = ["hidden", MODEL, "third"]
    idle_mesh.tenants = [tenant("bank", models=[MODEL]), tenant("broker")]
    async with idle_mesh.running():
        async with idle_mesh.calling() as bank:
            assert [served.identity.model for served in (await bank.ListModels(gw.ListModelsRequest())).models] == [MODEL]
            await hear(bank.Chat(ask()))
        async with idle_mesh.calling(idle_mesh.identity("broker")) as broker:
            error = await failure(broker.Chat(ask()))
    assert (error.reason, error.field_violations[0][0]) == ("INVALID_FIELD", "model")


async def test_what_the_grant_says_reaches_the_inner_services(idle_mesh: ScriptedMesh, ask: Any, hear: Any) -> None:
    idle_mesh.tenants = [{**tenant("bank", roles=["user", "mlro"], profile="strict"), "territory": "SG"}]
    async with idle_mesh.running(), idle_mesh.calling() as stub:
        await hear(stub.Chat(ask(conversation_id="c1")))
    context = idle_mesh.guardrails.requests[0].context
    assert (context.profile, context.territory, list(context.roles)) == ("strict", "SG", ["mlro", "user"])
    assert (context.purpose, context.conversation_id) == ("testing", "c1")
    assert (context.data_class, context.auth_method) == (ctx.DATA_CLASS_PERSONAL, ctx.AUTH_METHOD_MTLS)


async def test_a_tenant_over_its_quota_is_told_when_to_come_back_and_others_go_on(
    idle_mesh: ScriptedMesh, ask: Any, hear: Any, failure: Any
) -> None:
    idle_mesh.tenants = [{**tenant("bank"), "max_streams": 1}, tenant("broker")]
    idle_mesh.engine.pace = asyncio.Semaphore(1)
    async with idle_mesh.running(), idle_mesh.calling() as bank, idle_mesh.calling(idle_mesh.identity("broker")) as broker:
        held = bank.Chat(ask())
        await anext(aiter(held))
        error = await failure(bank.Chat(ask()))
        assert (error.status.name, error.reason) == ("RESOURCE_EXHAUSTED", "TENANT_QUOTA")
        assert error.retry_after_s is not None
        assert error.quota_violations
        idle_mesh.engine.pace = None
        assert (await hear(broker.Chat(ask()))).text == idle_mesh.engine.text
        held.cancel()
        await idle_mesh.log.outcome(1)
        async with asyncio.timeout(5):
            while (await status(bank.Chat(ask()))) is grpc.StatusCode.RESOURCE_EXHAUSTED:
                pass  # the place is free once the outcome is written


async def status(call: Any) -> grpc.StatusCode:
    """Read an answer, and say how it ended."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_full_gateway_is_overloaded_for_everybody(idle_mesh: ScriptedMesh, ask: Any, failure: Any) -> None:
    idle_mesh.limits["max_streams"] = 1
    idle_mesh.engine.pace = asyncio.Semaphore(1)
    async with idle_mesh.running(), idle_mesh.calling() as bank, idle_mesh.calling(idle_mesh.identity("broker")) as broker:
        held = bank.Chat(ask())
        await anext(aiter(held))
        error = await failure(broker.Chat(ask()))
        assert (error.status.name, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert error.retry_after_s is not None
        held.cancel()


async def test_what_cannot_be_answered_is_refused_by_field(idle_mesh: ScriptedMesh, ask: Any, failure: Any) -> None:
    idle_mesh.limits["max_prompt_code_points"] = 10
    async with idle_mesh.running(), idle_mesh.calling() as stub:
        long = await failure(stub.Chat(ask("x" * 11)))
    assert (long.reason, long.field_violations[0][0]) == ("INVALID_FIELD", "messages")
    assert not idle_mesh.log.leaves


async def test_nothing_of_a_payload_is_in_logs_or_errors(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any, failure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary-9f27"
    mesh.engine.text = f"{canary} says hello"
    with caplog.at_level("DEBUG"):
        await hear(stub.Chat(ask(canary, sampling=sampling.SamplingParams(stop=[canary + "!"]))))
        error = await failure(stub.Chat(ask(f"{canary} {BLOCKED_WORD}")))
    assert canary not in caplog.text
    assert canary not in repr((error, error.metadata))
