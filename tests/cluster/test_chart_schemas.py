"""What the charts render, held by kubeconform against the schemas that the API server publishes, our own kinds included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from testcluster.commands import Command, CommandFailed
from testcluster.control_plane import Cluster
from testcluster.objects import Objects
from testcluster.schemas import FILE_NAMES, write_schemas

CHARTS = Path(__file__).resolve().parents[2] / "charts"
CHART = CHARTS / "lionrock"
EXAMPLE_VALUES = sorted((CHART / "ci").glob("*.yaml"))

OTHERS = {"cert-manager.io", "monitoring.coreos.com", "spire.spiffe.io"}
"""Groups of which the API server knows nothing: their definitions come with their own charts."""

MODEL = """
apiVersion: lionrock.io/v1alpha1
kind: ModelDeployment
metadata: {name: small}
spec:
  model: {source: {persistentVolumeClaim: {claimName: models}}}
  territory: HK
"""


@pytest.fixture(scope="session")
def kubeconform(
    control_plane: Cluster,
    objects: Objects,
    lionrock_crds: list[str],
    ray_crds: list[str],
    program: Callable[[str], Path],
) -> Callable[[str], str]:
    """Validate YAML documents. Raises CommandFailed with what is wrong."""
    directory = control_plane.directory / "schemas"
    kinds = ["io.lionrock.v1alpha1.ChipPool", "io.lionrock.v1alpha1.ModelDeployment", "io.ray.v1.RayService"]
    assert write_schemas(objects, directory, kinds=kinds) > 100
    command = Command(program("kubeconform"), None, control_plane.directory / "kubeconform")
    return lambda text: command("-strict", "-summary", "-schema-location", f"{directory}/{FILE_NAMES}", "-", stdin=text)


def test_a_model_of_the_documentation_is_valid(kubeconform: Callable[[str], str]) -> None:
    assert "Valid: 1, Invalid: 0" in kubeconform(MODEL)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("territory: HK", "territory: Hong Kong", "does not match pattern"),
        ("territory: HK", "territory: HK\n  replica: 2", "additional properties 'replica' not allowed"),
        ("metadata: {name: small}", "metadata: {name: small, colour: red}", "additional properties 'colour' not allowed"),
        ("kind: ModelDeployment", "kind: ModelDeploiment", "could not find schema"),
    ],
)
def test_a_mistake_in_it_is_found(kubeconform: Callable[[str], str], right: str, wrong: str, message: str) -> None:
    with pytest.raises(CommandFailed, match=message):
        kubeconform(MODEL.replace(right, wrong))


@pytest.mark.parametrize("values", EXAMPLE_VALUES, ids=lambda values: values.stem)
def test_rendered_charts_are_valid(values: Path, helm: Command, kubeconform: Callable[[str], str]) -> None:
    rendered = list(yaml.safe_load_all(helm("template", "mesh", CHART, "--namespace", "lionrock", "--values", values)))
    ours = [each for each in rendered if each and each["apiVersion"].partition("/")[0] not in OTHERS]
    assert "Invalid: 0, Errors: 0, Skipped: 0" in kubeconform(yaml.safe_dump_all(ours))


def test_definitions_chart_renders_what_the_files_say(helm: Command, kubeconform: Callable[[str], str]) -> None:
    assert "Invalid: 0, Errors: 0, Skipped: 0" in kubeconform(helm("template", "crds", CHARTS / "lionrock-crds"))
