"""What the cluster should hold for a model, as manifests: the children of a revision, and what a namespace has once.

Pure: equal arguments give equal manifests, down to the order of keys. Quantities are written as the API server gives them back, so
that what stands can be compared with what is wanted (`differs`). Does not decide which revisions there are, nor where they run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import yaml

from lionrock.operator.actions import RandomSecret
from lionrock.operator.decision_settings import DecisionSettings
from lionrock.operator.engine_settings import FRONT_PORT, front_settings, model_path
from lionrock.operator.network import disruption_budget, network_policy, service
from lionrock.operator.pools import ResolvedPool
from lionrock.operator.ray_pods import TOKEN_KEY, TOKEN_SECRET, facts_pod
from lionrock.operator.ray_service import ray_service
from lionrock.operator.resources import (
    API_VERSION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
    PART_OF,
    PART_OF_LABEL,
    POOL_LABEL,
    REVISION_LABEL,
    ROLE_LABEL,
    TERRITORY_LABEL,
    Metadata,
    ModelFiles,
    ObjectSource,
    Revision,
)
from lionrock.operator.revision_template import RevisionTemplate, basis_of
from lionrock.operator.tokenization import TOKENIZATION_KEY, tokenization_children, tokenization_settings

ROUTES_NAME: Final = "lionrock-routes"
ROUTES_KEY: Final = "routes.json"
TEMPLATE_KEY: Final = "revision.json"
FRONT_KEY: Final = "inference.yaml"
FACTS_ROLE: Final = "facts"

Manifest = dict[str, Any]


def child_name(model: str, revision: Revision) -> str:
    """Name of a revision's children."""
    return f"{model}-{revision}"


def facts_name(model: str) -> str:
    """Name of the pod that reads a model's config."""
    return f"{model}-facts"


def endpoint(namespace: str, model: str, revision: Revision) -> str:
    """Where gateways find a revision, as a gRPC target."""
    return f"dns:///{child_name(model, revision)}.{namespace}.svc:{FRONT_PORT}"


def children(template: RevisionTemplate, owner: Metadata, replicas: int, settings: DecisionSettings) -> list[Manifest]:
    """Everything of one revision, in the order in which it is to be made: what pods need comes before pods."""
    metadata = _metadata(template, owner)
    return [
        record(template, owner, replicas, settings),
        network_policy(metadata, settings.openings, fetches=isinstance(template.source, ObjectSource)),
        disruption_budget(metadata, template, replicas),
        service(metadata),
        *tokenization_children(template, metadata, settings),
        ray_service(template, metadata, replicas, settings),
    ]


def record(template: RevisionTemplate, owner: Metadata, replicas: int, settings: DecisionSettings) -> Manifest:
    """ConfigMap of a revision: the settings of its pods, and the template from which all of it can be made again."""
    front = _yaml(json.dumps(front_settings(template, replicas, settings.pods), sort_keys=True))
    tokenization = _yaml(json.dumps(tokenization_settings(template, settings.pods), sort_keys=True))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(template, owner),
        "data": {FRONT_KEY: front, TOKENIZATION_KEY: tokenization, TEMPLATE_KEY: template.to_json()},
    }


def facts_reader(source: ModelFiles, owner: Metadata, pool: ResolvedPool, settings: DecisionSettings) -> Manifest:
    """Pod that reads the model's config from its source. It runs inside the territory, on any node."""
    basis = basis_of(source, pool)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": facts_name(owner.name),
            "namespace": owner.namespace,
            "labels": {
                **_base_labels(),
                MODEL_LABEL: owner.name,
                ROLE_LABEL: FACTS_ROLE,
                TERRITORY_LABEL: basis.territory,
            },
            "ownerReferences": [_owner(owner)],
        },
        "spec": facts_pod(basis, settings.pods, model_path(source)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteEndpoint:
    """One revision, as gateways find it. target, tokenization: as gRPC has them. weight: percent of the requests.

    pool: where its chips are; None: nobody knows, and no tenant that keeps to pools of its own is answered there.
    """

    target: str
    tokenization: str
    revision: Revision
    weight: int
    pool: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where requests for one model go."""

    served_name: str
    tenant: str | None
    endpoints: Sequence[RouteEndpoint]


def routes(namespace: str, found: Iterable[Route]) -> Manifest:
    """ConfigMap from which the namespace's gateways learn where models are."""
    models = {
        route.served_name: {
            "endpoints": [
                {
                    "target": each.target,
                    "tokenization": each.tokenization,
                    "revision": each.revision,
                    "weight": each.weight,
                    **({} if each.pool is None else {"pool": each.pool}),
                }
                for each in route.endpoints
                if each.weight
            ],
            "tenant": route.tenant,
        }
        for route in sorted(found, key=lambda route: route.served_name)
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": ROUTES_NAME, "namespace": namespace, "labels": _base_labels()},
        "data": {ROUTES_KEY: json.dumps({"models": models}, sort_keys=True, indent=1) + "\n"},
    }


def ray_token(namespace: str) -> RandomSecret:
    """Return the secret that all Ray clusters of a namespace share."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": TOKEN_SECRET, "namespace": namespace, "labels": _base_labels()},
        "type": "Opaque",
    }
    return RandomSecret(manifest=manifest, key=TOKEN_KEY)


def differs(wanted: object, found: object) -> bool:
    """Whether what stands lacks something that is wanted. What the API server or others added does not count.

    Lists are compared item by item: the API server keeps their order, and none of ours is extended by others.
    """
    if wanted == found:  # as a rule, and fast
        return False
    if isinstance(wanted, Mapping):
        if not isinstance(found, Mapping):
            return bool(wanted)
        return any(differs(value, found.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list | tuple):
        if not isinstance(found, list | tuple):
            return bool(wanted)
        return len(wanted) != len(found) or any(differs(one, other) for one, other in zip(wanted, found, strict=True))
    if found is None:
        return wanted not in (None, "", 0, False)  # the API leaves empty values out
    return True


@lru_cache(maxsize=4096)
def _yaml(text: str) -> str:
    """Return JSON as YAML, which people read. It takes a thousand times as long."""
    return str(yaml.safe_dump(json.loads(text), sort_keys=True))


def _metadata(template: RevisionTemplate, owner: Metadata) -> Manifest:
    revision = template.digest
    return {
        "name": child_name(owner.name, revision),
        "namespace": owner.namespace,
        "labels": {
            **_base_labels(),
            MODEL_LABEL: owner.name,
            POOL_LABEL: template.pool,
            REVISION_LABEL: revision,
            TERRITORY_LABEL: template.territory,
        },
        "ownerReferences": [_owner(owner)],
    }


def _owner(owner: Metadata) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelDeployment",
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _base_labels() -> dict[str, str]:
    return {MANAGED_BY_LABEL: MANAGED_BY, PART_OF_LABEL: PART_OF}
