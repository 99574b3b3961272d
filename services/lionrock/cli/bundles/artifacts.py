"""What is put into a bundle: where its files are, what it is called, and what it is named by.

Knows how to read that out of a docker-archive, an OCI layout (as a directory or as one file), a packaged chart and a model. Reads
files of the user who packs; limits are there so that a wrong file is an error and not an endless read.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import yaml

from lionrock.cli.bundles.manifest import DIRECTORIES, Kind
from lionrock.modelstore.errors import ModelStoreError
from lionrock.modelstore.source import check_name, locate

INDEX_MAX_BYTES: Final = 4 << 20
CHART_MAX_BYTES: Final = 1 << 20
MEMBERS_MAX: Final = 200_000

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class ArtifactInvalid(Exception):
    """A given file is not what it was given as. The message names it."""


@dataclass(frozen=True, slots=True)
class Given:
    """One artifact outside of the bundle. files: path within the bundle and where the file is now.

    digest: None where it is that of the artifact's one file, known when the file is copied.
    """

    kind: Kind
    name: str
    version: str
    digest: str | None
    path: str
    files: tuple[tuple[str, Path], ...]


def image(source: Path) -> Given:
    """Read an image: a docker-archive, an OCI archive, or a directory with an OCI layout. Raises ArtifactInvalid."""
    if source.is_dir():
        name, digest = _oci_index(source, _bounded(source / "index.json", INDEX_MAX_BYTES))
        target = _place("image", name)
        files = tuple((f"{target}/{file.relative_to(source).as_posix()}", file) for file in _regular_files(source))
    else:
        name, digest = _archived_image(source)
        target = f"{_place('image', name)}.tar"
        files = ((target, source),)
    return Given("image", name, _tag(name), digest, target, files)


def chart(source: Path) -> Given:
    """Read a chart as `helm package` writes it. Raises ArtifactInvalid."""
    try:
        with tarfile.open(source, "r:gz") as archive:
            for member in _members(archive):
                parts = member.name.split("/")
                if len(parts) == 2 and parts[1] == "Chart.yaml" and member.isfile():
                    described = yaml.safe_load(_content(archive.extractfile(member), CHART_MAX_BYTES))
                    name, version = str(described["name"]), str(described["version"])
                    target = f"{DIRECTORIES['chart']}/{_safe(f'{name}-{version}')}.tgz"
                    return Given("chart", name, version, None, target, ((target, source),))
    except (OSError, tarfile.TarError, EOFError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ArtifactInvalid(f"{source} is not a packaged chart ({type(error).__name__})") from None
    raise ArtifactInvalid(f"{source} has no Chart.yaml; make it with `helm package`")


def model(name: str, source: Path, weights_digest: str) -> Given:
    """Name the files of a model: a GGUF file alone, or all of a safetensors directory, links to files followed.

    Raises ArtifactInvalid.
    """
    try:
        located = locate(check_name(name), source)
    except ModelStoreError as error:
        raise ArtifactInvalid(str(error)) from None
    target = _place("model", name)
    inside = located.files if located.format == "gguf" else tuple(_regular_files(located.directory))
    files = tuple((f"{target}/{file.relative_to(located.directory).as_posix()}", file) for file in inside)
    return Given("model", name, located.format, weights_digest, target, files)


def _archived_image(source: Path) -> tuple[str, str]:
    wanted = {"manifest.json": b"", "index.json": b""}
    try:
        with tarfile.open(source, "r:*") as archive:
            for member in _members(archive):
                name = member.name.removeprefix("./")
                if name in wanted and member.isfile():
                    wanted[name] = _content(archive.extractfile(member), INDEX_MAX_BYTES)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ArtifactInvalid(f"{source} cannot be read as an image ({type(error).__name__})") from None
    if wanted["manifest.json"]:  # docker save writes both, and containerd's names are in this one
        return _docker_manifest(source, wanted["manifest.json"])
    return _oci_index(source, wanted["index.json"])


def _docker_manifest(source: Path, raw: bytes) -> tuple[str, str]:
    try:
        (entry,) = json.loads(raw)
        (name,) = entry["RepoTags"]
        found = re.search(r"[0-9a-f]{64}", entry["Config"])
        return _image_name(name), f"sha256:{found[0]}"  # type: ignore[index]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ArtifactInvalid(f"{source} does not hold exactly one image with one name") from None


def _oci_index(source: Path, raw: bytes) -> tuple[str, str]:
    try:
        (entry,) = json.loads(raw)["manifests"]
        notes: dict[str, Any] = entry["annotations"]
        name = notes.get("io.containerd.image.name") or notes["org.opencontainers.image.ref.name"]
        if not _DIGEST.fullmatch(entry["digest"]):
            raise ValueError
        return _image_name(name), entry["digest"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ArtifactInvalid(f"{source} is neither a docker-archive nor an OCI layout with exactly one named image") from None


def _image_name(name: Any) -> str:
    if not isinstance(name, str) or not name or len(name) > 512 or not name.isprintable():
        raise TypeError
    return name


def _tag(name: str) -> str:
    return name.rsplit(":", 1)[1] if ":" in name.rsplit("/", 1)[-1] else ""


def _place(kind: Kind, name: str) -> str:
    """Path of an artifact within the bundle: an image's registry and repository are part of it, so that no two collide."""
    return f"{DIRECTORIES[kind]}/{_safe(name)}"


def _safe(name: str) -> str:
    return _UNSAFE.sub("_", name)[:200].lstrip(".") or "_"


def _regular_files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield path
        elif not path.is_dir():
            raise ArtifactInvalid(f"{path} is neither a file nor a directory")


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for count, member in enumerate(archive):
        if count == MEMBERS_MAX:
            raise tarfile.ReadError("too many members")
        yield member


def _content(file: IO[bytes] | None, limit: int) -> bytes:
    raw = file.read(limit + 1) if file is not None else b""
    if len(raw) > limit:
        raise tarfile.ReadError("a description is too large")
    return raw


def _bounded(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise ArtifactInvalid(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > limit:
        raise ArtifactInvalid(f"{path} is too large")
    return raw
