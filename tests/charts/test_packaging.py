"""The packed chart: equal inputs make equal files, KubeRay's chart goes inside and stays off until it is wanted."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CASE = ROOT / "charts" / "lionrock" / "ci" / "minimal.yaml"
POD = """
apiVersion: v1
kind: Pod
metadata: {name: kuberay-operator, labels: {{ toJson .Values.labels }}}
spec: {affinity: {{ toJson .Values.affinity }}, containers: [{name: manager, image: kuberay}]}
"""


def pack(directory: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "package_chart.py"), "--directory", str(directory), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def kuberay(directory: Path, *, name: str = "kuberay-operator", version: str = "1.6.2") -> Path:
    """A chart with the name and values of KubeRay's, whose own is not ours to keep."""
    files = {
        "Chart.yaml": f"apiVersion: v2\nname: {name}\nversion: {version}\n",
        "values.yaml": "labels: {}\naffinity: {}\n",
        "templates/pod.yaml": POD,
    }
    path = directory / f"{name}-{version}.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for file, text in files.items():
            entry = tarfile.TarInfo(f"{name}/{file}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def test_equal_inputs_make_equal_files(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        assert pack(tmp_path / name).returncode == 0
        (file,) = (tmp_path / name).iterdir()
        files.append(file.read_bytes())
    assert files[0] == files[1]


def test_the_packed_chart_renders_as_the_directory_does(helm: Callable[..., str], tmp_path: Path) -> None:
    packed = Path(pack(tmp_path).stdout.strip())
    salt = "--set=gateway.cacheSaltSecret=fixed"

    def rendered(chart: Path) -> list[Any]:
        text = helm("template", "lionrock", chart, "--namespace", "bank", "--values", CASE, salt)
        return sorted((each for each in yaml.safe_load_all(text) if each), key=str)

    assert rendered(packed) == rendered(ROOT / "charts" / "lionrock")
    with tarfile.open(packed) as archive:
        names = archive.getnames()
    assert not [name for name in names if "/ci/" in name or ("/tests/" in name and "/templates/" not in name)]


def test_kuberay_is_inside_and_off_until_it_is_wanted(helm: Callable[..., str], tmp_path: Path) -> None:
    packed = Path(pack(tmp_path, "--kuberay", kuberay(tmp_path)).stdout.strip())
    command = ("template", "lionrock", packed, "--namespace", "bank", "--values", CASE)
    assert "kuberay-operator" not in [
        each["metadata"]["name"] for each in yaml.safe_load_all(helm(*command)) if each and each["kind"] == "Pod"
    ]
    with pytest.raises(Exception, match=r"kuberay\.affinity"):
        helm(*command, "--set=kuberay.enabled=true")
    expression = {"key": "topology.kubernetes.io/region", "operator": "In", "values": ["hk-1", "hk-2"]}
    term = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}
    values = tmp_path / "kuberay.yaml"
    values.write_text(yaml.safe_dump({"kuberay": {"enabled": True, "affinity": {"nodeAffinity": term}}}))
    objects = [each for each in yaml.safe_load_all(helm(*command, "--values", values)) if each]
    (pod,) = [each for each in objects if each["kind"] == "Pod" and each["metadata"]["name"] == "kuberay-operator"]
    assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "lionrock"
    assert pod["metadata"]["labels"]["lionrock.io/territory"] == "HK"
    assert [each for each in objects if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "lionrock-kuberay"]


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [("redis", "1.6.2", "not kuberay-operator"), ("kuberay-operator", "1.3.0", "not in"), ("kuberay-operator", "2.0.0", "not in")],
)
def test_another_chart_or_version_is_refused(tmp_path: Path, name: str, version: str, words: str) -> None:
    refused = pack(tmp_path / "out", "--kuberay", kuberay(tmp_path, name=name, version=version))
    assert refused.returncode == 1
    assert words in refused.stderr


def test_what_is_no_chart_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "kuberay.tgz"
    file.write_bytes(b"hello")
    refused = pack(tmp_path / "out", "--kuberay", file)
    assert refused.returncode == 1
    assert "kuberay.tgz: it is no packed chart" in refused.stderr
