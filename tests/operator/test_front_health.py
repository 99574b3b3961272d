"""A revision that starts is ready when its front says so, asked over the real health port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from simulated_cluster import SimulatedCluster, settings

from lionrock.chassis.health import Health
from lionrock.chassis.probes import start_probes
from lionrock.operator.front_health import AT_A_TIME, FrontHealth, fronts_to_ask
from lionrock.operator.reports import RevisionReport
from lionrock.operator.resources import ObjectKey, Revision

FRONT = (ObjectKey("models", "llama"), Revision("0123abcd"))


async def test_a_front_is_asked_until_it_answers_and_only_changes_are_told() -> None:
    health = Health(["lionrock.inference.v1.InferenceService"])
    server, port = await start_probes("127.0.0.1:0", health)
    asker = FrontHealth(port=port)

    async def ask(fronts: Mapping[tuple[ObjectKey, Revision], str]) -> set[ObjectKey]:
        return await asyncio.to_thread(asker.ask, fronts)

    try:
        assert await ask({FRONT: "127.0.0.1"}) == set()
        assert asker.reports()[FRONT].answers is False
        health.serving()
        assert await ask({FRONT: "127.0.0.1"}) == {FRONT[0]}
        assert asker.reports()[FRONT].answers is True
        assert await ask({FRONT: "127.0.0.1"}) == set()
        health.not_serving()
        assert await ask({FRONT: "127.0.0.1"}) == {FRONT[0]}
        assert await ask({}) == set()
        assert asker.reports() == {}
    finally:
        asker.stop()
        await server.stop(None)


def test_a_front_that_nobody_finds_does_not_answer() -> None:
    asker = FrontHealth(port=1, answer_s=0.2)
    assert asker.ask({FRONT: "127.0.0.1"}) == set()
    assert asker.reports()[FRONT].answers is False
    asker.stop()


def test_of_many_fronts_every_one_is_asked_in_its_turn() -> None:
    asker = FrontHealth(port=1, answer_s=0.5)
    fronts = {(ObjectKey("models", f"m{index}"), Revision("0123abcd")): "127.0.0.1" for index in range(2 * AT_A_TIME + 1)}
    for known in (AT_A_TIME, 2 * AT_A_TIME, len(fronts)):
        asker.ask(fronts)
        assert len(asker.reports()) == known
    asker.stop()


def test_a_failure_to_ask_is_survived() -> None:
    asker, looked, rounds = FrontHealth(every_s=0.01), threading.Event(), []

    def fronts() -> Mapping[tuple[ObjectKey, Revision], str]:
        rounds.append(1)
        if len(rounds) == 1:
            raise RuntimeError
        return {}

    def look_at(models: Iterable[ObjectKey]) -> None:
        assert not list(models)
        looked.set()

    asker.start(fronts, look_at)
    assert looked.wait(10)
    asker.stop()


@pytest.mark.parametrize("asked", [True, False])
def test_requests_go_to_a_new_revision_when_its_front_answers(asked: bool) -> None:
    cluster = SimulatedCluster(replace(settings(), fronts_are_asked=asked))
    cluster.add_node("npu-0")
    key = cluster.add_model("llama")
    cluster.settle(wait=False)
    head = cluster.pods("llama", "head")[0]
    cluster.put({**head, "status": {**head["status"], "podIP": "10.1.2.3"}})
    (revision,) = [each["name"] for each in cluster.model("llama")["status"]["revisions"]]
    if not asked:
        assert cluster.condition("llama", "Ready")["status"] == "True"
        assert fronts_to_ask(cluster.world) == {}
        return
    assert cluster.condition("llama", "Ready")["status"] == "False"
    assert "the front" in cluster.condition("llama", "Ready")["message"]
    assert cluster.model("llama")["status"]["endpoints"] == []
    assert fronts_to_ask(cluster.world) == {(key, revision): "10.1.2.3"}
    cluster.reports = {(key, Revision(revision)): RevisionReport(answers=True)}
    cluster.settle()
    assert cluster.condition("llama", "Ready")["status"] == "True"
    assert fronts_to_ask(cluster.world) == {}
    cluster.reports = {}
    cluster.settle()
    assert cluster.condition("llama", "Ready")["status"] == "True", "from then on Serve and the pods say how it is"
