"""NetworkPolicies are enforced: kube-network-policies decides about the first packet of every connection of a pod.

It would put nftables rules itself that hand packets over; kernels without nftables' queue (NFT_QUEUE) refuse those, and it goes on
without them. The same rules stand here for iptables, whose NFQUEUE such kernels have: after the address of a Service has become a
pod's, before any source address is changed, and not for what this machine's root sends, such as a kubelet's probes. A packet that
nobody decides about is dropped.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from testcluster.control_plane import ControlPlane
from testcluster.processes import Program, answers, free_port

from .commands import run
from .network import Network

QUEUE = 100
CHAIN = "LIONROCK-POLICIES"


def start_network_policies(control_plane: ControlPlane, network: Network, node: str, directory: Path) -> Program:
    """Start it, and hand pods' connections over. Raises ProgramFailed, LabError."""
    port = free_port()
    kubeconfig = control_plane.user_kubeconfig("lab:kube-network-policies", ["system:masters"])
    program = Program(
        "kube-network-policies",
        [
            control_plane.binary("kube-network-policies"),
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={node}",
            f"--nfqueue-id={QUEUE}",
            f"--metrics-bind-address=127.0.0.1:{port}",
            "--fail-open=false",
            "--disable-nri=true",
            "--netfilter-bug-1766-fix=false",
        ],
        directory / "kube-network-policies.log",
    )
    program.wait_until(lambda: answers(f"http://127.0.0.1:{port}/metrics", ssl.create_default_context()) and _listens())
    for rule in _rules(network):
        run(["iptables", "-w", "-t", "mangle", *rule], timeout_s=10)
    return program


def _listens() -> bool:
    """Whether somebody takes packets of the queue; the first column is its number."""
    queues = Path("/proc/net/netfilter/nfnetlink_queue")
    return any(line.split()[0] == str(QUEUE) for line in queues.read_text().splitlines())


def _rules(network: Network) -> list[list[str]]:
    decide = ["-j", "NFQUEUE", "--queue-num", str(QUEUE)]
    known = ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"]
    return [
        ["-N", CHAIN],
        ["-A", CHAIN, *known],
        ["-A", CHAIN, "-s", network.pods, *decide],
        ["-A", CHAIN, "-d", network.pods, *decide],
        # To a pod this machine speaks as the pods' gateway, an address of theirs.
        *(["-A", "POSTROUTING", end, network.pods, "-m", "owner", "!", "--uid-owner", "0", "-j", CHAIN] for end in ("-s", "-d")),
        ["-A", "INPUT", "-s", network.pods, "-j", CHAIN],
    ]
