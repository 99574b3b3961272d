"""The test cluster's parts as fixtures: each starts when the first test asks for it and ends with the session.

`control_plane` is etcd and the API server; `controller_manager`, `scheduler`, `kwok` and `kuberay` join it on demand. A test gets a
namespace of its own (`namespace`) and nodes of its own (`nodes`). Programs come from tools/ (`make cluster-tools`) or from
KUBEBUILDER_ASSETS; with USE_EXISTING_CLUSTER=true and KUBECONFIG, as in envtest, the cluster is somebody else's. KUBECONFIG alone
changes nothing: too many shells have one that points to a cluster where nobody wants tests.

Where neither Go nor assets are there, everything here is skipped, and the end of the run says so.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
sys.path.insert(0, str(Path(__file__).parent))

import cluster_tools
from testcluster import components
from testcluster.audit import AuditLog
from testcluster.commands import Command
from testcluster.control_plane import Cluster, ControlPlane, ExistingCluster
from testcluster.nodes import Nodes
from testcluster.objects import Manifest, Objects, documents
from testcluster.processes import Program
from testcluster.waiting import wait_for

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NOT_RUN = pytest.StashKey[set[str]]()
CRDS = ROOT / "charts" / "lionrock-crds" / "templates"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say loudly what did not run for want of programs."""
    if reasons := config.stash.get(NOT_RUN, None):
        terminalreporter.section("NOT RUN: tests/cluster, or parts of it", sep="!", red=True, bold=True)
        for reason in sorted(reasons):
            terminalreporter.line(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this directory more time: the first that asks for a program waits until it has started."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def program(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Path of a program of the cluster: skips where it cannot be had, fails where nobody has built it."""

    def find(name: str) -> Path:
        try:
            return cluster_tools.find(name)
        except cluster_tools.ToolMissing as missing:
            if shutil.which("go") is not None:
                pytest.fail(str(missing))
            request.config.stash.setdefault(NOT_RUN, set()).add(str(missing))
            pytest.skip(str(missing))

    return find


@pytest.fixture(scope="session")
def control_plane(program: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """etcd and kube-apiserver, ready; or the cluster of KUBECONFIG."""
    directory = tmp_path_factory.mktemp("cluster")
    if os.environ.get("USE_EXISTING_CLUSTER", "").lower() == "true":
        existing = ExistingCluster(Path(os.environ["KUBECONFIG"]), directory)
        yield existing
        existing.stop()
        return
    for name in ("etcd", "kube-apiserver"):
        program(name)
    control_plane = ControlPlane(directory)
    yield control_plane
    control_plane.stop()


@pytest.fixture(scope="session")
def own_control_plane(control_plane: Cluster) -> ControlPlane:
    """The control plane where it is ours: for tests that stop its programs, read their logs or play its nodes."""
    if not isinstance(control_plane, ControlPlane):
        pytest.skip("needs a control plane of its own, and KUBECONFIG names somebody else's")
    return control_plane


@pytest.fixture(scope="session")
def objects(control_plane: Cluster) -> Objects:
    """Reads and writes objects as administrator."""
    return Objects(control_plane.client())


@pytest.fixture(scope="session")
def audit_log(control_plane: Cluster) -> AuditLog:
    """Who asked what."""
    return AuditLog(control_plane.audit_log)


@pytest.fixture(scope="session")
def kubectl(control_plane: Cluster, program: Callable[[str], Path]) -> Command:
    """kubectl as administrator."""
    return Command(program("kubectl"), control_plane.kubeconfig, control_plane.directory / "kubectl")


@pytest.fixture(scope="session")
def helm(control_plane: Cluster, program: Callable[[str], Path]) -> Command:
    """Helm as administrator."""
    return Command(program("helm"), control_plane.kubeconfig, control_plane.directory / "helm")


@pytest.fixture(scope="module")
def controller_manager(control_plane: Cluster, program: Callable[[str], Path]) -> Iterator[Program | None]:
    """kube-controller-manager; None where the cluster is somebody else's and has one."""
    yield from _component(control_plane, program, "kube-controller-manager", components.start_controller_manager)


@pytest.fixture(scope="module")
def scheduler(control_plane: Cluster, program: Callable[[str], Path]) -> Iterator[Program | None]:
    """kube-scheduler; None where the cluster is somebody else's and has one."""
    yield from _component(control_plane, program, "kube-scheduler", components.start_scheduler)


@pytest.fixture(scope="module")
def kwok(own_control_plane: ControlPlane, program: Callable[[str], Path], controller_manager: Program) -> Iterator[Program | None]:
    """KWOK's controller, which plays kubelet for the nodes of `nodes`."""
    yield from _component(own_control_plane, program, "kwok", components.start_kwok)


@pytest.fixture(scope="session")
def ray_crds(objects: Objects, program: Callable[[str], Path]) -> list[str]:
    """KubeRay's resource definitions, established. Their names."""
    program("ray-operator")
    return apply_crds(objects, cluster_tools.shared_files("ray-operator"))


@pytest.fixture(scope="module")
def kuberay(own_control_plane: ControlPlane, program: Callable[[str], Path], ray_crds: list[str]) -> Iterator[Program | None]:
    """KubeRay's operator, for all namespaces."""
    yield from _component(own_control_plane, program, "ray-operator", components.start_kuberay)


@pytest.fixture(scope="session")
def lionrock_crds(objects: Objects) -> list[str]:
    """Our own resource definitions, established. Their names."""
    return apply_crds(objects, CRDS)


@pytest.fixture
def namespace(objects: Objects, controller_manager: Program | None) -> Iterator[str]:
    """A namespace of the test's own, in which pods can be made. It is deleted, and what is in it, after the test."""
    manifest: Manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"test-{secrets.token_hex(4)}"}}
    name = manifest["metadata"]["name"]
    objects.create(manifest)
    wait_for(lambda: objects.read("v1", "ServiceAccount", "default", name), f"the default service account of {name}")
    yield name
    objects.delete(manifest)


@pytest.fixture
def nodes(objects: Objects, kwok: Program) -> Iterator[Nodes]:
    """Makes nodes that KWOK plays; they are gone after the test."""
    nodes = Nodes(objects)
    yield nodes
    nodes.close()


def apply_crds(objects: Objects, path: Path) -> list[str]:
    """Apply every resource definition of a directory, and wait until all are served. Returns their names."""
    names = [objects.apply(document)["metadata"]["name"] for document in documents(path, "CustomResourceDefinition")]

    established = {"type": "Established", "status": "True"}.items()

    def all_served() -> bool:
        found = objects.list("apiextensions.k8s.io/v1", "CustomResourceDefinition")
        conditions = [(crd["metadata"]["name"], condition) for crd in found for condition in crd["status"]["conditions"] or ()]
        return set(names) <= {name for name, condition in conditions if established <= condition.items()}

    wait_for(all_served, f"{', '.join(names)} are served")
    return names


def _component(
    cluster: Cluster, program: Callable[[str], Path], name: str, start: Callable[[ControlPlane], Program]
) -> Iterator[Program | None]:
    if not isinstance(cluster, ControlPlane):
        yield None
        return
    program(name)
    running = start(cluster)
    yield running
    running.stop()
