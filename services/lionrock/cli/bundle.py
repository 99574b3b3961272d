"""`lionrock bundle`: what a site without a network needs, packed into one directory, and checked there.

The work is done in lionrock.cli.bundles; this module asks the model store, shows progress and says what was found.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from lionrock.cli.bundles import artifacts, checking, packing
from lionrock.cli.bundles.manifest import Manifest, ManifestInvalid
from lionrock.cli.errors import EXIT_FAILED, EXIT_USAGE, CommandError
from lionrock.cli.models import explained
from lionrock.cli.receipts import read_keys
from lionrock.cli.state import StateDir
from lionrock.modelstore.errors import ModelNameInvalid, ModelStoreError, UnknownModel
from lionrock.modelstore.source import open_source
from lionrock.modelstore.store import ModelStore
from lionrock.tlog.note import Ed25519Signer, MalformedNote, VerifierKey

_KEY_MAX_BYTES = 4096
_SHOWN_FINDINGS = 200
_FIX_DIRECTORY = "give the directory that `lionrock bundle create` made"


@dataclass(frozen=True, slots=True)
class Contents:
    """What the user named: images as files, layouts or STORE:NAME, packaged charts, models as NAME, PATH or NAME=PATH."""

    images: Sequence[str]
    charts: Sequence[Path]
    models: Sequence[str]


def create(directory: Path, contents: Contents, key_file: Path | None, state_dir: Path | None, *, as_json: bool) -> int:
    """Pack and say what was packed. Raises CommandError."""
    from importlib.metadata import version

    if not (contents.images or contents.charts or contents.models):
        raise CommandError("nothing to pack", fix="name --image, --chart or --model", exit_code=EXIT_USAGE)
    signer = _signer(key_file) if key_file is not None else None
    with tempfile.TemporaryDirectory(prefix="lionrock-bundle-", dir=_existing_parent(directory)) as scratch:
        try:
            given = [
                *(_image(spec, Path(scratch), number) for number, spec in enumerate(contents.images)),
                *(artifacts.chart(path) for path in contents.charts),
                *(_model(spec, state_dir) for spec in contents.models),
            ]
            with _progress("packing") as (start, advance):
                start(packing.total_bytes(given))
                manifest, sha256 = packing.pack(directory, given, f"lionrock {version('lionrock')}", signer, advance)
        except packing.BundleExists as error:
            raise CommandError(str(error), fix="give a directory that does not exist yet", exit_code=EXIT_USAGE) from error
        except artifacts.ArtifactInvalid as error:
            raise CommandError(str(error), fix="see `lionrock bundle create --help` for what can be packed") from error
        except ManifestInvalid as error:
            raise CommandError(f"these cannot be packed together: {error}", fix="pack them under other names") from error
        except OSError as error:
            raise CommandError(f"the bundle was not written: {error.strerror}", fix="check the disk and the given files") from error
    _show(manifest, sha256, as_json=as_json)
    return 0


def show(directory: Path, *, as_json: bool) -> int:
    """Say what a bundle says that it holds, unchecked. Raises CommandError."""
    manifest, sha256 = _claimed(directory)
    _show(manifest, sha256, as_json=as_json)
    return 0


def verify(directory: Path, keys: Sequence[str], keys_file: Path | None, *, as_json: bool) -> int:
    """Check a bundle and name all that is wrong. Returns 0 when nothing is. Raises CommandError."""
    trusted = [_verifier_key(text) for text in (*keys, *(read_keys(keys_file) if keys_file is not None else ()))]
    try:
        with _progress("checking") as (start, advance):
            checked = checking.check_bundle(directory, trusted, start, advance)
    except checking.NotReadable as error:
        raise CommandError(str(error), fix=_FIX_DIRECTORY) from error
    if as_json:
        for finding in checked.findings:
            print(json.dumps({"problem": finding.problem, "path": _shown(finding.path), "detail": finding.detail}))
        print(
            json.dumps({"verified": checked.good, "manifest_sha256": checked.manifest_sha256, "signed_by": list(checked.signed_by)})
        )
    else:
        _print_checked(directory, checked)
    return 0 if checked.good else EXIT_FAILED


def _print_checked(directory: Path, checked: checking.Checked) -> None:
    for finding in checked.findings[:_SHOWN_FINDINGS]:
        print(f"{finding.problem:<8} {_shown(finding.path)}: {finding.detail}", file=sys.stderr)
    if not checked.good:
        counts = Counter(finding.problem for finding in checked.findings)
        said = ", ".join(f"{count} {problem}" for problem, count in sorted(counts.items()))
        print(f"NOT VERIFIED  {directory}: {said}", file=sys.stderr)
        return
    assert checked.manifest is not None
    total = sum(file.size for file in checked.manifest.files)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold green]VERIFIED[/]  {len(checked.manifest.files)} files, {total / 1e6:.1f} MB, nothing else", end="\n")
    console.print(f"  manifest   sha256:{checked.manifest_sha256}")
    signed = ", ".join(checked.signed_by) or "no key was given: compare the manifest's digest with the sender's"
    console.print(f"  signed by  {signed}", markup=False)


def _show(manifest: Manifest, sha256: str, *, as_json: bool) -> None:
    if as_json:
        for artifact in manifest.artifacts:
            size = sum(file.size for file in manifest.files_of(artifact))
            fields = {"kind": artifact.kind, "name": artifact.name, "version": artifact.version, "digest": artifact.digest}
            print(json.dumps({**fields, "path": artifact.path, "bytes": size}))
        print(json.dumps({"manifest_sha256": sha256}))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("KIND", "NAME", "MB", "DIGEST", "PATH"):
        table.add_column(column, overflow="fold", justify="right" if column == "MB" else "left")
    for artifact in manifest.artifacts:
        size = sum(file.size for file in manifest.files_of(artifact))
        table.add_row(artifact.kind, artifact.name, f"{size / 1e6:.1f}", artifact.digest[:19], artifact.path)
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(f"manifest sha256:{sha256}", soft_wrap=True)


def _claimed(directory: Path) -> tuple[Manifest, str]:
    try:
        return checking.read_claims(directory)
    except (checking.NotReadable, ManifestInvalid) as error:
        raise CommandError(f"{directory} is not a bundle: {error}", fix=_FIX_DIRECTORY) from error


def _image(spec: str, scratch: Path, number: int) -> artifacts.Given:
    store, separator, name = spec.partition(":")
    if separator and store in packing.STORES and not Path(spec).exists():
        exported = scratch / f"{number}.tar"
        packing.export_image(store, name, exported)
        return artifacts.image(exported)
    return artifacts.image(Path(spec))


def _model(spec: str, state_dir: Path | None) -> artifacts.Given:
    """NAME in the store, PATH, or NAME=PATH."""
    name, separator, path = spec.partition("=")
    try:
        if separator:
            source = open_source(name, Path(path))
            return artifacts.model(name, Path(path), source.weights_digest)
        store = StateDir.at(state_dir).models
        try:
            return artifacts.model(name, store / name, ModelStore(store).get(name).weights_digest)
        except (UnknownModel, ModelNameInvalid):
            if not Path(spec).exists():
                raise
        called = Path(spec).resolve().name.removesuffix(".gguf").lower()
        source = open_source(called, Path(spec))
        return artifacts.model(called, Path(spec), source.weights_digest)
    except ModelStoreError as error:
        raise explained(error) from error


def _signer(path: Path) -> Ed25519Signer:
    try:
        with path.open("rb") as file:
            return Ed25519Signer.decode(file.read(_KEY_MAX_BYTES).decode("utf-8").strip())
    except (OSError, UnicodeDecodeError, MalformedNote) as error:
        raise CommandError(
            f"{path} is not a readable Ed25519 signer key", fix="give a file with PRIVATE+KEY+…, as an audit service keeps it"
        ) from error


def _verifier_key(text: str) -> VerifierKey:
    try:
        return VerifierKey.parse(text)
    except MalformedNote as error:
        raise CommandError(
            f"not a verifier key: {error}", fix="give NAME+ID+KEY, as the signer publishes it", exit_code=EXIT_USAGE
        ) from error


def _existing_parent(directory: Path) -> Path:
    """Where scratch files go: on the bundle's own disk, which has to have room anyway."""
    parent = directory.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent


def _shown(path: str) -> str:
    """Make a path fit for a terminal: what is on disk may have any characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in path) or "."


@contextmanager
def _progress(what: str) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """Show a bar on a terminal, on standard error; yields what is told the total and each step, bytes."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)

        def start(total: int) -> None:
            progress.update(task, total=total)

        def advance(count: int) -> None:
            progress.advance(task, count)

        yield start, advance
