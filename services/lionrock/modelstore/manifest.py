"""manifest.json: what a store entry says about itself.

Knows the file's schema and writes it atomically; does not know how files are found, fetched or digested. Paths are relative to
the entry's directory for files that the store holds and absolute for those that it only refers to. (size, mtime_ns) say whether a
recorded digest may still be trusted without reading the file again.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lionrock.modelstore.errors import ModelFileCorrupt, ModelFileMissing

MANIFEST_NAME = "manifest.json"
MANIFEST_MAX_BYTES = 4 * 1024 * 1024

ModelFormat = Literal["gguf", "safetensors"]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One weights file: its path, SHA-256 (64 hexadecimal digits), and size and time of change (ns) when that was computed."""

    path: str
    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One model: its weights files sorted by name, where they came from, and when (RFC 3339, UTC)."""

    name: str
    format: ModelFormat
    files: tuple[FileRecord, ...]
    source: str
    pulled_at: str


def read_manifest(directory: Path) -> Manifest:
    """Read a store entry's manifest. Raises ModelFileMissing, ModelFileCorrupt."""
    path = directory / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            raw = file.read(MANIFEST_MAX_BYTES + 1)
    except FileNotFoundError:
        raise ModelFileMissing(f"{path} is missing") from None
    except OSError as error:
        raise ModelFileMissing(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > MANIFEST_MAX_BYTES:
        raise ModelFileCorrupt(f"{path} is larger than {MANIFEST_MAX_BYTES} bytes")
    try:
        return _parse(json.loads(raw))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelFileCorrupt(f"{path} is not a model manifest ({type(error).__name__})") from None


def _parse(document: Any) -> Manifest:
    files = tuple(FileRecord(_text(f, "path"), _sha256(f), _count(f, "size"), _count(f, "mtime_ns")) for f in document["files"])
    model_format = document["format"]
    if model_format not in ("gguf", "safetensors") or not files:
        raise ValueError("format")
    return Manifest(_text(document, "name"), model_format, files, _text(document, "source"), _text(document, "pulled_at"))


def _text(document: Any, key: str) -> str:
    value = document[key]
    if not isinstance(value, str) or "\0" in value:
        raise TypeError(key)
    return value


def _count(document: Any, key: str) -> int:
    value = document[key]
    if type(value) is not int or value < 0:
        raise TypeError(key)
    return value


def _sha256(document: Any) -> str:
    value = _text(document, "sha256")
    if len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError("sha256")
    return value


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write a store entry's manifest: wholly or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=directory, prefix=".manifest-", delete=False, encoding="utf-8") as file:
        try:
            json.dump(asdict(manifest), file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, directory / MANIFEST_NAME)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
