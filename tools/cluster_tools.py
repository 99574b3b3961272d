"""Builds the programs of the test cluster from pinned Go modules, once.

    python3 tools/cluster_tools.py                    what `make test` needs
    python3 tools/cluster_tools.py kube-apiserver     these only; "all" for every one
    python3 tools/cluster_tools.py --missing          one line that says what cannot run here, or nothing
    python3 tools/cluster_tools.py --if-possible      the same as the first, but no error where there is no Go

Each directory of tools/ with a go.mod is a module that requires one project (the charts' three little tools share one), so
that a binary is made of the versions that its own project released together. One has a program of its own: log-verifier, which the
tests of the audit service run. A binary lies in .cache/cluster/bin with a key beside it, the digest of what it was made from;
another key builds it again, and Go's own cache makes that short.

KUBEBUILDER_ASSETS, as in envtest, is a directory with binaries that are taken as they are. Needs Python's standard library
and Go alone; GOTOOLCHAIN's default fetches the release of Go that a module asks for.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "cluster"
BINARIES = CACHE / "bin"
SHARED_FILES = CACHE / "share"
"""Files that a module carries beside its program, in a directory named like it."""


class ToolMissing(Exception):
    """A binary is not there. The message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Tool:
    """How one program is built. version_variables: what the linker sets to {version}, {major}, {minor} of the module."""

    module: str
    """Directory under tools/."""
    package: str
    requires: str
    """Module whose version is the program's."""
    version_variables: tuple[str, ...] = ()
    shared_files: str | None = None
    """Glob within the required module; what it finds is copied to SHARED_FILES."""


def _kubernetes(name: str) -> Tool:
    prefix = "k8s.io/component-base/version"
    variables = (f"{prefix}.gitVersion={{version}}", f"{prefix}.gitMajor={{major}}", f"{prefix}.gitMinor={{minor}}")
    return Tool("kubernetes", f"k8s.io/kubernetes/cmd/{name}", "k8s.io/kubernetes", variables)


_LOG_VERIFIER = "lionrock.io/tools/log-verifier"
_HELM = "helm.sh/helm/v3"
_HELM_VERSION = f"{_HELM}/internal/version.version={{version}}"
_HELM_UNITTEST = "github.com/helm-unittest/helm-unittest"
_KUBECONFORM = "github.com/yannh/kubeconform"
_KUBERAY = "github.com/ray-project/kuberay/ray-operator"
_NETWORK_POLICIES = "sigs.k8s.io/kube-network-policies"
_SKAFFOLD = "github.com/GoogleContainerTools/skaffold/v2"
_SKAFFOLD_VERSION = f"{_SKAFFOLD}/pkg/skaffold/version.version={{version}}"
_KUBERNETES_IN_HELM = tuple(
    f"{_HELM}/pkg/{package}.k8sVersion{part}={{kubernetes_{part.lower()}}}"
    for package in ("chartutil", "lint/rules")
    for part in ("Major", "Minor")
)
"""What Helm takes for the cluster's version where it renders without one; else 1.20, which our charts refuse."""

TOOLS = {
    "etcd": Tool("etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": _kubernetes("kube-apiserver"),
    "kubectl": _kubernetes("kubectl"),
    "kube-controller-manager": _kubernetes("kube-controller-manager"),
    "kube-scheduler": _kubernetes("kube-scheduler"),
    "ray-operator": Tool("kuberay", _KUBERAY, _KUBERAY, shared_files="config/crd/bases/*.yaml"),
    "kwok": Tool("kwok", "sigs.k8s.io/kwok/cmd/kwok", "sigs.k8s.io/kwok", ("sigs.k8s.io/kwok/pkg/consts.Version={version}",)),
    "helm": Tool("charts", f"{_HELM}/cmd/helm", _HELM, (_HELM_VERSION, *_KUBERNETES_IN_HELM)),
    "kubeconform": Tool("charts", f"{_KUBECONFORM}/cmd/kubeconform", _KUBECONFORM, ("main.version={version}",)),
    "helm-unittest": Tool("charts", f"{_HELM_UNITTEST}/cmd/helm-unittest", _HELM_UNITTEST, _KUBERNETES_IN_HELM),
    "log-verifier": Tool("log-verifier", _LOG_VERIFIER, "github.com/transparency-dev/tessera"),
    "kubelet": _kubernetes("kubelet"),
    "kube-proxy": _kubernetes("kube-proxy"),
    "coredns": Tool("coredns", "github.com/coredns/coredns", "github.com/coredns/coredns"),
    "kube-network-policies": Tool("network-policies", f"{_NETWORK_POLICIES}/cmd/kube-network-policies/standard", _NETWORK_POLICIES),
    "skaffold": Tool("skaffold", f"{_SKAFFOLD}/cmd/skaffold", _SKAFFOLD, (_SKAFFOLD_VERSION,)),
}
"""In order of need: who waits for the API server need not wait for the rest."""

LAB_TOOLS = frozenset({"kubelet", "kube-proxy", "coredns", "kube-network-policies", "skaffold"})
TEST_TOOLS = tuple(name for name in TOOLS if name not in LAB_TOOLS)
"""What the suites under tests/cluster run, but for those that ask for more and say so."""


def required_version(module: str, requires: str) -> str:
    """Version that a module's go.mod states, for example v1.35.4."""
    text = (ROOT / "tools" / module / "go.mod").read_text()
    found = re.search(rf"^(?:require)?\s*{re.escape(requires)} (v\S+)", text, re.MULTILINE)
    if found is None:
        raise ToolMissing(f"tools/{module}/go.mod requires no {requires}")
    return found[1]


def linker_flags(tool: Tool) -> str:
    """Tell the linker: no symbols, and the versions that the program says of itself."""
    version = required_version(tool.module, tool.requires)
    major, minor = version.removeprefix("v").split(".")[:2]
    kubernetes_major, kubernetes_minor = required_version("kubernetes", "k8s.io/kubernetes").removeprefix("v").split(".")[:2]
    values = {"version": version, "major": major, "minor": minor}
    values |= {"kubernetes_major": kubernetes_major, "kubernetes_minor": kubernetes_minor}
    return " ".join(["-s -w", *(f"-X {variable.format(**values)}" for variable in tool.version_variables)])


def key(name: str) -> str:
    """Digest of what a program is made from."""
    tool = TOOLS[name]
    directory = ROOT / "tools" / tool.module
    digest = hashlib.sha256(f"{tool.package}\n{tool.shared_files}\n{linker_flags(tool)}\n".encode())
    for file in ("go.mod", "go.sum", *sorted(path.name for path in directory.glob("*.go"))):
        digest.update((directory / file).read_bytes())
    return digest.hexdigest()


def is_built(name: str) -> bool:
    """Whether the program lies in BINARIES and was made from what stands in tools/ now."""
    stamp = BINARIES / f".{name}.key"
    return (BINARIES / name).is_file() and stamp.is_file() and stamp.read_text() == key(name)


def find(name: str) -> Path:
    """Path of a program: from KUBEBUILDER_ASSETS if it is there, else built. Raises ToolMissing."""
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        given = Path(assets) / name
        if given.is_file():
            return given
    if is_built(name):
        return BINARIES / name
    if shutil.which("go") is None:
        raise ToolMissing(f"{name} is not there: install Go, or set KUBEBUILDER_ASSETS to a directory with it")
    raise ToolMissing(f"{name} is not built: run `make cluster-tools`")


def shared_files(name: str) -> Path:
    """Directory of the files that a module carries beside its program. Raises ToolMissing."""
    directory = SHARED_FILES / name
    if not is_built(name) or not directory.is_dir():
        raise ToolMissing(f"the files of {name} are not there: run `make cluster-tools`")
    return directory


def build(name: str) -> None:
    """Build one program unless it is there by the time that no other process builds it. Raises subprocess.CalledProcessError."""
    BINARIES.mkdir(parents=True, exist_ok=True)
    with (BINARIES / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_built(name):
            _build(name)


def _build(name: str) -> None:
    tool = TOOLS[name]
    directory = ROOT / "tools" / tool.module
    environment = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}
    unfinished = BINARIES / f".{name}.new"
    made_from = key(name)
    flags = ["-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", linker_flags(tool)]
    subprocess.run(["go", "build", *flags, "-o", str(unfinished), tool.package], cwd=directory, env=environment, check=True)
    if tool.shared_files is not None:
        command = ["go", "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", tool.requires]
        listed = subprocess.run(command, cwd=directory, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout
        target = SHARED_FILES / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in sorted(Path(listed.strip()).glob(tool.shared_files)):
            (target / file.name).write_bytes(file.read_bytes())
    unfinished.replace(BINARIES / name)
    (BINARIES / f".{name}.key").write_text(made_from)


def missing(names: Sequence[str]) -> list[str]:
    """Those of the programs that are not there."""
    absent = []
    for name in names:
        try:
            find(name)
        except ToolMissing:
            absent.append(name)
    return absent


def _processor_s() -> float:
    """Processor time of the builds so far; unlike the time of day it is the same on a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: Sequence[str]) -> int:
    """Build what is missing. Returns 0, or 1 after saying what could not be built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TOOL", help=f"of: all {' '.join(TOOLS)}")
    parser.add_argument("--missing", action="store_true", help="build nothing; print one line if a suite cannot run here")
    parser.add_argument("--if-possible", action="store_true", help="succeed where Go is not installed, after saying so")
    arguments = parser.parse_args(argv)
    names = list(TOOLS) if arguments.names == ["all"] else arguments.names or list(TEST_TOOLS)
    if unknown := sorted(set(names) - set(TOOLS)):
        parser.error(f"there is no {', '.join(unknown)}")
    absent = missing([name for name in TOOLS if name in names])
    if arguments.missing:
        if absent:
            listed = ", ".join(absent)
            print(f"NOT RUN: tests/cluster or parts of it, for want of {listed}. Install Go, or set KUBEBUILDER_ASSETS.")
        return 0
    if absent and shutil.which("go") is None:
        print(f"Go is not installed, so that the test cluster lacks {', '.join(absent)}.", file=sys.stderr)
        return 0 if arguments.if_possible else 1
    for position, name in enumerate(absent, 1):
        tool = TOOLS[name]
        print(f"cluster-tools {position}/{len(absent)}: building {name} {required_version(tool.module, tool.requires)}", flush=True)
        start, used = time.monotonic(), _processor_s()
        try:
            build(name)
        except subprocess.CalledProcessError as error:
            print(f"cluster-tools: {name} was not built: go exited with {error.returncode}", file=sys.stderr)
            return 1
        megabytes = (BINARIES / name).stat().st_size / 1e6
        took = f"{time.monotonic() - start:.0f} s ({_processor_s() - used:.0f} s of processor time)"
        print(f"cluster-tools {position}/{len(absent)}: {name} in {took}, {megabytes:.0f} MB", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
