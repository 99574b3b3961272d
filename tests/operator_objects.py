"""Objects as the API server gives them, for tests of the operator: only what matters is stated, the rest is as a cluster has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from lionrock.operator.conditions import timestamp
from lionrock.operator.pools import PoolRules, TerritoryRule
from lionrock.operator.resources import (
    ChipPool,
    ModelDeployment,
    Node,
    Pod,
    UnreadableModel,
    UnreadablePool,
    parse_chip_pool,
    parse_model_deployment,
    parse_node,
    parse_pod,
)

START = datetime(2026, 11, 23, 8, tzinfo=UTC)
REGION = "topology.kubernetes.io/region"
ASCEND = "huawei.com/Ascend910"
CAMBRICON = "cambricon.com/mlu"
RULES = PoolRules(
    territories={
        "HK": TerritoryRule(REGION, frozenset({"hk-1", "hk-2"})),
        "CN": TerritoryRule(REGION, frozenset({"cn-south-1"})),
    },
    engine_images={"ascend-910b": "registry/engine-ascend:1", "cambricon-mlu590": "registry/engine-mlu:1"},
)


def at(seconds: float) -> datetime:
    """So many seconds after the start."""
    return START + timedelta(seconds=seconds)


def node_body(
    name: str,
    chips: Mapping[str, int] | None = None,
    *,
    region: str | None = "hk-1",
    labels: Mapping[str, str] | None = None,
    ready: bool = True,
    ready_since: datetime = START - timedelta(days=1),
    cordoned: bool = False,
    taints: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    allocatable = {"cpu": "63500m", "memory": "512Gi", **{resource: str(count) for resource, count in (chips or {}).items()}}
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "labels": {"kubernetes.io/hostname": name, **({REGION: region} if region else {}), **(labels or {})},
        },
        "spec": {"unschedulable": cordoned, "taints": [dict(taint) for taint in taints]},
        "status": {
            "allocatable": allocatable,
            "conditions": [
                {"type": "Ready", "status": "True" if ready else "Unknown", "lastTransitionTime": timestamp(ready_since)}
            ],
        },
    }


def node(name: str, chips: Mapping[str, int] | None = None, **more: Any) -> Node:
    return parse_node(node_body(name, chips, **more))


def pod_body(
    name: str,
    *,
    node: str | None = None,
    chips: Mapping[str, int] | None = None,
    model: str | None = None,
    revision: str | None = None,
    namespace: str = "team",
    phase: str = "Running",
    deleting: bool = False,
    gated: bool = False,
) -> dict[str, Any]:
    labels = {"app": name}
    if model is not None:
        labels = {
            "app.kubernetes.io/part-of": "lionrock",
            "lionrock.io/model": model,
            "lionrock.io/role": "worker",
            **({"lionrock.io/revision": revision} if revision else {}),
        }
    limits = {resource: str(count) for resource, count in (chips or {}).items()}
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "labels": labels,
            **({"deletionTimestamp": timestamp(START)} if deleting else {}),
        },
        "spec": {
            **({"nodeName": node} if node else {}),
            **({"schedulingGates": [{"name": "lionrock.io/gang"}]} if gated else {}),
            "containers": [{"name": "worker", "resources": {"limits": limits, "requests": limits}}],
        },
        "status": {"phase": phase if node else "Pending", "conditions": []},
    }


def pod(name: str, **more: Any) -> Pod:
    return parse_pod(pod_body(name, **more))


def pool_body(name: str = "ascend", chip: str | None = "ascend-910b", territory: str = "HK", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "generation": 1, "creationTimestamp": timestamp(START)},
        "spec": {**({"chip": chip} if chip else {}), "territory": territory, **spec},
    }


def pool(name: str = "ascend", chip: str | None = "ascend-910b", territory: str = "HK", **spec: Any) -> ChipPool:
    parsed = parse_chip_pool(pool_body(name, chip, territory, **spec))
    assert not isinstance(parsed, UnreadablePool), parsed
    return parsed


def model_body(
    name: str,
    *,
    namespace: str = "team",
    territory: str = "HK",
    pools: Sequence[str] = (),
    status: Mapping[str, Any] | None = None,
    version: int = 1,
    created_at: datetime = START,
    deleting: bool = False,
    **spec: Any,
) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "generation": 1,
            "resourceVersion": str(version),
            "creationTimestamp": timestamp(created_at),
            **({"deletionTimestamp": timestamp(START)} if deleting else {}),
        },
        "spec": {
            "model": {"source": {"persistentVolumeClaim": {"claimName": "models"}}},
            "territory": territory,
            **({"pools": [{"name": pool} for pool in pools]} if pools else {}),
            **spec,
        },
        **({"status": dict(status)} if status is not None else {}),
    }


def model(name: str, **more: Any) -> ModelDeployment:
    parsed = parse_model_deployment(model_body(name, **more))
    assert not isinstance(parsed, UnreadableModel), parsed
    return parsed
