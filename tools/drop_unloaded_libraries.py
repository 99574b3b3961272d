"""Removes from an image for CPUs what its engine never loads of CUDA: run by the Python whose packages are meant.

PyTorch's usual build is linked against CUDA, so some of it must stay for `import torch` to work; which files, the dynamic linker
says: a process imports everything that serves on CPUs, and what it has then not mapped goes. Triton, which compiles for GPUs, goes
when nothing has imported it. Afterwards the same process is tried again, and its failure fails the image. Where PyTorch came
without CUDA there is nothing to do.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

COMPILERS = ("triton",)
LIBRARY_SUFFIXES = frozenset({".so", ".a", ".bc", ".h", ".hpp"})
_WORK = """
import sys
import numpy, ray, ray.serve, safetensors.torch, torch, torch.distributed, xgrammar

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
    """Files that a serving process maps, and which of the compilers it imports. Raises CalledProcessError."""
    command = [sys.executable, "-c", _WORK, *COMPILERS]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    said = {line.split(" ", 1)[0]: set[str]() for line in lines}
    for line in lines:
        kind, value = line.split(" ", 1)
        said[kind].add(value)
    return {Path(path).resolve() for path in said.get("mapped", ())}, said.get("module", set())


def main() -> None:
    """Remove, try again, and say how much it was."""
    packages = Path(sysconfig.get_path("purelib"))
    mapped, imported = work()
    removed_bytes = 0
    for path in sorted((packages / "nvidia").rglob("*")):
        if (
            path.is_file()
            and path.resolve() not in mapped
            and (".so" in path.suffixes or path.suffix in (".a", ".bc", ".h", ".hpp"))
        ):
            removed_bytes += path.lstat().st_size
            path.unlink()
    for name in COMPILERS:
        if name not in imported and (packages / name).is_dir():
            removed_bytes += sum(path.lstat().st_size for path in (packages / name).rglob("*") if path.is_file())
            shutil.rmtree(packages / name)
    work()
    print(f"removed {removed_bytes / 1e6:.0f} MB that a process on CPUs does not load")


if __name__ == "__main__":
    main()
