"""What a cluster without kubelets lacks for the guide: the programs that the mesh's pods would run, and storage that is there.

KWOK makes pods ready. Where what a pod does can be seen from outside, its own program is run here, as the pod would run it: the
issuing Job, the operator with the chart's settings and no more rights than the chart gives it, the pod that reads a model's config.
Ray is played: KubeRay's answers and the front's health service.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from testcluster.control_plane import ControlPlane
from testcluster.objects import Manifest, Objects
from testcluster.processes import Program, free_port

from lionrock.operator.engine_settings import PROBE_PORT

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "lionrock"
_ENVIRONMENT = {"PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'operators'}", "OMP_NUM_THREADS": "1"}
_TIMING = {"return_after_s": 2, "revision_drain_s": 1}
"""What the guide tells people to wait minutes for."""


def provide_storage(objects: Objects) -> None:
    """Make a default StorageClass, volumes for what will claim them, and the addresses that an API server publishes of itself."""
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    storage_class: Manifest = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass"}
    storage_class |= {"metadata": {"name": "standard", "annotations": default}, "provisioner": "kubernetes.io/no-provisioner"}
    objects.create({**storage_class, "volumeBindingMode": "WaitForFirstConsumer"})
    for name, modes in (("one", ["ReadWriteOnce"]), ("two", ["ReadWriteOnce"]), ("models", ["ReadOnlyMany"])):
        spec = {"capacity": {"storage": "1Ti"}, "accessModes": modes, "storageClassName": "standard"}
        volume: Manifest = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}}
        objects.create({**volume, "spec": {**spec, "hostPath": {"path": f"/volumes/{name}"}}})
    metadata = {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}}
    endpoints = {"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}], "ports": [{"name": "https", "port": 6443}]}
    objects.create({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, **endpoints})


def front_server(listen: str) -> grpc.Server:
    """Say at an address that a model answers, as the front does when the weights are read."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(listen)
    server.start()
    return server


def declare_serving(objects: Objects, service: Manifest) -> None:
    """Say of a RayService whose cluster is there what KubeRay says when Serve runs the application."""
    name = service["metadata"]["name"]
    applications = {"applicationStatuses": {name: {"status": "RUNNING"}}, "rayClusterName": name}
    ready = {"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints", "message": ""}
    ready["lastTransitionTime"] = service["metadata"]["creationTimestamp"]
    change = {"activeServiceStatus": applications, "conditions": [ready], "serviceStatus": "Running"}
    objects.merge(service, {"status": change}, subresource="status")


def is_ready(found: Manifest) -> bool:
    """Whether an object's status says Ready."""
    conditions = found.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


class PlayedPods:
    """Programs of pods that are there. `look` starts and ends them; close() ends all. For one thread, the main one."""

    def __init__(self, control_plane: ControlPlane, objects: Objects, directory: Path, models: Path) -> None:
        """models: what the claim of that name holds."""
        self._control_plane = control_plane
        self._objects = objects
        self._directory = directory
        self._models = models
        self._done: set[str] = set()
        self._operator: tuple[str, Program] | None = None
        self._fronts: dict[str, grpc.Server] = {}

    def look(self) -> None:
        """Do what the pods that are there now would do."""
        pods = self._objects.list("v1", "Pod", NAMESPACE, labels="app.kubernetes.io/part-of=lionrock")
        for pod in pods:
            labels, uid = pod["metadata"]["labels"], pod["metadata"]["uid"]
            runs = pod.get("status", {}).get("phase") in ("Running", "Succeeded")
            if runs and uid not in self._done and labels.get("app.kubernetes.io/component") == "certificates":
                self._issue(pod)
                self._done.add(uid)
            if runs and uid not in self._done and labels.get("lionrock.io/role") == "facts":
                self._read_facts(pod)
                self._done.add(uid)
        self._answer(pods)
        self._operate(pods)
        self._declare()

    def close(self) -> None:
        """End what runs."""
        if self._operator is not None:
            self._operator[1].stop()
        for server in self._fronts.values():
            server.stop(None)

    def operator_log(self) -> str:
        """End of the operator's log."""
        return "" if self._operator is None else self._operator[1].log_end(15)

    def _token(self, service_account: str) -> str:
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{service_account}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        return str(self._objects.call("POST", path, request)["status"]["token"])

    def _issue(self, pod: Manifest) -> None:
        """Make the mesh's certificates, as the Job's pod does."""
        directory = self._directory / "issuing"
        directory.mkdir(exist_ok=True)
        (directory / "token").write_text(self._token(pod["spec"]["serviceAccountName"]))
        (directory / "ca.crt").write_bytes(self._control_plane.ca.ca_file.read_bytes())
        plans = self._objects.read("v1", "ConfigMap", "lionrock-certificates", NAMESPACE)
        assert plans is not None
        (directory / "mesh.yaml").write_text(plans["data"]["mesh.yaml"])
        command = [
            sys.executable,
            "-m",
            "lionrock.chassis.issuing",
            f"--plan={directory / 'mesh.yaml'}",
            f"--namespace={NAMESPACE}",
        ]
        command += [f"--api-server={self._control_plane.api_url}", f"--service-account={directory}"]
        _run(command)

    def _read_facts(self, pod: Manifest) -> None:
        """Read a model's config from its files, and end with it as last words."""
        (container,) = pod["spec"]["containers"]
        (mount,) = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == "model"]
        program = [sys.executable if part == "python" else part.replace(mount, str(self._models)) for part in container["command"]]
        said = _run(program)
        ended = {"exitCode": 0, "reason": "Completed", "message": said}
        state = {"name": container["name"], "image": container["image"], "imageID": "", "ready": False, "restartCount": 0}
        status = {"phase": "Succeeded", "containerStatuses": [{**state, "state": {"terminated": ended}}]}
        self._objects.merge(pod, {"status": status}, subresource="status")

    def _operate(self, pods: list[Manifest]) -> None:
        """Run one operator while pods of it are there, with the settings that the chart wrote last."""
        there = any(pod["metadata"]["labels"].get("app.kubernetes.io/component") == "operator" and is_ready(pod) for pod in pods)
        config = self._objects.read("v1", "ConfigMap", "lionrock-operator", NAMESPACE) if there else None
        secret = self._objects.read("v1", "Secret", "lionrock-operator-tls", NAMESPACE) if there else None
        text = config["data"]["settings.yaml"] if config is not None and secret is not None else ""
        if self._operator is not None and self._operator[0] != text:
            self._operator[1].stop()
            self._operator = None
        if text and secret is not None and self._operator is None:
            self._operator = text, self._start_operator(yaml.safe_load(text), secret["data"])

    def _start_operator(self, settings: dict[str, Any], certificate: Mapping[str, str]) -> Program:
        token = self._token("lionrock-operator")
        kubeconfig = self._control_plane.ca.token_kubeconfig(self._control_plane.api_url, "guide-operator", token)
        tls = self._directory / "operator-tls"
        tls.mkdir(exist_ok=True)
        for name, content in certificate.items():
            (tls / name).write_bytes(base64.b64decode(content))
        settings["gateways"]["tls"] = {f"{name}_file": str(tls / file) for name, file in _TLS.items()}
        here = {"kubeconfig": str(kubeconfig), "instance": "operator", "listen": f"127.0.0.1:{free_port()}", "timing": _TIMING}
        file = self._directory / "operator.yaml"
        file.write_text(json.dumps(settings | here))
        command = [sys.executable, "-m", "lionrock.operator", "--config", file]
        return Program("operator", command, self._directory / "operator.log", environment=_ENVIRONMENT)

    def _answer(self, pods: list[Manifest]) -> None:
        """Say at the address of every head that its model answers, as the front does when the weights are read."""
        heads = {
            pod["status"]["podIP"]
            for pod in pods
            if pod["metadata"]["labels"].get("lionrock.io/role") == "head" and is_ready(pod) and pod["status"].get("podIP")
        }
        for address in self._fronts.keys() - heads:
            self._fronts.pop(address).stop(None)
        for address in heads - self._fronts.keys():
            self._fronts[address] = front_server(f"{address}:{PROBE_PORT}")

    def _declare(self) -> None:
        """Say of every RayService whose cluster is there what KubeRay says when Serve runs the application."""
        clusters = {each["metadata"]["name"] for each in self._objects.list("ray.io/v1", "RayCluster", NAMESPACE)}
        for service in self._objects.list("ray.io/v1", "RayService", NAMESPACE):
            name, status = service["metadata"]["name"], service.get("status") or {}
            if name not in clusters or "activeServiceStatus" in status:
                continue
            declare_serving(self._objects, service)


_TLS = {"cert": "tls.crt", "key": "tls.key", "ca": "ca.crt"}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **_ENVIRONMENT})
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout
