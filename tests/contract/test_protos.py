"""The protos keep buf's STANDARD style, and no committed contract is broken."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).with_name("buf")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Path]:
    """Build a descriptor image of the protos below a directory."""
    sys.path.insert(0, str(ROOT))
    try:
        import hatch_build
    finally:
        sys.path.remove(str(ROOT))
    workdir = tmp_path_factory.mktemp("images")

    def build(root: Path, name: str) -> Path:
        out = workdir / f"{name}.binpb"
        inputs = workdir / name
        inputs.mkdir()
        protos = sorted(str(proto) for proto in (root / "protos").rglob("*.proto"))
        arguments = [
            *hatch_build.protoc_inputs(root, inputs),
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={out}",
        ]
        hatch_build.run_protoc([*arguments, *protos])
        return out

    return build


def buf(*arguments: str) -> None:
    """Run buf without a network; fail with what it found."""
    done = subprocess.run([BUF, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_protos_keep_the_standard_style(image: Callable[[Path, str], Path]) -> None:
    buf("lint", str(image(ROOT, "now")), "--config", "protos/buf.yaml")


def test_no_committed_contract_is_broken(image: Callable[[Path, str], Path], tmp_path: Path) -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no committed contract to compare with")

    def committed(*arguments: str) -> bytes:
        return subprocess.run([git, *arguments], capture_output=True, cwd=ROOT, timeout=60, check=True).stdout

    base = _revision_to_compare_with(committed)
    if base is None:
        pytest.skip("the history holds one version of the protos")
    with tarfile.open(fileobj=io.BytesIO(committed("archive", "--format=tar", base, "protos"))) as archive:
        archive.extractall(tmp_path, filter="data")
    buf("breaking", str(image(ROOT, "new")), "--against", str(image(tmp_path, "old")), "--config", "protos/buf.yaml")


def _revision_to_compare_with(committed: Callable[..., bytes]) -> str | None:
    """The last release; without one the commit before the last change of the protos, or HEAD while they are edited."""
    tags = committed("tag", "--list", "v*", "--merged", "HEAD", "--sort=-v:refname").decode().split()
    if tags:
        return tags[0]
    if committed("status", "--porcelain", "--", "protos").strip():
        return "HEAD" if committed("ls-tree", "HEAD", "protos").strip() else None
    commits = committed("log", "--format=%H", "--max-count=2", "HEAD", "--", "protos").decode().split()
    return commits[1] if len(commits) == 2 else None
