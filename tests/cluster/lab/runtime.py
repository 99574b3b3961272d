"""containerd with directories, socket and images of its own, and the end of everything that it ran.

Knows its configuration, how images get in, and what containers leave behind: processes under shims, mounts, network namespaces and
control groups. All of it is found by this lab's own paths, so nothing of another containerd on the machine is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from testcluster.processes import Program
from testcluster.waiting import wait_for

from .commands import run, succeeds
from .network import CNI_PROGRAMS

NAMESPACE = "k8s.io"
CGROUP_ROOT = "lionrock-lab"
"""All nodes' pods are below it."""
_CGROUPS = Path("/sys/fs/cgroup")
_NETWORK_NAMESPACES = Path("/run/netns")
_SHARED = (
    _NETWORK_NAMESPACES,
    Path("/run/containerd/s"),  # sockets of shims
    Path("/run/containerd/fifo"),
    Path("/var/lib/cni/results"),
    Path("/var/log/containers"),  # links to pods' logs
    Path("/var/lib/kubelet"),  # sockets of device plugins, whose place no setting moves
)

_CONFIGURATION = """
version = 2
root = "{directory}/root"
state = "{directory}/state"
oom_score = 0

[grpc]
  address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_programs}"
    conf_dir = "{cni_configuration}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


class Containerd:
    """One containerd. Constructed ready."""

    def __init__(self, directory: Path, cni_configuration: Path, sandbox_image: str) -> None:
        """Start it. Raises testcluster.processes.ProgramFailed."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.socket = socket_of(directory)
        file = directory / "config.toml"
        file.write_text(
            _CONFIGURATION.format(
                directory=directory,
                socket=self.socket,
                sandbox_image=sandbox_image,
                cni_programs=CNI_PROGRAMS,
                cni_configuration=cni_configuration,
            )
        )
        self.program = Program("containerd", ["containerd", "--config", file], directory / "containerd.log")
        self.program.wait_until(lambda: succeeds(["ctr", "--address", self.socket, "version"]))

    def import_image(self, archive: Path) -> None:
        """Take in a docker-archive; the image has the name that the archive says. Raises LabError."""
        command = ["ctr", "--address", self.socket, "--namespace", NAMESPACE, "images", "import", archive]
        run(command, timeout_s=900)

    def images(self) -> set[str]:
        """Names of the images that are there."""
        command = ["ctr", "--address", self.socket, "--namespace", NAMESPACE, "images", "list", "--quiet"]
        return set(run(command, timeout_s=30).split())


def socket_of(directory: Path) -> Path:
    """Socket of the containerd of a directory."""
    return directory / "containerd.sock"


def present() -> dict[str, list[str]]:
    """What of the places that containerd and CNI share with others is there already, and so not the lab's."""
    return {str(place): sorted(path.name for path in place.glob("*")) for place in _SHARED}


def end_everything(directories: Sequence[Path], foreign: Mapping[str, Sequence[str]]) -> None:
    """End all containers of the nodes' containerds, which have ended themselves, and remove what they leave.

    foreign: what `present` said before the lab began.
    """
    shims = [shim for directory in directories for shim in _shims(socket_of(directory))]
    victims = [process for shim in shims for process in (*_children(shim), shim)]
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(victims, timeout=20)
    for place in _SHARED:
        for path in place.glob("*"):
            if path.name in foreign.get(str(place), ()):
                continue
            if place == _NETWORK_NAMESPACES:
                succeeds(["ip", "netns", "delete", path.name])
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    for group in (*_CGROUPS.glob(f"*/{CGROUP_ROOT}"), _CGROUPS / CGROUP_ROOT):
        if group.is_dir():
            _remove_group(group)


def make_control_group(name: str) -> None:
    """Make the control group of a node's pods, in every hierarchy: the kubelet wants it to be there."""
    roots = [_CGROUPS] if (_CGROUPS / "cgroup.controllers").exists() else [path for path in _CGROUPS.iterdir() if path.is_dir()]
    for root in roots:
        parent = root
        for part in (CGROUP_ROOT, name):
            group = parent / part
            group.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):  # of version 1: empty until somebody says so
                if (group / setting).exists() and not (group / setting).read_text().strip():
                    (group / setting).write_text((parent / setting).read_text())
            parent = group


def unmount_below(directory: Path) -> None:
    """Unmount everything below a directory, the deepest first."""
    prefix = f"{directory.resolve()}/"
    for _ in range(10):  # a mount may hide others
        mounts = [line.split()[1].encode().decode("unicode_escape") for line in Path("/proc/self/mounts").read_text().splitlines()]
        below = sorted((mount for mount in mounts if mount.startswith(prefix)), key=len, reverse=True)
        if not below:
            return
        for mount in below:
            if not succeeds(["umount", mount]):
                succeeds(["umount", "--lazy", mount])


def _shims(socket: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command and Path(command[0]).name.startswith("containerd-shim") and str(socket) in command:
            found.append(process)
    return found


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _remove_group(group: Path) -> None:
    """Remove a control group with those below it; their last processes may still be ending."""
    groups = sorted((Path(path) for path, _, _ in os.walk(group)), key=lambda path: len(path.parts), reverse=True)

    def gone() -> bool:
        for path in groups:
            with contextlib.suppress(FileNotFoundError, OSError):
                path.rmdir()
        return not group.exists()

    wait_for(gone, f"control group {group} is gone", timeout_s=20)
