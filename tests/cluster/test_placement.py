"""Three hundred nodes, a hundred models in random order: right chips, right territory, whole gangs, and a reason for every refusal.

SEEDS=20 in the environment runs twenty fleets; `make test` runs one. A failure names its seed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest
from fleet import TERRITORIES, make_fleet
from operator_process import operator_settings, prepare_namespaces, start_operator
from placement_audit import MODEL, Seen, unexplained, violations
from testcluster.control_plane import ControlPlane
from testcluster.nodes import Nodes
from testcluster.objects import Manifest, Objects
from testcluster.pod_history import PodHistory
from testcluster.processes import Program
from testcluster.waiting import wait_for

SETTLES_WITHIN_S = 400

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def operator(own_control_plane: ControlPlane, objects: Objects, namespace: str, lionrock_crds: list[str]) -> Iterator[Program]:
    """One operator for the fleet's territories and the test's namespace."""
    prepare_namespaces(objects, namespace)
    name = f"operator-{secrets.token_hex(3)}"
    running = start_operator(own_control_plane, operator_settings(own_control_plane, name, TERRITORIES, namespaces=[namespace]))
    yield running
    running.stop()


@pytest.mark.parametrize("seed", range(int(os.environ.get("SEEDS", "1"))))
def test_models_go_to_the_right_chips_whole_or_say_why_not(
    seed: int,
    own_control_plane: ControlPlane,
    objects: Objects,
    namespace: str,
    nodes: Nodes,
    scheduler: Program,
    kuberay: Program,
    operator: Program,
) -> None:
    fleet = make_fleet(seed, namespace)
    for pool in fleet.pools:  # before their nodes, or the operator proposes pools for these
        objects.create(pool)
    nodes.add_manifests([node.manifest() for node in fleet.nodes.values()])
    for other in fleet.others:
        objects.create(other)
    history = PodHistory(own_control_plane.client(), namespace, labels=MODEL)
    try:
        for model in fleet.models:
            objects.create(model)
        models = settle(objects, namespace, history)
        others = objects.list("v1", "Pod", namespace, labels=f"!{MODEL}")
        seen = Seen(models, history.pods(), history.bound(), others)
        assert list(violations(fleet, seen)) == []
        placed = sum(seen.holds_chips(model) for model in models)
        assert 20 < placed < len(models), "the fleet holds neither every model nor none"
    finally:
        history.close()
        for model in fleet.models:
            objects.delete(model)
        wait_for(
            lambda: not objects.list("v1", "Pod", namespace, labels=MODEL),
            "the pods are gone",
            timeout_s=SETTLES_WITHIN_S,
            interval_s=1,
        )
        nodes.close()  # before the pools, or the operator proposes others for what it sees
        for pool in fleet.pools:  # the next fleet's have the same names; the operator lets go of them when their models are gone
            objects.delete_and_wait(pool, timeout_s=120)


def settle(objects: Objects, namespace: str, history: PodHistory) -> list[Manifest]:
    """Wait until every model was looked at and two looks in a row, two seconds apart, show the same. Returns the models."""
    before: object = None
    busy: list[str] = []

    def look() -> list[Manifest]:
        nonlocal before, busy
        models = objects.list("lionrock.io/v1alpha1", "ModelDeployment", namespace)
        pods = {pod["metadata"]["uid"]: (pod["spec"].get("nodeName"), pod["status"]["phase"]) for pod in history.pods()}
        now = (pods, [(model["metadata"]["name"], model["metadata"]["resourceVersion"]) for model in models])
        busy = [sentence for model in models for sentence in (*unexplained(model), *being_placed(model))]
        done = now == before and not busy
        before = now
        return models if done else []

    return wait_for(look, "the fleet has settled", timeout_s=SETTLES_WITHIN_S, interval_s=2, seen=lambda: busy)


def being_placed(model: Manifest) -> Iterator[str]:
    """Name a model whose chips are kept while pods are still being made or let go."""
    for condition in model.get("status", {}).get("conditions", ()):
        if condition["type"] == "Scheduled" and condition["reason"] == "Placing":
            yield f"{model['metadata']['name']}: {condition['message']}"
