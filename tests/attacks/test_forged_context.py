"""Nobody but the gateway says who asks: not a tenant's caller in the message, and not another service of the mesh.

The RPCs are found by the descriptors of what is registered. The inner services are registered here as their own programs do it, at
a server of the chassis; no call gets as far as their work, which is why there is no model behind them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from attacks.answers import answer
from attacks.rpcs import ACTIONS, methods_of, name_of, sensible
from attacks.tenants import BANK, BROKER, AttackedMesh, Belongings, spiffe_id
from attacks.test_other_tenants import expected
from lionrock.audit import __main__ as audit_program
from lionrock.audit.records.servicer import SERVICE_NAME as RECORDS
from lionrock.chassis import server as chassis
from lionrock.chassis.channel import open_channel
from lionrock.chassis.ids import uuid7
from lionrock.chassis.server import Registration, start_server
from lionrock.chassis.settings import PeerSettings, TlsSettings
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.guardrails import __main__ as guardrails
from lionrock.inference import __main__ as inference
from lionrock.inference.settings import InferenceSettings
from lionrock.tenancy.vocabulary import ROLES
from lionrock.tokenization import __main__ as tokenization
from lionrock.tokenization.settings import TokenizationSettings
from mesh_ca import TRUST_DOMAIN, DevCa
from scripted_mesh import PeerServiceSettings

SERVICES = ("gateway", "tokenization", "inference", "guardrails", "audit", "operator", "shard", "witness", "nobody")
"""Names in certificates of the mesh; nobody is the last."""


def forged() -> ctx.RequestContext:
    """What the gateway would write for somebody else."""
    return ctx.RequestContext(
        request_id=uuid7(),
        tenant=BANK,
        actor=spiffe_id(BANK, "regulator"),
        auth_method=ctx.AUTH_METHOD_MTLS,
        roles=["regulator", "privacy_officer", "tenant_admin"],
        purpose="testing",
        territory="HK",
        profile="default",
    )


async def test_a_context_in_a_message_is_refused_in_every_role(attacked: AttackedMesh) -> None:
    methods = [method for method in methods_of(attacked.registrations) if "context" in method.input_type.fields_by_name]
    assert len(methods) > 10
    async with attacked.in_every_role() as channels:
        for method in methods:
            request, empty = sensible(method), sensible(method)
            request.context.CopyFrom(forged())  # type: ignore[attr-defined]
            empty.context.SetInParent()  # type: ignore[attr-defined]
            for role, channel in channels.items():
                got = await answer(channel, method, request)
                where = f"{role}: {name_of(method)}: {got}"
                assert (got.status, got.reason) == (expected(method, role) or ("INVALID_ARGUMENT", "INVALID_FIELD")), where
                assert (await answer(channel, method, empty)).reason == (
                    "METHOD_NOT_FOUND" if ACTIONS[name_of(method)] is None else "INVALID_FIELD"
                ), where


ANSWERED_ONCE = ("BreakGlassService.RequestEmergency", "ConsentService.WithdrawConsent", "ConsentService.ClearOptOut")
"""Calls whose second answer is another than the first: a person has one emergency open, and what was withdrawn is gone."""


async def test_a_context_where_a_message_has_none_changes_nothing(attacked: AttackedMesh, theirs: Belongings) -> None:
    """As a field of any number, of the right type or another's: one that is not known is dropped or ignored."""
    encoded = forged().SerializeToString()
    claims = b"\x08\x01" + b"".join(_tag(number) + _varint(len(encoded)) + encoded for number in (15, 100, 1000))
    async with attacked.in_every_role(ROLES) as channels:
        for method in methods_of(attacked.registrations):
            request = sensible(method).SerializeToString()
            if 1 in method.input_type.fields_by_number and method.input_type.fields_by_number[1].name != "context":
                hidden = claims[2:]
            else:
                hidden = claims
            for role, channel in channels.items():
                if name_of(method) in ANSWERED_ONCE:
                    await answer(channel, method, request)
                plain, with_claims = await answer(channel, method, request), await answer(channel, method, request + hidden)
                where = f"{role}: {name_of(method)}"
                assert (with_claims.status, with_claims.reason) == (plain.status, plain.reason), where
                assert not [trace for trace in theirs.traces if trace in with_claims.raw], where


def _tag(number: int) -> bytes:
    return _varint(number << 3 | 2)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


async def test_no_service_of_the_mesh_comes_through_the_door_for_tenants(attacked: AttackedMesh) -> None:
    for service in SERVICES:
        async with attacked.by(attacked.ca.issue(service)) as channel:
            for method in methods_of(attacked.registrations):
                got = await answer(channel, method, sensible(method))
                if (service, name_of(method)) == ("operator", "GatewayStatsService.GetModelStats"):
                    assert got.status == "OK"
                elif ACTIONS[name_of(method)] is None and name_of(method) != "GatewayStatsService.GetModelStats":
                    assert got.reason == "METHOD_NOT_FOUND"
                else:
                    assert (got.status, got.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED"), (service, name_of(method))


class Registered(Exception):
    """What a program wanted to serve."""


async def registered_by_guardrails(config: Path, tls: TlsSettings, monkeypatch: pytest.MonkeyPatch) -> Sequence[Registration]:
    config.write_text(yaml.safe_dump({"server": {"tls": tls.model_dump(mode="json"), "trust_domain": TRUST_DOMAIN}}))  # noqa: ASYNC240
    monkeypatch.setattr(sys, "argv", ["guardrails", "--config", str(config)])
    monkeypatch.setattr(guardrails, "serve", tell)
    with pytest.raises(Registered) as told:
        await guardrails.main()
    return tuple(told.value.args)


async def registered_by_tokenization(config: Path, tls: TlsSettings, monkeypatch: pytest.MonkeyPatch) -> Sequence[Registration]:
    del config
    monkeypatch.setattr(chassis, "serve", tell)
    settings = TokenizationSettings(**server(tls), models={"none": Path("none")})
    with pytest.raises(Registered) as told:
        await tokenization.serve_codecs(settings, {})
    return tuple(told.value.args)


async def registered_by_inference(config: Path, tls: TlsSettings, monkeypatch: pytest.MonkeyPatch) -> Sequence[Registration]:
    del config
    monkeypatch.setattr(inference, "serve", tell)
    monkeypatch.setattr(inference.Front, "start", asyncio.Event().wait)  # Ray is behind it
    ray = {"tls": tls, "token_file": tls.key_file, "deploy": False, "address": "127.0.0.1:1"}
    settings = InferenceSettings(**server(tls), models={"none": {"path": "none"}}, ray=ray)
    with pytest.raises(Registered) as told:
        await inference.run(settings)
    return tuple(told.value.args)


async def tell(settings: Any, name: str, registrations: Sequence[Registration], **options: Any) -> None:
    """In place of serving."""
    del settings, name, options
    raise Registered(*registrations)


def server(tls: TlsSettings) -> dict[str, Any]:
    return {"server": {"tls": tls, "trust_domain": TRUST_DOMAIN}}


PROGRAMS = {
    "guardrails": registered_by_guardrails,
    "tokenization": registered_by_tokenization,
    "inference": registered_by_inference,
}


@pytest.mark.parametrize("service", PROGRAMS)
async def test_an_inner_service_answers_the_gateway_alone(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = DevCa(tmp_path)
    registrations = await PROGRAMS[service](tmp_path / "config.yaml", ca.issue(service), monkeypatch)
    assert [entry.callers for entry in registrations] == [frozenset({"gateway"})]
    running = await start_server(PeerServiceSettings(**server(ca.issue(service))), service, registrations)
    try:
        await refused_to_all(ca, service, f"127.0.0.1:{running.port}", registrations)
    finally:
        await running.stop()


async def test_the_audit_service_answers_the_gateway_alone(attacked: AttackedMesh) -> None:
    registrations = [entry for entry in attacked.registrations if entry.service_name in (audit_program.SERVICE_NAME, RECORDS)]
    assert len(registrations) == 2
    await refused_to_all(attacked.ca, "audit", attacked.targets["audit"], registrations)


async def refused_to_all(ca: DevCa, service: str, target: str, registrations: Sequence[Registration]) -> None:
    """Call every method as every other service and as callers of tenants."""
    others = [ca.issue(name) for name in SERVICES if name != "gateway"]
    tenants = [ca.issue(spiffe_id=spiffe_id(name, "privacy_officer")) for name in (BANK, BROKER)]
    for identity in (*others, *tenants):
        async with calling(identity, service, target) as channel:
            for method in methods_of(registrations):
                got = await answer(channel, method, forged_for(method))
                where = f"{identity.cert_file.parent.name}: {name_of(method)}"
                assert (got.status, got.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED"), where


def forged_for(method: Any) -> Any:
    """A request whose context says that the gateway let it in."""
    request = sensible(method) if name_of(method) in ACTIONS else b""
    if request and "context" in method.input_type.fields_by_name:
        request.context.CopyFrom(forged())
    return request


@asynccontextmanager
async def calling(identity: TlsSettings, service: str, target: str) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(PeerSettings(target=target, service=service, timeout_s=10), identity, name="test") as channel:
        yield channel
