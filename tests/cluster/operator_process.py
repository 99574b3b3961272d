"""The operator as a process of its own against the test cluster, with settings as the chart would write them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from testcluster.control_plane import ControlPlane
from testcluster.objects import Manifest, Objects
from testcluster.processes import Program, answers, free_port

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "lionrock"
USER = "lionrock-operator"
SERVICE_ACCOUNT = "lionrock-engine"
CLAIM = "models"
"""Volume claim that holds every model's files."""
_TLS_FILES = {"cert": "tls.crt", "key": "tls.key", "ca": "ca.crt"}
_LABELLED = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "lionrock"}}}


def operator_settings(
    control_plane: ControlPlane, instance: str, territories: Mapping[str, Sequence[str]], *, namespaces: Sequence[str]
) -> dict[str, Any]:
    """Settings of an operator for models of these namespaces: certificates from cert-manager, so that it needs no authority."""
    return {
        "namespace": NAMESPACE,
        "namespaces": list(namespaces),
        "instance": instance,
        "kubeconfig": str(control_plane.user_kubeconfig(USER, ["system:masters"])),
        "trust_domain": "lionrock.test",
        "territories": {code: {"values": list(values)} for code, values in territories.items()},
        "openings": {
            "gateways": {"peers": [_LABELLED], "ports": [50053]},
            "kuberay": {"peers": [_LABELLED], "ports": [8265]},
        },
        "certificates": {"mode": "cert-manager", "signer_name": "clusterissuers.cert-manager.io/mesh"},
        "gateways": {
            "target": f"lionrock-gateway-pods.{NAMESPACE}.svc:50051",
            "tls": {f"{part}_file": f"/etc/lionrock/tls/{name}" for part, name in _TLS_FILES.items()},  # not there yet
        },
        "listen": f"127.0.0.1:{free_port()}",
    }


def prepare_namespaces(objects: Objects, models_namespace: str) -> None:
    """Make the namespace of the operator's lease, and in that of the models what their pods need: service account and volume."""
    for manifest in _prepared(models_namespace):
        objects.apply(manifest)


def _prepared(namespace: str) -> list[Manifest]:
    volume = {
        "capacity": {"storage": "1Ti"},
        "accessModes": ["ReadOnlyMany"],
        "hostPath": {"path": "/models"},
        "claimRef": {"namespace": namespace, "name": CLAIM},
    }
    claim = {
        "accessModes": ["ReadOnlyMany"],
        "resources": {"requests": {"storage": "1Ti"}},
        "volumeName": f"{namespace}-{CLAIM}",
        "storageClassName": "",
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": SERVICE_ACCOUNT, "namespace": namespace}},
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{namespace}-{CLAIM}"}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM, "namespace": namespace}, "spec": claim},
    ]


def start_operator(control_plane: ControlPlane, settings: Mapping[str, Any]) -> Program:
    """Start it and wait until it is ready. Its log lies beside the control plane's."""
    instance = settings["instance"]
    config = control_plane.directory / f"{instance}.yaml"
    config.write_text(yaml.safe_dump(dict(settings)))
    program = Program(
        instance,
        [sys.executable, "-m", "lionrock.operator", "--config", config],
        control_plane.directory / f"{instance}.log",
        environment={"PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'operators'}"},
    )
    try:
        return program.wait_until(lambda: answers(f"http://{settings['listen']}/readyz"))
    except BaseException:
        program.kill()
        raise
