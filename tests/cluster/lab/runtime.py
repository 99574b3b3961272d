"""containerd with directories, socket and images of its own, and the end of everything that it ran.

Knows its configuration, how images get in, and what containers leave behind: processes under shims, mounts, network namespaces and
control groups. All of it is found by this lab's own paths, so nothing of another containerd on the machine is touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil
from testcluster.processes import Program
from testcluster.waiting import wait_for

from .commands import run, succeeds
from .network import CNI_PROGRAMS

NAMESPACE = "k8s.io"
CGROUP_ROOT = "lionrock-lab"
_CGROUPS = Path("/sys/fs/cgroup")
_NETWORK_NAMESPACES = Path("/run/netns")

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


def namespaces_before() -> set[str]:
    """Names of the network namespaces that are there and not the lab's."""
    return {path.name for path in _NETWORK_NAMESPACES.glob("*")}


def end_everything(directory: Path, foreign_namespaces: set[str]) -> None:
    """End all containers of a containerd whose own process has ended or not, and remove what they leave."""
    shims = _shims(socket_of(directory))
    victims = [process for shim in shims for process in (*_children(shim), shim)]
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(victims, timeout=20)
    for path in _NETWORK_NAMESPACES.glob("cni-*"):
        if path.name not in foreign_namespaces:
            succeeds(["ip", "netns", "delete", path.name])
    unmount_below(directory)
    for group in (*_CGROUPS.glob(f"*/{CGROUP_ROOT}"), _CGROUPS / CGROUP_ROOT):
        if group.is_dir():
            _remove_group(group)


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
