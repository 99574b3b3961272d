"""What becomes of a model when things happen to it, played out in a simulated cluster by the real decisions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cluster_rules import always, at_rest
from simulated_cluster import BEGIN, CONFIG, NAMESPACE, SimulatedCluster, settings

from lionrock.operator.actions import FINALIZER, Decision, model_key
from lionrock.operator.decision_settings import Gang
from lionrock.operator.reports import RevisionReport
from lionrock.operator.resources import GANG_GATE, ObjectKey, Revision
from lionrock.operator.rollout import RevisionFigures

NPU, MLU = "ascend-910b-hk", "cambricon-mlu590-hk"
WHOLE_NODE = {"type": "Given", "tensor": 8}
TWO_NODES = {"type": "Given", "tensor": 8, "pipeline": 2}


def a_cluster(nodes: int = 2, others: int = 0) -> SimulatedCluster:
    """A cluster of that many nodes with eight NPUs, and others with eight MLUs. Rules are checked at every step."""
    cluster = SimulatedCluster()
    for number in range(nodes):
        cluster.add_node(f"npu-{number}")
    for number in range(others):
        cluster.add_node(f"mlu-{number}", resource="cambricon.com/mlu")
    cluster.on_change = lambda: always(cluster)
    return cluster


def a_model(cluster: SimulatedCluster, name: str = "llama", **spec: Any) -> ObjectKey:
    key = cluster.add_model(name, **spec)
    cluster.settle()
    at_rest(cluster)
    return key


def change_dtype(spec: dict[str, Any]) -> None:
    spec["model"] = {**spec["model"], "dtype": "float16"}


def revisions(cluster: SimulatedCluster, name: str = "llama") -> dict[str, int]:
    return {each["name"]: each["weightPercent"] for each in cluster.model(name)["status"]["revisions"]}


def nodes_of(cluster: SimulatedCluster, name: str = "llama") -> list[str]:
    return sorted(pod["spec"]["nodeName"] for pod in cluster.pods(name, "worker"))


def pool_of(cluster: SimulatedCluster, name: str = "llama") -> str:
    return str(cluster.model(name)["status"]["placement"]["pool"])


def states(cluster: SimulatedCluster, name: str = "llama") -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in cluster.model(name)["status"]["conditions"]}


# ---- placing -----------------------------------------------------------------------------------------------------------------


def test_a_model_is_planned_placed_started_and_routed() -> None:
    cluster = a_cluster()
    a_model(cluster, replicas=2)
    (revision,) = revisions(cluster)
    assert states(cluster) == {
        "Planned": ("True", "Fits"),
        "Scheduled": ("True", "Placed"),
        "Ready": ("True", "Serving"),
        "Degraded": ("False", "AsAsked"),
        "RolledBack": ("False", "NotRolledBack"),
    }
    routed = json.loads(cluster.objects["ConfigMap", NAMESPACE, "lionrock-routes"]["data"]["routes.json"])
    (endpoint,) = routed["models"]["llama"]["endpoints"]
    assert endpoint == {
        "target": f"dns:///llama-{revision}.{NAMESPACE}.svc:50053",
        "tokenization": f"dns:///llama-{revision}-tok.{NAMESPACE}.svc:50052",
        "weight": 100,
        "revision": revision,
        "pool": cluster.model("llama")["status"]["placement"]["pool"],
    }
    assert FINALIZER in cluster.model("llama")["metadata"]["finalizers"]


def test_a_revision_gets_requests_when_its_tokenization_is_ready_too() -> None:
    cluster = a_cluster()
    cluster.silent_roles = {"tokenization"}
    cluster.add_model("llama")
    cluster.settle(horizon_s=300)
    assert cluster.model("llama")["status"]["endpoints"] == []
    state = cluster.condition("llama", "Ready")
    assert state["status"] == "False"
    assert "tokenization" in state["message"]
    cluster.silent_roles.clear()
    cluster.settle()
    at_rest(cluster)
    assert states(cluster)["Ready"] == ("True", "Serving")
    assert len(cluster.model("llama")["status"]["endpoints"]) == 1


def test_other_settings_of_tokenization_replace_its_pods_and_no_others() -> None:
    cluster = a_cluster()
    a_model(cluster)
    (before,) = revisions(cluster)
    engines = {pod["metadata"]["uid"] for role in ("head", "worker") for pod in cluster.pods("llama", role)}
    cluster.settings = replace(cluster.settings, pods=replace(cluster.settings.pods, tokenization_drain_s=30))
    cluster.settle()
    at_rest(cluster)
    (pod,) = cluster.pods("llama", "tokenization")
    assert pod["spec"]["terminationGracePeriodSeconds"] == 45
    assert [*revisions(cluster)] == [before]
    assert {pod["metadata"]["uid"] for role in ("head", "worker") for pod in cluster.pods("llama", role)} == engines


def test_chips_are_kept_in_the_status_before_a_pod_may_use_them() -> None:
    cluster = a_cluster()
    cluster.reconcile(model_key(*cluster.add_model("early")))
    cluster.settle()
    key = cluster.add_model("llama", parallelism=TWO_NODES)
    decision = cluster.decide(model_key(*key))
    assert decision.status is None or not decision.status["placement"]["pods"], "the other model has chips that it needs"
    cluster.add_node("npu-2")
    cluster.reconcile(model_key(*key))
    assert {slot["node"] for slot in cluster.model("llama")["status"]["placement"]["pods"]} == {"npu-1", "npu-2"}
    assert not cluster.pods("llama")


def test_a_gang_is_let_go_when_all_its_pods_are_there() -> None:
    cluster = a_cluster(2)
    key = cluster.add_model("llama", parallelism=TWO_NODES)
    let_go: list[int] = []
    for _ in range(12):
        for each in cluster.all_keys():
            cluster.reconcile(each)
        let_go.append(sum(not pod["spec"]["schedulingGates"] for pod in cluster.pods("llama", "worker")))
        cluster.others()
    assert set(let_go) == {0, 2}
    assert nodes_of(cluster) == ["npu-0", "npu-1"]
    assert cluster.decide(model_key(*key)).quiet


def test_a_pod_that_comes_anew_takes_the_vacant_slot() -> None:
    cluster = a_cluster(3)
    a_model(cluster, parallelism=TWO_NODES)
    before = nodes_of(cluster)
    lost = cluster.pods("llama", "worker")[0]
    cluster.delete("Pod", NAMESPACE, lost["metadata"]["name"])
    cluster.settle()
    at_rest(cluster)
    assert nodes_of(cluster) == before
    assert GANG_GATE not in str(cluster.pods("llama", "worker"))


def test_chips_that_a_stranger_takes_before_the_gang_is_let_go_move_the_whole_gang() -> None:
    cluster = a_cluster(3)
    cluster.act()
    key = cluster.add_model("llama", parallelism=TWO_NODES)
    cluster.reconcile(model_key(*key))
    assert {slot["node"] for slot in cluster.model("llama")["status"]["placement"]["pods"]} == {"npu-0", "npu-1"}
    cluster.add_foreign_pod("thief", "npu-1", 1)
    cluster.settle()
    at_rest(cluster)
    assert nodes_of(cluster) == ["npu-0", "npu-2"]


def test_a_node_on_which_the_scheduler_refuses_a_shard_is_left_and_no_half_of_the_gang_stays() -> None:
    cluster = a_cluster(2)
    cluster.refusing_nodes.add("npu-1")
    cluster.add_model("llama", parallelism=TWO_NODES)
    cluster.settle(horizon_s=500)
    at_rest(cluster)
    assert cluster.pods("llama", "worker") == []
    assert states(cluster)["Scheduled"] == ("False", "NoRoom")
    cluster.add_node("npu-2")
    cluster.settle(horizon_s=500)
    assert nodes_of(cluster) == ["npu-0", "npu-2"]


def test_where_kueue_places_gangs_nothing_is_gated_or_moved_and_readiness_is_counted() -> None:
    cluster = SimulatedCluster(settings(gang=Gang(by="kueue", queue="gold")))
    for number in range(4):
        cluster.add_node(f"npu-{number}")
    key = cluster.add_model("llama", replicas=2, parallelism=TWO_NODES)
    cluster.settle()
    assert states(cluster)["Ready"] == ("True", "Serving")
    assert cluster.model("llama")["status"]["replicas"] == {"desired": 2, "ready": 2}
    assert len(nodes_of(cluster)) == 4
    assert cluster.decide(model_key(*key)).quiet


def test_models_that_fit_nowhere_say_what_would() -> None:
    cluster = a_cluster(1)
    a_model(cluster, "large", workload={"concurrency": 4096, "contextTokens": 131072})
    a_model(cluster, "elsewhere", territory="SG")
    a_model(cluster, "nowhere", pools=[{"name": "gone"}])
    a_model(cluster, "strange", model={"source": {"image": {"reference": "x@sha256:0"}}, "config": {"architectures": ["Mamba"]}})
    assert states(cluster, "large")["Planned"] == ("False", "DoesNotFit")
    assert "would fit" in cluster.condition("large", "Ready")["message"]
    assert cluster.condition("elsewhere", "Ready")["message"] == "there is no chip pool in SG"
    assert cluster.condition("nowhere", "Ready")["message"] == "pool gone: there is no such pool"
    assert states(cluster, "strange")["Planned"] == ("False", "ModelUnsupported")
    assert cluster.pods() == []


def test_a_model_that_waits_gets_chips_as_soon_as_they_are_free() -> None:
    cluster = a_cluster(1)
    first = a_model(cluster, "first", parallelism=WHOLE_NODE)
    a_model(cluster, "second", parallelism=WHOLE_NODE)
    assert states(cluster, "second")["Ready"] == ("False", "NotScheduled")
    cluster.delete("ModelDeployment", *first)
    cluster.settle()
    at_rest(cluster)
    assert states(cluster, "second")["Ready"] == ("True", "Serving")


# ---- scaling -----------------------------------------------------------------------------------------------------------------


def test_scaling_down_names_the_pods_that_go_and_disturbs_no_other() -> None:
    cluster = a_cluster(6)
    key = a_model(cluster, replicas=3, parallelism=TWO_NODES)
    kept = {
        pod["metadata"]["uid"] for pod in cluster.pods("llama", "worker") if pod["metadata"]["labels"]["lionrock.io/replica"] == "0"
    }
    cluster.change_model(key, lambda spec: spec.update(replicas=1))
    cluster.settle()
    at_rest(cluster)
    assert {pod["metadata"]["uid"] for pod in cluster.pods("llama", "worker")} == kept
    assert not [line for line in cluster.history if "whichever" in line]


def test_no_replicas_free_the_chips_and_keep_the_model() -> None:
    cluster = a_cluster()
    key = a_model(cluster, replicas=2)
    before = revisions(cluster)
    cluster.change_model(key, lambda spec: spec.update(replicas=0))
    cluster.settle()
    at_rest(cluster)
    assert cluster.pods("llama") == []
    assert states(cluster)["Ready"] == ("False", "ScaledToZero")
    cluster.change_model(key, lambda spec: spec.update(replicas=1))
    cluster.settle()
    assert revisions(cluster) == before


def test_replicas_follow_the_load_and_rest_when_it_rests() -> None:
    cluster = a_cluster(2)
    bounds = {"minReplicas": 1, "maxReplicas": 4, "targetWaiting": 8, "scaleDownAfterSeconds": 600}
    key = a_model(cluster, autoscaling=bounds)
    (name,) = revisions(cluster)

    def load(waiting: int) -> None:
        cluster.reports = {(key, Revision(name)): RevisionReport(answers=True, waiting=waiting, ttft_p95_ms=100.0)}

    load(30)
    cluster.settle(horizon_s=300)
    assert cluster.model("llama")["status"]["replicas"] == {"desired": 4, "ready": 4}
    writes = cluster.writes
    cluster.pass_time(3600)
    cluster.settle(horizon_s=3600)
    assert cluster.writes == writes, "a load that stays moves nothing"
    load(0)
    cluster.settle(horizon_s=4 * 3600)
    at_rest(cluster)
    assert cluster.model("llama")["status"]["replicas"] == {"desired": 1, "ready": 1}


# ---- roll-outs ---------------------------------------------------------------------------------------------------------------


def test_a_surge_serves_without_a_gap() -> None:
    cluster = a_cluster(2)
    key = a_model(cluster)
    (old,) = revisions(cluster)
    routed: list[dict[str, int]] = []

    def watch() -> None:
        always(cluster)
        endpoints = cluster.model("llama")["status"]["endpoints"]
        routed.append({each["revision"]: each["weightPercent"] for each in endpoints})

    cluster.on_change = watch
    cluster.change_model(key, change_dtype)
    cluster.settle()
    at_rest(cluster)
    (new,) = revisions(cluster)
    assert new != old
    assert all(sum(weights.values()) == 100 for weights in routed)
    assert (cluster.now - BEGIN).total_seconds() >= settings().revision_drain_s


def test_a_full_pool_is_rolled_in_place_and_the_old_revision_is_kept_until_the_new_one_answers() -> None:
    cluster = a_cluster(1)
    key = a_model(cluster, parallelism=WHOLE_NODE)
    (old,) = revisions(cluster)
    cluster.change_model(key, change_dtype)
    cluster.reconcile(model_key(*key))
    assert cluster.model("llama")["status"]["rollout"] == {"phase": "Starting", "kept": old}
    cluster.settle()
    at_rest(cluster)
    assert old not in revisions(cluster)
    assert ("ConfigMap", NAMESPACE, f"llama-{old}") not in cluster.objects


@pytest.mark.parametrize("room", ["beside", "in place"])
def test_a_revision_that_misses_its_deadline_is_rolled_back_and_not_tried_again(room: str) -> None:
    cluster = a_cluster(2 if room == "beside" else 1)
    cluster.act()
    cluster.add_pool("broken", chip="ascend-910b", engine={"image": "broken:1"})
    cluster.broken_images.add("broken:1")
    key = a_model(cluster, parallelism=WHOLE_NODE, pools=[{"name": NPU}], rollout={"type": "Auto", "progressDeadlineSeconds": 900})
    (old,) = revisions(cluster)
    cluster.change_model(key, lambda spec: spec.update(pools=[{"name": "broken"}], workload={"concurrency": 8}))
    cluster.settle()
    at_rest(cluster)
    assert revisions(cluster) == {old: 100}
    assert states(cluster)["RolledBack"] == ("True", "DeadlineExceeded")
    assert states(cluster)["Ready"] == ("True", "Serving")
    writes = cluster.writes
    cluster.pass_time(24 * 3600)
    cluster.settle()
    assert cluster.writes == writes, "what was given up is not tried again"
    cluster.change_model(key, lambda spec: spec.update(pools=[{"name": NPU}]))
    cluster.settle()
    at_rest(cluster)
    assert states(cluster)["RolledBack"] == ("False", "NotRolledBack")
    assert old not in revisions(cluster)


CANARY = {"type": "Canary", "canary": {"percent": 20, "observeSeconds": 600, "maxFailedPercent": 1, "maxTTFTPercent": 150}}


def a_canary() -> tuple[SimulatedCluster, ObjectKey, str, str]:
    """A canary that has just become ready: the cluster, the model, the old revision and the new one."""
    cluster = a_cluster(2)
    key = a_model(cluster, rollout=CANARY)
    (old,) = revisions(cluster)
    cluster.change_model(key, change_dtype)
    cluster.settle(wait=False)
    (new,) = [name for name in revisions(cluster) if name != old]
    assert revisions(cluster) == {new: 20, old: 80}
    return cluster, key, old, new


def figures(key: ObjectKey, **by_revision: tuple[int, int, float]) -> dict[tuple[ObjectKey, Revision], RevisionReport]:
    return {
        (key, Revision(name[1:])): RevisionReport(
            answers=True, figures=RevisionFigures(answers=answers, failed=failed, ttft_p95_ms=ttft)
        )
        for name, (answers, failed, ttft) in by_revision.items()
    }


def test_a_canary_whose_figures_are_unknown_is_held() -> None:
    cluster, _, old, new = a_canary()
    cluster.settle()
    assert revisions(cluster) == {new: 20, old: 80}
    assert states(cluster)["RolledBack"] == ("False", "CanaryObserved")


def test_a_canary_that_does_well_is_promoted_after_its_time() -> None:
    cluster, key, old, new = a_canary()
    cluster.reports = figures(key, **{f"r{old}": (1000, 2, 100.0), f"r{new}": (200, 1, 120.0)})
    cluster.settle(wait=False)
    assert revisions(cluster) == {new: 20, old: 80}
    cluster.settle()
    at_rest(cluster)
    assert revisions(cluster) == {new: 100}


def test_a_canary_waits_for_the_gateway_that_does_not_tell() -> None:
    cluster, key, old, new = a_canary()
    told = figures(key, **{f"r{old}": (1000, 2, 100.0), f"r{new}": (200, 1, 120.0)})
    cluster.reports = {at: replace(report, partial=at[1] == old) for at, report in told.items()}
    cluster.settle()
    assert revisions(cluster) == {new: 20, old: 80}
    assert "while a gateway does not tell its figures" in cluster.condition("llama", "RolledBack")["message"]
    cluster.reports = told
    cluster.settle()
    assert revisions(cluster) == {new: 100}


@pytest.mark.parametrize(
    ("namespace", "words"), [(None, "no gateways are asked"), (NAMESPACE, "before both revisions' figures are known")]
)
def test_a_canary_that_is_held_says_whether_gateways_are_asked(namespace: str | None, words: str) -> None:
    cluster, key, _, _ = a_canary()
    cluster.settings = replace(cluster.settings, figures_of=namespace)
    cluster.pass_time(3600)
    cluster.reconcile(model_key(*key))
    assert words in cluster.condition("llama", "RolledBack")["message"]


def test_replicas_stay_while_a_gateway_does_not_tell_its_load() -> None:
    cluster = a_cluster(2)
    key = a_model(cluster, autoscaling={"minReplicas": 1, "maxReplicas": 4, "targetWaiting": 8, "scaleDownAfterSeconds": 600})
    (name,) = revisions(cluster)
    at = (key, Revision(name))
    cluster.reports = {at: RevisionReport(answers=True, waiting=30, ttft_p95_ms=100.0, partial=True)}
    cluster.settle(horizon_s=300)
    assert cluster.model("llama")["status"]["replicas"] == {"desired": 4, "ready": 4}
    cluster.reports = {at: RevisionReport(answers=True, waiting=0, ttft_p95_ms=100.0, partial=True)}
    cluster.settle(horizon_s=4 * 3600)
    assert cluster.model("llama")["status"]["replicas"] == {"desired": 4, "ready": 4}
    assert "no replica is taken away" in cluster.condition("llama", "Degraded")["message"]
    cluster.reports = {}
    cluster.settle(horizon_s=4 * 3600)
    assert "the load is unknown" in cluster.condition("llama", "Degraded")["message"]


@pytest.mark.parametrize(("answers", "reason"), [((200, 3, 100.0), "CanaryFailedAnswers"), ((200, 0, 151.0), "CanarySlow")])
def test_a_canary_that_does_badly_is_rolled_back(answers: tuple[int, int, float], reason: str) -> None:
    cluster, key, old, new = a_canary()
    cluster.reports = figures(key, **{f"r{old}": (1000, 0, 100.0), f"r{new}": answers})
    cluster.settle()
    at_rest(cluster)
    assert revisions(cluster) == {old: 100}
    assert states(cluster)["RolledBack"] == ("True", reason)


# ---- pools -------------------------------------------------------------------------------------------------------------------

PREFERENCE = [{"name": NPU}, {"name": MLU}]


@pytest.mark.parametrize("event", ["cordoned", "gone", "silent", "relabelled"])
def test_a_pool_that_is_lost_is_replaced_by_the_next_and_taken_back(event: str) -> None:
    cluster = a_cluster(2, others=1)
    a_model(cluster, pools=PREFERENCE)
    assert pool_of(cluster) == NPU
    for node in ("npu-0", "npu-1"):
        match event:
            case "cordoned":
                cluster.cordon(node)
            case "gone":
                cluster.remove_node(node)
            case "silent":
                cluster.set_ready(node, False)
            case _:
                cluster.relabel(node, "elsewhere")
    cluster.settle()
    at_rest(cluster)
    assert pool_of(cluster) == MLU
    assert states(cluster)["Degraded"] == ("True", "FallbackPool")
    assert {pod["spec"]["containers"][0]["image"] for pod in cluster.pods("llama")} == {"registry.internal/engine-mlu:1"}
    for node in ("npu-0", "npu-1"):
        match event:
            case "cordoned":
                cluster.cordon(node, False)
            case "gone":
                cluster.add_node(node)
            case "silent":
                cluster.set_ready(node, True)
            case _:
                cluster.relabel(node, "hk-2")
    cluster.settle(horizon_s=settings().return_after_s - 120)
    assert pool_of(cluster) == MLU, "nobody follows a pool to and fro"
    cluster.settle()
    at_rest(cluster)
    assert pool_of(cluster) == NPU


def test_pods_on_a_node_that_left_the_territory_are_deleted_and_the_model_is_placed_anew() -> None:
    cluster = a_cluster(2)
    a_model(cluster)
    (left,) = nodes_of(cluster)
    cluster.relabel(left, "elsewhere")
    cluster.settle()
    at_rest(cluster)
    assert nodes_of(cluster) == [({"npu-0", "npu-1"} - {left}).pop()]
    assert any(event.reason == "OutOfTerritory" for event in cluster.events)


def test_a_pool_that_nobody_uses_may_go_without_an_operator() -> None:
    cluster = a_cluster()
    key = a_model(cluster)

    def held(name: str) -> bool:
        return FINALIZER in cluster.objects["ChipPool", "", name]["metadata"].get("finalizers", [])

    assert held(NPU)
    cluster.delete("ModelDeployment", *key)
    cluster.settle()
    at_rest(cluster)
    assert not held(NPU)


def test_a_cordoned_pool_that_is_being_deleted_goes_when_its_model_has_moved() -> None:
    cluster = a_cluster(1, others=1)
    a_model(cluster, pools=PREFERENCE)
    cluster.delete("ChipPool", "", NPU)
    cluster.cordon("npu-0")
    cluster.settle()
    at_rest(cluster)
    assert pool_of(cluster) == MLU
    assert ("ChipPool", "", NPU) not in cluster.objects


def test_a_pool_is_kept_until_no_model_is_on_it_and_is_not_proposed_again() -> None:
    cluster = a_cluster(1)
    key = a_model(cluster)
    cluster.delete("ChipPool", "", NPU)
    cluster.settle()
    (condition,) = cluster.objects["ChipPool", "", NPU]["status"]["conditions"]
    assert (condition["reason"], condition["message"]) == ("PoolInUse", f"models still have chips of it: {NAMESPACE}/llama")
    cluster.delete("ModelDeployment", *key)
    cluster.settle()
    at_rest(cluster)
    assert cluster.of_kind("ChipPool") == []


def test_a_model_leaves_a_pool_that_is_being_deleted_when_another_has_room() -> None:
    cluster = a_cluster(1, others=1)
    a_model(cluster, pools=PREFERENCE)
    cluster.delete("ChipPool", "", NPU)
    cluster.remove_node("npu-0")
    cluster.settle()
    at_rest(cluster)
    assert pool_of(cluster) == MLU
    assert ("ChipPool", "", NPU) not in cluster.objects


# ---- the object --------------------------------------------------------------------------------------------------------------


def test_nothing_of_a_deleted_model_is_left_and_its_pods_are_confined_to_the_last() -> None:
    cluster = a_cluster()
    key = a_model(cluster, replicas=2)

    def confined() -> None:
        always(cluster)
        if cluster.pods("llama"):
            assert cluster.of_kind("NetworkPolicy")

    cluster.on_change = confined
    cluster.delete("ModelDeployment", *key)
    cluster.settle()
    left = {kind for kind, namespace, _ in cluster.objects if namespace == NAMESPACE}
    assert left == set()


def test_drift_is_corrected() -> None:
    cluster = a_cluster()
    a_model(cluster)
    (revision,) = revisions(cluster)
    service = cluster.objects["Service", NAMESPACE, f"llama-{revision}"]
    service["spec"]["ports"][0]["port"] = 1
    cluster.put(service)
    cluster.delete("NetworkPolicy", NAMESPACE, f"llama-{revision}")
    cluster.settle()
    at_rest(cluster)
    assert cluster.objects["Service", NAMESPACE, f"llama-{revision}"]["spec"]["ports"][0]["port"] == 50053
    assert ("NetworkPolicy", NAMESPACE, f"llama-{revision}") in cluster.objects


def test_a_spec_that_cannot_be_read_leaves_alone_what_runs() -> None:
    cluster = a_cluster()
    key = a_model(cluster)
    before = cluster.pods("llama")
    cluster.change_model(key, lambda spec: spec.update(workload={"concurrency": "many"}))
    cluster.settle()
    assert states(cluster)["Planned"] == ("False", "SpecInvalid")
    assert states(cluster)["Ready"] == ("True", "Serving")
    assert cluster.pods("llama") == before


def test_a_model_that_cannot_be_planned_any_more_serves_as_before() -> None:
    cluster = a_cluster()
    key = a_model(cluster)
    before = revisions(cluster)
    cluster.change_model(key, lambda spec: spec.update(workload={"concurrency": 4096, "contextTokens": 131072}))
    cluster.settle()
    at_rest(cluster)
    assert states(cluster)["Planned"] == ("False", "DoesNotFit")
    assert states(cluster)["Degraded"] == ("True", "DoesNotFit")
    assert revisions(cluster) == before


def test_the_config_is_read_by_a_pod_and_read_anew_from_another_source() -> None:
    cluster = a_cluster()
    source = {"persistentVolumeClaim": {"claimName": "weights"}}
    key = cluster.add_model("llama", model={"source": source})

    def says(words: str, phase: str = "Succeeded") -> None:
        cluster.settle(wait=False)
        pod = cluster.objects["Pod", NAMESPACE, "llama-facts"]
        assert states(cluster)["Ready"] == ("False", "NotPlanned")
        ended = {"name": "facts", "state": {"terminated": {"message": words}}}
        cluster.put({**pod, "status": {"phase": phase, "containerStatuses": [ended]}})

    says(json.dumps(CONFIG))
    cluster.settle()
    at_rest(cluster)
    assert states(cluster)["Ready"] == ("True", "Serving")
    assert cluster.model("llama")["status"]["facts"]["config"] == CONFIG
    assert ("Pod", NAMESPACE, "llama-facts") not in cluster.objects
    other = {"persistentVolumeClaim": {"claimName": "other"}}
    cluster.change_model(key, lambda spec: spec.update(model={"source": other}))
    cluster.settle(wait=False)
    assert ("Pod", NAMESPACE, "llama-facts") in cluster.objects
    assert states(cluster)["Ready"] == ("True", "Serving"), "what ran before goes on"


def test_a_config_that_cannot_be_read_is_reported_in_the_pods_own_words() -> None:
    cluster = a_cluster()
    cluster.add_model("llama", model={"source": {"persistentVolumeClaim": {"claimName": "weights"}}})
    cluster.settle(wait=False)
    pod = cluster.objects["Pod", NAMESPACE, "llama-facts"]
    ended = {"name": "facts", "state": {"terminated": {"message": "/var/lib/lionrock/model holds no files"}}}
    cluster.put({**pod, "status": {"phase": "Failed", "containerStatuses": [ended]}})
    cluster.settle()
    assert states(cluster)["Planned"] == ("False", "ConfigUnreadable")
    assert "holds no files" in cluster.condition("llama", "Ready")["message"]


def test_of_two_models_with_one_name_the_older_one_is_routed() -> None:
    cluster = a_cluster()
    named = {"source": {"persistentVolumeClaim": {"claimName": "weights"}}, "config": CONFIG, "name": "shared"}
    a_model(cluster, "older", model=named)
    cluster.pass_time(60)
    a_model(cluster, "newer", model=named)
    routed = json.loads(cluster.objects["ConfigMap", NAMESPACE, "lionrock-routes"]["data"]["routes.json"])
    assert ["older" in each["target"] for each in routed["models"]["shared"]["endpoints"]] == [True]


def test_a_decision_about_what_is_not_there_is_nothing() -> None:
    cluster = a_cluster()
    assert cluster.decide(model_key(NAMESPACE, "nobody")) == Decision()


def test_deciding_twice_decides_the_same() -> None:
    cluster = a_cluster(2, others=1)
    key = cluster.add_model("llama", replicas=2, pools=PREFERENCE)
    for _ in range(8):
        for each in [*cluster.all_keys(), model_key(*key)]:
            assert cluster.decide(each) == cluster.decide(each)
            cluster.reconcile(each)
        cluster.others()
