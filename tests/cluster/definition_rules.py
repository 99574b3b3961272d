"""Each CEL rule of our resource definitions, with an object that it accepts and one that it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ON_A_CLAIM = {"source": {"persistentVolumeClaim": {"claimName": "models"}}}
SPECS: dict[str, dict[str, Any]] = {
    "ChipPool": {"chip": "ascend-910b", "territory": "HK"},
    "ModelDeployment": {"model": ON_A_CLAIM, "territory": "HK"},
}
DESCRIPTION = {
    "extendedResource": "example.com/npu",
    "torchDevice": "npu",
    "collective": "hccl",
    "rayResource": "NPU",
    "memory": "64Gi",
    "chipsPerNode": 8,
}
DIGEST = f"sha256:{'0' * 64}"
CANARY = {"percent": 5}
LIMITS = {"minReplicas": 1, "maxReplicas": 2}


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule. accepted, refused: changes of the kind's plain spec. after_creation: made to an object that is there."""

    kind: str
    message: str
    accepted: Mapping[str, Any]
    refused: Mapping[str, Any]
    after_creation: bool = False
    refused_name: str | None = None


RULES = [
    Rule(
        "ChipPool",
        "state either chip, a row of the chip table, or description, all that the table would say",
        {"chip": None, "description": DESCRIPTION},
        {"description": DESCRIPTION},
    ),
    Rule(
        "ChipPool", "state either chip, a row of the chip table, or description, all that the table would say", {}, {"chip": None}
    ),
    Rule(
        "ChipPool",
        "the chip of a pool does not change; create another pool",
        {"memory": "32Gi"},
        {"chip": "cambricon-mlu590"},
        True,
    ),
    Rule(
        "ChipPool",
        "the chip of a pool does not change; create another pool",
        {"engine": {"image": "engine@2"}},
        {"chip": None, "description": DESCRIPTION},
        True,
    ),
    Rule(
        "ChipPool",
        "CPUs are no extended resource; describe a resource that the nodes advertise",
        {"chip": "cpu-card"},
        {"chip": "cpu"},
    ),
    Rule(
        "ChipPool", "a pool does not move to another territory; create another pool", {"chipsPerNode": 4}, {"territory": "SG"}, True
    ),
    Rule(
        "ModelDeployment",
        "a name has at most 38 characters and begins with a letter, since names of Services and RayServices are made of it",
        {},
        {},
        refused_name=f"m{'x' * 38}",
    ),
    Rule(
        "ModelDeployment",
        "a name has at most 38 characters and begins with a letter, since names of Services and RayServices are made of it",
        {},
        {},
        refused_name="7b",
    ),
    Rule(
        "ModelDeployment",
        "a name has at most 38 characters and begins with a letter, since names of Services and RayServices are made of it",
        {},
        {},
        refused_name="llama.70b",
    ),
    Rule(
        "ModelDeployment",
        "state replicas or autoscaling, not both",
        {"autoscaling": LIMITS},
        {"autoscaling": LIMITS, "replicas": 1},
    ),
    Rule(
        "ModelDeployment",
        "state one of persistentVolumeClaim, image and object",
        {"model": {"source": {"image": {"reference": f"registry.example/model@{DIGEST}"}}}},
        {"model": {"source": {}}},
    ),
    Rule(
        "ModelDeployment",
        "state one of persistentVolumeClaim, image and object",
        {
            "model": {
                "source": {"object": {"endpoint": "https://store.example", "bucket": "models", "prefix": "a/", "secretName": "s"}}
            }
        },
        {"model": {"source": {**ON_A_CLAIM["source"], "image": {"reference": f"registry.example/model@{DIGEST}"}}}},
    ),
    Rule(
        "ModelDeployment",
        "tensor, and perhaps pipeline, are stated with type Given, and with no other",
        {"parallelism": {"type": "Given", "tensor": 4}},
        {"parallelism": {"type": "Given"}},
    ),
    Rule(
        "ModelDeployment",
        "tensor, and perhaps pipeline, are stated with type Given, and with no other",
        {"parallelism": {"type": "Given", "tensor": 4, "pipeline": 2}},
        {"parallelism": {"pipeline": 2}},
    ),
    Rule(
        "ModelDeployment",
        "minReplicas is more than maxReplicas",
        {"autoscaling": {"minReplicas": 2, "maxReplicas": 2}},
        {"autoscaling": {"minReplicas": 3, "maxReplicas": 2}},
    ),
    Rule(
        "ModelDeployment",
        "a model does not move to another territory; create another one",
        {"replicas": 0},
        {"territory": "SG"},
        True,
    ),
    Rule(
        "ModelDeployment",
        "a tenant is stated with type Dedicated, and with no other",
        {"tenancy": {"type": "Dedicated", "tenant": "bank"}},
        {"tenancy": {"type": "Dedicated"}},
    ),
    Rule(
        "ModelDeployment",
        "a tenant is stated with type Dedicated, and with no other",
        {"tenancy": {}},
        {"tenancy": {"tenant": "bank"}},
    ),
    Rule(
        "ModelDeployment",
        "canary is stated with type Canary, and with no other",
        {"rollout": {"type": "Canary", "canary": CANARY}},
        {"rollout": {"type": "Canary"}},
    ),
    Rule(
        "ModelDeployment",
        "canary is stated with type Canary, and with no other",
        {"rollout": {"type": "Surge"}},
        {"rollout": {"type": "Surge", "canary": CANARY}},
    ),
]
