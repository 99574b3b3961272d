"""What holds for every placement, against a reference that counts everything anew from the plain objects.

A machine lets nodes come, go and change, foreign pods run, and models be made, scaled and deleted, in any order; the operator looks
at models in between, in any order, and may be restarted at any time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lionrock.operator.conditions import timestamp
from lionrock.operator.placement import Candidate, Outcome, Patience, Request, place
from lionrock.operator.resources import (
    ModelDeployment,
    NodeName,
    ObjectKey,
    Placement,
    PoolName,
    Revision,
    Slot,
    parse_chip_pool,
    parse_model_deployment,
    parse_node,
    parse_pod,
)
from lionrock.operator.world import World
from operator_objects import ASCEND, CAMBRICON, REGION, RULES, at, model_body, node_body, pod_body, pool_body

A3 = {"accelerator-type": "module-a3-16"}
# Name → body, resource, territory's region values, the label that says which chip it is.
POOLS: Mapping[str, tuple[dict[str, Any], str, str, str | None]] = {
    "ascend": (pool_body("ascend"), ASCEND, "HK", "module-910b-8"),
    "a3": (pool_body("a3", "ascend-a3", engine={"image": "a3:1"}), ASCEND, "HK", "module-a3-16"),
    "mlu": (pool_body("mlu", "cambricon-mlu590"), CAMBRICON, "HK", None),
    "abroad": (pool_body("abroad", "cambricon-mlu590", "CN"), CAMBRICON, "CN", None),
}
REGIONS = {"hk-1": "HK", "hk-2": "HK", "cn-south-1": "CN"}
NODES = [f"n{number}" for number in range(6)]
MODELS = [ObjectKey("team", name) for name in ("anna", "bert", "carl", "dora")]
PATIENCE = Patience(node_grace_s=60, settle_s=120, hold_after_s=100)


@dataclass
class Wish:
    """A model as its owner and its plans have it."""

    candidates: tuple[Candidate, ...]
    replicas: int
    version: int
    slots: tuple[Slot, ...] = ()
    newest: Candidate | None = None
    started_at: float = 0.0
    waiting_since: float | None = None


@dataclass
class Cluster:
    """The plain truth: bodies as an API server holds them."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[ObjectKey, Wish] = field(default_factory=dict)
    seconds: float = 0.0

    def model_body(self, key: ObjectKey) -> dict[str, Any]:
        wish = self.models[key]
        placement = Placement(
            pool=wish.newest.pool if wish.newest else None,
            revision=wish.newest.revision if wish.newest else None,
            slots=wish.slots,
        )
        plan = wish.newest or wish.candidates[0]
        status: dict[str, Any] = {
            "placement": placement.as_status(),
            "replicas": {"desired": wish.replicas},
            "plan": {"pool": plan.pool, "chipsPerPod": plan.chips_per_pod, "podsPerReplica": plan.pods_per_replica},
        }
        if wish.waiting_since is not None:
            since = timestamp(at(wish.waiting_since))
            told = {"status": "False", "reason": "NoRoom", "message": "", "lastTransitionTime": since}
            status["conditions"] = [{"type": "Scheduled", **told}]
        pools = [candidate.pool for candidate in wish.candidates]
        return model_body(key.name, namespace=key.namespace, pools=pools, status=status, version=wish.version)

    # ---- the reference: everything counted anew ---------------------------------------------------------------------------

    def total(self, node: str, resource: str) -> int:
        return int(self.nodes[node]["status"]["allocatable"].get(resource, 0)) if node in self.nodes else 0

    def held(self, node: str, resource: str) -> Iterator[tuple[tuple[str, str] | None, int]]:
        """Owner, None for a foreigner, and chips of each pod on a node."""
        for body in self.pods.values():
            labels, limits = body["metadata"]["labels"], body["spec"]["containers"][0]["resources"]["limits"]
            if body["spec"].get("nodeName") == node and resource in limits:
                name = labels.get("lionrock.io/model")
                yield (name, labels["lionrock.io/revision"]) if name else None, int(limits[resource])

    def free(self, node: str, resource: str, *, but_of: ObjectKey | None = None) -> int:
        """May be negative. but_of: a model whose chips are not counted."""
        kept: dict[tuple[str, str], int] = {}
        for key, wish in self.models.items():
            for slot in wish.slots:
                if (slot.node, slot.resource) == (node, resource):
                    kept[key.name, slot.revision] = kept.get((key.name, slot.revision), 0) + slot.chips
        foreign, running = 0, dict[tuple[str, str], int]()
        for owner, chips in self.held(node, resource):
            if owner is None:
                foreign += chips
            else:
                running[owner] = running.get(owner, 0) + chips
        owners = {owner for owner in kept.keys() | running.keys() if but_of is None or owner[0] != but_of.name}
        return self.total(node, resource) - foreign - sum(max(kept.get(owner, 0), running.get(owner, 0)) for owner in owners)

    def may_take(self, node: str, pool: str) -> bool:
        """Whether a new pod of that pool may go to that node."""
        _, resource, territory, chip = POOLS[pool]
        body = self.nodes.get(node)
        if body is None or not self.total(node, resource):
            return False
        labels = body["metadata"]["labels"]
        labelled = labels.get("accelerator-type")
        return (
            REGIONS.get(labels.get(REGION, "")) == territory
            and (chip is None or labelled == chip or (labelled is None and chip == "module-910b-8"))
            and body["status"]["conditions"][0]["status"] == "True"
            and not body["spec"]["unschedulable"]
            and not body["spec"]["taints"]
        )


def candidates() -> st.SearchStrategy[tuple[Candidate, ...]]:
    each = st.tuples(st.sampled_from(sorted(POOLS)), st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 3))
    return st.lists(each, min_size=1, max_size=3, unique_by=lambda plan: plan[0]).map(
        lambda plans: tuple(
            Candidate(pool=PoolName(pool), revision=Revision(f"{pool}-{chips}-{pods}"), chips_per_pod=chips, pods_per_replica=pods)
            for pool, chips, pods in plans
        )
    )


class PlacementMachine(RuleBasedStateMachine):
    """Hypothesis chooses what happens."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.world = World(RULES)

    # ---- what happens in a cluster ----------------------------------------------------------------------------------------

    @initialize(seed=st.integers(0, 99))
    def begin(self, seed: int) -> None:
        self.random = random.Random(seed)
        for body, _, _, _ in POOLS.values():
            self.world.apply_pool(parse_chip_pool(body))
        for name in NODES[:3]:
            self.node_changes(name, ASCEND, 8, "hk-1", None, True, False, False)

    @rule(
        name=st.sampled_from(NODES),
        resource=st.sampled_from([ASCEND, CAMBRICON]),
        chips=st.sampled_from([0, 2, 4, 5, 8, 16]),
        region=st.sampled_from([*REGIONS, "elsewhere"]),
        chip=st.sampled_from([None, "module-910b-8", "module-a3-16"]),
        ready=st.sampled_from([True, True, True, False]),
        cordoned=st.sampled_from([False, False, False, True]),
        tainted=st.sampled_from([False, False, False, True]),
    )
    def node_changes(
        self, name: str, resource: str, chips: int, region: str, chip: str | None, ready: bool, cordoned: bool, tainted: bool
    ) -> None:
        before = self.cluster.nodes.get(name)
        status, since = "True" if ready else "Unknown", at(self.cluster.seconds)
        if before is not None and before["status"]["conditions"][0]["status"] == status:
            since = parse_node(before).ready_since or since
        body = node_body(
            name,
            {resource: chips},
            region=region,
            labels={} if chip is None else {"accelerator-type": chip},
            ready=ready,
            ready_since=since,
            cordoned=cordoned,
            taints=[{"key": "dedicated", "effect": "NoSchedule"}] if tainted else [],
        )
        self.cluster.nodes[name] = body
        self.world.apply_node(parse_node(body))

    @rule(name=st.sampled_from(NODES))
    def node_goes(self, name: str) -> None:
        self.cluster.nodes.pop(name, None)
        self.world.forget_node(NodeName(name))

    @rule(name=st.sampled_from(["job-1", "job-2", "job-3"]), node=st.sampled_from(NODES), chips=st.integers(1, 6))
    def foreigner_comes(self, name: str, node: str, chips: int) -> None:
        for resource in (ASCEND, CAMBRICON):
            held = sum(each for _, each in self.cluster.held(node, resource))
            if name not in self.cluster.pods and self.cluster.total(node, resource) - held >= chips:
                self.run(pod_body(name, chips={resource: chips}, node=node))

    @rule(name=st.sampled_from(["job-1", "job-2", "job-3"]))
    def foreigner_ends(self, name: str) -> None:
        self.end(name)

    @rule(key=st.sampled_from(MODELS), plans=candidates(), replicas=st.integers(0, 3))
    def model_comes_or_changes(self, key: ObjectKey, plans: tuple[Candidate, ...], replicas: int) -> None:
        wish = self.cluster.models.get(key)
        if wish is None:
            self.cluster.models[key] = Wish(candidates=plans, replicas=replicas, version=1)
        else:
            wish.replicas = replicas
            wish.version += 1
        self.world.apply_model(parse_model_deployment(self.cluster.model_body(key)))

    @rule(key=st.sampled_from(MODELS))
    def model_goes(self, key: ObjectKey) -> None:
        if self.cluster.models.pop(key, None) is not None:
            self.world.forget_model(key)

    @rule(seconds=st.sampled_from([1, 30, 70, 130]))
    def time_passes(self, seconds: int) -> None:
        self.cluster.seconds += seconds

    @rule(key=st.sampled_from(MODELS))
    def pods_follow_slots(self, key: ObjectKey) -> None:
        """End pods that have no slot, and start those whose slot's node has room for them, as a scheduler would."""
        wish = self.cluster.models.get(key)
        wanted = {f"{key.name}-{slot.revision}-{slot.replica}-{slot.part}": slot for slot in (wish.slots if wish else ())}
        for name, body in list(self.cluster.pods.items()):
            if body["metadata"]["labels"].get("lionrock.io/model") == key.name:
                slot = wanted.get(name)
                if slot is None or slot.node != body["spec"]["nodeName"] or slot.node not in self.cluster.nodes:
                    self.end(name)
        for name, slot in wanted.items():
            held = sum(each for _, each in self.cluster.held(slot.node, slot.resource))
            room = self.cluster.total(slot.node, slot.resource) - held >= slot.chips
            if name not in self.cluster.pods and room and self.cluster.may_take(slot.node, slot.pool):
                chips = {slot.resource: slot.chips}
                self.run(pod_body(name, chips=chips, node=slot.node, model=key.name, revision=slot.revision))

    def run(self, body: dict[str, Any]) -> None:
        self.cluster.pods[body["metadata"]["name"]] = body
        self.world.apply_pod(parse_pod(body))

    def end(self, name: str) -> None:
        if self.cluster.pods.pop(name, None) is not None:
            self.world.forget_pod(ObjectKey("team", name))

    # ---- what the operator does -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.cluster.models)
    @rule(data=st.data(), times=st.integers(1, 4))
    def operator_looks(self, data: st.DataObject, times: int) -> None:
        for key in data.draw(st.lists(st.sampled_from(sorted(self.cluster.models)), min_size=1, max_size=times)):
            self.look(key)

    def look(self, key: ObjectKey) -> None:
        wish, now = self.cluster.models[key], at(self.cluster.seconds)
        request = Request(
            model=key,
            territory="HK",
            candidates=wish.candidates,
            replicas=wish.replicas,
            newest=wish.newest.revision if wish.newest else None,
            placed_since=at(wish.started_at),
        )
        outcome = place(self.world, request, PATIENCE, now)
        assert outcome == place(self.world, request, PATIENCE, now)
        assert outcome == place(self.rebuilt(), request, PATIENCE, now)
        self.check(key, wish, outcome)
        self.write(key, wish, outcome)

    def check(self, key: ObjectKey, wish: Wish, outcome: Outcome) -> None:
        new = [slot for slot in outcome.slots if slot not in wish.slots]
        for slot in new:
            assert self.cluster.may_take(slot.node, slot.pool), "a wrong chip or territory, or a node that takes no pods"
            assert POOLS[slot.pool][1:3] == (slot.resource, "HK")
        for node, resource in {(slot.node, slot.resource) for slot in new}:
            theirs = self.cluster.free(node, resource, but_of=key)
            ours = sum(slot.chips for slot in outcome.slots if (slot.node, slot.resource) == (node, resource))
            assert ours <= theirs, "more chips than there are"
        if outcome.chosen is not None:
            parts = sorted((slot.replica, slot.part) for slot in outcome.slots)
            replicas = sorted({replica for replica, _ in parts})
            assert parts == [(each, part) for each in replicas for part in range(outcome.chosen.pods_per_replica)]
            assert all(slot.chips == outcome.chosen.chips_per_pod for slot in outcome.slots)
            assert {slot.pool for slot in outcome.slots} == {outcome.chosen.pool}
        assert outcome.placed <= wish.replicas
        self.check_stability(key, wish, outcome)
        if not outcome.complete:
            self.check_refusals(key, wish, outcome)

    def check_stability(self, key: ObjectKey, wish: Wish, outcome: Outcome) -> None:
        """Whoever keeps its pool keeps each replica that lost nothing, as long as so many are asked for."""
        if wish.newest is None or not wish.slots:
            return
        lost = {slot.replica for slot in wish.slots if self.is_lost(key, slot)} | self.squeezed(key, wish.slots)
        kept = {slot for slot in wish.slots if slot.replica not in lost}
        if outcome.survival is not None:
            assert (set(outcome.survival.kept), outcome.survival.why.keys()) == (kept, lost)
        if wish.newest != outcome.chosen:
            return
        if len({slot.replica for slot in kept}) <= wish.replicas:
            assert kept <= set(outcome.slots)
        else:
            assert outcome.placed == wish.replicas
            assert set(outcome.slots) <= kept

    def running(self, key: ObjectKey, node: str, revision: str) -> int:
        """How many pods of a revision run on a node."""
        owners = [owner for resource in (ASCEND, CAMBRICON) for owner, _ in self.cluster.held(node, resource)]
        return owners.count((key.name, revision))

    def vacant(self, key: ObjectKey, slots: tuple[Slot, ...]) -> list[Slot]:
        """Slots for which no pod runs: on each node the last ones."""
        seen: dict[str, int] = {}
        found = []
        for slot in sorted(slots):
            seen[slot.node] = seen.get(slot.node, 0) + 1
            if seen[slot.node] > self.running(key, slot.node, slot.revision):
                found.append(slot)
        return found

    def is_lost(self, key: ObjectKey, slot: Slot) -> bool:
        """Whether the node can keep the pod, or take it where it is not there yet."""
        body = self.cluster.nodes.get(slot.node)
        if body is None or REGIONS.get(body["metadata"]["labels"][REGION]) != "HK":
            return True
        seen = parse_node(body)
        assert seen.ready_since is not None
        if not seen.is_ready and (at(self.cluster.seconds) - seen.ready_since).total_seconds() >= PATIENCE.node_grace_s:
            return True
        if slot not in self.vacant(key, self.cluster.models[key].slots):
            return False
        if not seen.is_ready:  # for a moment: taints say nothing yet, the rest does
            body = node_body(seen.name, seen.chips, region="hk-1", labels=seen.labels, cordoned=seen.is_cordoned)
            before, self.cluster.nodes[slot.node] = self.cluster.nodes[slot.node], body
            try:
                return not self.cluster.may_take(slot.node, slot.pool)
            finally:
                self.cluster.nodes[slot.node] = before
        return not self.cluster.may_take(slot.node, slot.pool)

    def squeezed(self, key: ObjectKey, slots: tuple[Slot, ...]) -> set[int]:
        """Replicas of vacant slots that others left no room for."""
        lost = set()
        vacant = self.vacant(key, slots)
        for node, resource in {(slot.node, slot.resource) for slot in vacant}:
            revision = slots[0].revision
            mine = [slot for slot in slots if (slot.node, slot.resource) == (node, resource)]
            held = sum(chips for owner, chips in self.cluster.held(node, resource) if owner == (key.name, revision))
            missing = max(sum(slot.chips for slot in mine), held) - self.cluster.free(node, resource, but_of=key)
            for slot in reversed(mine):
                if missing > 0 and slot in vacant:
                    lost.add(slot.replica)
                    missing -= slot.chips
        return lost

    def check_refusals(self, key: ObjectKey, wish: Wish, outcome: Outcome) -> None:
        """Every pool says why it does not hold all, and where nobody else waits, it is true."""
        told, pools = {refusal.pool for refusal in outcome.refusals}, {candidate.pool for candidate in wish.candidates}
        if outcome.moving_to is None:
            assert told == pools
        else:  # it holds all, and no pool behind it was tried
            assert outcome.moving_to in pools - told
            assert told <= pools
        if any(other.waiting_since is not None for name, other in self.cluster.models.items() if name != key):
            return
        if outcome.chosen is None:
            for each in wish.candidates:
                assert self.more_replicas(key, each, ()) == 0
        else:
            assert self.more_replicas(key, outcome.chosen, outcome.slots) == 0

    def more_replicas(self, key: ObjectKey, candidate: Candidate, slots: tuple[Slot, ...]) -> int:
        """How many more would fit beside those slots, once pods of lost replicas are gone."""
        if POOLS[candidate.pool][2] != "HK" or (candidate.pool == "a3" and candidate.chips_per_pod == 3):
            return 0
        resource, fit, before = POOLS[candidate.pool][1], 0, self.cluster.models[key].slots
        lost = {slot.replica for slot in before} - {slot.replica for slot in before if slot in slots}
        for node in NODES:
            if not self.cluster.may_take(node, candidate.pool):
                continue
            own: dict[str, int] = {}
            for slot in before:
                if (slot.node, slot.resource) == (node, resource):
                    own[slot.revision] = own.get(slot.revision, 0) + slot.chips
            held: dict[str, int] = {}
            for owner, chips in self.cluster.held(node, resource):
                if owner is not None and owner[0] == key.name:
                    held[owner[1]] = held.get(owner[1], 0) + chips
            kept = sum(max(own.get(revision, 0), held.get(revision, 0)) for revision in own.keys() | held.keys())
            for slot in before:
                if (slot.node, slot.resource, slot.revision) == (node, resource, candidate.revision) and slot.replica in lost:
                    kept -= slot.chips
            kept += sum(slot.chips for slot in slots if (slot.node, slot.resource) == (node, resource) and slot not in before)
            fit += max(0, self.cluster.free(node, resource, but_of=key) - kept) // candidate.chips_per_pod
        return fit // candidate.pods_per_replica

    def write(self, key: ObjectKey, wish: Wish, outcome: Outcome) -> None:
        """Take the outcome over as if every move of a model went through in one go."""
        if outcome.chosen != wish.newest:
            wish.started_at = self.cluster.seconds
        wish.slots, wish.newest = outcome.slots, outcome.chosen
        if outcome.complete:
            wish.waiting_since = None
        elif wish.waiting_since is None:
            wish.waiting_since = self.cluster.seconds
        wish.version += 1
        seen = parse_model_deployment(self.cluster.model_body(key))
        assert isinstance(seen, ModelDeployment)
        if outcome.chosen is not None:
            placement = seen.status.placement
            assert placement is not None
            self.world.assume(key, placement)
        self.world.apply_model(seen)
        self.world.withdraw(key)

    @rule()
    def operator_restarts(self) -> None:
        self.world = self.rebuilt()

    def rebuilt(self) -> World:
        """Make a World of the same objects, in another order."""
        made = World(RULES)
        steps: list[Any] = [(made.apply_pool, parse_chip_pool(body)) for body, _, _, _ in POOLS.values()]
        steps += [(made.apply_node, parse_node(body)) for body in self.cluster.nodes.values()]
        steps += [(made.apply_pod, parse_pod(body)) for body in self.cluster.pods.values()]
        steps += [(made.apply_model, parse_model_deployment(self.cluster.model_body(key))) for key in self.cluster.models]
        self.random.shuffle(steps)
        for apply, view in steps:
            apply(view)
        return made

    # ---- what always holds ------------------------------------------------------------------------------------------------

    @invariant()
    def the_world_is_what_it_would_be_if_built_anew(self) -> None:
        anew = self.rebuilt() if hasattr(self, "random") else self.world
        for pool in map(PoolName, POOLS):
            assert anew.capacity(pool) == self.world.capacity(pool)
            assert anew.waiting(pool) == self.world.waiting(pool)
            assert anew.models_on(pool) == self.world.models_on(pool)
            mine, other = self.world.pool_nodes(pool), anew.pool_nodes(pool)
            if mine is not None and other is not None:
                assert mine.free.counts() == other.free.counts()
                assert (mine.names(), mine.counted()) == (other.names(), other.counted())
        for key in MODELS:
            assert anew.slots_of(key) == self.world.slots_of(key)
            assert anew.pods_of(key) == self.world.pods_of(key)
        for node in map(NodeName, NODES):
            assert anew.slots_on(node) == self.world.slots_on(node)
            assert anew.pods_on(node) == self.world.pods_on(node)

    @invariant()
    def chips_are_counted_as_the_reference_counts_them(self) -> None:
        for node in NODES:
            for resource in (ASCEND, CAMBRICON):
                counted = self.world.chips(NodeName(node), resource)
                assert counted.free == max(0, self.cluster.free(node, resource))
        for pool, (_, resource, _, _) in POOLS.items():
            nodes = [node for node in NODES if self.cluster.may_take(node, pool)]
            capacity = self.world.capacity(PoolName(pool))
            assert capacity.ready_nodes == len(nodes)
            assert capacity.total == sum(self.cluster.total(node, resource) for node in nodes)
            assert capacity.free == sum(max(0, self.cluster.free(node, resource)) for node in nodes)


TestPlacement = PlacementMachine.TestCase
TestPlacement.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
