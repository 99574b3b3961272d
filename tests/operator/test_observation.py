"""Which keys are looked at again when an object changes."""

from __future__ import annotations

from typing import Any

from simulated_cluster import NAMESPACE, SimulatedCluster

from lionrock.operator.actions import Key, namespace_key
from lionrock.operator.api_resources import CONFIG_MAP, MODEL_DEPLOYMENT, Resource
from lionrock.operator.desired_state import ROUTES_NAME
from lionrock.operator.informers import Change
from lionrock.operator.observation import Observation
from lionrock.operator.world import World


class Watching:
    """An observation, and what it has enqueued since it was asked last."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._observation = Observation(World(SimulatedCluster().settings.pools), self._keys.append)

    def sees(self, resource: Resource, before: dict[str, Any] | None, after: dict[str, Any] | None) -> set[Key]:
        self._keys.clear()
        self._observation.take(Change(resource, before, after))
        return set(self._keys)


def served() -> dict[str, Any]:
    cluster = SimulatedCluster()
    cluster.add_node("npu-0")
    cluster.add_model("llama")
    cluster.settle()
    return cluster.model("llama")


def with_changes(body: dict[str, Any], version: str, **sections: dict[str, Any]) -> dict[str, Any]:
    changed = {name: {**body[name], **values} for name, values in sections.items()}
    return {**body, **changed, "metadata": {**body["metadata"], "resourceVersion": version, **sections.get("metadata", {})}}


def test_routes_are_looked_at_when_they_say_something_else_of_a_model_and_not_at_every_change_of_it() -> None:
    watching, routes = Watching(), namespace_key(NAMESPACE)
    body = served()
    assert routes in watching.sees(MODEL_DEPLOYMENT, None, body)
    grown = with_changes(body, "1001", spec={"replicas": 3})
    seen = watching.sees(MODEL_DEPLOYMENT, body, grown)
    assert seen, "the model itself is looked at"
    assert routes not in seen
    moved = with_changes(grown, "1002", status={"endpoints": [{"address": "elsewhere", "revision": "1", "weightPercent": 100}]})
    assert routes in watching.sees(MODEL_DEPLOYMENT, grown, moved)
    owned = with_changes(moved, "1003", spec={"tenancy": {"type": "Dedicated", "tenant": "bank"}})
    assert routes in watching.sees(MODEL_DEPLOYMENT, moved, owned)
    going = with_changes(owned, "1004", metadata={"deletionTimestamp": "2026-11-23T00:00:00Z"})
    assert routes in watching.sees(MODEL_DEPLOYMENT, owned, going)
    assert routes in watching.sees(MODEL_DEPLOYMENT, going, None)


def test_routes_that_somebody_changed_or_deleted_are_looked_at_at_once() -> None:
    watching = Watching()
    metadata = {"name": ROUTES_NAME, "namespace": NAMESPACE, "uid": "u", "resourceVersion": "1"}
    routes = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"routes.json": "{}"}}
    forged = {**routes, "metadata": {**metadata, "resourceVersion": "2"}, "data": {"routes.json": "{1}"}}
    assert watching.sees(CONFIG_MAP, None, routes) == {namespace_key(NAMESPACE)}
    assert watching.sees(CONFIG_MAP, routes, forged) == {namespace_key(NAMESPACE)}
    assert watching.sees(CONFIG_MAP, forged, None) == {namespace_key(NAMESPACE)}
