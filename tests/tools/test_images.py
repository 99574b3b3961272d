"""What images are made of: requirements without code, engines that are kept, CUDA left out, files that name no registry."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "services" / "Dockerfile").read_text()
SERVICES = ("gateway", "tokenization", "guardrails", "audit", "operator", "cli", "inference")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


requirements, cuda = load("image_requirements"), load("leave_cuda_out")


# ---- Requirements.


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., tuple[list[str], list[str]]]:
    def write(*arguments: str) -> tuple[list[str], list[str]]:
        command = [sys.executable, ROOT / "tools" / "image_requirements.py", *arguments, "--directory", tmp_path]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        names = ("requirements.txt", "constraints.txt")
        return tuple((tmp_path / name).read_text().splitlines() for name in names)  # type: ignore[return-value]

    return write


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_gets_its_own_extra_and_no_other(service: str, written: Callable[..., tuple[list[str], list[str]]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted, constraints = written("service", service)
    assert wanted == [*project["dependencies"], *project["optional-dependencies"][service]]
    assert any(line.startswith("grpcio==") for line in constraints)
    assert any(line.startswith("torch") for line in wanted) == (service == "inference")


def test_an_unknown_service_is_refused_by_name() -> None:
    command = [sys.executable, ROOT / "tools" / "image_requirements.py", "service", "gatway"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "gatway" in done.stderr


def test_an_engine_is_pinned_as_it_is_and_asked_for_in_no_other_version() -> None:
    present = [
        ("torch", "2.9.1+ascend"),
        ("torch_npu", "2.9.1"),
        ("triton-ascend", "3.4"),
        ("numpy", "1.26.4"),
        ("protobuf", "4.25"),
    ]
    engine = requirements.engine_pins(present)
    wanted, constraints = requirements.resolve(
        ["torch==2.13.0", "ray[serve]==2.60.0", "numpy>=2"], ["torch==2.13.0", "numpy==2.4.6", "protobuf==7.36.2"], engine
    )
    assert wanted == ["torch", "ray[serve]==2.60.0", "numpy"]
    assert "torch==2.9.1+ascend" in constraints
    assert "protobuf==7.36.2" in constraints
    assert [line for line in constraints if line.startswith("numpy")] == ["numpy==1.26.4"]


@given(st.lists(st.tuples(st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,20}[A-Za-z0-9]", fullmatch=True), st.just("1.0")), max_size=20))
def test_no_package_of_an_engine_is_ever_given_two_versions(present: list[tuple[str, str]]) -> None:
    engine = requirements.engine_pins([*present, ("torch", "2.9")])
    _, constraints = requirements.resolve([], ["torch==2.13.0", "numpy==2.4.6", "triton==3.7.1"], engine)
    names = [requirements.name_of(line) for line in constraints]
    assert len(names) == len(set(names))


# ---- CUDA.


@pytest.mark.skipif(not all(map(shutil.which, ("cc", "readelf"))), reason="a C compiler and readelf are not installed")
@pytest.mark.parametrize("version", ["", "libbig.so.1"])
def test_a_stand_in_has_the_name_and_the_symbols_of_what_it_stands_for(tmp_path: Path, version: str) -> None:
    (tmp_path / "big.c").write_text("int bigSum(int a, int b) { return a + b; }\nint bigOther(void) { return 7; }\n")
    (tmp_path / "versions").write_text(f"{version} {{ global: bigSum; bigOther; local: *; }};\n")
    script = [f"-Wl,--version-script={tmp_path / 'versions'}"] if version else []
    library = tmp_path / "libbig.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libbig.so.1", *script, tmp_path / "big.c", "-o", library], check=True)
    (tmp_path / "user.c").write_text("int bigSum(int, int);\nint use(void) { return bigSum(1, 2); }\n")
    user = tmp_path / "libuser.so"
    command = ["cc", "-shared", "-fPIC", tmp_path / "user.c", library, f"-Wl,-rpath,{tmp_path}", "-Wl,-z,now", "-o", user]
    subprocess.run(command, check=True)

    asked_for, offered = cuda.symbols(user, defined=False), cuda.symbols(library, defined=True)
    assert asked_for["bigSum"] == version
    assert {"bigSum", "bigOther"} <= offered.keys()
    cuda.build_stand_in(library, {name: offered[name] for name in offered.keys() & asked_for.keys()})
    assert "bigOther" not in cuda.symbols(library, defined=True)
    # Bound when it is loaded, since symbols and versions are there; in a process of its own, which forgets the name again.
    called = subprocess.run(
        [sys.executable, "-c", f"import ctypes; print(ctypes.CDLL({str(user)!r}).use())"], check=False, capture_output=True
    )
    assert called.stdout.decode().strip() == str(cuda.NO_DEVICE), called.stderr.decode()


# ---- The files that build them.


def test_the_dockerfile_names_no_registry_and_no_index() -> None:
    words = re.findall(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+(?::\d+)?/", DOCKERFILE)
    assert [word for word in words if re.search(r"\.(io|com|org|dev|net)\b", word)] == []
    assert "://" not in DOCKERFILE
    assert "--index-url" not in DOCKERFILE


def test_the_image_runs_as_nobody_without_a_shell_and_is_told_to_end() -> None:
    runtime = DOCKERFILE.split("AS runtime", 1)[1]
    assert re.search(r"^USER \d+:\d+$", runtime, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["/', runtime, re.MULTILINE)
    assert "STOPSIGNAL SIGTERM" in runtime
    assert "org.opencontainers.image.revision" in runtime


def test_code_comes_after_everything_that_changes_less_often() -> None:
    copies = re.findall(r"^COPY --from=(\w+)", DOCKERFILE.split("AS runtime", 1)[1], re.MULTILINE)
    assert copies == ["dependencies", "kernels", "code"]
    dependencies = DOCKERFILE.split("AS tools", 1)[1].split("AS kernels", 1)[0]
    assert "COPY services" not in dependencies


def test_everything_that_the_dockerfile_copies_is_let_into_the_build() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignore if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in allowed), source


def test_skaffold_builds_every_image_that_the_chart_runs() -> None:
    skaffold = yaml.safe_load((ROOT / "skaffold.yaml").read_text())
    artifacts = {artifact["image"]: artifact["docker"]["buildArgs"]["SERVICE"] for artifact in skaffold["build"]["artifacts"]}
    assert artifacts == {f"lionrock/{service}": service for service in SERVICES}
    templates = (ROOT / "charts" / "lionrock" / "templates").rglob("*.*")
    used = {name for path in templates for name in re.findall(r'lionrock\.image" \(list \S+ "(\w+)"\)', path.read_text())}
    assert used <= set(SERVICES)
