"""When programs of the test cluster are built again, whose are taken, and what is said where they cannot be had."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cluster_tools
import pytest


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of tools/ beside an empty cache."""
    shutil.copytree(cluster_tools.ROOT / "tools", tmp_path / "tools")
    monkeypatch.setattr(cluster_tools, "ROOT", tmp_path)
    monkeypatch.setattr(cluster_tools, "BINARIES", tmp_path / "bin")
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path


def as_built(directory: Path, name: str) -> Path:
    """Put a file where the build would put the program, with its key."""
    (directory / "bin").mkdir(exist_ok=True)
    (directory / "bin" / f".{name}.key").write_text(cluster_tools.key(name))
    program = directory / "bin" / name
    program.write_text("")
    return program


@pytest.mark.parametrize("name", cluster_tools.TOOLS)
def test_every_program_has_a_pinned_version_and_checksums(name: str) -> None:
    tool = cluster_tools.TOOLS[name]
    version = cluster_tools.required_version(tool.module, tool.requires)
    assert re.fullmatch(r"v\d+\.\d+\.\d+", version)
    sums = (cluster_tools.ROOT / "tools" / tool.module / "go.sum").read_text()
    assert f"{tool.requires} {version} h1:" in sums


def test_a_changed_requirement_builds_again(elsewhere: Path) -> None:
    assert not cluster_tools.is_built("kwok")
    program = as_built(elsewhere, "kwok")
    assert cluster_tools.find("kwok") == program
    module = elsewhere / "tools" / "kwok" / "go.mod"
    module.write_text(module.read_text().replace("sigs.k8s.io/kwok v0.8.0", "sigs.k8s.io/kwok v0.8.1"))
    with pytest.raises(cluster_tools.ToolMissing, match="kwok"):
        cluster_tools.find("kwok")


def test_given_assets_are_taken_before_what_was_built(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = as_built(elsewhere, "etcd")
    assets = elsewhere / "assets"
    assets.mkdir()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    assert cluster_tools.find("etcd") == built
    (assets / "etcd").write_text("")
    assert cluster_tools.find("etcd") == assets / "etcd"


def test_without_go_and_assets_it_is_said_what_to_do(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(elsewhere))
    with pytest.raises(cluster_tools.ToolMissing, match="install Go, or set KUBEBUILDER_ASSETS"):
        cluster_tools.find("kube-apiserver")


def test_without_go_the_suite_is_skipped_loudly_and_make_test_ends_with_one_line(tmp_path: Path) -> None:
    """Runs this directory as somebody would who has neither Go nor assets nor a cache."""
    (tmp_path / "tests").mkdir()
    shutil.copytree(Path(__file__).parent, tmp_path / "tests" / "cluster", ignore=shutil.ignore_patterns("__pycache__", "lab"))
    shutil.copytree(cluster_tools.ROOT / "tools", tmp_path / "tools")
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    suite = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-rs",
        "tests/cluster/test_control_plane.py",
        "-k",
        "version",
    ]
    ran = subprocess.run(
        [*suite, f"--rootdir={tmp_path}"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert "1 skipped" in ran.stdout
    assert "NOT RUN: tests/cluster" in ran.stdout
    assert "is not there: install Go, or set KUBEBUILDER_ASSETS" in ran.stdout
    program = [sys.executable, "tools/cluster_tools.py"]
    said = subprocess.run([*program, "--missing"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.startswith("NOT RUN: tests/cluster or parts of it, for want of etcd, ")
    assert len(said.stdout.splitlines()) == 1
    built = subprocess.run([*program, "--if-possible"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "Go is not installed, so that the test cluster lacks etcd, " in built.stderr
    assert subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode == 1
