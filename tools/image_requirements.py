"""Writes what pip must install into an image, from pyproject.toml and constraints.txt alone, so that code is no part of that layer.

    image_requirements.py build                                   the package's build back end, and what its hook needs
    image_requirements.py service NAME [--keep-engine]            the package's dependencies and those of one extra

Two files come out, requirements.txt and constraints.txt. With --keep-engine, run by a Python that sees the packages of a vendor's
image, those that make up its engine (PyTorch, its plugin, what comes compiled against them) are asked for and pinned as they are
there: pip then either uses them or fails, and never replaces them. Needs the standard library only.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ENGINE = re.compile(
    r"(torch|triton|vllm|nvidia|cuda|flash-attn|xformers|apex)(-.*)?|numpy"
    r"|.*-(npu|mlu|musa|gcu|dcu|corex|kunlun|metax)"
)
"""Normalised names (PEP 503) of what a vendor builds together."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def normalised(name: str) -> str:
    """Name of a distribution as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    """Normalised name of what a requirement asks for. Raises ValueError."""
    match = _NAME.match(requirement.strip())
    if match is None:
        raise ValueError(f"not a requirement: {requirement!r}")
    return normalised(match[0])


def engine_pins(distributions: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name and version of each distribution that belongs to an engine."""
    return {normalised(name): version for name, version in distributions if ENGINE.fullmatch(normalised(name))}


def resolve(requirements: Iterable[str], constraints: Iterable[str], engine: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return requirements and constraints in which the engine's packages have the versions that they have."""
    wanted = [name_of(line) if name_of(line) in engine else line for line in requirements]
    kept = [line for line in constraints if name_of(line) not in engine]
    return wanted, [*kept, *(f"{name}=={version}" for name, version in sorted(engine.items()))]


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description="Write requirements.txt and constraints.txt for one layer of an image.")
    parser.add_argument("what", choices=("build", "service"))
    parser.add_argument("extra", nargs="?", help="extra of the package: the service's name")
    parser.add_argument("--keep-engine", action="store_true", help="use PyTorch and its plugins as this Python has them")
    parser.add_argument("--directory", type=Path, default=Path(), help="where the files go")
    arguments = parser.parse_args()

    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    lines = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = [line for line in lines if line and not line.startswith("#")]
    if arguments.what == "build":
        requirements = [*project["build-system"]["requires"], "wheel"]
    else:
        extras = project["project"]["optional-dependencies"]
        if arguments.extra not in extras:
            sys.exit(f"no extra is named {arguments.extra}; build with SERVICE one of {', '.join(sorted(extras))}")
        requirements = [*project["project"]["dependencies"], *extras[arguments.extra]]
    engine: dict[str, str] = {}
    if arguments.keep_engine:
        engine = engine_pins((found.name, found.version) for found in importlib.metadata.distributions())
        if "torch" not in engine:
            sys.exit("the engine's base image has no PyTorch that this Python sees")
    requirements, constraints = resolve(requirements, constraints, engine)
    for name, content in (("requirements.txt", requirements), ("constraints.txt", constraints)):
        (arguments.directory / name).write_text("".join(f"{line}\n" for line in content), encoding="utf-8")


if __name__ == "__main__":
    main()
