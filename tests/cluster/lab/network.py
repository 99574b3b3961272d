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
_CHAINS = re.compile(r"^:((?:KUBE|CNI)-\S+)", re.MULTILINE)
_JUMPS = re.compile(r"^-A (\S+) (.*-j (?:KUBE|CNI|NFQUEUE)(?:-\S+)?.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Network:
    """Addresses of the lab. They are private ones, and nothing outside of this machine knows them."""

    node_address: str = "10.77.0.1"
    pods: str = "10.77.1.0/24"
    services: str = "10.96.0.0/16"

    def create(self, directory: Path) -> None:
        """Make the bridge and CNI's configuration. Raises LabError where CNI's programs are missing."""
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
            run(["ip", "address", "add", f"{self.node_address}/32", "dev", BRIDGE], timeout_s=10)
        run(["ip", "link", "set", BRIDGE, "up"], timeout_s=10)
        addresses = {"type": "host-local", "dataDir": str(directory / "addresses"), "ranges": [[{"subnet": self.pods}]]}
        plugins = [
            {"type": "ptp", "ipMasq": False, "ipam": {**addresses, "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        ]
        configuration = directory / "net.d"
        configuration.mkdir(exist_ok=True)
        (configuration / "10-lionrock.conflist").write_text(
            json.dumps({"cniVersion": "0.4.0", "name": "lionrock", "plugins": plugins}, indent=1)
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


def _remove_rules(program: str, table: str) -> None:
    """Remove chains named KUBE-… and CNI-…, and the rules of other chains that lead to them."""
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
