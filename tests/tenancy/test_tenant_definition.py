"""The Tenant's resource definition in the chart is the one that the schema makes, and nothing of the schema is left out of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from tenant_files import document
from tenant_seeds import FULL, MINIMAL, paths, stated

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import tenant_definition  # noqa: E402

from lionrock.gateway.granting import tenant_of  # noqa: E402
from lionrock.gateway.tenants import TenantDirectory  # noqa: E402
from lionrock.tenancy.claims import claims_of  # noqa: E402
from lionrock.tenancy.documents import parse_resource  # noqa: E402
from lionrock.tenancy.rules import KEYWORD  # noqa: E402
from lionrock.tenancy.spec import TenantResource  # noqa: E402


def spec_schema() -> dict[str, Any]:
    (version,) = tenant_definition.definition()["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def classes(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """Return every class that a Tenant consists of."""
    if model not in seen:
        seen.add(model)
        for field in model.model_fields.values():
            for found in _classes_in(field.annotation):
                classes(found, seen)
    return seen


def _classes_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _classes_in(part)]


def test_the_definition_in_the_chart_is_current() -> None:
    assert tenant_definition.text() == tenant_definition.DEFINITION.read_text(), "run python tools/tenant_definition.py"


def test_the_definition_is_plain_yaml_in_which_helm_finds_no_template() -> None:
    assert yaml.safe_load(tenant_definition.text()) == tenant_definition.definition()
    assert "{{" not in tenant_definition.text()


def test_every_class_with_a_validator_states_rules_for_kubernetes_too() -> None:
    found = classes(TenantResource, set())
    assert len(found) > 6
    silent = [
        model.__name__
        for model in found
        if model.__pydantic_decorators__.model_validators and KEYWORD not in (model.model_config.get("json_schema_extra") or {})
    ]
    assert silent == [], "the API server would accept what they refuse: state the rule in json_schema_extra"


def test_the_full_example_states_every_field() -> None:
    assert set(paths(spec_schema())) - set(stated(FULL["spec"])) == set(), "tests/tenant_seeds.py: FULL"
    for whole in (FULL, MINIMAL):
        parse_resource(whole)


def test_every_field_is_described_and_has_one_type() -> None:
    def each(schema: dict[str, Any], path: str) -> list[str]:
        parts = {f"{path}.{name}": part for name, part in schema.get("properties", {}).items()}
        if "items" in schema:
            parts[f"{path}[]"] = schema["items"]
        wrong = [name for name, part in parts.items() if "type" not in part]
        wrong += [name for name, part in parts.items() if not name.endswith("[]") and not part.get("description")]
        return wrong + [found for name, part in parts.items() for found in each(part, name)]

    assert each(spec_schema(), "spec") == []


class _Union(BaseModel):
    field: int | str


class _Multiple(BaseModel):
    field: Annotated[int, Field(multiple_of=2)]


@pytest.mark.parametrize("model", [_Union, _Multiple])
def test_a_form_that_kubernetes_cannot_check_ends_the_tool(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    with pytest.raises(tenant_definition.NotStructural, match=r"field"):
        tenant_definition.structural(schema, {}, "spec")


NAMES = st.sampled_from(["retail", "broker", "trust"])
ISSUERS = st.lists(
    st.builds(
        lambda issuer, audiences: {
            "issuer": f"https://{issuer}.example",
            "audiences": sorted(audiences),
            "bindings": [{"value": "staff", "purposes": ["testing"]}],
        },
        st.sampled_from(["a", "b"]),
        st.sets(st.sampled_from(["x", "y"]), min_size=1),
    ),
    max_size=2,
    unique_by=lambda each: each["issuer"],
)


@given(st.lists(st.tuples(NAMES, ISSUERS), max_size=4))
def test_tenants_whose_claims_differ_are_those_that_a_gateway_takes_together(stated: list[tuple[str, Any]]) -> None:
    tenants = [parse_resource(document(name, issuers=issuers)) for name, issuers in stated]
    claims = [claim for tenant in tenants for claim in claims_of(tenant)]
    domain = document("any")["spec"]["principals"][0]["spiffeId"].split("/")[2]
    try:
        TenantDirectory(tenant_of(tenant.name, tenant.spec, trust_domain=domain) for tenant in tenants)
    except ValueError:
        assert len(set(claims)) < len(claims)
    else:
        assert len(set(claims)) == len(claims)
