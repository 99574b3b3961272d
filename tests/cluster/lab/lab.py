"""The whole lab in one directory: control plane, node and images; up in order, down in reverse, and nothing left.

    <directory>/lab.json     who keeps it running, where its kubeconfig is; written when all is ready, removed last
    <directory>/control/     the control plane's certificates and logs
    <directory>/nodes/       containerd and kubelet of each node, their mounts
    <directory>/network/     CNI's configuration and addresses

The programs end with the process that started them; what they leave (mounts, namespaces, rules, control groups) `sweep` removes,
after an orderly end as after a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from testcluster import components
from testcluster.objects import Objects
from testcluster.processes import Program
from testcluster.waiting import NeverHappened, wait_for

from .commands import LabError, require
from .images import PREFIX, ImageStore, build_bases
from .network import Network, configuration_of
from .node import ASCEND, ChipNode, LabControlPlane, start_dns, start_kube_proxy, start_kubelet, wait_for_node
from .policies import start_network_policies
from .runtime import Containerd, end_everything, present, unmount_below

PAUSE = f"{PREFIX}/pause:1"
_OWNERS = {"Deployment": "apps/v1", "StatefulSet": "apps/v1", "ReplicaSet": "apps/v1", "CronJob": "batch/v1", "Job": "batch/v1"}
"""What would make a deleted pod again."""
_PAUSE_SOURCE = """
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, 0, WNOHANG) > 0) { } }

int main(void) {
  signal(SIGINT, end);
  signal(SIGTERM, end);
  signal(SIGCHLD, reap);
  for (;;) pause();
}
"""


@dataclass(frozen=True, slots=True)
class LabInfo:
    """Content of lab.json."""

    pid: int
    api_url: str
    kubeconfig: str
    seconds: float

    @classmethod
    def read(cls, directory: Path) -> LabInfo | None:
        """Read it; None where no lab is ready."""
        try:
            return cls(**json.loads((directory / "lab.json").read_text()))
        except FileNotFoundError:
            return None


class Lab:
    """A running lab. Use it as a context manager: leaving it takes everything down."""

    def __init__(self, directory: Path, images: ImageStore, nodes: Sequence[ChipNode] = (ASCEND,)) -> None:
        """Remember where. Nothing runs yet."""
        if os.geteuid() != 0:
            raise LabError("a node needs root")
        require("containerd", "ctr", "runc", "ip", "iptables", "iptables-save", "umount")
        self.directory = directory
        self.network = Network()
        self._images = images
        self._nodes = nodes
        self.containerds: list[Containerd] = []
        self._programs: list[Program] = []

    def __enter__(self) -> Lab:
        """Bring everything up. Raises LabError, ProgramFailed, ToolMissing, NeverHappened; then nothing is left."""
        started = time.monotonic()
        sweep(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "present.json").write_text(json.dumps(present()))
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        self.seconds = time.monotonic() - started
        info = LabInfo(os.getpid(), self.control_plane.api_url, str(self.control_plane.kubeconfig), self.seconds)
        (self.directory / "lab.json").write_text(json.dumps(asdict(info), indent=1))
        return self

    def __exit__(self, *exception: object) -> None:
        """Take everything down."""
        self.close()

    def load(self, name: str, archive: Path) -> None:
        """Bring one of our images to all nodes, but for those that have it."""
        without = [containerd for containerd in self.containerds if name not in containerd.images()]
        with ThreadPoolExecutor(max_workers=len(self.containerds)) as pool:
            list(pool.map(lambda containerd: containerd.import_image(archive), without))

    @property
    def programs(self) -> Sequence[Program]:
        """Everything that runs on this machine for the cluster, etcd and API server included."""
        return (*self._programs, self.control_plane.etcd, self.control_plane.api_server)

    def start(self, program: Program) -> Program:
        """Let a program end with the lab."""
        self._programs.append(program)
        return program

    def close(self) -> None:
        """End pods in order while there is a cluster to do it, then the programs, then what is left."""
        if len(self._programs) > 0 and hasattr(self, "objects"):
            with contextlib.suppress(Exception):
                self._end_pods()
        for program in reversed(self._programs):
            program.stop(timeout_s=10)
        self._programs.clear()
        if hasattr(self, "control_plane"):
            self.control_plane.stop()
        sweep(self.directory)

    def _start(self) -> None:
        self.network.create(self.directory / "network", len(self._nodes))
        self.control_plane = LabControlPlane(self.directory / "control", self.network)
        self.objects = Objects(self.control_plane.client())
        self.start(components.start_controller_manager(self.control_plane))
        self.start(components.start_scheduler(self.control_plane))
        for number, node in enumerate(self._nodes, start=1):
            self._start_node(number, node)
        (self.directory / "services").mkdir()
        self.start(start_kube_proxy(self.control_plane, self.network, self._nodes[0].name, self.directory / "services"))
        self.start(start_dns(self.control_plane, self.network, self.directory / "services"))
        services = self.directory / "services"
        self.start(start_network_policies(self.control_plane, self.network, self._nodes[0].name, services))
        for node in self._nodes:
            wait_for_node(self.objects, node.name)
            node.advertise(self.objects)

    def _start_node(self, number: int, node: ChipNode) -> None:
        directory = self.directory / "nodes" / str(number)
        containerd = Containerd(directory / "containerd", configuration_of(self.directory / "network", number), PAUSE)
        self.start(containerd.program)
        self.containerds.append(containerd)
        containerd.import_image(pause_image(self._images))
        addresses = self.network.of_node(number)
        self.start(start_kubelet(self.control_plane, self.network, addresses, node.name, directory / "kubelet", containerd.socket))

    def _end_pods(self) -> None:
        """Delete all pods, so that their volumes and networks are taken down by who made them."""
        for kind, version in _OWNERS.items():
            for found in self.objects.list(version, kind):
                self.objects.delete(_named(found))
        wait_for(self._no_pods, "all pods have ended", timeout_s=30, interval_s=0.5)

    def _no_pods(self) -> bool:
        pods = self.objects.list("v1", "Pod")
        for pod in pods:
            self.objects.delete(_named(pod), grace_s=1)
        return not pods


def pause_image(images: ImageStore) -> Path:
    """Archive of the image that holds a pod's namespaces: one static program, compiled here once."""
    archive = images.directory / "archives" / "pause.tar"
    if not archive.exists():
        _, build_base = build_bases(images)
        with tempfile.TemporaryDirectory() as context:
            (Path(context) / "pause.c").write_text(_PAUSE_SOURCE)
            file = Path(context) / "Dockerfile"
            file.write_text(
                f"FROM {build_base} AS build\nCOPY pause.c /\nRUN gcc -static -Os -o /pause /pause.c\n"
                'FROM scratch\nCOPY --from=build /pause /pause\nUSER 65535:65535\nENTRYPOINT ["/pause"]\n'
            )
            images.buildah("build", "--isolation", "chroot", "--file", file, "--tag", PAUSE, context)
        images.export(PAUSE, archive)
    return archive


def sweep(directory: Path) -> None:
    """Remove all that a lab leaves on the machine, and its directory but for logs. Nothing of it may run any more."""
    if not directory.exists():
        return
    remembered = directory / "present.json"
    foreign = json.loads(remembered.read_text()) if remembered.exists() else present()
    end_everything([node / "containerd" for node in (directory / "nodes").glob("*")], foreign)
    unmount_below(directory)
    Network.remove(directory / "network")
    logs = directory.with_name(f"{directory.name}-logs")
    logs.mkdir(parents=True, exist_ok=True)
    for log in directory.rglob("*.log"):
        with contextlib.suppress(OSError):
            shutil.move(log, logs / log.name)
    shutil.rmtree(directory)


def status(directory: Path) -> dict[str, Any]:
    """Say what runs, and where its kubeconfig is."""
    info = LabInfo.read(directory)
    if info is None or not _alive(info.pid):
        return {"running": False, "left_behind": directory.exists()}
    return {"running": True, **asdict(info)}


def wait_until_gone(directory: Path, timeout_s: float = 120) -> None:
    """Wait until a lab that was told to end has ended. Raises LabError."""
    try:
        wait_for(lambda: not directory.exists(), "the lab is gone", timeout_s=timeout_s, interval_s=0.2)
    except NeverHappened as error:
        raise LabError(str(error)) from None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _named(found: dict[str, Any]) -> dict[str, Any]:
    metadata = {key: found["metadata"][key] for key in ("name", "namespace") if key in found["metadata"]}
    return {"apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": metadata}
