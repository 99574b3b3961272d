"""Whatever happens to models, pools and nodes, in whatever order: the cluster comes to rest, rightly, and stays there.

Events are drawn by hypothesis, in between everybody acts a few times or until there is rest. The rules stand in `cluster_rules`.
"""

from __future__ import annotations

from typing import Any

from cluster_rules import always, at_rest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from simulated_cluster import NAMESPACE, SimulatedCluster

from lionrock.operator.resources import NodeName, ObjectKey

NODES = [f"npu-{number}" for number in range(4)] + [f"mlu-{number}" for number in range(2)]
MODELS = ["m0", "m1", "m2"]
PARALLELISM = [
    {"type": "Auto"},
    {"type": "Given", "tensor": 4},
    {"type": "Given", "tensor": 8},
    {"type": "Given", "tensor": 8, "pipeline": 2},
]
POOLS = [None, [{"name": "ascend-910b-hk"}, {"name": "cambricon-mlu590-hk"}], [{"name": "broken"}, {"name": "cambricon-mlu590-hk"}]]
ROLLOUTS = [{"type": kind, "progressDeadlineSeconds": 600} for kind in ("Auto", "Surge", "InPlace")]

node, name = st.sampled_from(NODES), st.sampled_from(MODELS)
spec = st.fixed_dictionaries(
    {
        "replicas": st.integers(0, 3),
        "parallelism": st.sampled_from(PARALLELISM),
        "pools": st.sampled_from(POOLS),
        "rollout": st.sampled_from(ROLLOUTS),
        "workload": st.sampled_from([{"concurrency": 4}, {"concurrency": 8}]),
    }
)
event = st.one_of(
    st.tuples(st.just("model"), name, spec),
    st.tuples(st.just("model"), name, spec),
    st.tuples(st.just("forget"), name, st.none()),
    st.tuples(st.just("lose pod"), name, st.integers(0, 7)),
    st.tuples(st.just("add"), node, st.none()),
    st.tuples(st.just("remove"), node, st.none()),
    st.tuples(st.just("cordon"), node, st.booleans()),
    st.tuples(st.just("ready"), node, st.booleans()),
    st.tuples(st.just("region"), node, st.sampled_from(["hk-1", "hk-2", "elsewhere"])),
    st.tuples(st.just("refuse"), node, st.booleans()),
    st.tuples(st.just("stranger"), node, st.integers(0, 8)),
    st.tuples(st.just("delete pool"), st.sampled_from(["ascend-910b-hk", "cambricon-mlu590-hk"]), st.none()),
    st.tuples(st.just("act"), st.integers(1, 3), st.none()),
    st.tuples(st.just("wait"), st.sampled_from([5, 45, 90, 700]), st.none()),
)


def add(cluster: SimulatedCluster, node: str) -> None:
    cluster.add_node(node, resource="huawei.com/Ascend910" if node.startswith("npu") else "cambricon.com/mlu")


def happen(cluster: SimulatedCluster, event: tuple[str, Any, Any]) -> None:
    match event:
        case ("model", name, spec):
            stated = {key: value for key, value in spec.items() if value is not None}
            found = cluster.objects.get(("ModelDeployment", NAMESPACE, name))
            if found is None:
                cluster.add_model(name, **stated)
            elif any(found["spec"].get(key) != value for key, value in stated.items()):
                cluster.change_model(ObjectKey(NAMESPACE, name), lambda spec: spec.update(stated))
        case ("forget", name, _):
            cluster.delete("ModelDeployment", NAMESPACE, name)
        case ("lose pod", name, index):
            pods = cluster.pods(name)
            if pods:
                cluster.delete("Pod", NAMESPACE, pods[index % len(pods)]["metadata"]["name"])
        case ("add", node, _) if ("Node", "", node) not in cluster.objects:
            add(cluster, node)
        case ("remove", node, _):
            cluster.remove_node(node)
        case ("cordon", node, cordoned):
            cluster.cordon(node, cordoned)
        case ("ready", node, ready):
            found = cluster.objects.get(("Node", "", node))
            if found is not None and found["status"]["conditions"][0]["status"] != str(ready):
                cluster.set_ready(node, ready)
        case ("region", node, region):
            cluster.relabel(node, region)
        case ("refuse", node, refuses):
            (cluster.refusing_nodes.add if refuses else cluster.refusing_nodes.discard)(node)
        case ("stranger", node, chips):
            cluster.delete("Pod", "others", f"stranger-{node}", grace_s=0)
            resource = "huawei.com/Ascend910" if node.startswith("npu") else "cambricon.com/mlu"
            free = cluster.world.chips(NodeName(node), resource).free
            if ("Node", "", node) in cluster.objects and 0 < chips <= free:
                cluster.add_foreign_pod(f"stranger-{node}", node, chips, resource)
        case ("delete pool", name, _):
            cluster.delete("ChipPool", "", name)
        case ("act", rounds, _):
            for _ in range(rounds):
                for key in cluster.all_keys():
                    cluster.reconcile(key)
                cluster.others()
        case ("wait", seconds, _):
            cluster.pass_time(seconds)


def begin(seed: int) -> SimulatedCluster:
    cluster = SimulatedCluster(seed=seed)
    cluster.on_change = lambda: always(cluster)
    cluster.broken_images.add("broken:1")
    cluster.add_pool("broken", chip="ascend-910b", engine={"image": "broken:1"})
    for each in (*NODES[:3], NODES[4]):
        add(cluster, each)
    return cluster


BIG = {"replicas": 1, "parallelism": PARALLELISM[3], "pools": None, "rollout": ROLLOUTS[0], "workload": {"concurrency": 4}}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.integers(0, 99), st.lists(event, max_size=14))
@example(0, [("model", "m0", BIG), ("act", 2, None), ("remove", "npu-1", None), ("act", 1, None), ("add", "npu-3", None)])
@example(1, [("model", "m0", BIG), ("refuse", "npu-0", True), ("act", 3, None), ("wait", 45, None), ("ready", "npu-2", False)])
def test_the_cluster_comes_to_rest_as_it_should_be_and_stays_there(seed: int, events: list[tuple[str, Any, Any]]) -> None:
    cluster = begin(seed)
    for each in events:
        happen(cluster, each)
        always(cluster)
    cluster.refusing_nodes.clear()
    cluster.settle(horizon_s=4 * 3600)
    at_rest(cluster)
    writes, state = cluster.writes, {key: body.get("status") for key, body in cluster.objects.items()}
    cluster.pass_time(6 * 3600)
    cluster.settle(horizon_s=6 * 3600)
    at_rest(cluster)
    assert cluster.writes == writes, "nothing happened, and something was written:\n" + "\n".join(cluster.history[-20:])
    assert {key: body.get("status") for key, body in cluster.objects.items()} == state
