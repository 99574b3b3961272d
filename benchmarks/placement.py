"""What observing and placing cost the operator on a large cluster, without any API server: 5,000 nodes, 1,000 models.

Times are of the processor, not of the clock, so that a busy machine does not count. Baseline is the same answer from a World that
is built anew from all objects, as an operator without indices would have it at every change; it is measured fewer times.

    python -m benchmarks.placement [--quick]
"""

from __future__ import annotations

import argparse
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from benchmarks.report import Row, row, write
from lionrock.operator.conditions import timestamp
from lionrock.operator.placement import Candidate, Outcome, Patience, Request, place
from lionrock.operator.pools import PoolRules, TerritoryRule
from lionrock.operator.resources import (
    ModelDeployment,
    ObjectKey,
    Placement,
    PoolName,
    Revision,
    parse_chip_pool,
    parse_model_deployment,
    parse_node,
    parse_pod,
)
from lionrock.operator.world import World
from lionrock.planner.chips import chip as chip_row

REGION = "topology.kubernetes.io/region"
TERRITORIES = {"HK": ("hk-1", "hk-2"), "CN": ("cn-south-1",)}
ROWS = ("ascend-910b", "cambricon-mlu590", "hygon-dcu", "metax-c500", "mthreads-s5000", "enflame-s60")
RULES = PoolRules(
    territories={name: TerritoryRule(REGION, frozenset(values)) for name, values in TERRITORIES.items()},
    engine_images={name: f"registry/{name}:1" for name in ROWS},
)
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
EARLIER = timestamp(NOW - timedelta(days=1))
PATIENCE = Patience()

Body = dict[str, Any]


class Fleet:
    """Nodes of six chips in two territories, and models that prefer one chip and may fall back to another."""

    def __init__(self, nodes: int, models: int) -> None:
        self.random = random.Random(5)
        self.pools = [
            {"metadata": {"name": f"{chip}-{place.lower()}"}, "spec": {"chip": chip, "territory": place}}
            for chip in ROWS
            for place in TERRITORIES
        ]
        self.nodes = [self._node(number) for number in range(nodes)]
        self.keys = [ObjectKey(f"team-{number % 40}", f"model-{number}") for number in range(models)]
        self.requests = {key: self._request(key, number) for number, key in enumerate(self.keys)}
        self.statuses: dict[ObjectKey, Body] = {}
        self.version = 0

    def _node(self, number: int) -> Body:
        regions = [region for values in TERRITORIES.values() for region in values]
        return node_body(f"node-{number:05}", ROWS[number % len(ROWS)], regions[number % 7 % 3])

    def _request(self, key: ObjectKey, number: int) -> Request:
        place = "CN" if number % 3 == 0 else "HK"
        chips, pods = self.random.choice([(1, 1), (2, 1), (4, 1), (4, 1), (8, 1), (8, 2), (8, 4)])
        candidates = tuple(
            Candidate(
                pool=PoolName(f"{chip}-{place.lower()}"),
                revision=Revision(f"{number:04x}{rank:04x}"),
                chips_per_pod=chips,
                pods_per_replica=pods,
            )
            for rank, chip in enumerate(self.random.sample(ROWS, 2))
        )
        return Request(
            model=key,
            territory=place,
            candidates=candidates,
            replicas=self.random.randint(1, 4),
            placed_since=NOW - timedelta(days=1),
        )

    def model(self, key: ObjectKey) -> ModelDeployment:
        """Return the model as the API server would give it now."""
        request = self.requests[key]
        self.version += 1
        body = {
            "metadata": {
                "name": key.name,
                "namespace": key.namespace,
                "uid": key.name,
                "generation": 1,
                "resourceVersion": str(self.version),
                "creationTimestamp": EARLIER,
            },
            "spec": {
                "model": {"source": {"persistentVolumeClaim": {"claimName": "models"}}},
                "territory": request.territory,
                "pools": [{"name": candidate.pool} for candidate in request.candidates],
            },
            "status": self.statuses.get(key, {}),
        }
        parsed = parse_model_deployment(body)
        assert isinstance(parsed, ModelDeployment)
        return parsed

    def note(self, key: ObjectKey, outcome: Outcome) -> None:
        """Write the status of a model."""
        plan = outcome.chosen or self.requests[key].candidates[0]
        placement = Placement(
            pool=outcome.chosen.pool if outcome.chosen else None,
            revision=outcome.chosen.revision if outcome.chosen else None,
            slots=outcome.slots,
        )
        waiting = [] if outcome.complete else [{"type": "Scheduled", "status": "False", "reason": "NoRoom", "message": "",
                                                "lastTransitionTime": EARLIER}]  # fmt: skip
        self.statuses[key] = {
            "placement": placement.as_status(),
            "replicas": {"desired": outcome.wanted},
            "plan": {"pool": plan.pool, "chipsPerPod": plan.chips_per_pod, "podsPerReplica": plan.pods_per_replica},
            "conditions": waiting,
        }

    def request(self, world: World, key: ObjectKey) -> Request:
        """Ask for the model's chips, as it stands."""
        model = world.models.get(key)
        placement = model.status.placement if model is not None else None
        asked = self.requests[key]
        return Request(
            model=key,
            territory=asked.territory,
            candidates=asked.candidates,
            replicas=asked.replicas,
            newest=placement.revision if placement else None,
            placed_since=asked.placed_since,
        )

    def world(self) -> World:
        """Build a World of everything."""
        made = World(RULES)
        for pool in self.pools:
            made.apply_pool(parse_chip_pool(pool))
        for body in self.nodes:
            made.apply_node(parse_node(body))
        for key in self.keys:
            made.apply_model(self.model(key))
        return made

    def settle(self, world: World, key: ObjectKey) -> Outcome:
        """Place a model, write it, and let its pods run."""
        outcome = place(world, self.request(world, key), PATIENCE, NOW)
        self.note(key, outcome)
        world.apply_model(self.model(key))
        for slot in outcome.slots:
            world.apply_pod(parse_pod(pod_body(key, slot.revision, slot.replica, slot.part, slot.node, slot.resource, slot.chips)))
        return outcome


def node_body(name: str, chip: str, region: str, *, cordoned: bool = False, ready: bool = True) -> Body:
    resource = chip_row(chip).extended_resource
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, REGION: region, "kubernetes.io/arch": "arm64"}},
        "spec": {"unschedulable": cordoned, "taints": [{"key": resource, "effect": "NoSchedule"}]},
        "status": {
            "allocatable": {"cpu": "191", "memory": "1500Gi", "pods": "110", resource: "8"},
            "conditions": [{"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": EARLIER}],
        },
    }


def pod_body(key: ObjectKey, revision: str, replica: int, part: int, node: str, resource: str, chips: int) -> Body:
    labels = {
        "app.kubernetes.io/part-of": "lionrock",
        "lionrock.io/model": key.name,
        "lionrock.io/revision": revision,
        "lionrock.io/role": "worker",
    }
    limits = {"resources": {"limits": {resource: str(chips)}}}
    return {
        "metadata": {"name": f"{key.name}-{revision}-{replica}-{part}", "namespace": key.namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "worker", **limits}]},
        "status": {"phase": "Running"},
    }


def timed(act: Callable[[], object]) -> float:
    """Milliseconds of the processor."""
    started = time.process_time()
    act()
    return (time.process_time() - started) * 1e3


def p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


def measure(nodes: int, models: int, changes: int) -> list[Row]:
    fleet = Fleet(nodes, models)
    started = time.process_time()
    world = fleet.world()
    built_ms = (time.process_time() - started) * 1e3
    placed = [timed(partial(fleet.settle, world, key)) for key in fleet.keys]
    outcomes = [place(world, fleet.request(world, key), PATIENCE, NOW) for key in fleet.keys]
    slots = sum(len(outcome.slots) for outcome in outcomes)
    print(f"{sum(outcome.complete for outcome in outcomes)} of {models} models placed whole, {slots} slots")
    looks = [timed(partial(look, fleet, world, index)) for index in range(changes)]
    beats = [timed(partial(heartbeat, world, fleet.nodes[index])) for index in range(min(changes, nodes))]
    rows = [
        row("build the World, all objects parsed", [built_ms], "ms", "lower"),
        row("place a new model, pods included", placed, "ms", "lower"),
        row("place a new model, p99", [p99(placed)], "ms", "lower"),
        row("look at a model that is placed", looks, "ms", "lower"),
        row("heartbeat of a node", beats, "ms", "lower"),
    ]
    cordons, anew = [], []
    for index in range(changes):
        body = fleet.nodes[fleet.random.randrange(nodes)]
        cordons.append(timed(partial(change, fleet, world, body, index % 2 == 0)))
        if index < max(2, changes // 100):
            anew.append(timed(partial(change_anew, fleet, body)))
    rows.append(row("node cordoned, its models looked at", cordons, "ms", "lower", baseline="built anew", baseline_values=anew))
    rows.append(row("node cordoned, p99", [p99(cordons)], "ms", "lower", baseline="limit", baseline_values=[1000.0]))
    rows.append(row("chips come free under a queue", queue(nodes, models, changes), "ms", "lower"))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    again = fleet.world()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rows.append(
        row(f"memory of {len(again.nodes)} nodes and {len(again.models)} models", [(after - before) / 2**20], "MiB", "lower")
    )
    return rows


def look(fleet: Fleet, world: World, index: int) -> Outcome:
    return place(world, fleet.request(world, fleet.keys[index % len(fleet.keys)]), PATIENCE, NOW)


def change(fleet: Fleet, world: World, body: Body, cordoned: bool) -> None:
    """Take a changed node in and look at every model that it touches."""
    changed = {**body, "spec": {**body["spec"], "unschedulable": cordoned}}
    for key in world.apply_node(parse_node(changed)).models:
        place(world, fleet.request(world, key), PATIENCE, NOW)


def change_anew(fleet: Fleet, body: Body) -> None:
    """Take the change in as an operator that keeps no indices."""
    change(fleet, fleet.world(), body, True)


def heartbeat(world: World, body: Body) -> None:
    """Take a node in that is what it was."""
    assert not world.apply_node(parse_node(body)).models


def queue(nodes: int, models: int, changes: int) -> list[float]:
    """Fill a tenth of the nodes, so that most models wait; then chips come free, one node at a time, and go to the queue."""
    fleet = Fleet(nodes // 10, models)
    world = fleet.world()
    for key in fleet.keys:
        fleet.settle(world, key)
    waiting = sum(len(world.waiting(PoolName(pool["metadata"]["name"]))) for pool in fleet.pools)
    print(f"{waiting} of {models} models wait on {nodes // 10} nodes")
    times = []
    for index in range(max(2, changes // 10)):
        body = node_body(f"new-{index:05}", ROWS[index % len(ROWS)], "hk-1")

        times.append(timed(partial(node_comes, fleet, world, body)))
    return times


def node_comes(fleet: Fleet, world: World, body: Body) -> None:
    """Take a new node in, and give its chips to those who wait."""
    for key in world.apply_node(parse_node(body)).models:
        outcome = place(world, fleet.request(world, key), PATIENCE, NOW)
        if outcome.slots != world.slots_of(key):
            fleet.note(key, outcome)
            world.apply_model(fleet.model(key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the changes")
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--models", type=int, default=1000)
    arguments = parser.parse_args()
    write("placement", measure(arguments.nodes, arguments.models, 100 if arguments.quick else 1000))


if __name__ == "__main__":
    main()
