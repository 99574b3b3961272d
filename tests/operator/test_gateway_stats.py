"""Gateways, which are the real servicer, are asked over mutual TLS; who is not one, or is silent, is not taken for an idle one."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from models_with_figures import AUTOSCALING, CANARY, NEW, OLD, a_model
from simulated_cluster import SimulatedCluster

from lionrock.chassis.server import Registration, start_server
from lionrock.chassis.settings import ServerSettings, ServiceSettings, TlsSettings
from lionrock.gateway.model_stats import ModelStats
from lionrock.gateway.stats_servicer import CALLERS, SERVICE_NAME, StatsServicer
from lionrock.gateway.v1 import stats_pb2 as pb
from lionrock.gateway.v1.stats_pb2_grpc import add_GatewayStatsServiceServicer_to_server
from lionrock.operator import gateway_stats
from lionrock.operator.gateway_stats import GatewayStats
from lionrock.operator.resources import ModelDeployment, ObjectKey
from lionrock.operator.rollout import MIN_CANARY_ANSWERS
from lionrock.operator.settings import GatewaysSettings
from mesh_ca import TRUST_DOMAIN, DevCa

MODEL = a_model(rollout=CANARY)


class Gateway(StatsServicer):
    """The gateway's servicer, which notes that it was asked, and may be told to keep silent or to answer otherwise."""

    def __init__(self) -> None:
        self.counts = ModelStats()
        self.counts.keep([("llama", OLD), ("llama", NEW)])
        self.asked = 0
        self.silent = False
        self.heard = asyncio.Event()
        self.instead: pb.GetModelStatsResponse | None = None
        super().__init__(self.counts)

    async def GetModelStats(self, request: pb.GetModelStatsRequest, context: Any) -> pb.GetModelStatsResponse:
        self.asked += 1
        self.heard.set()
        if self.silent:
            await asyncio.Event().wait()
        return self.instead or await super().GetModelStats(request, context)

    def answered(self, revision: str, times: int, *, failed: int = 0, ttft_s: float = 0.09) -> None:
        for number in range(times):
            answer = self.counts.answer("llama")
            answer.asked(revision)
            answer.ended(failed=number < failed, ttft_s=ttft_s)


class Mesh:
    """Gateways on loopback, by address."""

    def __init__(self, ca: DevCa, stack: AsyncExitStack) -> None:
        self.ca = ca
        self.gateways: dict[str, Gateway] = {}
        self._stack = stack

    async def start(self, service: str = "gateway") -> Gateway:
        gateway = Gateway()
        settings = ServiceSettings(server=ServerSettings(tls=self.ca.issue(service), trust_domain=TRUST_DOMAIN))
        registration = Registration(add_GatewayStatsServiceServicer_to_server, gateway, SERVICE_NAME, CALLERS)
        running = await start_server(settings, "gateway", [registration])
        self._stack.push_async_callback(running.stop, 0)
        self.gateways[f"127.0.0.1:{running.port}"] = gateway
        return gateway

    async def resolve(self) -> Sequence[str]:
        return list(self.gateways)

    def settings(self, tls: TlsSettings | None = None, **changed: Any) -> GatewaysSettings:
        values = {"target": "gateways:50051", "interval_s": 0.1, "answer_s": 10.0, **changed}
        return GatewaysSettings(tls=tls or self.ca.issue("operator"), **values)

    def stats(self, tls: TlsSettings | None = None, **changed: Any) -> GatewayStats:
        return GatewayStats(self.settings(tls, **changed), "models", resolve=self.resolve)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        yield Mesh(DevCa(tmp_path), stack)


@pytest.fixture
async def ask(mesh: Mesh) -> AsyncIterator[Callable[..., Any]]:
    """Asks once, with an asker of the test's own, and returns the reports by revision."""
    made: list[GatewayStats] = []

    async def asked(stats: GatewayStats | None = None, **changed: Any) -> Any:
        stats = stats or mesh.stats(**changed)
        made.append(stats)
        await stats.ask([MODEL])
        return {revision: report for (_, revision), report in stats.reports().items()}

    yield asked
    for stats in made:
        await stats.forget()


async def test_two_gateways_are_added_up(mesh: Mesh, ask: Callable[..., Any]) -> None:
    first, second = await mesh.start(), await mesh.start()
    first.answered(OLD, 60)
    first.answered(NEW, 10, failed=1)
    second.answered(NEW, 12, ttft_s=0.9)
    waits = second.counts.answer("llama")
    waits.asked(NEW)
    told = await ask()
    assert (told[OLD].waiting, told[NEW].waiting) == (0, 1)
    assert (told[NEW].figures.answers, told[NEW].figures.failed) == (22, 1)
    assert not told[NEW].partial
    assert told[OLD].figures.ttft_p95_ms == pytest.approx(90, rel=0.2)
    assert told[NEW].figures.ttft_p95_ms == pytest.approx(900, rel=0.2)
    assert told[NEW].ttft_p95_ms == told[NEW].figures.ttft_p95_ms
    waits.ended(failed=False, ttft_s=0.1)


async def test_a_model_that_nobody_asks_has_figures_too(mesh: Mesh, ask: Callable[..., Any]) -> None:
    await mesh.start()
    told = await ask()
    assert (told[OLD].waiting, told[OLD].figures.answers, told[OLD].ttft_p95_ms) == (0, 0, None)


async def test_the_next_round_adds_what_came_since(mesh: Mesh, ask: Callable[..., Any]) -> None:
    gateway, stats = await mesh.start(), mesh.stats()
    gateway.answered(NEW, MIN_CANARY_ANSWERS)
    assert await stats.ask([MODEL]) == {MODEL.key}
    assert await stats.ask([MODEL]) == set(), "nothing has changed"
    gateway.answered(NEW, 5, failed=5)
    assert await stats.ask([MODEL]) == {MODEL.key}
    told = await ask(stats)
    assert (told[NEW].figures.answers, told[NEW].figures.failed) == (MIN_CANARY_ANSWERS + 5, 5)
    assert await stats.ask([a_model()]) == {MODEL.key}, "nothing depends on it any more"
    assert stats.reports() == {}


async def test_one_that_is_silent_leaves_the_others_figures_partial(
    mesh: Mesh, ask: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    telling, silent = await mesh.start(), await mesh.start()
    telling.answered(NEW, 30)
    silent.silent = True
    stats = mesh.stats(answer_s=0.5)
    told = await ask(stats)
    assert told[NEW].partial
    assert told[NEW].figures.answers == 30
    (record,) = [each for each in caplog.records if each.name == "lionrock.operator"]
    (address,) = [address for address, gateway in mesh.gateways.items() if gateway is silent]
    assert f"{address}: DEADLINE_EXCEEDED" in record.getMessage()
    await stats.ask([MODEL])
    assert len([each for each in caplog.records if each.name == "lionrock.operator"]) == 1, "what stays is said once"
    await stats.forget()
    await stats.ask([MODEL])
    assert len([each for each in caplog.records if each.name == "lionrock.operator"]) == 2, "and again to who begins anew"


@pytest.mark.parametrize("service", ["inference", "operator"])
async def test_who_has_no_gateways_certificate_is_asked_nothing(mesh: Mesh, ask: Callable[..., Any], service: str) -> None:
    (await mesh.start()).answered(NEW, 3)
    impostor = await mesh.start(service)
    impostor.answered(NEW, 1000)
    told = await ask()
    assert (told[NEW].figures.answers, told[NEW].partial) == (3, True)
    assert impostor.asked == 0


async def test_gateways_tell_the_operator_alone(mesh: Mesh, ask: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    gateway = await mesh.start()
    for stranger in (mesh.ca.issue("inference"), mesh.ca.issue_tenant("retail")):
        assert await ask(tls=stranger) == {}
    assert gateway.asked == 0
    assert "PERMISSION_DENIED" in caplog.text


async def test_what_contradicts_itself_counts_as_silent(mesh: Mesh, ask: Callable[..., Any]) -> None:
    await mesh.start()
    liar = await mesh.start()
    revision = pb.RevisionStats(model="llama", revision=NEW, answers=1000, ttft_counts=[1, 2])
    nonsense = pb.GetModelStatsResponse(ttft_bounds_seconds=[1.0, 0.5], revisions=[revision])
    for since in (False, True):
        if since:
            nonsense.counting_since.GetCurrentTime()
        liar.instead = nonsense
        told = await ask()
        assert (told[NEW].figures.answers, told[NEW].partial) == (0, True)


async def test_an_answer_that_is_full_may_lack_something(
    mesh: Mesh, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_stats, "MAX_REVISIONS", 2)
    await mesh.start()
    assert (await ask())[NEW].partial


async def test_more_gateways_than_can_be_asked_are_said_to_be_missing(
    mesh: Mesh, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_stats, "MAX_GATEWAYS", 1)
    first, second = await mesh.start(), await mesh.start()
    assert (await ask())[NEW].partial
    assert first.asked + second.asked == 1


async def test_without_certificates_nothing_is_known_until_they_come(
    mesh: Mesh, ask: Callable[..., Any], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (await mesh.start()).answered(NEW, 3)
    later = tmp_path / "later"
    files = TlsSettings(cert_file=later / "tls.crt", key_file=later / "tls.key", ca_file=later / "ca.crt")
    stats = mesh.stats(files)
    caplog.set_level("INFO", logger="lionrock.operator")
    assert await ask(stats) == {}
    assert f"{later}: FileNotFoundError" in caplog.text
    mesh.ca.issue("operator", directory=later)
    assert (await ask(stats))[NEW].figures.answers == 3
    assert caplog.messages[-1] == "all gateways tell their figures"


async def test_a_name_that_leads_nowhere_makes_everything_unknown_and_forgets_nothing(
    mesh: Mesh, ask: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    (await mesh.start()).answered(NEW, 3)
    known = True

    async def resolve() -> Sequence[str]:
        if not known:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return list(mesh.gateways)

    stats = GatewayStats(mesh.settings(), "models", resolve=resolve)
    assert (await ask(stats))[NEW].figures.answers == 3
    known = False
    assert await ask(stats) == {}
    assert "gateways:50051: its name cannot be resolved: gaierror" in caplog.text
    known = True
    assert (await ask(stats))[NEW].figures.answers == 3


async def test_a_name_that_cannot_be_one_is_named(mesh: Mesh, ask: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    assert await ask(GatewayStats(mesh.settings(target="gate..ways:1"), "models")) == {}
    assert "gate..ways:1: its name cannot be resolved" in caplog.text


async def test_every_address_of_a_name_is_a_gateway(mesh: Mesh, ask: Callable[..., Any]) -> None:
    (await mesh.start()).answered(NEW, 3)
    (address,) = mesh.gateways
    for target in (address, f"[::ffff:127.0.0.1]:{address.rpartition(':')[2]}"):
        stats = GatewayStats(mesh.settings(target=target), "models")
        assert (await ask(stats))[NEW].figures.answers == 3


async def test_figures_that_are_not_renewed_are_none(mesh: Mesh, ask: Callable[..., Any]) -> None:
    now = 0.0
    await mesh.start()
    stats = GatewayStats(mesh.settings(interval_s=15), "models", resolve=mesh.resolve, clock=lambda: now)
    assert await ask(stats)
    now = 45.0
    assert stats.reports()
    now = 45.1
    assert not stats.reports()


# ---- what becomes of it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failed", "ttft_s", "outcome"), [(0, 0.09, "promoted"), (2, 0.09, "CanaryFailedAnswers"), (0, 0.9, "CanarySlow")]
)
async def test_a_canary_becomes_what_gateways_saw_of_it(mesh: Mesh, failed: int, ttft_s: float, outcome: str) -> None:
    cluster, stats = SimulatedCluster(), mesh.stats()
    cluster.add_node("npu-0")
    cluster.add_node("npu-1")
    key = cluster.add_model("llama", namespace="models", rollout=CANARY)
    cluster.settle()
    (old,) = revisions(cluster)
    cluster.change_model(key, lambda spec: spec["model"].update(dtype="float16"))
    cluster.settle(wait=False)
    (new,) = revisions(cluster) - {old}
    gateways = [await mesh.start(), await mesh.start()]
    for gateway in gateways:
        gateway.counts.keep([("llama", old), ("llama", new)])

    async def ask() -> None:
        await stats.ask([model for model in cluster.world.models.values() if isinstance(model, ModelDeployment)])
        cluster.reports = stats.reports()
        cluster.settle()

    await ask()
    for gateway in gateways:
        gateway.answered(old, 90)
        gateway.answered(new, 15, failed=failed, ttft_s=ttft_s)
    gateways[0].instead = pb.GetModelStatsResponse()  # nonsense
    await ask()
    assert revisions(cluster) == {old, new}, "one gateway alone has too few answers, and the other may know more"
    gateways[0].instead = None
    await ask()
    assert revisions(cluster) == {new if outcome == "promoted" else old}
    assert cluster.condition("llama", "RolledBack")["reason"] == ("NotRolledBack" if outcome == "promoted" else outcome)
    await stats.forget()


def revisions(cluster: SimulatedCluster) -> set[str]:
    return {each["name"] for each in cluster.model("llama")["status"]["revisions"]}


# ---- the thread --------------------------------------------------------------------------------------------------------------


class Looked:
    """Models that the thread wanted looked at, round by round."""

    def __init__(self) -> None:
        self.rounds: list[list[ObjectKey]] = []
        self._condition = threading.Condition()

    def __call__(self, models: Iterable[ObjectKey]) -> None:
        with self._condition:
            self.rounds.append(list(models))
            self._condition.notify_all()

    async def until(self, reached: Callable[[list[list[ObjectKey]]], bool]) -> None:
        def wait() -> bool:
            with self._condition:
                return self._condition.wait_for(lambda: reached(self.rounds), 20)

        assert await asyncio.to_thread(wait), self.rounds


async def test_only_the_leader_asks_and_who_leads_no_more_knows_nothing(mesh: Mesh) -> None:
    gateway = await mesh.start()
    model, leads, looked = a_model(autoscaling=AUTOSCALING), False, Looked()
    stats = mesh.stats()
    stats.start(lambda: [model], lambda: leads, looked)
    try:
        await looked.until(lambda rounds: len(rounds) >= 3)
        assert gateway.asked == 0
        assert not any(looked.rounds)
        leads = True
        await looked.until(lambda rounds: [model.key] in rounds)
        assert stats.reports()[model.key, NEW].waiting == 0
        leads = False
        await looked.until(lambda rounds: rounds.count([model.key]) == 2)
        assert stats.reports() == {}
    finally:
        stats.stop()


async def test_a_round_that_fails_is_survived(mesh: Mesh) -> None:
    await mesh.start()
    looked, rounds = Looked(), 0

    def models() -> Sequence[ModelDeployment]:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise RuntimeError
        return [MODEL]

    stats = mesh.stats()
    stats.start(models, lambda: True, looked)
    await looked.until(lambda rounds: [MODEL.key] in rounds)
    stats.stop()


async def test_stopping_waits_for_nobody(mesh: Mesh) -> None:
    gateway = await mesh.start()
    gateway.silent = True
    stats = mesh.stats(answer_s=60.0)
    stats.start(lambda: [MODEL], lambda: True, lambda models: None)
    async with asyncio.timeout(20):
        await gateway.heard.wait()
        await asyncio.to_thread(stats.stop, 10)
    assert stats._thread is not None
    assert not stats._thread.is_alive()


def test_what_never_began_is_stopped_at_once(tmp_path: Path) -> None:
    GatewayStats(GatewaysSettings(target="gateways:1", tls=DevCa(tmp_path).issue("operator")), "models").stop()
