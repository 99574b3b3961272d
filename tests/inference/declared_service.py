"""A Ray cluster as KubeRay starts it, an application declared over REST, and a front that deploys nothing.

Pods are Ray nodes on addresses of the loopback network, each with TLS, all with the cluster's token. Nodes advertise chips by a
custom resource; the chips' device is the CPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml
from inference_service import MAX_RUNNING, MAX_WAITING, MODEL, InferenceService, survivors, tls_settings

from mesh_ca import DevCa

HEAD_ADDRESS = "127.0.0.2"  # Ray would replace 127.0.0.1 by a public address
CHIP = {
    "product": "a CPU that poses as a chip",
    "extendedResource": "huawei.com/Ascend910",
    "torchDevice": "cpu",
    "collective": "gloo",
    "rayResource": "NPU",
    "memory": "64Gi",
    "chipsPerNode": 2,
}


def free_port() -> int:
    with socket.create_server((HEAD_ADDRESS, 0)) as listening:
        return int(listening.getsockname()[1])


class RayPods:
    """The nodes of one cluster, each a process group of its own."""

    def __init__(self, directory: Path, ca: DevCa) -> None:
        self._directory = directory
        self.port, self.dashboard_port = free_port(), free_port()
        addresses = [f"127.0.0.{number}" for number in range(1, 6)]
        self.tls = ca.authority.issue("spiffe://lionrock.local/service/inference", ip_addresses=addresses).write(directory / "pods")
        self.token_file = directory / "ray-token"
        self.token_file.write_text(os.urandom(32).hex())
        self.token_file.chmod(0o600)
        self._session = Path("/tmp") / f"lr-{os.getpid()}-{self.port}"  # Unix sockets have short names
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"{HEAD_ADDRESS}:{self.port}"

    def start_head(self) -> None:
        self._start(
            HEAD_ADDRESS, "--head", f"--port={self.port}", f"--dashboard-port={self.dashboard_port}",
            f"--dashboard-host={HEAD_ADDRESS}", "--num-cpus=0", f"--temp-dir={self._session}",
        )  # fmt: skip

    def start_worker(self, node_address: str, chips: int) -> None:
        """A pod with chips, and as many CPUs and one for a replica's own process. Returns when it has joined.

        Nodes on one machine share Ray's directory: two that start at once choose the same names of sockets.
        """
        resources = json.dumps({"NPU": chips})
        self._start(node_address, f"--address={self.address}", f"--num-cpus={chips + 1}", f"--resources={resources}")
        log = self._directory / f"ray-{node_address}.log"
        eventually(lambda: "Ray runtime started" in log.read_text(), log.read_text, within_s=150)

    def lose(self, node_address: str) -> None:
        """End a node with all its processes, as when its machine fails."""
        node = self._nodes.pop(node_address)
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def ranks(self) -> dict[str, int]:
        """How many ranks run on each node's address."""
        return {address: len(_descendants(node.pid, "ShardActor")) for address, node in tuple(self._nodes.items())}

    def holds(self, node_address: str, title: str) -> bool:
        """Whether a process of that title runs on a node."""
        return bool(_descendants(self._nodes[node_address].pid, title))

    def put(self, config: dict[str, Any]) -> int:
        """Declare applications as KubeRay does; returns the status."""
        return self._ask("PUT", config)[0]

    def applications(self) -> dict[str, Any]:
        return dict(json.loads(self._ask("GET")[1]))

    def stop(self) -> list[str]:
        family = [process for node in self._nodes.values() for process in _descendants(node.pid)]
        for address in tuple(self._nodes):
            self.lose(address)
        subprocess.run(["rm", "-rf", str(self._session)], check=True)
        return survivors(family, within_s=60)  # one that is being started sees late that its node is gone

    def _ask(self, method: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        request = urllib.request.Request(
            f"http://{HEAD_ADDRESS}:{self.dashboard_port}/api/serve/applications/",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Ray-Authorization": f"Bearer {self.token_file.read_text()}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (urllib.error.URLError, TimeoutError):
            return 0, "{}"  # the dashboard is not up yet, or the machine is busy

    def _start(self, node_address: str, *arguments: str) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *arguments]
        command += [f"--node-ip-address={node_address}", "--object-store-memory=80000000"]
        environment = os.environ | {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": str(self.tls.cert_file),
            "RAY_TLS_SERVER_KEY": str(self.tls.key_file),
            "RAY_TLS_CA_CERT": str(self.tls.ca_file),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
            "RAY_SERVE_LOG_TO_STDERR": "0",
            "RAY_raylet_start_wait_time_s": "120",  # the machine may be busy
            "OMP_NUM_THREADS": "1",
        }
        with (self._directory / f"ray-{node_address}.log").open("wb") as log:
            self._nodes[node_address] = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def _descendants(pid: int, name: str = "") -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process)
    return found


class DeclaredService(InferenceService):
    """The front alone, as the second container of the head's pod."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory = directory
        self.ca = DevCa(directory)
        self.gateway = self.ca.issue("gateway")
        self.pods = RayPods(directory, self.ca)
        self.log_file = directory / "inference.log"
        self._model = model
        self._ray_tls = tls_settings(self.pods.tls)
        self._start_front()

    def declaration(self, **changed: Any) -> dict[str, Any]:
        """Serve's configuration, as it stands in a RayService."""
        model = {
            "path": str(self._model),
            "chip": "posing",
            "chip_description": CHIP,
            "dtype": "float32",
            "pipeline_parallel": 2,
            "threads_per_rank": 1,
            "kv_cache_bytes": 32 << 20,
            "limits": {"max_running": MAX_RUNNING, "max_waiting": MAX_WAITING},
        }
        arguments = {"name": MODEL, "model": model | changed, "ray": {"tls": self._ray_tls}, "health": {"resume_timeout_s": 150}}
        application = {
            "name": MODEL,
            "route_prefix": None,
            "import_path": "lionrock.inference.serve_application:build",
            "args": arguments,
            "deployments": [{"name": "replica", "num_replicas": 1}],
        }
        return {"proxy_location": "Disabled", "applications": [application]}

    def _start_front(self) -> None:
        configuration = {
            "server": {
                "tls": tls_settings(self.ca.issue("inference")),
                "trust_domain": "lionrock.local",
                "ready_file": str(self.directory / "ready"),
                "drain_grace_s": 20,
            },
            # The files are not here: the replica, which has them, says what they are.
            "models": {MODEL: {"path": "/nowhere"}},
            "ray": {"tls": self._ray_tls, "token_file": str(self.pods.token_file), "deploy": False},
        }
        path = self.directory / "inference.yaml"
        path.write_text(yaml.safe_dump(configuration))
        command = [sys.executable, "-m", "lionrock.inference", "--config", str(path), "--ray.address", self.pods.address]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def eventually(holds: Callable[[], bool], what: Callable[[], object], *, within_s: float = 90) -> None:
    """Poll until it holds. what: told when it does not in time."""
    end_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end_s, what()
        time.sleep(0.1)
