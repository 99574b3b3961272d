"""Objects of the API become typed values, and those that cannot be read say which field."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.operator.resources import (
    Canary,
    ClaimSource,
    Malformed,
    ModelDeployment,
    ObjectKey,
    Placement,
    PoolName,
    QuantityError,
    Revision,
    UnreadableModel,
    UnreadablePool,
    format_bytes,
    parse_bytes,
    parse_child,
    parse_chip_pool,
    parse_count,
    parse_model_deployment,
    parse_model_status,
    parse_node,
    parse_pod,
    parse_quantity,
    pod_matters,
)
from operator_objects import ASCEND, START, model_body, node, node_body, pod, pod_body, pool_body

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("64Gi", 64 << 30),
        (8, 8),
        ("1500m", Decimal("1.5")),
        ("1e3", 1000),
        ("12E", 12 * 10**18),
        (".5Ki", 512),
        ("100n", Decimal("1e-7")),
        ("-1", -1),
    ],
)
def test_quantities_are_read_as_the_api_server_reads_them(value: object, number: object) -> None:
    assert parse_quantity(value) == number


@pytest.mark.parametrize("value", ["", "Gi", "1.2.3", "64gi", "0x10", "1 Gi", "٣", True, None, 1.5, "1" * 99, "1e999"])
def test_what_is_no_quantity_is_refused(value: object) -> None:
    with pytest.raises(QuantityError):
        parse_quantity(value)


def test_chips_are_counted_whole() -> None:
    assert parse_count("8") == 8
    assert parse_count("8000m") == 8
    for broken in ("1500m", "-1"):
        with pytest.raises(QuantityError):
            parse_count(broken)


@given(st.integers(0, 1 << 60))
def test_bytes_survive_being_written_and_read(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == count


def test_a_model_is_read_with_the_defaults_of_its_definition() -> None:
    model = parse_model_deployment(model_body("chat", pools=["ascend", "mlu"]))

    assert isinstance(model, ModelDeployment)
    assert model.key == ObjectKey("team", "chat")
    assert model.served_name == "chat"
    assert model.meta.created_at == START
    assert model.spec.source == ClaimSource(claim_name="models", path="")
    assert model.spec.pools == ("ascend", "mlu")
    assert (model.spec.replicas, model.spec.dtype, model.spec.weight_quantisation) == (1, "bfloat16", None)
    assert (model.spec.workload.concurrency, model.spec.workload.context_tokens) == (16, 4096)
    assert (model.spec.parallelism, model.spec.autoscaling, model.spec.tenant, model.spec.rollout.type) == (
        None,
        None,
        None,
        "Auto",
    )


def test_every_choice_of_a_model_is_read() -> None:
    body = model_body("chat", parallelism={"type": "Given", "tensor": 4}, tenancy={"type": "Dedicated", "tenant": "bank"})
    body["spec"]["autoscaling"] = {"minReplicas": 1, "maxReplicas": 3}
    body["spec"]["rollout"] = {"type": "Canary", "canary": {"percent": 5}, "progressDeadlineSeconds": 60}

    model = parse_model_deployment(body)

    assert isinstance(model, ModelDeployment)
    assert model.spec.parallelism is not None
    assert (model.spec.parallelism.tensor, model.spec.parallelism.pipeline) == (4, 1)
    assert model.spec.autoscaling is not None
    assert model.spec.autoscaling.target_ttft_ms == 2000
    assert model.spec.tenant == "bank"
    assert model.spec.rollout.canary == Canary(percent=5)
    assert model.spec.rollout.progress_deadline_s == 60


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"replicas": "2"}, "spec.replicas"),
        ({"territory": None}, "spec.territory"),
        ({"autoscaling": {"minReplicas": 3, "maxReplicas": 1}}, "spec.autoscaling.minReplicas"),
        ({"tenancy": {"type": "Dedicated"}}, "spec.tenancy.tenant"),
        ({"rollout": {"type": "Yolo"}}, "spec.rollout.type"),
        ({"model": {"source": {}}}, "spec.model.source"),
        ({"pools": [{"title": "a"}]}, "spec.pools[0].name"),
    ],
)
def test_a_model_that_cannot_be_read_names_the_field_and_keeps_its_chips(spec: dict[str, Any], field: str) -> None:
    body = model_body("chat", status={"placement": {"pods": [SLOT], "pool": "ascend", "revision": "0a1b2c3d"}})
    body["spec"].update(spec)

    model = parse_model_deployment(body)

    assert isinstance(model, UnreadableModel)
    assert field in model.problem
    assert model.status.placement is not None
    assert model.status.placement.slots[0].chips == 4


SLOT = {"revision": "0a1b2c3d", "replica": 0, "part": 0, "node": "n1", "chips": 4, "resource": ASCEND, "pool": "ascend"}


def test_a_placement_is_read_as_it_was_written() -> None:
    status = parse_model_status({"placement": {"pods": [SLOT], "pool": "ascend", "revision": "0a1b2c3d"}})

    assert status.placement is not None
    assert status.placement.of(Revision("0a1b2c3d")) == status.placement.slots
    written = status.placement.as_status()
    assert parse_model_status({"placement": written}).placement == status.placement
    empty = Placement(pool=None, revision=None)
    assert parse_model_status({"placement": empty.as_status()}).placement == empty


def test_a_status_that_cannot_be_read_is_empty_and_says_so() -> None:
    status = parse_model_status({"placement": {"pods": [{**SLOT, "chips": 0}]}})

    assert status.placement is None
    assert status.problem == "status.placement.pods[0].chips is not an integer of at least 1"


def test_a_pool_that_cannot_be_read_names_the_field() -> None:
    pool = parse_chip_pool(pool_body(memory="a lot"))

    assert isinstance(pool, UnreadablePool)
    assert pool.name == PoolName("ascend")
    assert "spec.memory" in pool.problem


def test_a_node_shows_its_chips_and_whether_it_takes_pods() -> None:
    seen = node("n1", {ASCEND: 8, "other.io/fpga": 0}, cordoned=True)

    assert seen.chips == {ASCEND: 8}
    assert (seen.is_ready, seen.is_cordoned) == (True, True)


def test_heartbeats_do_not_make_another_node() -> None:
    beat = node_body("n1", {ASCEND: 8})
    beat["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-11-23T09:00:00Z"
    beat["metadata"]["resourceVersion"] = "77"

    assert parse_node(beat) == node("n1", {ASCEND: 8})


def test_a_pod_asks_for_what_its_containers_ask_for_at_once() -> None:
    body = pod_body("p", chips={ASCEND: 2})
    body["spec"]["containers"].append({"name": "second", "resources": {"limits": {ASCEND: 1}}})
    body["spec"]["initContainers"] = [
        {"name": "sidecar", "restartPolicy": "Always", "resources": {"limits": {ASCEND: 1}}},
        {"name": "prepares", "resources": {"limits": {ASCEND: 5}}},
    ]

    assert parse_pod(body).chips == {ASCEND: 6}
    del body["spec"]["initContainers"][1]
    assert parse_pod(body).chips == {ASCEND: 4}


def test_pods_without_chips_matter_only_if_they_are_a_models() -> None:
    assert not pod_matters(pod_body("web"))
    assert pod_matters(pod_body("train", chips={ASCEND: 1}))
    assert pod_matters(pod_body("head", model="chat"))


def test_a_pods_labels_say_whose_it_is_and_gates_that_it_waits() -> None:
    worker = pod("w", model="chat", revision="0a1b2c3d", chips={ASCEND: 4}, gated=True)

    assert worker.model == ObjectKey("team", "chat")
    assert (worker.revision, worker.role, worker.is_gated, worker.holds_chips) == ("0a1b2c3d", "worker", True, False)
    assert pod("job", chips={ASCEND: 4}, node="n1").model is None
    assert not pod("done", chips={ASCEND: 4}, node="n1", phase="Succeeded").holds_chips


def test_a_ray_service_is_running_when_it_is_ready_and_each_application_runs() -> None:
    body: dict[str, Any] = {
        "metadata": {"name": "chat-0a1b2c3d", "namespace": "team", "uid": "u", "labels": {"lionrock.io/model": "chat"}},
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "x", "message": ""}],
            "activeServiceStatus": {"rayClusterName": "c", "applicationStatuses": {"chat": {"status": "RUNNING"}}},
        },
    }
    child = parse_child("RayService", body)
    assert child.ray_service is not None
    assert child.ray_service.all_running
    assert child.model == ObjectKey("team", "chat")

    body["status"]["activeServiceStatus"]["applicationStatuses"]["chat"] = {"status": "DEPLOY_FAILED", "message": "no"}
    assert (view := parse_child("RayService", body).ray_service) is not None
    assert not view.all_running
    body["status"]["conditions"] = "nonsense"
    assert (view := parse_child("RayService", body).ray_service) is not None
    assert not view.is_ready


@given(JSON, JSON)
def test_hostile_objects_never_raise_anything_else(spec: Any, status: Any) -> None:
    body = {"metadata": {"name": "x", "namespace": "y"}, "spec": spec, "status": status}
    assert parse_model_deployment(body).key == ObjectKey("y", "x")
    assert parse_chip_pool(body).name == "x"
    assert parse_child("RayService", body).meta.name == "x"
    for parse in (parse_node, parse_pod, pod_matters):
        with suppress(Malformed):
            parse(body)


@given(st.dictionaries(st.sampled_from(["name", "namespace", "labels", "generation", "finalizers", "ownerReferences"]), JSON))
def test_hostile_metadata_is_malformed_or_read(metadata: dict[str, Any]) -> None:
    for parse in (parse_model_deployment, parse_chip_pool, parse_node, parse_pod):
        with suppress(Malformed):
            parse({"metadata": metadata})
