"""kubelets, kube-proxy, and DNS for their pods: the settings that a small machine without systemd needs.

Source: the flags of kubelet and kube-proxy, and what such a machine was seen to need (control groups v1, no CAP_SYS_RESOURCE).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testcluster.control_plane import ControlPlane
from testcluster.objects import Objects
from testcluster.processes import Program, answers, free_port
from testcluster.waiting import wait_for

from .network import Network, NodeAddresses
from .runtime import CGROUP_ROOT, make_control_group

DOMAIN = "cluster.local"


class LabControlPlane(ControlPlane):
    """The test cluster's control plane, reachable from pods and able to reach a kubelet."""

    def __init__(self, directory: Path, network: Network) -> None:
        """Start it on the network's node address too. Raises what ControlPlane raises."""
        self._network = network
        flags = (
            "--bind-address=0.0.0.0",  # the loopback address for the programs of this machine, the bridge's for pods
            f"--advertise-address={network.control_plane}",
            "--endpoint-reconciler-type=lease",
            "--kubelet-preferred-address-types=InternalIP",
        )
        super().__init__(directory, api_server_flags=flags)

    def _certificate_flags(self) -> list[str]:
        certificate, key = self.ca.user("kube-apiserver-kubelet-client", ["system:masters"])
        authority = f"--kubelet-certificate-authority={self.ca.ca_file}"
        kubelet = [f"--kubelet-client-certificate={certificate}", f"--kubelet-client-key={key}", authority]
        return [*super()._certificate_flags(), *kubelet]


@dataclass(frozen=True, slots=True)
class ChipNode:
    """A node, and what it pretends to be: a chip's extended resource, how many, the labels of its plugin and of its territory."""

    name: str
    resource: str
    chips: int
    labels: Mapping[str, str]

    def advertise(self, objects: Objects) -> None:
        """Say so in the node's labels and status; the kubelet keeps both."""
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name}}
        objects.merge(node, {"metadata": {"labels": dict(self.labels)}})
        amount = {self.resource: str(self.chips)}
        objects.merge(node, {"status": {"capacity": amount, "allocatable": amount}}, subresource="status")


_HONG_KONG = {"topology.kubernetes.io/region": "hk-1", "topology.kubernetes.io/zone": "hk-1a"}
ASCEND = ChipNode(
    "lab-ascend",
    "huawei.com/Ascend910",
    8,
    {
        **_HONG_KONG,
        "accelerator": "huawei-Ascend910",
        "accelerator-type": "module-910b-8",
        "node.kubernetes.io/npu.chip.name": "910B3",
    },
)
CAMBRICON = ChipNode("lab-cambricon", "cambricon.com/mlu", 8, {**_HONG_KONG, "Model": "MLU590-M9"})


def start_kubelet(
    control_plane: ControlPlane, network: Network, addresses: NodeAddresses, name: str, directory: Path, socket: Path
) -> Program:
    """Start the kubelet and wait until it answers."""
    directory.mkdir(parents=True, exist_ok=True)
    make_control_group(name)
    certificate, key = control_plane.ca.server(f"kubelet-{name}", dns_names=[name], addresses=[addresses.node])
    port = free_port()
    configuration: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": addresses.node,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(control_plane.ca.ca_file)},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP_ROOT}/{name}",
        "clusterDNS": [network.control_plane],
        "clusterDomain": DOMAIN,
        "containerLogMaxSize": "10Mi",
        "containerRuntimeEndpoint": f"unix://{socket}",
        "enforceNodeAllocatable": [],
        # A laptop's disk is fuller than a server's.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "2%", "imagefs.available": "2%"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": port,
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": False,
        "maxPods": 100,
        "oomScoreAdj": 0,
        "podLogsDir": str(directory / "pod-logs"),
        "registerWithTaints": [],
        "resolvConf": "",
        "shutdownGracePeriod": "0s",
        "syncFrequency": "10s",
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        "volumePluginDir": str(directory / "volume-plugins"),
    }
    file = directory / "kubelet.json"
    file.write_text(json.dumps(configuration, indent=1))
    kubeconfig = control_plane.user_kubeconfig(f"system:node:{name}", ["system:nodes"])
    program = Program(
        f"kubelet-{name}",
        [
            control_plane.binary("kubelet"),
            f"--config={file}",
            f"--kubeconfig={kubeconfig}",
            f"--root-dir={directory / 'root'}",
            f"--hostname-override={name}",
            f"--node-ip={addresses.node}",
            f"--cert-dir={directory / 'pki'}",
        ],
        directory / f"kubelet-{name}.log",
    )
    return program.wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), timeout_s=60)


def start_kube_proxy(control_plane: ControlPlane, network: Network, node: str, directory: Path) -> Program:
    """Start kube-proxy: addresses of Services lead to pods. One is enough, since the nodes share this machine's rules."""
    health, metrics = free_port(), free_port()
    program = Program(
        "kube-proxy",
        [
            control_plane.binary("kube-proxy"),
            f"--kubeconfig={control_plane.user_kubeconfig('system:kube-proxy')}",
            "--proxy-mode=iptables",
            "--conntrack-max-per-core=0",
            f"--cluster-cidr={network.pods}",
            f"--hostname-override={node}",
            f"--healthz-bind-address=127.0.0.1:{health}",
            f"--metrics-bind-address=127.0.0.1:{metrics}",
        ],
        directory / "kube-proxy.log",
    )
    return program.wait_until(lambda: answers(f"http://127.0.0.1:{health}/healthz"), timeout_s=60)


def start_dns(control_plane: ControlPlane, network: Network, directory: Path) -> Program:
    """Start CoreDNS on the node's address: names of Services, and no others."""
    health = free_port()
    kubeconfig = control_plane.user_kubeconfig("lab:coredns", ["system:masters"])
    file = directory / "Corefile"
    file.write_text(
        f"{DOMAIN}:53 in-addr.arpa:53 {{\n"
        f"  bind {network.control_plane}\n  errors\n  health 127.0.0.1:{health}\n"
        f"  kubernetes {DOMAIN} in-addr.arpa {{\n    kubeconfig {kubeconfig} test\n    pods disabled\n    ttl 5\n  }}\n  loop\n}}\n"
        f".:53 {{\n  bind {network.control_plane}\n  errors\n  template ANY ANY {{\n    rcode NXDOMAIN\n  }}\n}}\n"
    )
    program = Program("coredns", [control_plane.binary("coredns"), "-conf", file], directory / "coredns.log")
    return program.wait_until(lambda: answers(f"http://127.0.0.1:{health}/health"))


def wait_for_node(objects: Objects, name: str, *, timeout_s: float = 60) -> None:
    """Wait until the node takes pods. Raises NeverHappened with its conditions."""

    def ready() -> bool:
        node = objects.read("v1", "Node", name)
        if node is None:
            return False
        conditions = {condition["type"]: condition["status"] for condition in node["status"].get("conditions", ())}
        return conditions.get("Ready") == "True" and not node["spec"].get("taints")

    def seen() -> object:
        node = objects.read("v1", "Node", name)
        return None if node is None else [node["status"].get("conditions"), node["spec"].get("taints")]

    wait_for(ready, f"node {name} is ready", timeout_s=timeout_s, seen=seen)
