"""Our resource definitions on the real API server: structural, every rule of theirs at work, readable with kubectl."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from definition_rules import RULES, SPECS, Rule
from testcluster.commands import Command
from testcluster.objects import Manifest, Objects, Refused, documents
from testcluster.waiting import wait_for

CRDS = Path(__file__).resolve().parents[2] / "charts" / "lionrock-crds" / "templates"
GROUP_VERSION = "lionrock.io/v1alpha1"
NOW = "2026-11-23T00:00:00Z"
DEFINITIONS = list(documents(CRDS, "CustomResourceDefinition"))
KINDS = ("ChipPool", "ModelDeployment")


def manifest(kind: str, namespace: str, changes: Mapping[str, Any], *, name: str | None = None) -> Manifest:
    """Build an object with the plain spec of its kind, changed; None takes a field away."""
    spec = {**copy.deepcopy(SPECS[kind]), **changes}
    metadata = {"name": name or f"{namespace}-{kind.lower()}"}
    if kind == "ModelDeployment":
        metadata["namespace"] = namespace
    return {
        "apiVersion": GROUP_VERSION,
        "kind": kind,
        "metadata": metadata,
        "spec": {field: value for field, value in spec.items() if value is not None},
    }


def rules_of(schema: Mapping[str, Any]) -> Iterator[str]:
    """Messages of all CEL rules of a schema."""
    yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
    for part in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        yield from rules_of(part)


def fields_of(schema: Mapping[str, Any], schemas: Mapping[str, Any], path: str) -> Iterator[tuple[str, str | None]]:
    """Every field that `kubectl explain` knows, with its description."""
    for reference in [schema, *schema.get("allOf", ())]:
        if "$ref" in reference:
            schema = {**schemas[reference["$ref"].rsplit("/", 1)[1]], **schema}
    for name, part in schema.get("properties", {}).items():
        yield f"{path}.{name}", part.get("description")
        if name != "metadata":
            yield from fields_of(part, schemas, f"{path}.{name}")
    if "items" in schema:
        yield from fields_of(schema["items"], schemas, f"{path}[]")


@pytest.fixture
def created(objects: Objects, lionrock_crds: list[str]) -> Iterator[list[Manifest]]:
    """Objects that are deleted after the test."""
    created: list[Manifest] = []
    yield created
    for one in created:
        objects.delete(one)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}-{rule.message[:40]}")
def test_each_rule_accepts_one_object_and_refuses_another_with_its_message(
    rule: Rule, objects: Objects, namespace: str, created: list[Manifest]
) -> None:
    def write(changes: Mapping[str, Any], name: str | None = None) -> None:
        if rule.after_creation:
            objects.merge(created[0], {"spec": changes})
        else:
            objects.create(manifest(rule.kind, namespace, changes, name=name), dry_run=True)

    if rule.after_creation:
        created.append(objects.create(manifest(rule.kind, namespace, {})))
    write(rule.accepted)
    with pytest.raises(Refused) as refused:
        write(rule.refused, rule.refused_name)
    assert rule.message in str(refused.value)
    assert refused.value.status == 422


def test_every_rule_of_the_definitions_is_in_the_table() -> None:
    written = {  # Those of Tenant are compared with what gateways refuse: test_tenant_definition.
        (document["spec"]["names"]["kind"], message)
        for document in DEFINITIONS
        if document["spec"]["names"]["kind"] in KINDS
        for version in document["spec"]["versions"]
        for message in rules_of(version["schema"]["openAPIV3Schema"])
    }
    assert {(rule.kind, rule.message) for rule in RULES} == written


def test_schemas_are_structural_and_names_are_accepted(objects: Objects, lionrock_crds: list[str]) -> None:
    assert sorted(lionrock_crds) == ["chippools.lionrock.io", "modeldeployments.lionrock.io", "tenants.lionrock.io"]
    for name in lionrock_crds:
        found = objects.read("apiextensions.k8s.io/v1", "CustomResourceDefinition", name)
        assert found is not None
        conditions = {condition["type"]: condition for condition in found["status"]["conditions"]}
        assert conditions["NamesAccepted"]["status"] == "True"
        assert "NonStructuralSchema" not in conditions, conditions["NonStructuralSchema"]["message"]


def test_a_field_that_is_not_in_the_schema_is_refused(objects: Objects, namespace: str, lionrock_crds: list[str]) -> None:
    with pytest.raises(Refused, match=r'unknown field "spec\.replica"'):
        objects.create(manifest("ModelDeployment", namespace, {"replica": 2}), dry_run=True)


def test_defaults_are_stated_in_the_stored_object(objects: Objects, namespace: str, created: list[Manifest]) -> None:
    created.append(objects.create(manifest("ModelDeployment", namespace, {})))
    spec = created[0]["spec"]
    assert spec["model"]["dtype"] == "bfloat16"
    assert spec["workload"] == {"concurrency": 16, "contextTokens": 4096}
    assert spec["parallelism"] == {"type": "Auto"}
    assert spec["tenancy"] == {"type": "Shared"}
    assert spec["rollout"] == {"type": "Auto", "progressDeadlineSeconds": 1800}
    assert "replicas" not in spec  # unset stays unset, so that autoscaling can be stated later


def test_an_author_cannot_write_the_status_with_the_object(objects: Objects, namespace: str, created: list[Manifest]) -> None:
    with_status = manifest("ModelDeployment", namespace, {}) | {"status": {"replicas": {"desired": 3, "ready": 3}}}
    created.append(objects.create(with_status))
    assert "status" not in created[0]


@pytest.mark.parametrize("kind", KINDS)
def test_kubectl_explain_describes_every_field(kind: str, objects: Objects, kubectl: Command, lionrock_crds: list[str]) -> None:
    own = f"io.lionrock.v1alpha1.{kind}"

    def published() -> dict[str, Any]:
        paths = objects.call("GET", "/openapi/v3")["paths"]
        if f"apis/{GROUP_VERSION}" not in paths:
            return {}
        schemas: dict[str, Any] = objects.call("GET", f"/openapi/v3/apis/{GROUP_VERSION}")["components"]["schemas"]
        return schemas if own in schemas else {}

    schemas = wait_for(published, f"the API server publishes {kind}")
    fields = dict(fields_of(schemas[own], schemas, kind))
    assert len(fields) > 30
    assert sorted(field for field, description in fields.items() if not description) == []
    explained = kubectl("explain", kind.lower(), "--api-version", GROUP_VERSION, "--recursive")
    missing = {field.rsplit(".", 1)[1] for field in fields} - {line.split("\t")[0].strip() for line in explained.splitlines()}
    assert missing == set()


def test_kubectl_lists_pools_with_their_chips(objects: Objects, kubectl: Command, namespace: str, created: list[Manifest]) -> None:
    pool = objects.create(manifest("ChipPool", namespace, {}))
    created.append(pool)
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "NodesReady",
        "message": "m",
        "lastTransitionTime": NOW,
    }
    status = {
        "chip": {"name": "ascend-910b"},
        "nodes": {"matched": 5, "ready": 4},
        "chips": {"total": 32, "free": 24},
        "conditions": [condition],
    }
    objects.merge(pool, {"status": status}, subresource="status")
    header, row = kubectl("get", "chips", pool["metadata"]["name"], "-o", "wide").splitlines()
    assert header.split() == ["NAME", "CHIP", "TERRITORY", "NODES", "CHIPS", "FREE", "READY", "REASON", "AGE"]
    assert row.split()[1:-1] == ["ascend-910b", "HK", "4", "32", "24", "True", "NodesReady"]


def test_kubectl_lists_models_with_where_they_are_and_why_not(
    objects: Objects, kubectl: Command, namespace: str, created: list[Manifest]
) -> None:
    model = objects.create(manifest("ModelDeployment", namespace, {}))
    created.append(model)
    why = {"reason": "NoRoom", "message": "4 chips are free"}
    condition = {"type": "Ready", "status": "False", "lastTransitionTime": NOW, **why}
    status = {
        "placement": {"pool": "ascend"},
        "plan": {"summary": "TP 4 × PP 1"},
        "replicas": {"desired": 2, "ready": 1},
        "conditions": [condition],
    }
    objects.merge(model, {"status": status}, subresource="status")
    listed = kubectl("get", "models", model["metadata"]["name"], "--namespace", namespace, "-o", "wide")
    header, row = listed.splitlines()
    assert header.split() == ["NAME", "POOL", "PLAN", "REPLICAS", "AVAILABLE", "READY", "REASON", "WHY", "AGE"]
    cells = re.split(r"\s{3,}", row.strip())
    assert cells[1:-1] == ["ascend", "TP 4 × PP 1", "2", "1", "False", "NoRoom", "4 chips are free"]


def test_kubectl_scale_sets_the_replicas_of_a_model(
    objects: Objects, kubectl: Command, namespace: str, created: list[Manifest]
) -> None:
    model = objects.create(manifest("ModelDeployment", namespace, {}))
    created.append(model)
    kubectl("scale", "models", model["metadata"]["name"], "--namespace", namespace, "--replicas=0")
    scaled = objects.read(GROUP_VERSION, "ModelDeployment", model["metadata"]["name"], namespace)
    assert scaled is not None
    assert scaled["spec"]["replicas"] == 0


def test_definitions_are_stored_as_they_are_written(objects: Objects, lionrock_crds: list[str]) -> None:
    """An unknown key in a schema is dropped by some clients without a word, such as the rest of an unquoted sentence."""
    for document in DEFINITIONS:
        applied = objects.apply(document, dry_run=True)  # strict: refuses what it does not know
        assert applied["spec"]["versions"][0]["schema"] == document["spec"]["versions"][0]["schema"]


def test_removing_the_chart_keeps_the_definitions() -> None:
    for document in DEFINITIONS:
        assert document["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_rays_definitions_apply(ray_crds: list[str]) -> None:
    assert {"rayclusters.ray.io", "rayjobs.ray.io", "rayservices.ray.io"} <= set(ray_crds)
