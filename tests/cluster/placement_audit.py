"""Judges where models' pods went, from the fleet's own words and what the API server showed; shares nothing with the operator.

Each function returns sentences about what is wrong, so that a failure shows all of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fleet import GIB, SIZES_BY_NAME, Fleet, Node
from testcluster.objects import Manifest

MODEL = "lionrock.io/model"
REVISION = "lionrock.io/revision"
ROLE = "lionrock.io/role"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the API server showed. pods: of models, now; bound: whenever they had a node, with all nodes; others: pods of others."""

    models: list[Manifest]
    pods: list[Manifest]
    bound: list[tuple[Manifest, set[str]]]
    others: list[Manifest]

    def pods_of(self, model: Manifest) -> list[Manifest]:
        """Pods of a model, now."""
        return [pod for pod in self.pods if _model_of(pod) == model["metadata"]["name"]]

    def holds_chips(self, model: Manifest) -> bool:
        """Whether a pod of the model has a node and chips of it."""
        return any(pod["spec"].get("nodeName") and chips_of(pod) for pod in self.pods_of(model))


def violations(fleet: Fleet, seen: Seen) -> Iterator[str]:
    """Name everything that is wrong with where the fleet's models are."""
    yield from wrong_nodes(fleet, seen.bound)
    yield from crowded_nodes(fleet, [*seen.pods, *seen.others])
    for model in seen.models:
        bound = [(pod, nodes) for pod, nodes in seen.bound if _model_of(pod) == model["metadata"]["name"]]
        yield from half_placed(model, seen.pods_of(model))
        yield from too_much_memory(fleet, model, bound)
        yield from unexplained(model)


def wrong_nodes(fleet: Fleet, bound: Iterable[tuple[Manifest, set[str]]]) -> Iterator[str]:
    """Name pods of models that were ever bound to a node of another chip, pool or territory than their model's."""
    models = {model["metadata"]["name"]: model for model in fleet.models}
    for pod, nodes in bound:
        labels, name = pod["metadata"]["labels"], pod["metadata"]["name"]
        model = models[labels[MODEL]]
        for node in (fleet.nodes[node] for node in nodes):
            if node.territory != model["spec"]["territory"]:
                yield f"{name} of {model['spec']['territory']} was on {node.name} in {node.territory}"
            if labels.get(ROLE) == "worker":
                yield from _wrong_chip(fleet, model, pod, node)
            elif chips_of(pod):
                yield f"{name} is no worker and holds chips"


def too_much_memory(fleet: Fleet, model: Manifest, bound: Iterable[tuple[Manifest, set[str]]]) -> Iterator[str]:
    """Name ranks that their chips cannot hold, by the plan's own sums and by the model's bare weights."""
    kinds = [fleet.nodes[node].kind for pod, nodes in bound if chips_of(pod) for node in nodes]
    smallest = min((kind.memory_gib for kind in kinds if kind is not None), default=None)
    if smallest is None:
        return
    name, plan = model["metadata"]["name"], model["status"]["plan"]
    for rank in plan["ranks"]:
        if rank["total"] > smallest * GIB:
            yield f"rank {rank['rank']} of {name} needs {rank['total'] / GIB:.1f} GiB of {smallest}"
    weights = SIZES_BY_NAME[name.split("-", 1)[1]].weight_bytes
    if weights > plan["chipsPerReplica"] * smallest * GIB:
        yield f"{name} has {weights / GIB:.1f} GiB of weights on {plan['chipsPerReplica']} chips of {smallest} GiB"
    if sum(rank["weights"] for rank in plan["ranks"]) < weights:
        yield f"the plan of {name} forgets weights: {sum(rank['weights'] for rank in plan['ranks'])} of {weights} bytes"


def half_placed(model: Manifest, pods: Iterable[Manifest]) -> Iterator[str]:
    """Name replicas of a model that hold chips of some of their pods and lack others, and pods off the slots kept for them."""
    name = model["metadata"]["name"]
    status = model.get("status", {})
    slots = status.get("placement", {}).get("pods", ())
    kept: Counter[tuple[str, str]] = Counter((slot["revision"], slot["node"]) for slot in slots)
    holding = [pod for pod in pods if pod["spec"].get("nodeName") and chips_of(pod)]
    held: Counter[tuple[str, str]] = Counter((pod["metadata"]["labels"][REVISION], pod["spec"]["nodeName"]) for pod in holding)
    if held != kept:
        yield f"{name} holds {dict(held - kept)} without a slot and leaves {dict(kept - held)} vacant"
    replicas: dict[tuple[str, int], int] = defaultdict(int)
    for slot in slots:
        replicas[slot["revision"], slot["replica"]] += 1
    for (revision, replica), parts in replicas.items():
        if parts != status["plan"]["podsPerReplica"]:
            yield f"replica {replica} of {name}-{revision} has {parts} of {status['plan']['podsPerReplica']} pods"


def crowded_nodes(fleet: Fleet, pods: Iterable[Manifest]) -> Iterator[str]:
    """Name nodes with more chips asked for than they have, pods of others counted."""
    asked: Counter[str] = Counter()
    for pod in pods:
        asked[pod["spec"].get("nodeName", "")] += chips_of(pod)
    for name, chips in asked.items():
        node = fleet.nodes.get(name)
        if node is not None and node.kind is not None and chips > node.kind.chips:
            yield f"{name} has {node.kind.chips} chips and {chips} are asked for"


def unexplained(model: Manifest) -> Iterator[str]:
    """Name what a model that is not placed as asked leaves unsaid."""
    name, status = model["metadata"]["name"], model.get("status", {})
    conditions: Mapping[str, Any] = {condition["type"]: condition for condition in status.get("conditions", ())}
    if status.get("observedGeneration") != model["metadata"]["generation"]:
        yield f"{name} was not looked at"
        return
    for kind in ("Planned", "Scheduled"):
        if kind not in conditions:
            yield f"{name} has no condition {kind}"
    blocking = next(
        (conditions[kind] for kind in ("Planned", "Scheduled") if conditions.get(kind, {}).get("status") != "True"), None
    )
    if blocking is not None and (not blocking.get("reason") or len(blocking.get("message", "")) < 20):
        yield f"{name} does not say why it is not placed: {blocking}"


def chips_of(pod: Manifest) -> int:
    """Chips that a pod asks for, of any resource with a vendor's name."""
    containers = pod["spec"]["containers"]
    limits = [limit for container in containers for limit in container.get("resources", {}).get("limits", {}).items()]
    return sum(int(count) for resource, count in limits if "/" in resource)


def _model_of(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"][MODEL])


def _wrong_chip(fleet: Fleet, model: Manifest, pod: Manifest, node: Node) -> Iterator[str]:
    name = pod["metadata"]["name"]
    if node.kind is None:
        yield f"{name} was on {node.name}, which has no chips"
        return
    wanted = [pool["name"] for pool in model["spec"].get("pools", ())]
    territory = f"-{model['spec']['territory'].lower()}"
    pools = [pool for pool in wanted or fleet.kinds_of_pool if pool.endswith(territory)]
    if not any(node.kind.name in fleet.kinds_of_pool.get(pool, ()) for pool in pools):
        yield f"{name} was on {node.kind.name}, and its pools are {pools}"
    asked = {
        resource for container in pod["spec"]["containers"] for resource in container["resources"]["limits"] if "/" in resource
    }
    if asked != {node.kind.resource}:
        yield f"{name} asks for {asked} on {node.name}"
