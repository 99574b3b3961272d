"""etcd and kube-apiserver of this machine's own, or a cluster that somebody else runs.

Knows flags and readiness of the two; what else a cluster has is in components.py. The API server authorises by Node and RBAC, has
the default admission plug-ins (PodSecurity, ValidatingAdmissionPolicy and more), and writes who asked what into an audit log.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cluster_tools
import kubernetes.client
import kubernetes.config
import pytest

from .certificates import ClusterCa
from .processes import Program, answers, free_port

_ETCD_FLAGS = ("--unsafe-no-fsync", "--log-level=warn", "--quota-backend-bytes=4294967296")
_API_SERVER_FLAGS = (
    "--allow-privileged",
    "--authorization-mode=Node,RBAC",
    "--bind-address=127.0.0.1",
    "--endpoint-reconciler-type=none",  # it would publish a loopback address, which Kubernetes refuses
    "--profiling=false",
    "--shutdown-watch-termination-grace-period=2s",  # without it a stop waits a minute for watches
    "--service-cluster-ip-range=10.96.0.0/16",
    "--service-account-issuer=https://kubernetes.default.svc",
    "--audit-log-mode=blocking",  # what was answered is in the log
)
_BACKGROUND_USERS = ("system:apiserver", "system:kube-scheduler", "system:kube-controller-manager", "kwok")


class Cluster(Protocol):
    """What tests may ask of a cluster, whoever runs it."""

    kubeconfig: Path
    """Of an administrator."""
    api_url: str
    directory: Path
    """Logs and files of the run."""

    def client(self, kubeconfig: Path | None = None) -> kubernetes.client.ApiClient: ...
    def binary(self, name: str) -> Path: ...
    def restart_api_server(self) -> None: ...
    @property
    def audit_log(self) -> Path: ...


class ControlPlane:
    """etcd and kube-apiserver in one directory. Constructed ready; stop() ends both."""

    def __init__(self, directory: Path, *, api_server_flags: Sequence[str] = (), audit: bool = True) -> None:
        """Start both. Raises cluster_tools.ToolMissing before anything runs, processes.ProgramFailed with the end of a log."""
        etcd, api_server = self.binary("etcd"), self.binary("kube-apiserver")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.ca = ClusterCa(directory / "pki")
        store_port, peer_port, port = free_port(), free_port(), free_port()
        self.api_url = f"https://127.0.0.1:{port}"
        self.kubeconfig = self.ca.kubeconfig(self.api_url, "admin", ["system:masters"])
        self._clients: list[kubernetes.client.ApiClient] = []
        self._audit_log = directory / "audit.jsonl"
        self._ssl = ssl.create_default_context(cafile=str(self.ca.ca_file))
        store = f"http://127.0.0.1:{store_port}"
        peer = f"http://127.0.0.1:{peer_port}"
        self.etcd = Program(
            "etcd",
            [
                etcd,
                f"--data-dir={directory / 'etcd'}",
                f"--listen-client-urls={store}",
                f"--advertise-client-urls={store}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                *_ETCD_FLAGS,
            ],
            directory / "etcd.log",
        )
        try:
            self.etcd.wait_until(lambda: answers(f"{store}/readyz"))
            self.api_server = Program(
                "kube-apiserver",
                [
                    api_server,
                    f"--etcd-servers={store}",
                    f"--secure-port={port}",
                    *self._certificate_flags(),
                    *(self._audit_flags() if audit else ()),
                    *_API_SERVER_FLAGS,
                    *api_server_flags,
                ],
                directory / "kube-apiserver.log",
            )
        except BaseException:
            self.etcd.kill()
            raise
        try:
            self._wait_for_api_server()
        except BaseException:
            self.stop()
            raise

    @property
    def audit_log(self) -> Path:
        """Audit events as JSON lines; audit.py reads them. Users in the background are left out of it."""
        return self._audit_log

    def binary(self, name: str) -> Path:
        """Path of a program of the cluster. Raises cluster_tools.ToolMissing."""
        return cluster_tools.find(name)

    def client(self, kubeconfig: Path | None = None) -> kubernetes.client.ApiClient:
        """Return a client of its own for the administrator, or whoever the kubeconfig names; closed with the cluster."""
        client: kubernetes.client.ApiClient = kubernetes.config.new_client_from_config(str(kubeconfig or self.kubeconfig))
        self._clients.append(client)
        return client

    def user_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Kubeconfig file of any user. Without groups it may do what RBAC grants to the user."""
        return self.ca.kubeconfig(self.api_url, user, groups)

    def restart_api_server(self) -> None:
        """Stop the API server in order, and start it again with the same address and store. It is ready on return."""
        self.api_server.stop(timeout_s=30)
        self.start_api_server()

    def kill_api_server(self) -> None:
        """Let the API server crash (SIGKILL); start_api_server() brings it back."""
        self.api_server.kill()

    def start_api_server(self) -> None:
        """Start the API server that was stopped or killed. It is ready on return."""
        self.api_server.start_again()
        self._wait_for_api_server()

    def stop(self) -> None:
        """End both programs and close every client."""
        for client in self._clients:
            client.close()
        self.api_server.stop(timeout_s=5)
        self.etcd.stop(timeout_s=5)

    def _wait_for_api_server(self) -> None:
        self.api_server.wait_until(lambda: answers(f"{self.api_url}/readyz", self._ssl))

    def _certificate_flags(self) -> list[str]:
        services = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        certificate, key = self.ca.server("kube-apiserver", dns_names=services, addresses=["10.96.0.1"])
        return [
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.ca.ca_file}",
            f"--service-account-key-file={self.ca.service_account_key_file}",
            f"--service-account-signing-key-file={self.ca.service_account_key_file}",
        ]

    def _audit_flags(self) -> list[str]:
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "None", "users": list(_BACKGROUND_USERS)},
                {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
                {"level": "None", "nonResourceURLs": ["/*"]},
                {"level": "Metadata"},
            ],
        }
        file = self.directory / "audit-policy.json"
        file.write_text(json.dumps(policy))
        return [f"--audit-policy-file={file}", f"--audit-log-path={self._audit_log}", "--audit-log-maxsize=2000"]


class ExistingCluster:
    """The cluster of KUBECONFIG, which is not ours to stop: tests that need that are skipped. Reads no audit log of it."""

    def __init__(self, kubeconfig: Path, directory: Path) -> None:
        """Know its address. Raises kubernetes.config.ConfigException."""
        self.kubeconfig = kubeconfig
        self.directory = directory
        self._clients: list[kubernetes.client.ApiClient] = []
        self.api_url = self.client().configuration.host

    @property
    def audit_log(self) -> Path:
        """None that we could read."""
        pytest.skip("the audit log of the cluster of KUBECONFIG is not ours to read")

    def binary(self, name: str) -> Path:
        """Path of a program. Raises cluster_tools.ToolMissing."""
        return cluster_tools.find(name)

    def client(self, kubeconfig: Path | None = None) -> kubernetes.client.ApiClient:
        """Return a client of its own for who the kubeconfig names; closed with the session."""
        client: kubernetes.client.ApiClient = kubernetes.config.new_client_from_config(str(kubeconfig or self.kubeconfig))
        self._clients.append(client)
        return client

    def restart_api_server(self) -> None:
        """Not ours to do."""
        pytest.skip("the API server of the cluster of KUBECONFIG is not ours to restart")

    def stop(self) -> None:
        """Close every client."""
        for client in self._clients:
            client.close()
