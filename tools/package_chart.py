"""Packs charts/lionrock into one file, with KubeRay's chart inside where that is wanted. Fetches nothing.

    python tools/package_chart.py                                                charts/lionrock alone
    python tools/package_chart.py --kuberay kuberay-operator-1.6.2.tgz           with KubeRay's, switched on by kuberay.enabled=true
    python tools/package_chart.py --directory dist                               where the file goes

Helm refuses a chart whose declared dependencies are not beside it, wanted or not, so the declaration is made here and not in the
repository. Equal inputs give equal files. Needs Python with PyYAML, and no Helm.
"""

from __future__ import annotations

import argparse
import gzip
import io
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent.parent / "charts" / "lionrock"
NOT_PACKED = frozenset({"ci", "tests", ".helmignore", "charts"})
VERSIONS = "lionrock.io/kuberay-versions"
MAX_CHART_BYTES = 16 * 2**20


class Unpackable(Exception):
    """The given file is no chart of KubeRay that this one works with."""


def described(archive: bytes) -> Mapping[str, Any]:
    """Chart.yaml of a packed chart. Raises Unpackable."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as packed:
            for member in packed:
                if re.fullmatch(r"[^/]+/Chart\.yaml", member.name) and (file := packed.extractfile(member)) is not None:
                    content = yaml.safe_load(file.read(MAX_CHART_BYTES))
                    if isinstance(content, dict):
                        return content
    except (tarfile.TarError, OSError, EOFError, yaml.YAMLError) as error:
        raise Unpackable(f"it is no packed chart: {error}") from error
    raise Unpackable("it has no Chart.yaml")


def files(kuberay: tuple[str, bytes] | None) -> Iterator[tuple[str, bytes]]:
    """Names and contents within the archive, in a fixed order. Raises Unpackable."""
    found = sorted(path for path in CHART.rglob("*") if path.is_file() and path.relative_to(CHART).parts[0] not in NOT_PACKED)
    for path in found:
        content = path.read_bytes()
        if kuberay is not None and path == CHART / "Chart.yaml":
            content = declared(content.decode(), described(kuberay[1])).encode()
        yield f"lionrock/{path.relative_to(CHART).as_posix()}", content
    if kuberay is not None:
        yield f"lionrock/charts/{kuberay[0]}", kuberay[1]


def declared(chart: str, dependency: Mapping[str, Any]) -> str:
    """Chart.yaml with the dependency. Raises Unpackable."""
    if dependency.get("name") != "kuberay-operator":
        raise Unpackable(f"it is the chart {dependency.get('name')}, not kuberay-operator")
    version = str(dependency.get("version"))
    wanted = str(yaml.safe_load(chart)["annotations"][VERSIONS])
    if not fits(version, wanted):
        raise Unpackable(f"version {version} is not in {wanted}")
    lines = [
        "dependencies:",
        "  - name: kuberay-operator",
        f"    version: {version}",
        "    alias: kuberay",
        "    condition: kuberay.enabled",
    ]
    return chart.rstrip("\n") + "\n" + "\n".join(lines) + "\n"


def fits(version: str, wanted: str) -> bool:
    """Whether a version is in a range of the form `>=a.b.c-0 <d.e.f-0`."""
    numbers = re.findall(r"\d+\.\d+\.\d+", wanted)
    found = re.match(r"v?(\d+\.\d+\.\d+)", version)
    if found is None or len(numbers) != 2:
        return False
    least, own, limit = (tuple(map(int, text.split("."))) for text in (numbers[0], found[1], numbers[1]))
    return least <= own < limit


def packed(kuberay: tuple[str, bytes] | None) -> bytes:
    """Return the archive. Raises Unpackable."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files(kuberay):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), mtime=0)


def main(argv: Sequence[str]) -> int:
    """Write the file and say its name."""
    parser = argparse.ArgumentParser(description="Pack charts/lionrock, with KubeRay's chart where that is given.")
    parser.add_argument("--kuberay", type=Path, metavar="FILE", help="kuberay-operator-<version>.tgz")
    parser.add_argument("--directory", type=Path, default=Path(), help="where the file goes (default: here)")
    arguments = parser.parse_args(argv)
    try:
        kuberay = None if arguments.kuberay is None else (arguments.kuberay.name, arguments.kuberay.read_bytes())
        content = packed(kuberay)
    except (Unpackable, OSError) as error:
        print(f"{arguments.kuberay}: {error}", file=sys.stderr)
        return 1
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["version"]
    target = arguments.directory / f"lionrock-{version}.tgz"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
