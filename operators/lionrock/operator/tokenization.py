"""Tokenization of one revision: a Deployment that reads the revision's own model files, its Service, policy and budget.

It is the revision's, not the mesh's, so that a model is served as soon as it is declared, and prompts are encoded with the
tokenizer of the weights that answer. It needs no chips, so it runs on any node of the territory, and it is no part of the
revision's digest: another image or more replicas roll this Deployment alone. Its settings are read by
`lionrock.tokenization.settings`; a test really loads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from lionrock.operator.decision_settings import DecisionSettings, PodSettings
from lionrock.operator.engine_settings import PROBE_PORT, model_path, telemetry, tls
from lionrock.operator.network import selector, tokenization_policy
from lionrock.operator.ray_pods import tokenization_pod
from lionrock.operator.resources import GROUP, ROLE_LABEL, TOKENIZATION_ROLE, ObjectSource, Revision
from lionrock.operator.revision_template import RevisionTemplate

TOKENIZATION_PORT: Final = 50052
TOKENIZATION_KEY: Final = "tokenization.yaml"
_CONFIG_ANNOTATION: Final = f"{GROUP}/tokenization-config"
_SUFFIX: Final = "-tok"

Manifest = dict[str, Any]


def tokenization_name(model: str, revision: Revision) -> str:
    """Name of the Deployment, and of what goes with it: at most 51 characters."""
    return f"{model}-{revision}{_SUFFIX}"


def tokenization_endpoint(namespace: str, model: str, revision: Revision) -> str:
    """Where gateways find it, as a gRPC target."""
    return f"dns:///{tokenization_name(model, revision)}.{namespace}.svc:{TOKENIZATION_PORT}"


def tokenization_settings(template: RevisionTemplate, settings: PodSettings) -> dict[str, Any]:
    """Fields of TokenizationSettings."""
    return {
        "server": {
            "listen": f"0.0.0.0:{TOKENIZATION_PORT}",
            "probe_listen": f"0.0.0.0:{PROBE_PORT}",
            "tls": tls(),
            "trust_domain": settings.trust_domain,
            "drain_grace_s": settings.tokenization_drain_s,
            "leave_on_drain": True,
        },
        "telemetry": telemetry(settings),
        "models": {template.served_name: model_path(template.source)},
    }


def tokenization_children(template: RevisionTemplate, metadata: Mapping[str, Any], settings: DecisionSettings) -> list[Manifest]:
    """Everything of a revision's tokenization. metadata: of the revision's children, with name, namespace, labels and owner."""
    own = {
        **metadata,
        "name": f"{metadata['name']}{_SUFFIX}",
        "labels": {**metadata["labels"], ROLE_LABEL: TOKENIZATION_ROLE},
    }
    children = [
        tokenization_policy(own, settings.openings, TOKENIZATION_PORT, fetches=isinstance(template.source, ObjectSource)),
        _service(own),
        _deployment(template, own, metadata["name"], settings.pods),
    ]
    return [*children, _budget(own)] if settings.pods.tokenization_replicas > 1 else children


def _deployment(template: RevisionTemplate, metadata: Mapping[str, Any], config_map: str, settings: PodSettings) -> Manifest:
    config = json.dumps(tokenization_settings(template, settings), sort_keys=True)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": dict(metadata),
        "spec": {
            "replicas": settings.tokenization_replicas,
            "revisionHistoryLimit": 1,
            # Longer than DNS keeps the address of a pod that is gone, so that gateways know the new one before the old one leaves.
            "minReadySeconds": 10,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": selector(metadata, TOKENIZATION_ROLE)},
            "template": {
                "metadata": {
                    "labels": dict(metadata["labels"]),
                    # It reads its settings once, so pods are replaced when they change.
                    "annotations": {_CONFIG_ANNOTATION: hashlib.sha256(config.encode()).hexdigest()[:16]},
                },
                "spec": tokenization_pod(template, config_map, TOKENIZATION_KEY, TOKENIZATION_PORT, settings),
            },
        },
    }


def _service(metadata: Mapping[str, Any]) -> Manifest:
    """Headless: gateways then know all of its pods and spread their calls."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": dict(metadata),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "selector": selector(metadata, TOKENIZATION_ROLE),
            "ports": [{"name": "grpc", "port": TOKENIZATION_PORT, "targetPort": "grpc", "protocol": "TCP", "appProtocol": "grpc"}],
        },
    }


def _budget(metadata: Mapping[str, Any]) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": dict(metadata),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(metadata, TOKENIZATION_ROLE)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


__all__ = [
    "TOKENIZATION_KEY",
    "TOKENIZATION_PORT",
    "tokenization_children",
    "tokenization_endpoint",
    "tokenization_name",
    "tokenization_settings",
]
