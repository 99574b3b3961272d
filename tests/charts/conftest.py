"""Charts as Helm renders them, without a cluster. What a real API server says of them is in tests/cluster/test_charts.py."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import cluster_tools  # noqa: E402

CHART = ROOT / "charts" / "lionrock"
CRDS = ROOT / "charts" / "lionrock-crds"
CASES = {path.stem: path for path in sorted((CHART / "ci").glob("*.yaml"))}
RELEASE, NAMESPACE = "lionrock", "bank"
NOT_RUN = pytest.StashKey[set[str]]()

Manifest = dict[str, Any]


class HelmRefused(Exception):
    """Helm said no. The message is what it wrote."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say loudly what did not run for want of programs."""
    if reasons := config.stash.get(NOT_RUN, None):
        terminalreporter.section("NOT RUN: tests/charts, or parts of it", sep="!", red=True, bold=True)
        for reason in sorted(reasons):
            terminalreporter.line(reason)


@pytest.fixture(scope="session")
def program(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Path of a program: skips where it cannot be had, fails where nobody has built it."""

    def find(name: str) -> Path:
        try:
            return cluster_tools.find(name)
        except cluster_tools.ToolMissing as missing:
            if shutil.which("go") is not None:
                pytest.fail(str(missing))
            request.config.stash.setdefault(NOT_RUN, set()).add(str(missing))
            pytest.skip(str(missing))

    return find


@pytest.fixture(scope="session")
def helm(program: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs Helm without a cluster. Raises HelmRefused."""
    home = tmp_path_factory.mktemp("helm")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
    environment |= {"HOME": str(home), "KUBECONFIG": os.devnull}
    path = program("helm")

    def run(*arguments: str | Path) -> str:
        done = subprocess.run([path, *arguments], env=environment, text=True, capture_output=True, timeout=60, check=False)
        if done.returncode != 0:
            raise HelmRefused(done.stdout + done.stderr)
        return done.stdout

    return run


class Rendered:
    """Objects of one release."""

    def __init__(self, text: str) -> None:
        self.objects: list[Manifest] = [document for document in yaml.safe_load_all(text) if document]

    def of(self, *kinds: str) -> list[Manifest]:
        return [each for each in self.objects if each["kind"] in kinds]

    def one(self, kind: str, name: str) -> Manifest:
        (found,) = [each for each in self.of(kind) if each["metadata"]["name"] == name]
        return found

    def pods(self) -> Iterator[tuple[str, Manifest]]:
        """(kind/name of what makes it, pod template) of every pod, hooks too."""
        for each in self.objects:
            name = f"{each['kind']}/{each['metadata']['name']}"
            match each["kind"]:
                case "Pod":
                    yield name, each
                case "CronJob":
                    yield name, each["spec"]["jobTemplate"]["spec"]["template"]
                case "Deployment" | "StatefulSet" | "Job" | "DaemonSet":
                    yield name, each["spec"]["template"]

    def settings(self, component: str, prefix: str = RELEASE) -> Any:
        """The settings file of a component."""
        return json.loads(self.one("ConfigMap", f"{prefix}-{component}")["data"]["settings.yaml"])


@pytest.fixture(scope="session")
def render(helm: Callable[..., str]) -> Callable[..., Rendered]:
    """Renders the chart with a case's values, and others over them (`set_` as Helm's --set)."""

    @functools.cache
    def rendered(case: str = "minimal", *sets: str, values: Path | None = None) -> Rendered:
        arguments: list[str | Path] = ["template", RELEASE, CHART, "--namespace", NAMESPACE, "--values", CASES[case]]
        arguments += ["--values", values] if values is not None else []
        return Rendered(helm(*arguments, *(f"--set-json={each}" for each in sets)))

    return rendered


@pytest.fixture(scope="session", params=sorted(CASES))
def release(request: pytest.FixtureRequest, render: Callable[..., Rendered]) -> Rendered:
    """The chart rendered with each case's values."""
    return render(request.param)
