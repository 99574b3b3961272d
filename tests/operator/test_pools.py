"""Which nodes belong to a pool, what its status says, and which pools are proposed."""

from __future__ import annotations

from typing import Any

import pytest

from lionrock.operator.conditions import Reason, Status
from lionrock.operator.discovery import proposals
from lionrock.operator.pool_status import pool_readiness, pool_status
from lionrock.operator.pools import PoolProblem, PoolRules, ResolvedPool, belongs, resolve_pool, takes_pods
from lionrock.operator.resources import Node, PoolName, parse_chip_pool
from lionrock.operator.world import World
from operator_objects import ASCEND, CAMBRICON, REGION, RULES, model, node, pod, pool, pool_body

ASCEND_POOL = PoolName("ascend")
H20 = {"nvidia.com/gpu.product": "NVIDIA-H20"}


def resolved(**spec: Any) -> ResolvedPool:
    found = resolve_pool(pool(**spec), RULES)
    assert isinstance(found, ResolvedPool), found
    return found


def world(*nodes: Node, rules: PoolRules = RULES, pools: tuple[Any, ...] = ()) -> World:
    made = World(rules)
    for each in pools or (pool(),):
        made.apply_pool(each)
    for each in nodes:
        made.apply_node(each)
    return made


def test_a_pool_has_the_chip_of_the_table_with_what_it_overrides() -> None:
    found = resolved(memory="32Gi", chipsPerNode=4)

    assert (found.chip.name, found.chip.memory_bytes, found.chip.chips_per_node) == ("ascend-910b", 32 << 30, 4)
    assert found.resource == ASCEND
    assert found.image == "registry/engine-ascend:1"
    assert found.problem is None


def test_a_described_chip_is_used_as_described() -> None:
    described = {
        "extendedResource": "example.com/npu", "torchDevice": "npu", "torchModule": "torch_npu", "collective": "hccl",
        "rayResource": "NPU", "memory": "24Gi", "chipsPerNode": 2, "evenCountsOnly": True,
    }  # fmt: skip
    found = resolved(chip=None, description=described, engine={"image": "registry/engine:2", "backend": "vllm"})

    assert found.chip.even_counts_only
    assert (found.resource, found.chip.memory_bytes, found.image) == ("example.com/npu", 24 << 30, "registry/engine:2")
    assert belongs(node("n", {"example.com/npu": 2}), found)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"chip": "abacus"}, Reason.UNKNOWN_CHIP),
        ({"chip": "cpu"}, Reason.UNKNOWN_CHIP),
        ({"territory": "SG"}, Reason.UNKNOWN_TERRITORY),
        ({"memory": "huge"}, Reason.SPEC_INVALID),
    ],
)
def test_a_pool_that_cannot_be_used_says_why(spec: dict[str, Any], reason: Reason) -> None:
    found = resolve_pool(parse_chip_pool(pool_body(**spec)), RULES)

    assert isinstance(found, PoolProblem)
    assert found.reason is reason


@pytest.mark.parametrize(
    ("changes", "is_its_node"),
    [
        ({}, True),
        ({"chips": {CAMBRICON: 8}}, False),
        ({"region": "cn-south-1"}, False),
        ({"region": None}, False),
        ({"labels": {"accelerator-type": "module-910b-8"}}, True),
        ({"labels": {"accelerator-type": "module-a3-16"}}, False),
        ({"labels": {"node.kubernetes.io/npu.chip.name": "910_9392"}}, False),
        ({"labels": {"accelerator-type": "something-new"}}, False),
        ({"labels": {"mind-cluster/npu-chip-memory": "64G"}}, True),
        ({"labels": {"mind-cluster/npu-chip-memory": "32G"}}, False),
        ({"ready": False}, True),
    ],
)
def test_nodes_belong_by_resource_territory_chip_and_memory(changes: dict[str, Any], is_its_node: bool) -> None:
    assert belongs(node("n", **{"chips": {ASCEND: 8}, **changes}), resolved()) is is_its_node


def test_a_selector_narrows_a_pool_and_decides_where_labels_of_the_chip_are_silent() -> None:
    a3 = resolved(chip="ascend-a3", nodeSelector={"rack": "7"})

    assert belongs(node("n", {ASCEND: 16}, labels={"rack": "7"}), a3)
    assert not belongs(node("n", {ASCEND: 16}, labels={"rack": "8"}), a3)
    assert not belongs(node("n", {ASCEND: 16}, labels={"rack": "7", "accelerator-type": "module-910b-8"}), a3)
    assert not belongs(node("n", {ASCEND: 16}), resolved(chip="ascend-a3"))


def test_an_unlabelled_node_counts_as_the_chip_with_least_memory() -> None:
    bare = node("n", {"nvidia.com/gpu": 8})

    assert belongs(bare, resolved(chip="nvidia-h100"))
    assert not belongs(bare, resolved(chip="nvidia-h20"))
    assert belongs(node("n", {"nvidia.com/gpu": 8}, labels=H20), resolved(chip="nvidia-h20"))
    assert not belongs(node("n", {"nvidia.com/gpu": 8}, labels=H20), resolved(chip="nvidia-h100"))


def test_memory_that_a_driver_keeps_is_not_held_against_a_node() -> None:
    reports = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"}

    assert belongs(node("n", {"nvidia.com/gpu": 8}, labels=reports), resolved(chip="nvidia-h100"))
    assert not belongs(node("n", {"nvidia.com/gpu": 8}, labels=reports), resolved(chip="nvidia-h100", memory="94Gi"))


@pytest.mark.parametrize(
    ("changes", "takes"),
    [
        ({}, True),
        ({"ready": False}, False),
        ({"cordoned": True}, False),
        ({"taints": [{"key": ASCEND, "effect": "NoSchedule"}]}, True),
        ({"taints": [{"key": "dedicated", "value": "llm", "effect": "NoSchedule"}]}, True),
        ({"taints": [{"key": "dedicated", "value": "hpc", "effect": "NoExecute"}]}, False),
        ({"taints": [{"key": "dedicated", "value": "hpc", "effect": "PreferNoSchedule"}]}, True),
        ({"taints": [{"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"}]}, False),
    ],
)
def test_nodes_take_pods_when_ready_open_and_their_taints_tolerated(changes: dict[str, Any], takes: bool) -> None:
    tolerant = resolved(tolerations=[{"key": "dedicated", "operator": "Equal", "value": "llm"}])

    assert takes_pods(node("n", {ASCEND: 8}, **changes), tolerant) is takes


def test_a_pools_status_counts_nodes_and_chips() -> None:
    slot = {"revision": "0a1b2c3d", "replica": 0, "part": 0, "node": "n1", "chips": 4, "resource": ASCEND, "pool": "ascend"}
    seen = world(node("n1", {ASCEND: 8}), node("n2", {ASCEND: 8}), node("n3", {ASCEND: 8}, cordoned=True), node("n4"))
    seen.apply_model(model("chat", status={"placement": {"pool": "ascend", "revision": "0a1b2c3d", "pods": [slot]}}))
    seen.apply_pod(pod("chat-w", model="chat", revision="0a1b2c3d", chips={ASCEND: 4}, node="n1"))
    seen.apply_pod(pod("training", chips={ASCEND: 3}, node="n2"))
    seen.apply_pod(pod("finished", chips={ASCEND: 8}, node="n2", phase="Succeeded"))

    assert pool_status(seen, ASCEND_POOL) == {
        "chip": {"name": "ascend-910b", "extendedResource": ASCEND, "memory": "64Gi", "chipsPerNode": 8, "proven": False},
        "nodes": {"matched": 3, "ready": 2},
        "chips": {"total": 16, "reserved": 4, "foreign": 3, "free": 9},
    }
    assert pool_readiness(seen, ASCEND_POOL).status is Status.TRUE


def test_a_pool_that_takes_no_models_says_why() -> None:
    cordoned = node("n1", {ASCEND: 8}, cordoned=True)
    cases = [
        (world(), Reason.NO_NODES, REGION),
        (world(cordoned), Reason.NO_READY_NODES, "1 nodes"),
        (world(cordoned, rules=PoolRules(RULES.territories)), Reason.NO_ENGINE_IMAGE, "engine_images"),
    ]
    for seen, reason, told in cases:
        finding = pool_readiness(seen, ASCEND_POOL)
        assert (finding.status, finding.reason) == (Status.FALSE, reason)
        assert told in finding.message


def test_doubt_about_the_chip_is_told() -> None:
    assert "do not say" in pool_readiness(world(node("n1", {ASCEND: 8})), ASCEND_POOL).message
    certain = world(node("n1", {ASCEND: 8}, labels={"accelerator-type": "module-910b-8"}))
    assert "do not say" not in pool_readiness(certain, ASCEND_POOL).message


def test_chips_without_a_pool_are_proposed_one() -> None:
    seen = world(
        node("a", {ASCEND: 8}),
        node("b", {CAMBRICON: 8}),
        node("c", {"nvidia.com/gpu": 8}, region="cn-south-1", labels=H20),
        node("d", {"nvidia.com/gpu": 8}, region="nowhere"),
        node("e", {"example.com/unknown": 8}),
        node("f", {"nvidia.com/gpu": 8}, labels={"nvidia.com/gpu.product": "Tesla-T4"}),
    )

    found = proposals(seen, made_before=())

    assert [(each.name, each.nodes) for each in found] == [("cambricon-mlu590-hk", ("b",)), ("nvidia-h20-cn", ("c",))]
    body = found[0].manifest()
    assert body["metadata"]["labels"]["lionrock.io/proposed"] == "true"
    proposed = parse_chip_pool({**body, "metadata": {**body["metadata"], "uid": "u"}})
    seen.apply_pool(proposed)
    assert [each.name for each in proposals(seen, made_before=())] == ["nvidia-h20-cn"]
    assert proposals(seen, made_before={"nvidia-h20-cn"}) == []


def test_with_one_territory_a_proposal_is_named_after_the_chip_alone() -> None:
    rules = PoolRules({"HK": RULES.territories["HK"]})
    seen = World(rules)
    seen.apply_node(node("a", {ASCEND: 8}))

    (proposal,) = proposals(seen, made_before=())

    assert proposal.name == "ascend-910b"
    assert proposal.doubtful
    assert "do not say" in proposal.message
