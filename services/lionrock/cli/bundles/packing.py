"""Puts artifacts into a new directory and writes the manifest last: a bundle is there whole, or not at all.

Each file is read once, digested while it is copied, and synced before the directory appears under its name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from lionrock.cli.bundles.artifacts import ArtifactInvalid, Given
from lionrock.cli.bundles.manifest import (
    MANIFEST_NAME,
    NOTE_NAME,
    SUMS_NAME,
    Artifact,
    File,
    Manifest,
    ManifestInvalid,
    make_manifest,
    note_text,
    sums,
)
from lionrock.tlog.note import Ed25519Signer, sign_note

COPY_BYTES: Final = 1 << 20
EXPORT_TIMEOUT_S: Final = 1800.0
STORES: Final[Mapping[str, tuple[str, ...]]] = {
    "buildah": ("buildah", "push", "--quiet", "{name}", "docker-archive:{file}:{name}"),
    "podman": ("podman", "save", "--quiet", "--format", "docker-archive", "--output", "{file}", "{name}"),
    "docker": ("docker", "save", "--output", "{file}", "{name}"),
    "containerd": ("ctr", "--namespace", "k8s.io", "images", "export", "{file}", "{name}"),
}
"""Programs that export an image of their store, by the prefix that names the store."""

OnBytes = Callable[[int], None]


class BundleExists(Exception):
    """There is something already where the bundle should go."""


def export_image(store: str, name: str, file: Path) -> None:
    """Have a store write one of its images into a file. Raises ArtifactInvalid with what its program said."""
    command = [part.format(name=name, file=file) for part in STORES[store]]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=EXPORT_TIMEOUT_S)  # noqa: S603
    except FileNotFoundError:
        raise ArtifactInvalid(f"{command[0]} is not installed, which would export {store}:{name}") from None
    except subprocess.TimeoutExpired:
        raise ArtifactInvalid(f"{command[0]} did not export {name} within {EXPORT_TIMEOUT_S:.0f} s") from None
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.strip()]
        raise ArtifactInvalid(f"{command[0]} could not export {name}: {said[-1] if said else 'no message'}") from None


def pack(
    directory: Path, given: Iterable[Given], made_by: str, signer: Ed25519Signer | None, on_bytes: OnBytes
) -> tuple[Manifest, str]:
    """Make the bundle; return its manifest and the SHA-256 of that. on_bytes: told of each piece copied.

    Raises BundleExists, ManifestInvalid (two artifacts in one place, a name that a bundle cannot have), OSError.
    """
    if directory.exists():
        raise BundleExists(f"{directory} exists")
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        artifacts, files = [], []
        for one in given:
            copied = [_copy(source, draft, path, on_bytes) for path, source in one.files]
            files += copied
            artifacts.append(Artifact(one.kind, one.name, one.version, one.digest or f"sha256:{copied[0].sha256}", one.path))
        manifest = make_manifest(artifacts, files, made_by)
        sha256 = _write_descriptions(draft, manifest, signer)
        draft.chmod(0o755)
        os.rename(draft, directory)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return manifest, sha256


def total_bytes(given: Sequence[Given]) -> int:
    """Bytes that packing will copy. Raises OSError."""
    return sum(source.stat().st_size for one in given for _, source in one.files)


def _write_descriptions(draft: Path, manifest: Manifest, signer: Ed25519Signer | None) -> str:
    raw = manifest.encode()
    sha256 = hashlib.sha256(raw).hexdigest()
    _write(draft / SUMS_NAME, sums(manifest, sha256))
    if signer is not None:
        _write(draft / NOTE_NAME, sign_note(note_text(sha256), signer).encode())
    _write(draft / MANIFEST_NAME, raw)
    return sha256


def _copy(source: Path, draft: Path, path: str, on_bytes: OnBytes) -> File:
    target = draft / path
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with source.open("rb", buffering=0) as reader, target.open("xb") as writer:
            while piece := reader.read(COPY_BYTES):
                digest.update(piece)
                writer.write(piece)
                size += len(piece)
                on_bytes(len(piece))
            writer.flush()
            os.fsync(writer.fileno())
    except FileExistsError:
        raise ManifestInvalid("two artifacts would lie in the same place; give one another name") from None
    return File(path, digest.hexdigest(), size)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
