"""Who may speak with a model's pods, and how they are found: Service, NetworkPolicy, PodDisruptionBudget.

Default deny both ways: each opening is one that `decision_settings.Openings` names. Does not know what the pods run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lionrock.operator.decision_settings import Opening, Openings
from lionrock.operator.engine_settings import FRONT_PORT
from lionrock.operator.resources import MODEL_LABEL, REVISION_LABEL, ROLE_LABEL, TOKENIZATION_ROLE
from lionrock.operator.revision_template import RevisionTemplate

_DNS_PROTOCOLS: Final = ("UDP", "TCP")

Manifest = dict[str, Any]


def selector(metadata: Mapping[str, Any], role: str | None = None) -> dict[str, str]:
    """Labels of a revision's pods."""
    labels = metadata["labels"]
    found = {MODEL_LABEL: labels[MODEL_LABEL], REVISION_LABEL: labels[REVISION_LABEL]}
    return found if role is None else {**found, ROLE_LABEL: role}


def service(metadata: Mapping[str, Any]) -> Manifest:
    """Service of the front. Whether the model answers is not its business: gateways are sent there when it does."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": dict(metadata),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(metadata, "head"),
            "ports": [{"name": "grpc", "port": FRONT_PORT, "targetPort": "grpc", "protocol": "TCP", "appProtocol": "grpc"}],
        },
    }


def network_policy(metadata: Mapping[str, Any], openings: Openings, *, fetches: bool) -> Manifest:
    """Policy of a revision's Ray cluster. fetches: whether the model's files come from an object store."""
    cluster = {
        "matchLabels": selector(metadata),
        "matchExpressions": [{"key": ROLE_LABEL, "operator": "In", "values": ["head", "worker"]}],
    }
    own = {"podSelector": cluster}
    ingress: list[Manifest] = [{"from": [own]}]
    ingress += [_ingress(opening) for opening in (openings.gateways, openings.kuberay, openings.operator) if opening is not None]
    egress: list[Manifest] = [{"to": [own]}, _egress(openings.dns, _DNS_PROTOCOLS)]
    wanted = (openings.api_server, openings.telemetry, openings.objects if fetches else None)
    egress += [_egress(opening) for opening in wanted if opening is not None]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": dict(metadata),
        "spec": {
            "podSelector": cluster,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def tokenization_policy(metadata: Mapping[str, Any], openings: Openings, port: int, *, fetches: bool) -> Manifest:
    """Policy of a revision's tokenization: gateways come in, nobody else; it reaches no pod of the revision."""
    wanted = (openings.api_server, openings.telemetry, openings.objects if fetches else None)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": dict(metadata),
        "spec": {
            "podSelector": {"matchLabels": selector(metadata, TOKENIZATION_ROLE)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [_ingress(Opening(peers=openings.gateways.peers, ports=(port,)))],
            "egress": [
                _egress(openings.dns, _DNS_PROTOCOLS),
                *(_egress(opening) for opening in wanted if opening is not None),
            ],
        },
    }


def disruption_budget(metadata: Mapping[str, Any], template: RevisionTemplate, replicas: int) -> Manifest:
    """Budget of the workers: one replica at a time may be drained.

    A number, since a share needs owners with a scale subresource, which Ray clusters lack. A single replica is not protected: no
    budget could be kept and the node be drained, and the operator moves it.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": dict(metadata),
        "spec": {
            "minAvailable": max(0, replicas - 1) * template.pods_per_replica,
            "selector": {"matchLabels": selector(metadata, "worker")},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _ingress(opening: Opening) -> Manifest:
    return {"from": [dict(peer) for peer in opening.peers], "ports": _ports(opening, ("TCP",))}


def _egress(opening: Opening, protocols: tuple[str, ...] = ("TCP",)) -> Manifest:
    return {"to": [dict(peer) for peer in opening.peers], "ports": _ports(opening, protocols)}


def _ports(opening: Opening, protocols: tuple[str, ...]) -> list[Manifest]:
    return [{"protocol": protocol, "port": port} for port in opening.ports for protocol in protocols]
