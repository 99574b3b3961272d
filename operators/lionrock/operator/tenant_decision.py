"""Decisions about Tenants: what a namespace's ConfigMap holds of them, and what their status says.

A Tenant needs no finalizer: what is published and has no object is taken away whenever anybody looks, also after a time without an
operator. Keys are taken away one by one, and what others wrote beside them stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from lionrock.operator.actions import Decision, Manifest, ObjectRef, Patch
from lionrock.operator.conditions import ConditionType, Finding, Reason, Status, carried_on
from lionrock.operator.metadata import MANAGED_BY, MANAGED_BY_LABEL, PART_OF, PART_OF_LABEL
from lionrock.operator.resources import ModelDeployment, ObjectKey, PoolName
from lionrock.operator.tenant import digest_of
from lionrock.operator.tenant_admission import KEY_SUFFIX, TENANTS_NAME, Verdict, key_of
from lionrock.operator.world import World

_SHOWN = 8


def decide_tenant(world: World, key: ObjectKey, now: datetime) -> Decision:
    """Decide about the status of a Tenant."""
    tenant = world.tenants.get(key)
    verdict = world.admission(key.namespace).verdicts.get(key.name)
    if tenant is None or verdict is None:
        return Decision()
    published = world.published_tenants(key.namespace).get(key_of(key.name))
    findings = [
        Finding(ConditionType.ACCEPTED, Status.TRUE if verdict.accepted else Status.FALSE, verdict.reason, verdict.message),
        _readiness(verdict, published),
    ]
    if verdict.resource is not None and verdict.resource.spec.tenancy.type == "Dedicated":
        findings.append(_dedication(world, key, verdict.resource.spec.tenancy.pools))
    conditions = carried_on(tenant.status.get("conditions") or (), findings, generation=tenant.meta.generation, now=now)
    status: dict[str, Any] = {"observedGeneration": tenant.meta.generation, "conditions": conditions}
    if published is not None:
        status["published"] = {"configMap": TENANTS_NAME, "key": key_of(key.name), "digest": digest_of(published)}
    return Decision(status=None if status == dict(tenant.status) else status)


def publication(world: World, namespace: str) -> tuple[tuple[Manifest, ...], tuple[Patch, ...]]:
    """Return what brings the ConfigMap of a namespace to what it should hold: an object to apply, or keys to take away."""
    wanted, found = world.admission(namespace).wanted, world.published_tenants(namespace)
    strays = sorted(key for key in found if key.endswith(KEY_SUFFIX) and key not in wanted)
    if strays:
        ref = ObjectRef(api_version="v1", kind="ConfigMap", namespace=namespace, name=TENANTS_NAME)
        # Applying what lacks a key leaves that key where somebody else has written it too.
        operations = [{"op": "test", "path": f"/data/{key}", "value": found[key]} for key in strays]
        operations += [{"op": "remove", "path": f"/data/{key}"} for key in strays]
        return (), (Patch(ref=ref, operations=tuple(operations), why=f"no Tenant is published as {_some(strays)}"),)
    if all(found.get(key) == text for key, text in wanted.items()):
        return (), ()
    labels = {MANAGED_BY_LABEL: MANAGED_BY, PART_OF_LABEL: PART_OF}
    metadata = {"name": TENANTS_NAME, "namespace": namespace, "labels": labels}
    return ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": wanted},), ()


def _readiness(verdict: Verdict, published: str | None) -> Finding:
    kind = ConditionType.READY
    if verdict.text is None:
        return Finding(kind, Status.FALSE, Reason.NOT_PUBLISHED, "nobody of it is let in: see Accepted")
    if published != verdict.text:
        return Finding(kind, Status.FALSE, Reason.PUBLISHING, f"it is being written into ConfigMap {TENANTS_NAME}")
    if not verdict.accepted:
        return Finding(kind, Status.TRUE, Reason.FORMER_PUBLISHED, "what it said before is in force: see Accepted")
    told = f"it stands in ConfigMap {TENANTS_NAME}, which the kubelet brings to the services within a minute or two"
    return Finding(kind, Status.TRUE, Reason.PUBLISHED, told)


def _dedication(world: World, key: ObjectKey, pools: Sequence[str] | None) -> Finding:
    """Say whether a tenant that shares no engines has some, and has them to itself."""
    kind = ConditionType.DEGRADED
    strangers = sorted(
        str(model) for pool in pools or () for model in world.models_on(PoolName(pool)) if not _is_of(world, model, key)
    )
    if strangers:
        return Finding(kind, Status.TRUE, Reason.POOL_SHARED, f"models of others still have chips of its pools: {_some(strangers)}")
    own = [model.key for model in world.models_of(key.namespace) if _is_of(world, model.key, key)]
    if not own:
        return Finding(
            kind, Status.TRUE, Reason.NO_DEDICATED_MODEL, "no ModelDeployment is dedicated to it: its requests find none"
        )
    return Finding(kind, Status.FALSE, Reason.AS_ASKED, f"models dedicated to it: {_some([model.name for model in own])}")


def _is_of(world: World, model: ObjectKey, tenant: ObjectKey) -> bool:
    found = world.models.get(model)
    return model.namespace == tenant.namespace and isinstance(found, ModelDeployment) and found.spec.tenant == tenant.name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ("" if len(names) <= _SHOWN else f" and {len(names) - _SHOWN} more")
