"""Makes a PyTorch that is linked against CUDA fit for an image without GPUs: run by the Python whose packages are meant.

The usual build of PyTorch cannot be imported without three gigabytes of libraries that a process on CPUs never calls. CUDA's own
runtime stays: it finds no device, and that is why nothing else is called. Of the other libraries

- those that a serving process does not map go away, as does Triton, which compiles for GPUs;
- those that it maps become stand-ins: the same name, the same versioned symbols that PyTorch asks for, each a function that returns
  CUDA's "no device" (cudaErrorNoDevice, 100).

Before and after, a process imports all that serves and computes; if it fails, the image fails. Where PyTorch came without CUDA
there is nothing to do. Needs a C compiler and readelf.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

GPU_COMPILERS = ("triton",)
KEPT = re.compile(r"libcudart\.so\.\d+")
LIBRARY_SUFFIXES = frozenset({".so", ".a", ".bc", ".h", ".hpp", ".cuh"})
NO_DEVICE = 100
_SYMBOL = re.compile(
    r"^\s*\d+: [0-9a-f]+ +\S+ (?P<type>FUNC|NOTYPE|OBJECT) +(?:GLOBAL|WEAK) +DEFAULT +(?P<section>\S+) (?P<name>\w+)"
    r"(?:@@?(?P<version>\S+))?",
    re.MULTILINE,
)
_WORK = """
import sys
import numpy, ray, ray.serve, safetensors.torch, torch, torch.distributed, xgrammar

assert not torch.cuda.is_available()
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.LayerNorm(64)).to(torch.bfloat16)
with torch.inference_mode():
    model(torch.zeros(4, 64, dtype=torch.bfloat16))
assert torch.distributed.is_gloo_available()
for name in sys.argv[1:]:
    if name in sys.modules:
        print("module", name)
for line in open("/proc/self/maps"):
    path = line.split(maxsplit=5)[5:]
    if path and path[0].startswith("/"):
        print("mapped", path[0].rstrip())
"""


def work() -> tuple[set[Path], set[str]]:
    """Files that a serving process maps, and which of the GPU compilers it imports. Raises CalledProcessError."""
    command = [sys.executable, "-c", _WORK, *GPU_COMPILERS]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    said = [line.split(" ", 1) for line in lines]
    mapped = {Path(value).resolve() for kind, value in said if kind == "mapped"}
    return mapped, {value for kind, value in said if kind == "module"}


def symbols(library: Path, *, defined: bool) -> dict[str, str]:
    """Functions that a library defines, or asks others for: name and version, "" where it has none. Raises CalledProcessError."""
    listed = subprocess.run(["readelf", "--wide", "--dyn-syms", library], check=True, stdout=subprocess.PIPE, text=True).stdout
    return {
        found["name"]: found["version"] or ""
        for found in _SYMBOL.finditer(listed)
        if (found["section"] != "UND") == defined and not (defined and found["type"] == "OBJECT")
    }


def build_stand_in(library: Path, wanted: Mapping[str, str]) -> None:
    """Put a stand-in with these functions in the place of a library. Raises CalledProcessError."""
    dynamic = subprocess.run(["readelf", "--wide", "--dynamic", library], check=True, stdout=subprocess.PIPE, text=True).stdout
    name = re.search(r"\(SONAME\).*\[(.+)\]", dynamic)
    assert name is not None, f"{library} has no name of its own"
    with tempfile.TemporaryDirectory() as scratch:
        source, versions, built = Path(scratch) / "s.c", Path(scratch) / "versions", Path(scratch) / "s.so"
        source.write_text("".join(f"int {function}(void) {{ return {NO_DEVICE}; }}\n" for function in sorted(wanted)))
        nodes = [
            f"{version} {{ global: {'; '.join(sorted(f for f, v in wanted.items() if v == version))}; }};\n"
            for version in sorted(set(wanted.values()) - {""})
        ]
        versions.write_text("".join(nodes))
        script = [f"-Wl,--version-script={versions}"] if nodes else []
        command = ["cc", "-shared", "-fPIC", "-Os", "-nostdlib", "-w", f"-Wl,-soname,{name[1]}", *script, source, "-o", built]
        subprocess.run(command, check=True)
        library.unlink()
        shutil.copyfile(built, library)


def shared_objects(directory: Path) -> Iterable[Path]:
    """Shared libraries below a directory, links aside."""
    return sorted(path for path in directory.rglob("*.so*") if path.is_file() and not path.is_symlink())


def main() -> None:
    """Remove and replace, try again, and say how much it was."""
    packages = Path(sysconfig.get_path("purelib"))
    before = _size(packages)
    mapped, imported = work()
    asked_for: dict[str, str] = {}
    for library in shared_objects(packages / "torch"):
        asked_for |= symbols(library, defined=False)
    for path in sorted((packages / "nvidia").rglob("*")):
        if not path.is_file() or not LIBRARY_SUFFIXES & set(path.suffixes) or KEPT.fullmatch(path.name):
            continue
        if path.resolve() not in mapped:
            path.unlink()
        elif not path.is_symlink():
            offered = symbols(path, defined=True)
            build_stand_in(path, {name: offered[name] for name in offered.keys() & asked_for.keys()})
    for name in GPU_COMPILERS:
        if name not in imported and (packages / name).is_dir():
            shutil.rmtree(packages / name)
    work()
    print(f"{(before - _size(packages)) / 1e6:.0f} MB that a process on CPUs does not call were left out")


def _size(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
