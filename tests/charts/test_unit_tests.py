"""The suites that chart authors run: helm-unittest, for both charts. And that nothing in the resources is taken for a template."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RESOURCES = ROOT / "charts" / "lionrock-crds"


@pytest.mark.parametrize("chart", ["lionrock", "lionrock-crds"])
def test_the_charts_own_suites_pass(program: Callable[[str], Path], chart: str) -> None:
    done = subprocess.run(
        [program("helm-unittest"), "--color=false", ROOT / "charts" / chart],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_resources_are_rendered_as_they_are_written(helm: Callable[..., str]) -> None:
    sources = sorted((RESOURCES / "templates").glob("*.yaml"))
    assert not [path.name for path in sources if "{{" in path.read_text()]
    rendered = [each for each in yaml.safe_load_all(helm("template", "crds", RESOURCES)) if each]
    written = [each for path in sources for each in yaml.safe_load_all(path.read_text()) if each]
    assert sorted(rendered, key=str) == sorted(written, key=str)
