"""Files of an object store brought into a directory: resumed, checked, and described so that nobody reads them again for that.

A transfer goes on where it was interrupted as long as the object is the same (its ETag), also in another process. Every file is
checked against the manifest of a store entry where the store has one; else the directory gets a manifest with the digests that were
computed on the way. Does not know settings or which files are a model's (`objects`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from lionrock.modelstore.errors import DigestMismatch, ModelFileMissing, PullFailed
from lionrock.modelstore.manifest import MANIFEST_NAME, FileRecord, Manifest, read_manifest, write_manifest
from lionrock.modelstore.source import locate, sha256_file

log = logging.getLogger("lionrock.modelstore")

WEIGHTS: Final = frozenset({".gguf", ".safetensors"})
_PIECE_BYTES: Final = 8 << 20
_HEAD_BYTES: Final = 32 << 20  # of a weights file, where only its header is wanted
_PARALLEL: Final = 4
_ATTEMPTS: Final = 8
_PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
_STATE_NAME: Final = ".fetched.json"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One object. name: relative to the prefix; e_tag: None where the store states none, and then nothing is resumed."""

    key: str
    name: str
    size: int
    e_tag: str | None


class Fetch:
    """Brings the files of one model into one directory."""

    def __init__(self, store: S3Store, directory: Path, *, pause: Callable[[float], None] = time.sleep) -> None:
        """pause: between attempts, seconds."""
        self._store, self._directory, self._pause = store, directory, pause
        self._state = _State(directory / _STATE_NAME)
        self.transferred_bytes = 0
        """What came over the network, for the log."""

    def fetch(self, files: Sequence[RemoteFile], *, source: str) -> None:
        """Fetch all of them and write the manifest. source: what it says about where they came from.

        Raises PullFailed, DigestMismatch, ModelFileCorrupt, ModelFileMissing.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        described = [file for file in files if file.name == MANIFEST_NAME]
        for file in described:
            self._one(file, None)
        promised = {record.path: record for record in read_manifest(self._directory).files} if described else {}
        if missing := sorted(promised.keys() - {file.name for file in files}):
            raise ModelFileMissing(f"the manifest names {missing[0]}, which the store does not have")
        wanted = [file for file in files if file.name != MANIFEST_NAME]
        self._check_room(wanted)
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="lionrock-fetch") as pool:
            digests = dict(
                zip((f.name for f in wanted), pool.map(lambda f: self._one(f, promised.get(f.name)), wanted), strict=True)
            )
        if not described:
            self._describe(digests, source)

    def fetch_heads(self, files: Sequence[RemoteFile]) -> None:
        """Fetch what describes the model: small files whole, of weights the beginning, with holes where tensors would be."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for file in files:
            if PurePosixPath(file.name).suffix.lower() not in WEIGHTS:
                self._one(file, None)
                continue
            path = self._path(file)
            with path.open("wb") as out:
                for piece in self._stream(file, 0, min(file.size, _HEAD_BYTES)):
                    out.write(piece)
                out.truncate(file.size)

    def _one(self, file: RemoteFile, record: FileRecord | None) -> str:
        """Fetch one file; returns its SHA-256."""
        path = self._path(file)
        if record is not None and record.size != file.size:
            raise DigestMismatch(f"{file.name} has {file.size} bytes in the store, and the manifest says {record.size}")
        if path.is_file() and path.stat().st_size == file.size and (known := self._state.digest(file)) is not None:
            return known  # fetched before this start
        part = path.with_name(f".{path.name}.part")
        for attempt in range(_ATTEMPTS):
            try:
                sha256 = self._receive(file, part)
                break
            except (BaseError, OSError) as error:
                if isinstance(error, PreconditionError):
                    raise PullFailed(f"{file.name} was replaced in the store while it was fetched; start again") from None
                if attempt + 1 == _ATTEMPTS or isinstance(error, (PermissionDeniedError, UnauthenticatedError, FileNotFoundError)):
                    raise failed(f"{file.name} cannot be fetched", error) from None
                log.warning("%s: %s; going on where it ended", file.name, type(error).__name__)
                self._pause(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
        if record is not None and sha256 != record.sha256:
            part.unlink()
            raise DigestMismatch(f"{file.name} has SHA-256 {sha256}, and the manifest says {record.sha256}")
        part.replace(path)
        if record is not None:
            os.utime(path, ns=(record.mtime_ns, record.mtime_ns))  # so that the recorded digest holds for this copy
        self._state.fetched(file, sha256)
        return sha256

    def _receive(self, file: RemoteFile, part: Path) -> str:
        """Bring a part up to the whole file; returns the SHA-256. Raises what obstore raises, OSError."""
        begin = part.stat().st_size if part.is_file() else 0
        if begin > file.size or file.e_tag is None or self._state.begun(file) != file.e_tag:
            begin = 0
        self._state.begin(file)
        digest = hashlib.sha256()
        with part.open("r+b" if begin else "wb") as out:
            while out.tell() < begin:
                digest.update(out.read(min(_PIECE_BYTES, begin - out.tell())))
            for piece in self._stream(file, begin, file.size):
                out.write(piece)
                digest.update(piece)
            written = out.tell()
            out.flush()
            os.fsync(out.fileno())
        if written != file.size:
            raise OSError(f"the answer ended after {written} of {file.size} bytes")
        return digest.hexdigest()

    def _stream(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        if begin >= end:
            return
        options: dict[str, Any] = {"range": (begin, end)}
        if file.e_tag is not None:
            options["if_match"] = file.e_tag
        for piece in obstore.get(self._store, file.key, options=options).stream(min_chunk_size=_PIECE_BYTES):  # type: ignore[arg-type]
            content = bytes(piece)
            self.transferred_bytes += len(content)
            yield content

    def _path(self, file: RemoteFile) -> Path:
        path = self._directory / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _check_room(self, files: Sequence[RemoteFile]) -> None:
        there = sum(part.stat().st_size for part in self._directory.rglob("*") if part.is_file())
        needed, free = sum(file.size for file in files) - there, shutil.disk_usage(self._directory).free
        if needed > free:
            raise PullFailed(f"the files need {needed} bytes more, and {self._directory} has {free} free")

    def _describe(self, digests: dict[str, str], source: str) -> None:
        located = locate("model", self._directory)
        records = []
        for path in located.files:
            name, status = str(path.relative_to(self._directory)), path.stat()
            records.append(FileRecord(name, digests.get(name) or sha256_file(path), status.st_size, status.st_mtime_ns))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_manifest(self._directory, Manifest("model", located.format, tuple(records), source, now))


class _State:
    """Which object each file, or part of one, is of; survives this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = threading.Lock()
        try:
            self._files: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
        except (OSError, ValueError):
            self._files = {}

    def digest(self, file: RemoteFile) -> str | None:
        """SHA-256 of a file that was fetched whole and is still what the store has."""
        known = self._files.get(file.name, {})
        same = file.e_tag is not None and (known.get("e_tag"), known.get("size")) == (file.e_tag, file.size)
        return known.get("sha256") if same else None

    def begun(self, file: RemoteFile) -> str | None:
        """ETag of the object that the part is of."""
        return self._files.get(file.name, {}).get("e_tag")

    def begin(self, file: RemoteFile) -> None:
        """Note which object a part is of."""
        self._write(file, None)

    def fetched(self, file: RemoteFile, sha256: str) -> None:
        """Note that a file is whole."""
        self._write(file, sha256)

    def _write(self, file: RemoteFile, sha256: str | None) -> None:
        with self._writing:
            self._files[file.name] = {"e_tag": file.e_tag, "size": file.size, "sha256": sha256}
            temporary = self._path.with_name(f"{self._path.name}.new")
            temporary.write_text(json.dumps(self._files), encoding="utf-8")
            temporary.replace(self._path)


def failed(what: str, error: BaseException) -> PullFailed:
    """Name the failure without the library's text, which quotes requests."""
    match error:
        case PermissionDeniedError():
            reason = "this key may not"
        case UnauthenticatedError():
            reason = "the store does not know this key, or its secret is wrong"
        case FileNotFoundError():
            reason = "the store does not have it"
        case _:
            reason = type(error).__name__
    return PullFailed(f"{what}: {reason}")
