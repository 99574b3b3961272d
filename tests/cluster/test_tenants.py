"""Tenants from kubectl to the ConfigMap that gateways mount, by an operator with the chart's rights, on the real API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from operators import Place, make_place, operating, settings_for
from testcluster.commands import Command
from testcluster.control_plane import ControlPlane
from testcluster.objects import Manifest, Objects
from testcluster.waiting import wait_for

from lionrock.gateway.tenants import TenantDirectory
from lionrock.gateway.tenants_dir import TenantsDir
from tenant_files import document

DOMAIN = "lionrock.test"
NAME = "lionrock-tenants"


@pytest.fixture
def place(objects: Objects, lionrock_crds: list[str], ray_crds: list[str]) -> Iterator[Place]:
    place = make_place(objects)
    yield place
    for tenant in objects.list("lionrock.io/v1alpha1", "Tenant", place.namespace):
        objects.delete(tenant)
    place.close()


def data(place: Place) -> dict[str, str]:
    found = place.objects.read("v1", "ConfigMap", NAME, place.namespace)
    return {} if found is None else dict(found.get("data") or {})


def conditions(place: Place, name: str) -> dict[str, tuple[str, str]]:
    found = place.objects.read("lionrock.io/v1alpha1", "Tenant", name, place.namespace)
    assert found is not None
    status = found.get("status") or {}
    if status.get("observedGeneration") != found["metadata"]["generation"]:
        return {}
    return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}


def tenant(place: Place, name: str, **spec: Any) -> Manifest:
    made = document(name, DOMAIN, **spec)
    return {**made, "metadata": {"name": name, "namespace": place.namespace}}


def mounted(place: Place, directory: Path) -> TenantDirectory:
    """Let a gateway read what the kubelet would bring it."""
    for file in directory.iterdir():
        file.unlink()
    for key, text in data(place).items():
        (directory / key).write_text(text)
    known, refused = TenantDirectory([]), []
    TenantsDir(
        directory,
        (),
        known,
        trust_domain=DOMAIN,
        counts_quotas=True,
        keeps_consents=True,
        divides_engines=True,
        refused=lambda: refused.append(1),
    ).start()
    assert not refused
    return known


def test_a_tenant_is_let_in_changed_and_refused_as_its_object_is(
    own_control_plane: ControlPlane, place: Place, kubectl: Command, tmp_path: Path
) -> None:
    objects, directory, file = place.objects, tmp_path / "tenants", tmp_path / "retail.json"
    directory.mkdir()
    good = {"Accepted": ("True", "Accepted"), "Ready": ("True", "Published")}
    with operating(own_control_plane, settings_for(place.namespace, place.region)) as operator:
        operator.wait_leads()
        by_hand = json.dumps(document("partners", DOMAIN))
        metadata = {"name": NAME, "namespace": place.namespace}
        objects.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"partners.yaml": by_hand}})

        file.write_text(json.dumps(document("retail", DOMAIN)))
        kubectl("apply", "--namespace", place.namespace, "--filename", str(file))
        wait_for(lambda: conditions(place, "retail") == good, "the tenant is published")
        assert data(place).keys() == {"partners.yaml", "retail.tenant.json"}
        known = mounted(place, directory)
        assert known.tenant("retail") is not None
        assert known.tenant("partners") is not None

        objects.merge(tenant(place, "retail"), {"spec": {"maxStreams": 3}})
        wait_for(lambda: '"maxStreams":3' in data(place)["retail.tenant.json"], "the change is published")
        found = mounted(place, directory).tenant("retail")
        assert found is not None
        assert found.max_streams == 3

        # Good by itself, and in another one's way: what it said before stays.
        issuer = {"issuer": "https://id.example", "audiences": ["a"], "bindings": [{"value": "v", "purposes": ["x"]}]}
        objects.create(tenant(place, "broker", issuers=[issuer]))
        wait_for(lambda: conditions(place, "broker") == good, "the other one is published")
        objects.merge(tenant(place, "retail"), {"spec": {"issuers": [issuer], "maxStreams": 4}})
        former = {"Accepted": ("False", "Claimed"), "Ready": ("True", "FormerPublished")}
        wait_for(lambda: conditions(place, "retail") == former, "the conflict is told")
        assert '"maxStreams":3' in data(place)["retail.tenant.json"]

        objects.delete(tenant(place, "broker"))
        wait_for(lambda: conditions(place, "retail") == good, "what was claimed is free")
        assert data(place).keys() == {"partners.yaml", "retail.tenant.json"}

        kubectl("delete", "tenant", "retail", "--namespace", place.namespace)
        wait_for(lambda: data(place).keys() == {"partners.yaml"}, "the tenant is taken away")
        assert mounted(place, directory).tenant("retail") is None
        assert data(place)["partners.yaml"] == by_hand


def test_a_tenant_deleted_while_there_was_no_operator_is_taken_away_when_one_comes(
    own_control_plane: ControlPlane, place: Place
) -> None:
    objects, settings = place.objects, settings_for(place.namespace, place.region)
    with operating(own_control_plane, settings) as operator:
        operator.wait_leads()
        for name in ("retail", "broker"):
            objects.create(tenant(place, name))
        wait_for(lambda: len(data(place)) == 2, "both are published")
    objects.delete(tenant(place, "retail"))
    assert len(data(place)) == 2
    with operating(own_control_plane, settings) as operator:
        operator.wait_leads()
        wait_for(lambda: list(data(place)) == ["broker.tenant.json"], "the one that is gone is taken away")


def test_a_key_that_somebody_else_wrote_too_goes_with_its_tenant(own_control_plane: ControlPlane, place: Place) -> None:
    objects = place.objects
    with operating(own_control_plane, settings_for(place.namespace, place.region)) as operator:
        operator.wait_leads()
        objects.create(tenant(place, "retail"))
        wait_for(lambda: len(data(place)) == 1, "it is published")
        metadata = {"name": NAME, "namespace": place.namespace}
        same = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data(place) | {"mine.yaml": ""}}
        objects.apply(same, manager="somebody")
        objects.delete(tenant(place, "retail"))
        wait_for(lambda: list(data(place)) == ["mine.yaml"], "the key is taken away, whoever else states it")
