"""The Ray cluster under the service: joined where it exists, else a local head that lives and dies with this process.

Ray reads TLS, token and Serve's mode from its environment, so `prepare_environment` writes them before Ray is imported. A local
head is a child process (ray_head) that listens on the loopback address alone, but for the port of each Serve replica, which Serve
binds to every address (TLS and token stand before it). Ray's calls block, so they run in a thread of their own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from lionrock.inference.settings import MAX_TEMP_DIR_BYTES, RaySettings

log = logging.getLogger("lionrock.inference")

T = TypeVar("T")

CLOSE_S = 15.0
_JOIN_AGAIN_S = 1.0
_REACH_S = 5.0

# Ray's own switch for machines that are no cluster nodes: the node's address is then 127.0.0.1, and Ray's servers listen there
# alone. Without it Ray replaces a loopback address, also that of a cluster to join, by a public one.
_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# What makes a local head small.
_LOCAL_HEAD = {
    "RAY_enable_metrics_collection": "0",  # a Prometheus port without credentials, and a tenth of a core
    "AUTOSCALER_METRIC_PORT": "0",  # Prometheus ports that have no switch: free ones, so that two meshes do not meet
    "DASHBOARD_METRIC_PORT": "0",
}


class RayUnavailable(Exception):
    """The cluster cannot be joined or started; the message says what to change."""


def prepare_environment(settings: RaySettings) -> None:
    """Set what Ray reads from the environment. Raises RayUnavailable for a token file that others can read."""
    try:
        status = settings.token_file.stat()
    except OSError as error:
        raise RayUnavailable(f"ray.token_file: {settings.token_file}: {error.strerror}") from None
    if stat.S_IMODE(status.st_mode) & (0o037 if _is_mounted_secret(status) else 0o077):
        raise RayUnavailable(f"ray.token_file: {settings.token_file} can be read by others; its mode must be 0600")
    os.environ.update(
        RAY_USE_TLS="1",
        RAY_TLS_SERVER_CERT=str(settings.tls.cert_file),
        RAY_TLS_SERVER_KEY=str(settings.tls.key_file),
        RAY_TLS_CA_CERT=str(settings.tls.ca_file),
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(settings.token_file),
        RAY_USAGE_STATS_ENABLED="0",
        # Direct channels with back-pressure and cancellation between the front and the replicas …
        RAY_SERVE_THROUGHPUT_OPTIMIZED="1",
        RAY_SERVE_LOG_TO_STDERR="0",
        # … without the HTTP and gRPC ports that this mode would open on each replica.
        RAY_SERVE_ENABLE_DIRECT_INGRESS="0",
        RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH="",
    )
    if settings.address is None:
        os.environ.update(_ON_LOOPBACK | _LOCAL_HEAD)
    elif settings.address.rpartition(":")[0] in ("127.0.0.1", "localhost"):
        os.environ.update(_ON_LOOPBACK)


def _is_mounted_secret(status: os.stat_result) -> bool:
    """Whether a file is of a volume that Kubernetes fills: root's, with the pod's group, which alone may read it."""
    return status.st_uid == 0 != os.geteuid() and status.st_gid in os.getgroups()


class RayCluster:
    """A connection to the cluster, and its thread: every blocking call of Ray goes through `call`."""

    def __init__(self, settings: RaySettings, *, local_cpus: int) -> None:
        """local_cpus: CPU resources of a local head; ranks on CPUs and replicas take one each."""
        self._settings = settings
        self._local_cpus = local_cpus
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # Not an executor's thread: interpreters wait for those at their end, and a call of Ray may never return.
        threading.Thread(target=self._work, name="lionrock-ray", daemon=True).start()
        self._own_directory: str | None = None
        self._head: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Join or start the cluster; the environment is prepared. Raises RayUnavailable.

        A cluster whose models somebody else deploys may come up later than this process: it is tried for `join_timeout_s`.
        """
        address = self._settings.address or await self._start_head()
        until_s = time.monotonic() + (0 if self._settings.deploy else self._settings.join_timeout_s)
        while True:
            try:
                if not self._settings.deploy:
                    await _reach(address)
                return await self.call(lambda: self._connect(address))
            except RayUnavailable as error:
                if time.monotonic() >= until_s:
                    raise
                log.info("%s; trying again", error)
                await asyncio.sleep(_JOIN_AGAIN_S)

    async def call(self, function: Callable[[], T]) -> T:
        """Run a blocking call of Ray in its thread."""
        done: Future[T] = Future()

        def run() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(function())
                except BaseException as error:  # noqa: BLE001  # it belongs to whoever called
                    done.set_exception(error)

        self._calls.put(run)
        return await asyncio.wrap_future(done)

    async def close(self) -> None:
        """Leave the cluster; a local one ends with all its processes, at the latest when this process does."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.call(self._disconnect)
        except TimeoutError:
            log.warning("Ray does not answer; its connection ends with this process")
        self._calls.put(None)
        await self._end_head()
        if self._own_directory is not None:
            shutil.rmtree(Path(self._own_directory), ignore_errors=True)

    async def _end_head(self) -> None:
        if self._head is None or self._head.stdin is None:
            return
        self._head.stdin.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._head.wait()
        except TimeoutError:
            log.warning("the local Ray head does not end; it is killed")
            self._head.kill()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    async def _start_head(self) -> str:
        """Start a local head. Returns its address."""
        settings = self._settings
        arguments = {
            "_temp_dir": self._temp_dir(),
            "include_dashboard": False,
            "num_cpus": self._local_cpus,
            "object_store_memory": settings.object_store_bytes,
            "namespace": settings.namespace,
            "log_to_driver": False,
            "configure_logging": False,
        }
        command = (sys.executable, "-m", "lionrock.inference.ray_head", json.dumps(arguments))
        # A session of its own: an interrupt from the terminal ends the service first, and that one ends Ray.
        self._head = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert self._head.stdout is not None
        address = (await self._head.stdout.readline()).decode("ascii", "replace").strip()
        if not address:
            raise RayUnavailable(f"the local Ray head ended with {await self._head.wait()}; its own messages stand above")
        return address

    def _connect(self, address: str) -> None:
        import ray

        settings = self._settings
        try:
            ray.init(address=address, namespace=settings.namespace, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            ray.shutdown()
            hint = "" if settings.deploy else " (Ray looks for its raylet among processes; in pods: shareProcessNamespace)"
            raise RayUnavailable(f"Ray at {address} cannot be joined: {error}{hint}") from error

    def _temp_dir(self) -> str:
        if self._settings.temp_dir is not None:
            self._settings.temp_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            return str(self._settings.temp_dir)
        self._own_directory = tempfile.mkdtemp(prefix="lionrock-ray-")
        if len(self._own_directory.encode()) > MAX_TEMP_DIR_BYTES:
            raise RayUnavailable("the system's temporary directory has a long path; set ray.temp_dir to a shorter one")
        return self._own_directory

    def _disconnect(self) -> None:
        import ray

        ray.shutdown()


async def _reach(address: str) -> None:
    """Raise RayUnavailable while nobody listens there; Ray itself would try for long, and then end the process."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_REACH_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError, ValueError) as error:
        raise RayUnavailable(f"nobody listens at {address}, where Ray should be: {type(error).__name__}") from None
    writer.close()
