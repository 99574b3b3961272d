"""One operator on a real API server: what it makes of a model, keeps so, and takes away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from operators import CHILD_KINDS, Place, TestedOperator, make_place, model, operating, play_kuberay, settings_for
from testcluster.control_plane import ControlPlane
from testcluster.objects import Objects
from testcluster.waiting import wait_for

MANAGER = "lionrock-operator"


@pytest.fixture
def place(objects: Objects, lionrock_crds: list[str], ray_crds: list[str]) -> Iterator[Place]:
    place = make_place(objects)
    yield place
    place.close()


@pytest.fixture
def operator(own_control_plane: ControlPlane, place: Place) -> Iterator[TestedOperator]:
    with operating(own_control_plane, settings_for(place.namespace, place.region)) as operator:
        operator.wait_leads()
        yield operator


@pytest.fixture
def kuberay_plays(place: Place) -> Iterator[None]:
    with play_kuberay(place):
        yield


def let_go(place: Place) -> bool:
    """Whether every worker has been let go to a node."""
    workers = [pod for pod in place.pods() if pod["metadata"]["labels"].get("lionrock.io/role") == "worker"]
    return bool(workers) and not any(pod["spec"].get("schedulingGates") for pod in workers)


def test_a_model_gets_chips_children_and_an_explanation(place: Place, operator: TestedOperator, kuberay_plays: None) -> None:
    place.objects.create(model("chat", place.namespace, replicas=2))
    wait_for(lambda: let_go(place), "workers are let go", seen=lambda: place.model("chat").get("status"))
    status = place.model("chat")["status"]
    assert {pod["node"] for pod in status["placement"]["pods"]} <= set(place.nodes)
    assert status["plan"]["chip"] == "ascend-910b"
    assert place.condition("chat", "Scheduled")["status"] == "True"
    children = place.children()
    assert {name.split("/")[0] for name in children} == {kind for _, kind in CHILD_KINDS}
    for name, child in children.items():
        if name.startswith("ConfigMap/lionrock-"):
            continue  # of the namespace or the operator, not of the model
        owner = child["metadata"]["ownerReferences"][0]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("ModelDeployment", "chat", True), name
        assert child["managers"] == [f"{MANAGER} Apply"], name


def test_nothing_is_written_when_nothing_changes(place: Place, operator: TestedOperator, kuberay_plays: None) -> None:
    place.objects.create(model("chat", place.namespace))
    wait_for(lambda: let_go(place), "workers are let go")
    settle(operator)
    before = len(operator.writes)
    operator.running._reconciler.look_at_everything()
    settle(operator)
    assert [call for call in operator.writes[before:] if call.resource != "secrets"] == []


def test_what_others_change_of_a_child_is_put_right(place: Place, operator: TestedOperator) -> None:
    place.objects.create(model("chat", place.namespace))
    wait_for(lambda: len(place.children()) >= 5, "children are there")
    settle(operator)
    before = place.children()
    for kind, change in (
        ("Service", {"spec": {"ports": [{"name": "grpc", "port": 1, "targetPort": 1}]}}),
        ("Service", {"spec": {"ports": [{"name": "grpc", "port": 50053}, {"name": "more", "port": 1}]}}),
        ("NetworkPolicy", {"spec": {"egress": [{}]}}),
        ("Deployment", {"spec": {"replicas": 0, "minReadySeconds": 0}}),
        ("PodDisruptionBudget", {"spec": {"unhealthyPodEvictionPolicy": "IfHealthyBudget"}}),
        ("RayService", {"spec": {"rayClusterConfig": {"workerGroupSpecs": []}}}),
    ):
        name = next(each for each in before if each.startswith(f"{kind}/"))
        api_version = next(version for version, each in CHILD_KINDS if each == kind)
        child = {"apiVersion": api_version, "kind": kind, "metadata": {"name": name.split("/")[1], "namespace": place.namespace}}
        place.objects.merge(child, change)
        wait_for(lambda name=name: _same(place.children().get(name), before[name]), f"{name} is as it was")  # type: ignore[misc]
        place.objects.delete(child)
        wait_for(lambda name=name: _same(place.children().get(name), before[name]), f"{name} is there again")  # type: ignore[misc]


def _same(one: object, other: object) -> bool:
    assert isinstance(other, dict)
    return isinstance(one, dict) and {**one, "managers": None} == {**other, "managers": None}


def test_a_deleted_model_leaves_nothing(place: Place, operator: TestedOperator, kuberay_plays: None) -> None:
    place.objects.create(model("chat", place.namespace))
    wait_for(lambda: let_go(place), "workers are let go")
    assert place.model("chat")["metadata"]["finalizers"] == ["lionrock.io/operator"]
    place.objects.delete(place.model("chat"))
    wait_for(
        lambda: place.objects.read("lionrock.io/v1alpha1", "ModelDeployment", "chat", place.namespace) is None,
        "the model is gone",
        seen=lambda: (place.children().keys(), [pod["metadata"]["name"] for pod in place.pods()]),
    )
    wait_for(lambda: not [name for name in place.children() if "lionrock-proposed" not in name], "its children are gone")
    pool = place.objects.read("lionrock.io/v1alpha1", "ChipPool", place.pool)
    wait_for(lambda: _free(place) == 16, "its chips are free", seen=lambda: pool)


def _free(place: Place) -> int:
    found = place.objects.read("lionrock.io/v1alpha1", "ChipPool", place.pool)
    assert found is not None
    return int(((found.get("status") or {}).get("chips") or {}).get("free", -1))


def test_a_model_that_finds_no_room_says_so_and_is_placed_when_there_is(
    place: Place, operator: TestedOperator, kuberay_plays: None
) -> None:
    place.objects.create(model("first", place.namespace, replicas=16))
    wait_for(lambda: place.condition("first", "Scheduled").get("status") == "True", "the first one has all chips")
    place.objects.create(model("second", place.namespace))
    wait_for(lambda: place.condition("second", "Scheduled").get("reason") == "NoRoom", "the second one says why not")
    assert place.condition("second", "Scheduled")["message"]
    place.objects.merge(place.model("first"), {"spec": {"replicas": 8}})
    wait_for(lambda: place.condition("second", "Scheduled").get("status") == "True", "the second one is placed")


def test_events_tell_what_happened(place: Place, operator: TestedOperator) -> None:
    place.objects.create(model("chat", place.namespace))
    wait_for(lambda: "RevisionStarted" in reasons(place, "chat"), "an event tells of the new revision")


def reasons(place: Place, name: str) -> set[str]:
    found = place.objects.list("events.k8s.io/v1", "Event", place.namespace)
    return {event["reason"] for event in found if event["regarding"]["name"] == name}


def test_the_token_of_ray_clusters_is_made_once(place: Place, operator: TestedOperator) -> None:
    place.objects.create(model("chat", place.namespace))
    (secret,) = wait_for(lambda: place.objects.list("v1", "Secret", place.namespace), "the token is made")
    operator.running._reconciler.look_at_everything()
    settle(operator)
    (again,) = place.objects.list("v1", "Secret", place.namespace)
    assert again["metadata"]["resourceVersion"] == secret["metadata"]["resourceVersion"]


def settle(operator: TestedOperator) -> None:
    """Wait until the operator has nothing to do for the moment."""
    queue = operator.running._queue

    def idle() -> bool:
        with queue._changed:
            return queue._schedule.ready == 0 and queue._schedule.processing == 0

    for _ in range(3):  # its own writes come back as events
        wait_for(idle, "the queue is empty")
        count = len(operator.calls)
        wait_for(lambda count=count: idle() and len(operator.calls) >= count, "nothing more is asked", interval_s=0.2)  # type: ignore[misc]
