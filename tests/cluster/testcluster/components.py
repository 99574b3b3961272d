"""The other programs of a cluster, each started when a test asks for it: controllers, scheduler, KubeRay, KWOK.

Every one authenticates as the user that it is in a real cluster, or as one named after it; so the audit log tells who asked what.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from .control_plane import ControlPlane
from .objects import Objects
from .processes import Program, answers, free_port

_ALONE = ("--leader-elect=false", "--kube-api-qps=500", "--kube-api-burst=1000")
"""The only copy, beside an API server of its own: no election, and no pacing meant for a shared one."""


def start_controller_manager(control_plane: ControlPlane, flags: Sequence[str] = ()) -> Program:
    """Start kube-controller-manager with all controllers: service accounts, garbage collection, taints of lost nodes, …"""
    ca, port = control_plane.ca, free_port()
    certificate, key = ca.server("kube-controller-manager")
    program = Program(
        "kube-controller-manager",
        [
            control_plane.binary("kube-controller-manager"),
            f"--kubeconfig={control_plane.user_kubeconfig('system:kube-controller-manager')}",
            f"--service-account-private-key-file={ca.service_account_key_file}",
            f"--root-ca-file={ca.ca_file}",
            f"--cluster-signing-cert-file={ca.ca_file}",
            f"--cluster-signing-key-file={ca.ca_key_file}",
            "--use-service-account-credentials",
            *_ALONE,
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            *flags,
        ],
        control_plane.directory / "kube-controller-manager.log",
    )
    _ready(program, f"https://127.0.0.1:{port}/healthz", str(ca.ca_file))
    # Healthy is not enough: it gives up when it loses the API server before all of its controllers are made.
    objects = Objects(control_plane.client())
    return program.wait_until(lambda: objects.read("v1", "ServiceAccount", "default", "default") is not None)


def start_scheduler(control_plane: ControlPlane, flags: Sequence[str] = ()) -> Program:
    """Start kube-scheduler with its default profile."""
    ca, port = control_plane.ca, free_port()
    certificate, key = ca.server("kube-scheduler")
    program = Program(
        "kube-scheduler",
        [
            control_plane.binary("kube-scheduler"),
            f"--kubeconfig={control_plane.user_kubeconfig('system:kube-scheduler')}",
            *_ALONE,
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            *flags,
        ],
        control_plane.directory / "kube-scheduler.log",
    )
    return _ready(program, f"https://127.0.0.1:{port}/readyz", str(ca.ca_file))


def start_kuberay(control_plane: ControlPlane, flags: Sequence[str] = ()) -> Program:
    """Start KubeRay's operator for all namespaces, as user kuberay. Its resource definitions must be there."""
    probes = free_port()
    program = Program(
        "ray-operator",
        [
            control_plane.binary("ray-operator"),
            f"--kubeconfig={control_plane.user_kubeconfig('kuberay', ['system:masters'])}",
            "--enable-leader-election=false",
            "--use-kubernetes-proxy",  # it runs outside the cluster and reaches no pod by itself
            "--metrics-addr=0",
            "--reconcile-concurrency=8",
            "--qps=500",
            "--burst=1000",
            f"--health-probe-bind-address=127.0.0.1:{probes}",
            *flags,
        ],
        control_plane.directory / "ray-operator.log",
        environment={"ENABLE_WEBHOOKS": "false"},
    )
    return _ready(program, f"http://127.0.0.1:{probes}/readyz")


def start_kwok(control_plane: ControlPlane, flags: Sequence[str] = ()) -> Program:
    """Start KWOK's controller, as user kwok: nodes of nodes.py become ready and keep a lease, pods bound to them run and end.

    What it does with each is in stages.yaml.
    """
    port = free_port()
    program = Program(
        "kwok",
        [
            control_plane.binary("kwok"),
            f"--kubeconfig={control_plane.user_kubeconfig('kwok', ['system:masters'])}",
            f"--config={Path(__file__).with_name('stages.yaml')}",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=40",
            # Nobody must be reached at the addresses of pods that are not there; the API server refuses to proxy to these at once.
            "--cidr=127.128.0.1/10",
            f"--server-address=127.0.0.1:{port}",
            *flags,
        ],
        control_plane.directory / "kwok.log",
    )
    return _ready(program, f"http://127.0.0.1:{port}/healthz")


def _ready(program: Program, url: str, ca_file: str | None = None) -> Program:
    context = ssl.create_default_context(cafile=ca_file) if ca_file is not None else None
    try:
        return program.wait_until(lambda: answers(url, context))
    except BaseException:
        program.kill()
        raise
