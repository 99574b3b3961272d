"""ModelSource: the weights of one model, found on disk and named by their digest.

Knows how weights lie in a directory (one GGUF file; safetensors files with or without an index) and how their digest is formed;
does not read tensors. The digest of a GGUF model is the SHA-256 of the file. That of a safetensors model is the SHA-256 of the
list that `sha256sum *.safetensors` prints in the order of the names: one line `<hexadecimal SHA-256>  <name>` a file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lionrock.modelstore.errors import DigestMismatch, ModelFileCorrupt, ModelFileMissing, ModelFormatUnsupported, ModelNameInvalid
from lionrock.modelstore.manifest import MANIFEST_NAME, FileRecord, ModelFormat, read_manifest

INDEX_NAME = "model.safetensors.index.json"
INDEX_MAX_BYTES = 64 * 1024 * 1024
MAX_WEIGHTS_FILES = 1024
READ_BYTES = 1024 * 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_GGUF_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies. `files`: absolute paths of its weights, by name; `directory` holds config and tokenizer, if any."""

    name: str
    format: ModelFormat
    files: tuple[Path, ...]
    directory: Path


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model whose bytes are known: ModelFiles and "sha256:" + 64 hexadecimal digits."""

    name: str
    format: ModelFormat
    files: tuple[Path, ...]
    weights_digest: str
    directory: Path


def check_name(name: str) -> str:
    """Return a model's name. Raises ModelNameInvalid unless it is lower-case ASCII that is safe as a file name."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise ModelNameInvalid("a model's name has 1 to 128 of a-z 0-9 . _ -, begins with a letter or digit, and has no '..'")
    return name


def locate(name: str, path: Path) -> ModelFiles:
    """Find a model's weights without reading them: fast however large they are.

    path: a store entry, a GGUF file, a directory with one GGUF file, or a directory with safetensors files.
    Raises ModelNameInvalid, ModelFileMissing, ModelFileCorrupt, ModelFormatUnsupported.
    """
    check_name(name)
    path = path.absolute()
    if path.is_file():
        return _gguf(name, path)
    if not path.is_dir():
        raise ModelFileMissing(f"{path} is neither a file nor a directory")
    if (path / MANIFEST_NAME).exists():
        manifest = read_manifest(path)
        files = tuple(path / record.path for record in manifest.files)
        for file in files:
            _require(file)
        return ModelFiles(name, manifest.format, files, files[0].parent)
    safetensors = _safetensors(path)
    if safetensors:
        return ModelFiles(name, "safetensors", safetensors, path)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return _gguf(name, ggufs[0])
    if ggufs:
        raise ModelFormatUnsupported(f"{path} holds {len(ggufs)} GGUF files; name the one to serve")
    raise ModelFileMissing(f"{path} holds neither safetensors files nor a GGUF file")


def open_source(name: str, path: Path) -> ModelSource:
    """Find a model's weights and their digest. Digests that a store entry records for unchanged files are not computed again.

    path: as in `locate`. Raises what `locate` raises, and DigestMismatch when a store entry's file is not what was pulled.
    """
    located = locate(name, path)
    pulled = (path / MANIFEST_NAME).exists()
    records = verify_records(path, read_manifest(path).files) if pulled else digest_files(located.files)
    return ModelSource(name, located.format, located.files, weights_digest(located.format, records), located.directory)


def verify_records(directory: Path, records: Sequence[FileRecord]) -> tuple[FileRecord, ...]:
    """Return the records of a store entry, refreshed where size or time of change differ. Raises what `open_source` does."""
    verified = []
    for record in records:
        path = directory / record.path
        state = _require(path).stat()
        if (state.st_size, state.st_mtime_ns) != (record.size, record.mtime_ns):
            sha256 = sha256_file(path)
            if sha256 != record.sha256:
                raise DigestMismatch(f"{path} has changed since it was pulled: sha256 {sha256}, recorded {record.sha256}")
            record = FileRecord(record.path, sha256, state.st_size, state.st_mtime_ns)
        verified.append(record)
    return tuple(verified)


def digest_files(files: Sequence[Path], on_bytes: Callable[[int], None] | None = None) -> tuple[FileRecord, ...]:
    """Digest whole files; records carry absolute paths. on_bytes: told of each piece read, bytes. Raises ModelFileMissing."""
    records = []
    for path in files:
        state = _require(path).stat()
        records.append(FileRecord(str(path), sha256_file(path, on_bytes), state.st_size, state.st_mtime_ns))
    return tuple(records)


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, in hexadecimal. on_bytes: told of each piece read, bytes. Raises ModelFileMissing."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(READ_BYTES):
                digest.update(piece)
                if on_bytes is not None:
                    on_bytes(len(piece))
    except OSError as error:
        raise ModelFileMissing(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def weights_digest(model_format: ModelFormat, records: Sequence[FileRecord]) -> str:
    """Form the digest that names a model's weights; see the module's docstring."""
    if model_format == "gguf":
        (record,) = records
        return f"sha256:{record.sha256}"
    lines = sorted((Path(record.path).name, record.sha256) for record in records)
    listing = "".join(f"{sha256}  {name}\n" for name, sha256 in lines)
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def _gguf(name: str, path: Path) -> ModelFiles:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelFormatUnsupported(f"{path} is not a GGUF file; a safetensors model is named by its directory")
    part = _GGUF_PART.search(path.name)
    if part is not None and int(part.group(1)) > 1:
        raise ModelFormatUnsupported(f"{path} is one of {int(part.group(1))} parts; merge them into one GGUF file first")
    return ModelFiles(name, "gguf", (path,), path.parent)


def _safetensors(directory: Path) -> tuple[Path, ...]:
    """Weights files of a directory: those that the index names, else all. Raises ModelFileMissing, ModelFileCorrupt."""
    index = directory / INDEX_NAME
    if not index.exists():
        files = tuple(sorted(directory.glob("*.safetensors")))
        if len(files) > MAX_WEIGHTS_FILES:
            raise ModelFileCorrupt(f"{directory} holds {len(files)} safetensors files; {MAX_WEIGHTS_FILES} are allowed")
        return files
    names = _indexed_names(index)
    return tuple(_require(directory / name) for name in names)


def _indexed_names(index: Path) -> list[str]:
    with index.open("rb") as file:
        raw = file.read(INDEX_MAX_BYTES + 1)
    if len(raw) > INDEX_MAX_BYTES:
        raise ModelFileCorrupt(f"{index} is larger than {INDEX_MAX_BYTES} bytes")
    try:
        weight_map = json.loads(raw)["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ModelFileCorrupt(f"{index} has no weight_map from tensor names to file names") from None
    if not names or len(names) > MAX_WEIGHTS_FILES:
        raise ModelFileCorrupt(f"{index} names {len(names)} files; 1 to {MAX_WEIGHTS_FILES} are allowed")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelFileCorrupt(f"{index} names a file that is not a safetensors file beside it")
    return names


def _require(path: Path) -> Path:
    if not path.is_file():
        raise ModelFileMissing(f"{path} is missing")
    return path
