"""docs/kubernetes.md, command by command: a person who follows it gets where it leads.

The page is followed from an empty cluster to an empty cluster, on a control plane of its own. Commands that need a kubelet are run
by the demonstration; none is left out.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cluster_tools
import guide
import pytest
from guide_world import NAMESPACE, ROOT, PlayedPods, provide_storage
from operators import Place, play_kuberay
from testcluster import components
from testcluster.control_plane import Cluster, ControlPlane
from testcluster.nodes import Nodes
from testcluster.objects import Objects

from lionrock.operator.conditions import Reason
from models import Unavailable, model_cache, smollm2_path

REGION = {"topology.kubernetes.io/region": "hk-1"}
CHIPS = {"ascend": "huawei.com/Ascend910", "cambricon": "cambricon.com/mlu", "xpu": "chips.example.com/xpu"}
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok", "kubectl", "helm", "ray-operator")
DEMONSTRATION = ROOT / "tests" / "cluster" / "demo.py"
BLOCK_S = 90
"""Time for the commands of one block."""


@dataclass
class Follower:
    """Somebody who does what the page says, in a directory of their own."""

    directory: Path
    environment: dict[str, str]
    pods: PlayedPods

    def follow(self, block: guide.Block) -> str:
        """Write the file or run the commands of a block, and return what they print. Pods do their part meanwhile."""
        if block.file is not None:
            (self.directory / block.file).write_text(block.text)
            return ""
        with tempfile.TemporaryFile("w+") as output:
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            started = time.monotonic()
            with subprocess.Popen(command, cwd=self.directory, env=self.environment, stdout=output, stderr=output) as running:
                while running.poll() is None and time.monotonic() - started < BLOCK_S:
                    self.pods.look()
                    try:
                        running.wait(0.1)
                    except subprocess.TimeoutExpired:
                        continue
                if late := running.poll() is None:
                    running.kill()
            output.seek(0)
            said = output.read()
        told = f"line {block.line}:\n{block.text}\n{said}\n{self.pods.operator_log()}"
        assert not late, f"not within {BLOCK_S} s: {told}"
        assert running.returncode == 0, f"exit status {running.returncode}: {told}"
        return said


@pytest.fixture(scope="module")
def empty_cluster(
    control_plane: Cluster, program: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """A cluster with nodes of three kinds of chips and some without, KubeRay's definitions and storage, and nothing of ours."""
    if not isinstance(control_plane, ControlPlane):
        pytest.skip("the guide begins with an empty cluster, and KUBECONFIG names somebody else's")
    for name in PROGRAMS:
        program(name)
    with ExitStack() as running:
        cluster = ControlPlane(tmp_path_factory.mktemp("guide-cluster"), audit=False)
        running.callback(cluster.stop)
        for start in (components.start_controller_manager, components.start_scheduler, components.start_kwok):
            running.callback(start(cluster).stop)
        objects = Objects(cluster.client())
        nodes = Nodes(objects)
        nodes.add(["plain-1", "plain-2"], labels=REGION, wait=False)
        for name, resource in CHIPS.items():
            taints = [{"key": "dedicated", "value": "inference", "effect": "NoSchedule"}] if name == "xpu" else []
            nodes.add([f"{name}-1", f"{name}-2"], resources={resource: 8}, labels=REGION, taints=taints, wait=name == "xpu")
        provide_storage(objects)
        yield cluster


@pytest.fixture
def follower(empty_cluster: ControlPlane, tmp_path: Path) -> Iterator[Follower]:
    try:
        smollm2_path()
    except Unavailable as unavailable:
        pytest.skip(str(unavailable))
    objects = Objects(empty_cluster.client())
    programs, state, volume = (tmp_path / name for name in ("bin", "state", "volume"))
    for directory in (programs, state / "lionrock", volume):
        directory.mkdir(parents=True)
    for name in ("kubectl", "helm"):
        (programs / name).symlink_to(empty_cluster.binary(name))
    lionrock = programs / "lionrock"
    lionrock.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lionrock.cli "$@"\n')
    lionrock.chmod(0o755)
    (state / "lionrock" / "models").symlink_to(model_cache())
    (tmp_path / "charts").symlink_to(ROOT / "charts")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE", "XDG_", "LIONROCK_"))}
    environment |= {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'operators'}",
        "HOME": str(tmp_path),
        "KUBECONFIG": str(empty_cluster.kubeconfig),
        "XDG_STATE_HOME": str(state),
        "MODELS": str(volume),
    }
    crds = cluster_tools.shared_files("ray-operator")
    for command in (("create",), ("wait", "--for=condition=Established")):
        subprocess.run([programs / "kubectl", *command, "--filename", crds], env=environment, check=True, capture_output=True)
    pods = PlayedPods(empty_cluster, objects, tmp_path, volume)
    with play_kuberay(Place(objects, NAMESPACE, "hk-1", [])):
        yield Follower(tmp_path, environment, pods)
    pods.close()


def test_what_the_page_leaves_to_the_demonstration_is_run_there() -> None:
    calls = [node for node in ast.walk(ast.parse(DEMONSTRATION.read_text())) if isinstance(node, ast.Call)]
    followed = {
        argument.value
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("follow", "begin")
        for argument in call.args
        if isinstance(argument, ast.Constant)
    }
    assert followed == guide.in_demo().keys() == {"port-forward", "chat", "helm-test"}


@pytest.mark.parametrize(
    "page",
    [
        "```\nkubectl get pods\n```\n",
        "```bash\nkubectl get pods\n```\n",
        "```yaml\nkind: Pod\n```\n",
        "```sh\nkubectl get pods\n",
        "<!-- runs in: make cluster-demo, as chat -->\n",
        "<!-- runs in: make cluster-demo, as chat -->\n\n```sh\nlionrock chat\n```\n",
        "<!-- runs in: nowhere -->\n```sh\nlionrock chat\n```\n",
        "<!-- runs in: make cluster-demo, as chat -->\n```yaml\n# a.yaml\nkind: Pod\n```\n",
    ],
)
def test_a_block_that_nobody_would_run_is_refused(tmp_path: Path, page: str) -> None:
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(guide.PageUnreadable):
        guide.blocks(tmp_path / "page.md")


def test_the_page_explains_reasons_that_there_are() -> None:
    _, _, table = guide.PAGE.read_text().partition("## Reasons\n")
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")][2:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(named) > 15
    assert named <= {str(reason) for reason in Reason}


def test_who_follows_the_page_gets_where_it_leads(follower: Follower, empty_cluster: ControlPlane) -> None:
    timings = []
    for block in guide.blocks():
        if block.in_demo_as is None:
            started = time.monotonic()
            said = follower.follow(block)
            timings.append(f"{time.monotonic() - started:6.1f} s  line {block.line}\n{said}")
    print("\n".join(timings))
    objects = Objects(empty_cluster.client())
    assert objects.read("v1", "Namespace", NAMESPACE) is None
    left = [each["metadata"]["name"] for kind in CLUSTER_KINDS for each in objects.list(*kind)]
    assert [name for name in left if "lionrock" in name] == []


CLUSTER_KINDS = (
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding"),
    ("v1", "Secret"),
    ("v1", "ConfigMap"),
)
