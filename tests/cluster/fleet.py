"""A fleet of six kinds of chips in two territories, its pools, and models for it in random order, all from a seed.

Knows of each node what a pod on it may assume (chip, memory, territory), in words of its own and not the operator's, so that what
the operator did can be judged. Traps: two kinds of chips under one resource name, one kind with two sizes of memory, a pool that
overlaps two others, nodes in no territory, chips that pods of others hold, pools that do not exist, models that fit nowhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from testcluster.nodes import node_manifest
from testcluster.objects import Manifest

GIB = 1 << 30
REGIONS = {"hk-1": "HK", "hk-2": "HK", "sg-1": "SG", "elsewhere-1": None}
"""Value of topology.kubernetes.io/region, and its territory."""
TERRITORIES = {"HK": ["hk-1", "hk-2"], "SG": ["sg-1"]}


@dataclass(frozen=True, slots=True)
class Kind:
    """Nodes that are alike, as their device plugin shows them. pool: chip, and memory where it is not the table's."""

    name: str
    resource: str
    chips: int
    memory_gib: int
    labels: Mapping[str, str]
    pool: Mapping[str, Any]
    tainted: bool = False


_MODULE, _MEMORY = "accelerator-type", "mind-cluster/npu-chip-memory"
_ASCEND = "huawei.com/Ascend910"
KINDS = (
    Kind("ascend", _ASCEND, 8, 64, {_MODULE: "module-910b-8", _MEMORY: "64GB"}, {"chip": "ascend-910b"}, tainted=True),
    Kind(
        "ascend-small",
        _ASCEND,
        8,
        32,
        {_MODULE: "module-910b-8", _MEMORY: "32GB"},
        {"chip": "ascend-910b", "memory": "32Gi", "nodeSelector": {_MEMORY: "32GB"}},
        tainted=True,
    ),
    Kind("ascend-a3", _ASCEND, 16, 64, {_MODULE: "module-a3-16"}, {"chip": "ascend-a3"}, tainted=True),
    Kind("mlu", "cambricon.com/mlu", 8, 96, {}, {"chip": "cambricon-mlu590"}, tainted=True),
    Kind("dcu", "hygon.com/dcu", 8, 64, {}, {"chip": "hygon-dcu"}),
    Kind("musa", "mthreads.com/gpu", 8, 80, {"mthreads.com/gpu-node": "true"}, {"chip": "mthreads-s5000"}),
)
NODES_OF_A_KIND = {"hk-1": 12, "hk-2": 10, "sg-1": 22, "elsewhere-1": 4}
PLAIN_NODES = {"hk-1": 5, "sg-1": 5, "elsewhere-1": 2}
"""Without chips, for heads."""


@dataclass(frozen=True, slots=True)
class Node:
    """What a pod on it may assume. kind: None without chips. territory: None where it stands in none."""

    name: str
    kind: Kind | None
    region: str

    @property
    def territory(self) -> str | None:
        """Territory in which it stands."""
        return REGIONS[self.region]

    def manifest(self) -> Manifest:
        """Return the node as its kubelet registers it."""
        labels = {"topology.kubernetes.io/region": self.region}
        if self.kind is None:
            return node_manifest(self.name, resources={}, labels=labels)
        taints = [{"key": self.kind.resource, "effect": "NoSchedule"}] if self.kind.tainted else []
        return node_manifest(
            self.name, resources={self.kind.resource: self.kind.chips}, labels={**labels, **self.kind.labels}, taints=taints
        )


@dataclass(frozen=True, slots=True)
class Size:
    """A model by the numbers of its config.json. weight_bytes: of its matrices in bfloat16, at least."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    architecture: str = "LlamaForCausalLM"

    def config(self) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": [self.architecture],
            "head_dim": self.hidden // self.heads,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 131072,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "tie_word_embeddings": False,
            "vocab_size": self.vocabulary,
        }

    @property
    def weight_bytes(self) -> int:
        """Bytes of attention, MLP and both embeddings in bfloat16."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * (self.hidden // self.heads) * self.kv_heads
        return 2 * (self.layers * (attention + 3 * self.hidden * self.intermediate) + 2 * self.vocabulary * self.hidden)


SIZES = (
    Size("1b", 16, 2048, 8192, 32, 8, 128256),
    Size("8b", 32, 4096, 14336, 32, 8, 128256),
    Size("32b", 64, 5120, 27648, 40, 8, 152064),
    Size("70b", 80, 8192, 28672, 64, 8, 128256),
)
NOT_SERVED = Size("recurrent", 24, 1024, 4096, 16, 16, 50280, "MambaForCausalLM")
SIZES_BY_NAME = {size.name: size for size in (*SIZES, NOT_SERVED)}


@dataclass(frozen=True, slots=True)
class Fleet:
    """Nodes by name, pools and models in the order in which they are made, and pods of others."""

    seed: int
    nodes: Mapping[str, Node]
    pools: list[Manifest]
    models: list[Manifest]
    others: list[Manifest]
    kinds_of_pool: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Names of the kinds of nodes that belong to a pool."""


def make_fleet(seed: int, namespace: str, *, models: int = 100) -> Fleet:
    """Make a fleet. Names of nodes begin with the namespace's."""
    chance = random.Random(seed)
    nodes = [
        Node(f"{namespace}-{kind.name}-{region}-{index}", kind, region)
        for kind in KINDS
        for region, count in NODES_OF_A_KIND.items()
        for index in range(count)
    ]
    nodes += [
        Node(f"{namespace}-plain-{region}-{index}", None, region) for region, count in PLAIN_NODES.items() for index in range(count)
    ]
    pools = list(_pools())
    chance.shuffle(pools)
    made = [_model(chance, namespace, index) for index in range(models)]
    others = [_other(chance, namespace, index, nodes) for index in range(24)]
    kinds = {f"{kind.name}-{territory.lower()}": frozenset({kind.name}) for kind in KINDS for territory in TERRITORIES}
    kinds |= {f"any-910b-{territory.lower()}": frozenset({"ascend", "ascend-small"}) for territory in TERRITORIES}
    return Fleet(seed, {node.name: node for node in nodes}, pools, made, others, kinds)


def _pools() -> Iterator[Manifest]:
    for territory in TERRITORIES:
        specs = {kind.name: dict(kind.pool) for kind in KINDS}
        specs["any-910b"] = {"chip": "ascend-910b", "memory": "32Gi"}
        for name, spec in specs.items():
            yield {
                "apiVersion": "lionrock.io/v1alpha1",
                "kind": "ChipPool",
                "metadata": {"name": f"{name}-{territory.lower()}"},
                "spec": {**spec, "territory": territory, "engine": {"image": "engine.example/lionrock@sha256:" + "0" * 64}},
            }


def _model(chance: random.Random, namespace: str, index: int) -> Manifest:
    size = NOT_SERVED if chance.random() < 0.04 else chance.choices(SIZES, weights=(2, 3, 3, 6))[0]
    territory = chance.choice(list(TERRITORIES))
    spec: dict[str, Any] = {
        "model": {"source": {"persistentVolumeClaim": {"claimName": "models"}}, "config": size.config()},
        "territory": territory,
        "replicas": chance.randint(1, 4),
        "workload": {"concurrency": chance.choice((1, 16, 64)), "contextTokens": chance.choice((2048, 8192, 32768))},
    }
    if chance.random() < 0.8:
        names = [f"{kind.name}-{territory.lower()}" for kind in KINDS]
        names += [f"any-910b-{territory.lower()}", "not-there", f"mlu-{'sg' if territory == 'HK' else 'hk'}"]
        spec["pools"] = [{"name": name} for name in chance.sample(names, chance.randint(1, 3))]
    if size.name == "70b" and chance.random() < 0.7:
        tensor, pipeline = chance.choice(((8, 2), (4, 4), (8, 4), (4, 2)))
        spec["parallelism"] = {"type": "Given", "tensor": tensor, "pipeline": pipeline}
    return {
        "apiVersion": "lionrock.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": f"m{index}-{size.name}", "namespace": namespace},
        "spec": spec,
    }


def _other(chance: random.Random, namespace: str, index: int, nodes: list[Node]) -> Manifest:
    node = chance.choice([node for node in nodes if node.kind is not None])
    assert node.kind is not None
    resources = {"limits": {node.kind.resource: str(chance.choice((1, 2, 4)))}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"other-{index}", "namespace": namespace},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node.name},
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "main", "image": "none", "resources": resources}],
        },
    }
