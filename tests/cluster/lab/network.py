"""The node's network: an address of its own on a bridge, a point-to-point link to every pod, and nothing that leads elsewhere.

Pods are reached by routing, not by bridging, so that each packet between two of them passes this machine's forwarding rules as it
would between two nodes. No rule translates a pod's address to one of this machine's: what a pod sends to the world is lost.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from .commands import LabError, run, succeeds

BRIDGE = "lionrock0"
CNI_PROGRAMS = Path("/usr/lib/cni")
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_CHAINS = re.compile(r"^:((?:KUBE|CNI|LIONROCK)-\S+)", re.MULTILINE)
_JUMPS = re.compile(r"^-A (\S+) (.*-j (?:KUBE|CNI|LIONROCK)-\S+.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """Addresses of one node and of its pods."""

    node: str
    pods: str


@dataclass(frozen=True, slots=True)
class Network:
    """Addresses of the lab. They are private ones, and nothing outside of this machine knows them."""

    control_plane: str = "10.77.0.1"
    """Of the API server and of DNS, as pods see them."""
    pods: str = "10.77.64.0/18"

    @staticmethod
    def of_node(number: int) -> NodeAddresses:
        """Addresses of a node, counted from 1."""
        return NodeAddresses(f"10.77.0.{10 + number}", f"10.77.{64 + number}.0/24")

    def create(self, directory: Path, nodes: int) -> None:
        """Make the bridge and CNI's configuration of each node. Raises LabError where CNI's programs are missing."""
        missing = [name for name in ("ptp", "host-local", "portmap", "loopback") if not (CNI_PROGRAMS / name).exists()]
        if missing:
            raise LabError(f"{', '.join(missing)} not in {CNI_PROGRAMS}: apt-get install containernetworking-plugins")
        directory.mkdir(parents=True, exist_ok=True)
        remembered = directory / "ip_forward"
        if not remembered.exists():
            remembered.write_text(_FORWARDING.read_text())
        _FORWARDING.write_text("1\n")
        if not succeeds(["ip", "link", "show", BRIDGE]):
            run(["ip", "link", "add", BRIDGE, "type", "bridge"], timeout_s=10)
            for address in (self.control_plane, *(self.of_node(number + 1).node for number in range(nodes))):
                run(["ip", "address", "add", f"{address}/32", "dev", BRIDGE], timeout_s=10)
        run(["ip", "link", "set", BRIDGE, "up"], timeout_s=10)
        for number in range(1, nodes + 1):
            configuration = configuration_of(directory, number)
            configuration.mkdir(parents=True, exist_ok=True)
            ranges = [[{"subnet": self.of_node(number).pods}]]
            addresses = {"type": "host-local", "dataDir": str(directory / f"addresses-{number}"), "ranges": ranges}
            plugins = [
                {"type": "ptp", "ipMasq": False, "ipam": {**addresses, "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
            ]
            (configuration / "10-lionrock.conflist").write_text(
                json.dumps({"cniVersion": "0.4.0", "name": f"lionrock-{number}", "plugins": plugins}, indent=1)
            )

    @staticmethod
    def remove(directory: Path) -> None:
        """Take away the bridge and every rule that kube-proxy or CNI made, and forward packets as before."""
        for program in ("iptables", "ip6tables"):
            for table in ("filter", "nat", "mangle"):
                with contextlib.suppress(LabError):
                    _remove_rules(program, table)
        if succeeds(["ip", "link", "show", BRIDGE]):
            run(["ip", "link", "delete", BRIDGE], timeout_s=10)
        remembered = directory / "ip_forward"
        if remembered.exists():
            _FORWARDING.write_text(remembered.read_text())
            remembered.unlink()


def configuration_of(directory: Path, number: int) -> Path:
    """CNI's configuration directory of a node."""
    return directory / f"net.d-{number}"


def _remove_rules(program: str, table: str) -> None:
    """Remove chains named KUBE-…, CNI-… and LIONROCK-…, and the rules of other chains that lead to them."""
    rules = run([f"{program}-save", "-t", table], timeout_s=20)
    chains = _CHAINS.findall(rules)
    for chain, rule in _JUMPS.findall(rules):
        if chain not in chains:
            run([program, "-w", "-t", table, "-D", chain, *_words(rule)], timeout_s=10)
    for command in ("-F", "-X"):
        for chain in chains:
            run([program, "-w", "-t", table, command, chain], timeout_s=10)


def _words(rule: str) -> list[str]:
    """Split a rule as iptables-save writes it; only comments are quoted, and theirs have no quotes inside."""
    return [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', rule)]
