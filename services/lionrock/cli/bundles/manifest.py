"""What a bundle says of itself: manifest.json in canonical JSON (RFC 8785), and SHA256SUMS for `sha256sum --check`.

    {"artifacts": [{"digest", "kind", "name", "path", "version"}], "files": [{"path", "sha256", "size"}],
     "format": "lionrock.bundle/v1", "made_by": "lionrock 0.1.0"}

An artifact is a file or a directory of the bundle; every file belongs to exactly one. Lists are sorted by path, so equal contents
make equal manifests. Knows the format and refuses what does not keep to it, byte for byte: a manifest may come from anywhere. Does
not touch files.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from lionrock.audit.canonical_json import INTEGER_MAX, canonical_json

FORMAT: Final = "lionrock.bundle/v1"
MANIFEST_NAME: Final = "manifest.json"
SUMS_NAME: Final = "SHA256SUMS"
NOTE_NAME: Final = "manifest.note"
MANIFEST_MAX_BYTES: Final = 64 << 20
SUMS_MAX_BYTES: Final = 256 << 20
FILES_MAX: Final = 100_000
PATH_MAX_BYTES: Final = 1024
PART_MAX_BYTES: Final = 255
TEXT_MAX: Final = 512

Kind = Literal["image", "chart", "model"]
DIRECTORIES: Final[dict[Kind, str]] = {"image": "images", "chart": "charts", "model": "models"}

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class ManifestInvalid(ValueError):
    """The text is not a bundle's manifest. The message says why and repeats nothing that could steer a terminal."""


@dataclass(frozen=True, slots=True)
class File:
    """One file: its path within the bundle with / between the parts, SHA-256 in hexadecimal, size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a file or directory is. digest: what its kind names it by (an image's id, a chart's file, a model's weights)."""

    kind: Kind
    name: str
    version: str
    digest: str
    path: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole bundle, both lists sorted by path."""

    artifacts: tuple[Artifact, ...]
    files: tuple[File, ...]
    made_by: str

    def files_of(self, artifact: Artifact) -> tuple[File, ...]:
        """Return the files that belong to an artifact."""
        return tuple(file for file in self.files if _belongs(file.path, artifact.path))

    def encode(self) -> bytes:
        """As stored."""
        return canonical_json(
            {
                "artifacts": [
                    {"digest": one.digest, "kind": one.kind, "name": one.name, "path": one.path, "version": one.version}
                    for one in self.artifacts
                ],
                "files": [{"path": f.path, "sha256": f.sha256, "size": f.size} for f in self.files],
                "format": FORMAT,
                "made_by": self.made_by,
            }
        )


def make_manifest(artifacts: Iterable[Artifact], files: Iterable[File], made_by: str) -> Manifest:
    """Sort and check. Raises ManifestInvalid."""
    manifest = Manifest(
        tuple(sorted(artifacts, key=lambda artifact: artifact.path)), tuple(sorted(files, key=lambda file: file.path)), made_by
    )
    _check(manifest)
    return manifest


def parse_manifest(raw: bytes) -> Manifest:
    """Read a manifest. Raises ManifestInvalid for anything but the very bytes that `encode` writes."""
    if len(raw) > MANIFEST_MAX_BYTES:
        raise ManifestInvalid(f"it is larger than {MANIFEST_MAX_BYTES} bytes")
    try:
        document = json.loads(raw.decode("utf-8"))
        if document["format"] != FORMAT:
            raise ManifestInvalid(f"its format is not {FORMAT}")
        artifacts = tuple(
            Artifact(_kind(a["kind"]), _text(a["name"]), _text(a["version"]), _text(a["digest"]), _text(a["path"]))
            for a in document["artifacts"]
        )
        files = tuple(File(_text(f["path"]), _text(f["sha256"]), _size(f["size"])) for f in document["files"])
        manifest = Manifest(artifacts, files, _text(document["made_by"]))
        _check(manifest)
        canonical = manifest.encode() == raw
    except ManifestInvalid:
        raise
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        raise ManifestInvalid(f"it cannot be read ({type(error).__name__})") from None
    if not canonical:
        raise ManifestInvalid("it is not in canonical form, or has members that are not known")
    return manifest


def sums(manifest: Manifest, manifest_sha256: str) -> bytes:
    """Content of SHA256SUMS: one line `<SHA-256>  <path>` for each file and for manifest.json, by path."""
    listed = [*((file.path, file.sha256) for file in manifest.files), (MANIFEST_NAME, manifest_sha256)]
    return "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(listed)).encode()


def note_text(manifest_sha256: str) -> str:
    """Text of the signed note: what exactly was signed."""
    return f"{FORMAT}\nsha256:{manifest_sha256}\n"


def check_path(path: str) -> None:
    """Raise ManifestInvalid unless a path stays within the bundle and can be written on one line of SHA256SUMS."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise ManifestInvalid("a path is not valid UTF-8") from None
    parts = path.split("/")
    if not 0 < size <= PATH_MAX_BYTES or any(len(part.encode()) > PART_MAX_BYTES for part in parts):
        raise ManifestInvalid("a path is empty or too long")
    # A backslash would be escaped in SHA256SUMS, and is a separator elsewhere.
    if any(part in ("", ".", "..") for part in parts) or "\\" in path or not path.isprintable():
        raise ManifestInvalid("a path is absolute, leaves the bundle, or has characters that paths here do not have")


def parents(path: str) -> list[str]:
    """Directories above a path, the bundle's own not among them: a/b/c → a, a/b."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _check(manifest: Manifest) -> None:
    if len(manifest.files) > FILES_MAX or len(manifest.artifacts) > FILES_MAX:
        raise ManifestInvalid(f"it names more than {FILES_MAX} files")
    for file in manifest.files:
        check_path(file.path)
        if not _SHA256.fullmatch(file.sha256) or not 0 <= file.size <= INTEGER_MAX:
            raise ManifestInvalid("a file has no SHA-256 or an impossible size")
    for artifact in manifest.artifacts:
        check_path(artifact.path)
        if not _DIGEST.fullmatch(artifact.digest):
            raise ManifestInvalid("an artifact has no digest")
        if artifact.path.split("/")[0] != DIRECTORIES[artifact.kind] or artifact.path.count("/") != 1:
            raise ManifestInvalid("an artifact does not lie in the directory of its kind")
        for text in (artifact.name, artifact.version, manifest.made_by):
            if len(text) > TEXT_MAX or not text.isprintable():
                raise ManifestInvalid("a name or version is too long or not printable")
    _check_order([file.path for file in manifest.files])
    _check_order([artifact.path for artifact in manifest.artifacts])
    _check_ownership(manifest)


def _check_order(paths: list[str]) -> None:
    if any(earlier >= later for earlier, later in itertools.pairwise(paths)):
        raise ManifestInvalid("a path occurs twice, or paths are not sorted")


def _check_ownership(manifest: Manifest) -> None:
    """Every file belongs to an artifact, every artifact has files, and no file is also a directory."""
    owners = {artifact.path for artifact in manifest.artifacts}
    directories = {parent for file in manifest.files for parent in parents(file.path)}
    used = set()
    for file in manifest.files:
        owner = "/".join(file.path.split("/")[:2])
        if owner not in owners or file.path in directories:
            raise ManifestInvalid("a file belongs to no artifact, or is a directory too")
        used.add(owner)
    if used != owners:
        raise ManifestInvalid("an artifact has no files")


def _belongs(path: str, artifact: str) -> bool:
    return path == artifact or path.startswith(f"{artifact}/")


def _kind(value: Any) -> Kind:
    if value not in get_args(Kind):
        raise ManifestInvalid("an artifact is of no known kind")
    return value  # type: ignore[no-any-return]


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _size(value: Any) -> int:
    if type(value) is not int:
        raise TypeError
    return value
