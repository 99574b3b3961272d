"""What the operator costs on a large cluster: processor, memory, time from a change to its answer, requests a change.

etcd, API server, controllers and scheduler are real; KWOK plays the kubelets of 5,000 nodes with domestic chips, KubeRay makes the
pods of 1,000 models. KWOK's pods run nothing, so KubeRay asks in vain whether Serve answers. When the pods are there it is paused
(SIGSTOP), so that two cores are enough for the rest; its last word and the answer of the fronts are played, so models are ready.
Requests come from the API server's audit log. KubeRay's own requests are counted in the same cluster, for as many changes of its
own RayClusters, which become ready on KWOK.

    python -m benchmarks.operator_scale [--quick] [--nodes 5000] [--models 1000] [--changes 200]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.report import Row, row, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "cluster"))

import cluster_tools
from fleet import KINDS, SIZES_BY_NAME, TERRITORIES
from guide_world import declare_serving, front_server, is_ready
from operator_process import USER, operator_settings, prepare_namespaces, start_operator
from testcluster import components
from testcluster.audit import AuditLog
from testcluster.control_plane import ControlPlane
from testcluster.nodes import Nodes, node_manifest
from testcluster.objects import Manifest, Objects, documents
from testcluster.processes import Program
from testcluster.waiting import wait_for
from testcluster.watch import Watch

from lionrock.operator.engine_settings import PROBE_PORT

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = "models"
AT_ONCE = 8
CPU_LIMIT_PERCENT = 5.0
MEMORY_LIMIT_MIB = 400.0
REFLECTED_LIMIT_MS = 1000.0

_API_SERVER = (
    "--max-requests-inflight=2000",
    "--max-mutating-requests-inflight=1000",
    "--disable-admission-plugins=TaintNodesByCondition",  # the controller that takes the taint away is off, see below
)
_CONTROLLERS = (
    "--controllers=*,-node-lifecycle-controller",  # it would want 500 leases renewed a second, which the operator never sees
)
_KWOK = ("--node-lease-duration-seconds=3600",)
_KUBERAY = ("--reconcile-concurrency=24",)  # it waits for dashboards that are not there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 nodes, 50 models, 40 changes")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--models", type=int)
    parser.add_argument("--changes", type=int)
    parser.add_argument("--steady-s", type=float, default=60, help="how long the operator is watched at rest")
    arguments = parser.parse_args()
    nodes, models, changes = (300, 50, 40) if arguments.quick else (5000, 1000, 200)
    rows = measure(arguments.nodes or nodes, arguments.models or models, arguments.changes or changes, arguments.steady_s)
    write("operator_scale", rows)


def measure(nodes: int, models: int, changes: int, steady_s: float) -> list[Row]:
    """Run the whole, and return its figures."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="operator-scale-")))
        control_plane = ControlPlane(directory, api_server_flags=_API_SERVER)
        stack.callback(control_plane.stop)
        objects = Objects(control_plane.client())
        for crds in (ROOT / "charts" / "lionrock-crds" / "templates", cluster_tools.shared_files("ray-operator")):
            for document in documents(crds, "CustomResourceDefinition"):
                objects.apply(document)
        _running(stack, components.start_controller_manager(control_plane, _CONTROLLERS))
        _running(stack, components.start_scheduler(control_plane))
        _running(stack, components.start_kwok(control_plane, _KWOK))
        kuberay = _running(stack, components.start_kuberay(control_plane, _KUBERAY))
        objects.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        prepare_namespaces(objects, NAMESPACE)
        with _said(f"{nodes} nodes"):
            Nodes(objects).add_manifests(list(_nodes(nodes)), wait=False)
        for pool in _pools():
            objects.create(pool)
        settings = operator_settings(control_plane, "operator", TERRITORIES, namespaces=[NAMESPACE])
        operator = _running(stack, start_operator(control_plane, settings))
        log = AuditLog(control_plane.audit_log)
        with _said(f"{models} models are placed"):
            filled_s = _fill(objects, models)
        with _said("the pods are ready"):
            _wait_for_pods(objects, models)
        kuberay.pause()
        stack.callback(kuberay.resume)
        with _said("the models are ready"):
            _make_ready(stack, objects, models)
        with _said("no request of the operator for 10 s"):
            _wait_for_rest(log, USER)
        rows = [row(f"{models} models placed on {nodes} nodes", [filled_s], "s", "lower")]
        with _said("at rest", rows):
            rows += _steady(operator, log, steady_s)
        with _said("changes", rows):
            rows += _changes(control_plane, objects, log, models, changes)
        kuberay.resume()
        for model in _model_names(models):
            objects.delete(_model(model))
        rows += _kuberay_changes(control_plane, objects, log, min(changes, 50))
        return rows


def _running(stack: ExitStack, program: Program) -> Program:
    stack.callback(program.stop)
    return program


@contextmanager
def _said(what: str, rows: Sequence[Row] = ()) -> Iterator[None]:
    """Say how long something took, and which rows it added: a run takes half an hour, and may end before its table."""
    start, known = time.monotonic(), len(rows)
    yield
    print(f"{what}: {time.monotonic() - start:.1f} s", flush=True)
    for added in rows[known:]:
        print(f"  {added.case}: {added.value:.4g} {added.unit}", flush=True)


def _nodes(count: int) -> Iterator[Manifest]:
    regions = [region for regions in TERRITORIES.values() for region in regions]
    for index in range(count):
        region = regions[index % len(regions)]
        labels = {"topology.kubernetes.io/region": region}
        if index % 20 == 0:
            yield node_manifest(f"plain-{index}", resources={}, labels=labels)  # for heads
            continue
        kind = KINDS[index // len(regions) % len(KINDS)]
        yield node_manifest(f"{kind.name}-{index}", resources={kind.resource: kind.chips}, labels={**labels, **kind.labels})


def _pools() -> Iterator[Manifest]:
    for territory in TERRITORIES:
        for kind in KINDS:
            yield {
                "apiVersion": "lionrock.io/v1alpha1",
                "kind": "ChipPool",
                "metadata": {"name": f"{kind.name}-{territory.lower()}"},
                "spec": {**kind.pool, "territory": territory, "engine": {"image": "engine.example/lionrock@sha256:" + "0" * 64}},
            }


def _model_names(count: int) -> list[str]:
    return [f"m{index}" for index in range(count)]


def _model(name: str) -> Manifest:
    index = int(name[1:])
    territory = list(TERRITORIES)[index % len(TERRITORIES)]
    size = SIZES_BY_NAME[("1b", "8b", "32b", "70b")[index % 4]]
    pools = [KINDS[(index + offset) % len(KINDS)].name for offset in range(2)]
    return {
        "apiVersion": "lionrock.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"source": {"persistentVolumeClaim": {"claimName": "models"}}, "config": size.config()},
            "territory": territory,
            "replicas": 1,
            "pools": [{"name": f"{pool}-{territory.lower()}"} for pool in pools],
        },
    }


def _fill(objects: Objects, count: int) -> float:
    """Make the models. Returns the seconds until every one has its chips."""
    start = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: objects.create(_model(name)), _model_names(count)))

    def placed() -> int:
        models = objects.list("lionrock.io/v1alpha1", "ModelDeployment", NAMESPACE)
        return sum(bool(model.get("status", {}).get("placement", {}).get("pods")) for model in models)

    wait_for(lambda: placed() == count, f"{count} models have chips", timeout_s=1800, interval_s=5, seen=placed)
    return time.monotonic() - start


def _wait_for_pods(objects: Objects, count: int) -> None:
    def ready_heads() -> int:
        pods = objects.list("v1", "Pod", NAMESPACE, labels="lionrock.io/role=head")
        return sum(is_ready(pod) for pod in pods)

    wait_for(lambda: ready_heads() == count, f"{count} heads are ready", timeout_s=1800, interval_s=5, seen=ready_heads)


def _make_ready(stack: ExitStack, objects: Objects, count: int) -> None:
    """Say of every model what KubeRay says when Serve runs it, and answer for the fronts, at every address of this machine."""
    server = front_server(f"0.0.0.0:{PROBE_PORT}")
    stack.callback(server.stop, None)
    services = objects.list("ray.io/v1", "RayService", NAMESPACE)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda service: declare_serving(objects, service), services))

    def ready() -> int:
        models = objects.list("lionrock.io/v1alpha1", "ModelDeployment", NAMESPACE)
        return sum(is_ready(model) for model in models)

    wait_for(lambda: ready() == count, f"{count} models are ready", timeout_s=600, interval_s=5, seen=ready)


def _wait_for_rest(log: AuditLog, user: str, *, quiet_s: float = 10, timeout_s: float = 1800) -> None:
    """Wait until a user has asked nothing for a while, but for leases."""
    position, since = log.position(), time.monotonic()

    def quiet() -> bool:
        nonlocal position, since
        now = log.position()
        if any(asked.resource != "leases" for asked in log.since(position, user=user)):
            since = time.monotonic()
        position = now
        return time.monotonic() - since >= quiet_s

    wait_for(quiet, f"{user} rests", timeout_s=timeout_s, interval_s=1)


def _steady(operator: Program, log: AuditLog, seconds: float) -> list[Row]:
    """Watch the operator while nothing changes but what nodes report of themselves."""
    position, cpu_s, start = log.position(), operator.cpu_s, time.monotonic()
    memory = []
    while time.monotonic() - start < seconds:
        memory.append(operator.memory_bytes / 2**20)
        time.sleep(1)
    elapsed = time.monotonic() - start
    asked = sum(log.count(position, user=USER).values())
    return [
        row("processor at rest", [100 * (operator.cpu_s - cpu_s) / elapsed], "% core", "lower",
            baseline="limit", baseline_values=[CPU_LIMIT_PERCENT]),
        row("memory at rest", memory, "MiB", "lower", baseline="limit", baseline_values=[MEMORY_LIMIT_MIB]),
        row("requests at rest", [60 * asked / elapsed], "a minute", "lower"),
    ]  # fmt: skip


class _Answers:
    """When a watch first showed that a generation was observed."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], float] = {}

    def note(self, event: str, found: Manifest) -> None:
        """Take an event of the watch."""
        generation = found.get("status", {}).get("observedGeneration")
        if event != "DELETED" and generation is not None:
            self._seen.setdefault((found["metadata"]["name"], generation), time.monotonic())

    def wait(self, changed: Manifest, timeout_s: float = 60) -> float:
        """Return when the changed object's generation was observed."""
        metadata = changed["metadata"]
        wanted = metadata["name"], metadata["generation"]
        return wait_for(lambda: self._seen.get(wanted), f"{wanted} is observed", timeout_s=timeout_s, interval_s=0.002)


def _timed_changes(answers: _Answers, change: Callable[[int], Manifest], count: int) -> list[float]:
    """Make one change after another. Returns milliseconds from each request's answer to the status that speaks of it."""
    times = []
    for index in range(count):
        changed = change(index)
        start = time.monotonic()
        times.append(max(0.0, 1000 * (answers.wait(changed) - start)))
    return times


def _changes(control_plane: ControlPlane, objects: Objects, log: AuditLog, models: int, count: int) -> list[Row]:
    """One model after another gets a second replica, and loses it again."""
    names = _model_names(models)
    answers = _Answers()
    watch = Watch(control_plane.client(), f"/apis/lionrock.io/v1alpha1/namespaces/{NAMESPACE}/modeldeployments", answers.note)
    position = log.position()

    def change(index: int) -> Manifest:
        return objects.merge(_model(names[(index // 2) % len(names)]), {"spec": {"replicas": 2 - index % 2}})

    times = _timed_changes(answers, change, count)
    _wait_for_rest(log, USER, quiet_s=5)
    watch.close()
    return _latency_rows("a change is answered", times, REFLECTED_LIMIT_MS) + _call_rows(
        "operator", log.count(position, user=USER), count
    )


def _kuberay_changes(control_plane: ControlPlane, objects: Objects, log: AuditLog, count: int) -> list[Row]:
    """Change RayClusters as models were changed: one gets a second worker, and loses it again."""
    names = [f"ray-{index}" for index in range(max(1, count // 2))]
    answers = _Answers()
    watch = Watch(control_plane.client(), f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters", answers.note)
    for name in names:
        objects.create(_ray_cluster(name))
    _wait_for_rest(log, "kuberay")
    position = log.position()

    def change(index: int) -> Manifest:
        group = _worker_group(2 - index % 2)
        return objects.merge(_ray_cluster(names[index // 2 % len(names)]), {"spec": {"workerGroupSpecs": [group]}})

    times = _timed_changes(answers, change, count)
    _wait_for_rest(log, "kuberay", quiet_s=5)
    watch.close()
    return _latency_rows("KubeRay: a change is answered", times, None) + _call_rows(
        "KubeRay", log.count(position, user="kuberay"), count
    )


def _worker_group(replicas: int) -> Manifest:
    template = {"spec": {"tolerations": [{"operator": "Exists"}], "containers": [{"name": "worker", "image": "none"}]}}
    limits = {"replicas": replicas, "minReplicas": 0, "maxReplicas": 8}
    return {"groupName": "workers", "rayStartParams": {}, "template": template, **limits}


def _ray_cluster(name: str) -> Manifest:
    template = {"spec": {"containers": [{"name": "ray-head", "image": "none"}]}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "rayVersion": "2.60.0",
            "headGroupSpec": {"rayStartParams": {}, "template": template},
            "workerGroupSpecs": [_worker_group(1)],
        },
    }


def _latency_rows(case: str, times_ms: Sequence[float], limit_ms: float | None) -> list[Row]:
    p99 = statistics.quantiles(times_ms, n=100)[98]
    limits = [limit_ms] if limit_ms is not None else None
    return [
        row(f"{case}, p50", times_ms, "ms", "lower"),
        row(f"{case}, p99 of {len(times_ms)}", [p99], "ms", "lower", baseline="limit" if limits else None, baseline_values=limits),
    ]


def _call_rows(who: str, calls: Counter[str], changes: int) -> list[Row]:
    calls = Counter({what: count for what, count in calls.items() if not what.endswith("leases")})
    total = row(f"{who}: requests a change", [sum(calls.values()) / changes], "requests", "lower")
    return [
        total,
        *(row(f"{who}: {what} a change", [count / changes], "requests", "lower") for what, count in calls.most_common(8)),
    ]


if __name__ == "__main__":
    main()
