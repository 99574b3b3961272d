"""skaffold reads skaffold.yaml and puts the images that it builds into every place that runs one."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import cluster_tools
import pytest

SERVICES = ("gateway", "tokenization", "guardrails", "audit", "operator", "cli", "inference")
HOW_TO_GET = "make cluster-tools TOOLS='skaffold kubectl helm'"


@pytest.fixture
def skaffold(tmp_path: Path) -> list[str | Path]:
    """The program, which takes five minutes to build and is not among what `make test` builds."""
    if not all(cluster_tools.is_built(name) for name in ("skaffold", "kubectl", "helm")):
        pytest.skip(f"skaffold is not built: {HOW_TO_GET}")
    path = os.pathsep.join([str(cluster_tools.BINARIES), os.environ["PATH"]])
    settings = [f"HOME={tmp_path}", f"PATH={path}", "ENGINE_BASE=vendor/ascend:1", "KUBECONFIG=/dev/null"]
    return ["env", *settings, cluster_tools.find("skaffold")]


def run(command: list[str | Path]) -> str:
    done = subprocess.run(command, cwd=cluster_tools.ROOT, text=True, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("profile", [(), ("--profile=cluster",), ("--profile=ascend-910b",)], ids=["own", "cluster", "ascend"])
def test_the_configuration_is_understood(skaffold: list[str | Path], profile: tuple[str, ...]) -> None:
    assert "apiVersion: skaffold/" in run([*skaffold, "diagnose", "--yaml-only", *profile])


@pytest.mark.parametrize("profile", [(), ("--profile=ascend-910b",)], ids=["own", "ascend"])
def test_every_image_that_runs_is_one_that_was_built(skaffold: list[str | Path], profile: tuple[str, ...], tmp_path: Path) -> None:
    built = tmp_path / "built.json"
    images = [{"imageName": f"lionrock/{name}", "tag": f"lionrock/{name}:built"} for name in SERVICES]
    built.write_text(json.dumps({"builds": images}))
    offline = ("--offline=true", "--digest-source=tag")
    rendered = run([*skaffold, "render", f"--build-artifacts={built}", *offline, *profile])
    named = set(re.findall(rf"lionrock/(?:{'|'.join(SERVICES)})[:@][\w.-]+", rendered))
    assert named == {f"lionrock/{name}:built" for name in SERVICES}


def test_it_renders_without_having_built(skaffold: list[str | Path]) -> None:
    rendered = run([*skaffold, "render", "--offline=true", "--digest-source=none"])
    assert rendered.count("kind: Deployment") >= 3
    assert "no value" not in rendered
