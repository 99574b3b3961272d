"""Values: the cases lint, a wrong one is refused by its name, README and schema follow from their sources."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import chart_readme  # noqa: E402
import chart_schema  # noqa: E402

CHART = ROOT / "charts" / "lionrock"
CASES = [*sorted((CHART / "ci").glob("*.yaml")), ROOT / "charts" / "development.yaml"]


@pytest.mark.parametrize("unset", ["models=null", "models={}", "tokenization.enabled=false"])
def test_without_models_of_its_own_the_mesh_has_no_tokenization(render: Callable[..., Any], unset: str) -> None:
    release = render("minimal", unset, "modelVolume=null")
    names = {each["metadata"]["name"] for each in release.objects}
    assert "lionrock-gateway" in names
    assert not any("tokenization" in name for name in names)
    assert "tokenization" not in release.settings("gateway")
    with pytest.raises(Exception, match="models: which models"):
        render("minimal", "models=null", "tokenization.enabled=true")


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_the_chart_lints_strictly(helm: Callable[..., str], case: Path) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART, "--values", case)


def test_the_chart_of_the_resources_lints_strictly(helm: Callable[..., str]) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", ROOT / "charts" / "lionrock-crds")


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ("tenantz=[]", ["tenantz"]),
        ("gateway.replica=3", ["gateway", "replica"]),
        ("gateway.replicas=0", ["gateway/replicas"]),
        ('territory="Hongkong"', ["territory"]),
        ("territories.HK.values=[]", ["territories/HK/values"]),
        ("tenants=[]", ["tenants"]),
        ('tenants=[{"name":"Retail","principals":[{"spiffe_id":"x","purposes":["a"]}]}]', ["tenants/0/name"]),
        ('tenants=[{"name":"retail","principals":[{"spiffe_id":"x"}]}]', ["tenants/0/principals/0", "purposes"]),
        ("gateway.settings.limits.max_stream=3", ["gateway/settings/limits", "max_stream"]),
        ("gateway.settings.state.deadline_s=0", ["gateway/settings/state"]),
        ('gateway.state.sqlite.size="1 GB"', ["gateway/state/sqlite/size"]),
        ('gateway.state.postgresql.existingSecret="A secret"', ["gateway/state/postgresql/existingSecret"]),
        ("gateway.tokenPort.port=0", ["gateway/tokenPort/port"]),
        ("gateway.apiKeys.maxLifetimeDays=0", ["gateway/apiKeys/maxLifetimeDays"]),
        ('gateway.apiKeys.key="../k"', ["gateway/apiKeys/key"]),
        ("gateway.policies.existingConfigMap=5", ["gateway/policies/existingConfigMap"]),
        ('gateway.servedIn="Hongkong"', ["gateway/servedIn"]),
        ("audit.settings.max_batch=0", ["audit/settings/max_batch"]),
        ('certificates.mode="vault"', ["certificates/mode"]),
        ('models={"smollm2":"../../etc"}', ["models/smollm2"]),
        ('image.digests={"gateway":"sha256:1"}', ["image/digests/gateway"]),
        ('image.digests={"redis":"sha256:1"}', ["image/digests", "redis"]),
        ("telemetry.sampleRatio=2", ["telemetry/sampleRatio"]),
        ("networkPolicy.clients=[{}]", ["networkPolicy/clients/0"]),
        ('audit.storage.size="20 GB"', ["audit/storage/size"]),
        ("runAsUser=0", ["runAsUser"]),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(render: Callable[..., Any], wrong: str, names: list[str]) -> None:
    with pytest.raises(Exception, match="values don't meet the specifications") as refused:
        render("minimal", wrong)
    said = str(refused.value).replace(".", "/")
    assert all(name in said for name in names), said


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ('territory="SG"', "territories"),
        ("networkPolicy.apiServer.cidrs=[]", "networkPolicy.apiServer.cidrs"),
        ('certificates.mode="cert-manager"', "issuerRef.name"),
        ('telemetry.otlpEndpoint="https://collector:4317"', "telemetry.otlpPeers"),
        ('test.tenant="retail"', "test.tenant"),
        ("kuberay.enabled=true", "package_chart.py"),
        ("modelVolume={}", "modelVolume"),
        ("modelVolume=null", "modelVolume"),
    ],
)
def test_values_that_do_not_fit_together_are_refused_with_what_to_do(render: Callable[..., Any], wrong: str, words: str) -> None:
    with pytest.raises(Exception, match="execution error") as refused:
        render("minimal", wrong)
    assert words in str(refused.value)


@pytest.mark.parametrize("missing", ["territories", "tenants"])
def test_what_has_no_default_must_be_stated(render: Callable[..., Any], missing: str) -> None:
    with pytest.raises(Exception, match=missing):
        render("minimal", f"{missing}=null")


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_the_schema_accepts_the_cases_wherever_it_is_read(case: Path) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(case.read_text()), schema)


def test_the_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(node: Any, defaults: Any, path: str) -> None:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
        if not isinstance(defaults, dict) or not defaults or node.get("additionalProperties") is not False:
            return
        assert set(defaults) <= set(node["properties"]), path
        if path.rpartition(".")[2] not in ("resources", "requests", "limits") and "[" not in path:
            missing = set(node["properties"]) - set(defaults) - {"global"}
            assert not missing, f"{path}: {missing} is in the schema and has no default"
        for name, below in defaults.items():
            compare(node["properties"][name], below, f"{path}.{name}")

    compare(schema, values, "values")


def test_the_schema_of_settings_is_that_of_the_services() -> None:
    assert chart_schema.schema() == chart_schema.SCHEMA.read_text(), "run python tools/chart_schema.py"


@pytest.mark.parametrize("chart", chart_readme.CHARTS, ids=lambda path: path.name)
def test_the_readme_is_current_and_every_value_is_documented(chart: Path) -> None:
    assert chart_readme.readme(chart) == (chart / "README.md").read_text(), "run python tools/chart_readme.py"
