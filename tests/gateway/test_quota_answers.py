"""Quotas at the gateway's door, before real RPCs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pydantic import ValidationError

from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway import __main__ as gateway_main
from lionrock.gateway.granting import QuotasUncounted
from lionrock.gateway.state import sqlite
from lionrock.gateway.state.store import StateStore, StateUnavailable
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.inference.v1 import inference_pb2 as inf
from mesh_ca import TRUST_DOMAIN
from scripted_mesh import ScriptedMesh, ShardGroupLost, raising, tenant
from tenant_files import write

Ask, Hear, Failure = Callable[..., gw.ChatRequest], Callable[..., Any], Callable[..., Any]


def limited(mesh: ScriptedMesh, directory: Path, own: dict[str, int] | None = None, **quotas: int) -> None:
    """Give the bank quotas, and its callers their own."""
    grant = {} if own is None else {"quotas": own}
    mesh.tenants = [{**tenant("bank", **grant), "quotas": quotas}, tenant("broker")]
    mesh.gateway_changes = {"state": {"sqlite_file": directory / "state.sqlite"}}


@asynccontextmanager
async def stub_of(mesh: ScriptedMesh) -> AsyncIterator[Any]:
    async with mesh.running(), mesh.calling() as gateway:
        yield gateway


@pytest.fixture
def minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute of the store's clock has just begun."""
    ahead_ns = -time.time_ns() % 60_000_000_000
    monkeypatch.setattr(sqlite, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + ahead_ns))


def generated(mesh: ScriptedMesh) -> list[inf.GenerateRequest]:
    """What the engine was asked to answer."""
    return [request for request in mesh.engine.requests if isinstance(request, inf.GenerateRequest)]


async def used(stub: Any) -> dict[tuple[str, bool], int]:
    """What is taken, by quota and whether it is the caller's own."""
    response = await stub.GetQuota(gw.GetQuotaRequest())
    return {(quota.name, bool(quota.principal)): quota.taken for quota in response.quotas}


async def comes_to(stub: Any, expected: dict[tuple[str, bool], int]) -> None:
    """Wait until gateways have given back what they hold idle, and see what is left."""
    seen = None
    for _ in range(100):
        seen = await used(stub)
        if seen == expected:
            return
        await asyncio.sleep(0.1)
    assert seen == expected


@pytest.mark.usefixtures("minute")
async def test_the_request_over_the_quota_is_refused_with_the_time_to_come_back(
    idle_mesh: ScriptedMesh, tmp_path: Path, ask: Ask, hear: Hear, failure: Failure
) -> None:
    limited(idle_mesh, tmp_path, requests_per_minute=2)
    async with stub_of(idle_mesh) as stub:
        for _ in range(2):
            await hear(stub.Chat(ask()))
        error = await failure(stub.Chat(ask()))
        assert (error.status, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_QUOTA")
        assert error.retry_after_s is not None
        assert 40 < error.retry_after_s <= 60
        assert error.quota_violations == (("tenant bank: requests_per_minute", "2 requests a minute at most"),)
        assert len(idle_mesh.log.outcomes) == 2  # what was not let in leaves nothing
        async with idle_mesh.calling(idle_mesh.identity("broker")) as other:
            await hear(other.Chat(ask()))


async def test_an_answer_counts_the_tokens_that_it_had(idle_mesh: ScriptedMesh, tmp_path: Path, ask: Ask, hear: Hear) -> None:
    limited(idle_mesh, tmp_path, own={"daily_tokens": 9_000}, daily_tokens=10_000)
    async with stub_of(idle_mesh) as stub:
        heard = await hear(stub.Chat(ask(sampling=sampling.SamplingParams(max_tokens=500))))
        had = heard.finished.usage.prompt_tokens + heard.finished.usage.completion_tokens
        await comes_to(stub, {("daily_tokens", True): had, ("daily_tokens", False): had})


async def test_a_request_that_may_have_more_tokens_than_are_left_is_refused_before_the_engine_works(
    idle_mesh: ScriptedMesh, tmp_path: Path, ask: Ask, hear: Hear, failure: Failure
) -> None:
    limited(idle_mesh, tmp_path, daily_tokens=1000)
    async with stub_of(idle_mesh) as stub:
        error = await failure(stub.Chat(ask(sampling=sampling.SamplingParams(max_tokens=1000))))
        assert (error.reason, error.retry_after_s) == ("TENANT_QUOTA", None)
        assert "max_tokens" in error.quota_violations[0][1]
        error = await failure(stub.Chat(ask()))  # states none: the gateway assumes 2048
        assert error.reason == "TENANT_QUOTA"
        assert not generated(idle_mesh)
        await hear(stub.Chat(ask(sampling=sampling.SamplingParams(max_tokens=100))))


async def test_an_answer_without_max_tokens_is_bounded_where_tokens_are_counted_and_only_there(
    idle_mesh: ScriptedMesh, tmp_path: Path, ask: Ask, hear: Hear
) -> None:
    limited(idle_mesh, tmp_path, daily_tokens=10_000)
    idle_mesh.limits = {"assumed_max_tokens": 5}
    async with stub_of(idle_mesh) as stub:
        await hear(stub.Chat(ask()))
        async with idle_mesh.calling(idle_mesh.identity("broker")) as other:
            await hear(other.Chat(ask()))
    bounded, free = generated(idle_mesh)
    assert bounded.sampling.max_tokens == 5
    assert not free.sampling.HasField("max_tokens")
    assert idle_mesh.log.intents[0].intent.sampling.max_tokens == 5  # the leaf says so


async def test_what_a_failed_request_reserved_comes_back(
    idle_mesh: ScriptedMesh, tmp_path: Path, ask: Ask, failure: Failure
) -> None:
    limited(idle_mesh, tmp_path, daily_tokens=10_000, concurrent_streams=1)
    idle_mesh.engine.faults["Generate"] = raising(RuntimeError())
    async with stub_of(idle_mesh) as stub:
        for _ in range(3):
            await failure(stub.Chat(ask()))
        await comes_to(stub, {("daily_tokens", False): 0, ("concurrent_streams", False): 0})


async def test_two_gateways_share_a_quota_of_open_answers(
    idle_mesh: ScriptedMesh, tmp_path: Path, ask: Ask, hear: Hear, failure: Failure
) -> None:
    limited(idle_mesh, tmp_path, concurrent_streams=1)
    another = ScriptedMesh(tmp_path / "another")
    limited(another, tmp_path, concurrent_streams=1)
    reached, held = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        reached.set()
        await held.wait()

    idle_mesh.engine.faults["Generate"] = wait
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(stub_of(mesh)) for mesh in (idle_mesh, another)]
        first = asyncio.create_task(hear(one.Chat(ask())))
        await reached.wait()
        error = await failure(two.Chat(ask()))
        assert (error.reason, error.quota_violations[0][1]) == ("TENANT_QUOTA", "1 open answers at most")
        held.set()
        await first
        await comes_to(two, {("concurrent_streams", False): 0})
        await hear(two.Chat(ask()))


def refused_files(caplog: pytest.LogCaptureFixture) -> set[str]:
    """Tenant files that the log says are not followed."""
    return {str(getattr(record, "file", "")) for record in caplog.records if hasattr(record, "why")}


@pytest.mark.parametrize("whose", ["tenant", "caller", "claim"])
async def test_a_gateway_without_state_does_not_start_for_tenants_with_quotas(
    idle_mesh: ScriptedMesh, tmp_path: Path, whose: str
) -> None:
    quotas = {"requests_per_minute": 2}
    if whose == "claim":
        binding = {"value": "teller", "purposes": ["testing"], "quotas": quotas}
        issuer = {"issuer": "https://login.example", "audiences": ["a"], "roles_claim": "roles", "bindings": [binding]}
        idle_mesh.tenants = [{**tenant("bank"), "issuers": [issuer]}]
    else:
        limited(idle_mesh, tmp_path, quotas if whose == "caller" else None, **({} if whose == "caller" else quotas))
    idle_mesh.gateway_changes = {}
    with pytest.raises(ValidationError, match=r"tenant bank has quotas.*set state"):
        async with idle_mesh.running():
            pytest.fail("it started")


async def test_a_gateway_without_state_does_not_start_for_a_tenant_file_with_quotas(
    idle_mesh: ScriptedMesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    idle_mesh.tenants_directory = tmp_path
    write(tmp_path, "fund", quotas={"dailyTokens": 5})
    with pytest.raises(QuotasUncounted, match=r"tenant fund has quotas.*set state"):
        async with idle_mesh.running():
            pytest.fail("it started")
    assert refused_files(caplog) == {str(tmp_path / "fund.json")}


async def test_a_tenant_file_with_quotas_is_refused_by_name_where_there_is_no_state(
    idle_mesh: ScriptedMesh, tmp_path: Path, ask: Ask, hear: Hear, failure: Failure, caplog: pytest.LogCaptureFixture
) -> None:
    idle_mesh.tenants_directory, idle_mesh.limits = tmp_path / "tenants", {"tenants_poll_s": 0.02}
    idle_mesh.tenants_directory.mkdir()
    write(idle_mesh.tenants_directory, "fund", quotas={"weight": 7})  # which nobody has to count
    async with stub_of(idle_mesh) as bank, idle_mesh.calling(idle_mesh.identity("fund")) as fund:
        await hear(fund.Chat(ask()))
        write(idle_mesh.tenants_directory, "fund", quotas={"requestsPerMinute": 1})
        write(idle_mesh.tenants_directory, "trust")
        async with idle_mesh.calling(idle_mesh.identity("trust")) as trust:
            for _ in range(500):
                if refused_files(caplog):
                    break
                await asyncio.sleep(0.02)
            await hear(trust.Chat(ask()))
        for _ in range(3):
            await hear(fund.Chat(ask()))  # what the file said before stays
        await hear(bank.Chat(ask()))
    assert refused_files(caplog) == {str(idle_mesh.tenants_directory / "fund.json")}
    assert any("tenant fund has quotas" in str(getattr(record, "why", "")) for record in caplog.records)


async def test_a_state_that_cannot_be_reached_lets_nobody_with_a_quota_in(
    idle_mesh: ScriptedMesh, tmp_path: Path, ask: Ask, hear: Hear, failure: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(idle_mesh, tmp_path, requests_per_minute=2)

    async def unreachable(*_: Any, **__: Any) -> Any:
        raise StateUnavailable("gone")

    async with stub_of(idle_mesh) as stub:
        monkeypatch.setattr(StateStore, "_run", unreachable)
        error = await failure(stub.Chat(ask()))
        assert (error.status, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STATE_UNAVAILABLE")
        async with idle_mesh.calling(idle_mesh.identity("broker")) as other:
            await hear(other.Chat(ask()))


@pytest.mark.usefixtures("minute")
async def test_refusals_are_counted_by_tenant_and_quota_and_name_nobody(
    idle_mesh: ScriptedMesh, tmp_path: Path, ask: Ask, hear: Hear, failure: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InMemoryMetricReader()
    monkeypatch.setattr(gateway_main, "meter", lambda: MeterProvider([reader]).get_meter("test"))
    limited(idle_mesh, tmp_path, own={"requests_per_minute": 1}, daily_tokens=500)
    idle_mesh.tenants[1]["max_streams"] = 1
    idle_mesh.engine.pace = asyncio.Semaphore(0)
    async with stub_of(idle_mesh) as stub, idle_mesh.calling(idle_mesh.identity("broker")) as broker:
        await failure(stub.Chat(ask(sampling=sampling.SamplingParams(max_tokens=600))))
        for _ in range(2):
            assert (await failure(stub.Chat(ask()))).reason == "TENANT_QUOTA"
        open_answer = broker.Chat(ask())
        assert (await anext(aiter(open_answer))).HasField("started")
        await failure(broker.Chat(ask()))
        for _ in idle_mesh.engine.text:
            idle_mesh.engine.pace.release()
        await hear(open_answer)
    data = reader.get_metrics_data()
    assert data is not None
    metrics = [metric for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics]
    (counter,) = [metric for metric in metrics if metric.name == "lionrock.gateway.quota_refusals"]
    counted = {tuple(sorted(point.attributes.items())): point.value for point in counter.data.data_points}
    assert counted == {
        (("lionrock.quota", "daily_tokens"), ("lionrock.tenant", "bank")): 1,
        (("lionrock.quota", "requests_per_minute"), ("lionrock.tenant", "bank")): 2,
        (("lionrock.quota", "max_streams"), ("lionrock.tenant", "broker")): 1,
    }


async def test_the_engine_is_told_the_tenants_weight_also_when_another_goes_on(
    idle_mesh: ScriptedMesh, tmp_path: Path, ask: Ask, hear: Hear
) -> None:
    idle_mesh.tenants = [{**tenant("bank"), "quotas": {"weight": 250}}, tenant("broker")]
    idle_mesh.engine.losses = [(3, ShardGroupLost("gone"))]
    async with stub_of(idle_mesh) as stub:
        heard = await hear(stub.Chat(ask()))
        assert heard.text == idle_mesh.engine.text
        async with idle_mesh.calling(idle_mesh.identity("broker")) as other:
            await hear(other.Chat(ask()))
    assert [(request.context.tenant, request.weight) for request in generated(idle_mesh)] == [
        ("bank", 250),
        ("bank", 250),
        ("broker", 1),
    ]


async def test_a_caller_sees_its_own_use_and_its_tenants_and_no_other(
    idle_mesh: ScriptedMesh, tmp_path: Path, ask: Ask, hear: Hear
) -> None:
    limited(idle_mesh, tmp_path, own={"requests_per_minute": 5}, requests_per_minute=7, daily_tokens=99_000)
    async with stub_of(idle_mesh) as stub:
        response = await stub.GetQuota(gw.GetQuotaRequest())
        ada = f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/ada"
        assert [(quota.name, quota.principal, quota.limit) for quota in response.quotas] == [
            ("requests_per_minute", ada, 5),
            ("requests_per_minute", "", 7),
            ("daily_tokens", "", 99_000),
        ]
        resets = response.quotas[2].resets_at.ToDatetime(UTC)
        assert (resets.hour, resets.minute) == (16, 0)  # midnight in Hong Kong
        async with idle_mesh.calling(idle_mesh.identity("broker")) as other:
            assert not (await other.GetQuota(gw.GetQuotaRequest())).quotas


async def test_counters_survive_a_restart_of_the_gateway(
    idle_mesh: ScriptedMesh, tmp_path: Path, ask: Ask, hear: Hear, failure: Failure
) -> None:
    limited(idle_mesh, tmp_path, daily_tokens=300)
    async with stub_of(idle_mesh) as stub:
        heard = await hear(stub.Chat(ask(sampling=sampling.SamplingParams(max_tokens=200))))
        had = heard.finished.usage.prompt_tokens + heard.finished.usage.completion_tokens
    another = ScriptedMesh(tmp_path / "another")
    limited(another, tmp_path, daily_tokens=300)
    async with stub_of(another) as stub:
        assert await used(stub) == {("daily_tokens", False): had}  # to the token: a gateway that stops gives back the rest
        error = await failure(stub.Chat(ask(sampling=sampling.SamplingParams(max_tokens=299 - had))))
        assert error.reason == "TENANT_QUOTA"
