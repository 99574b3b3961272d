"""`lionrock plan`: how a model is cut for chips, how much memory each rank needs for what, and what would fit where it does not.

It asks the function that the operator asks, so both say the same. Reads a model's configuration, never its weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from lionrock.cli.errors import EXIT_USAGE, CommandError
from lionrock.cli.state import StateDir
from lionrock.planner.chips import CHIPS, GIB, Chip, InvalidChip, UnknownChip, chip, parse_memory
from lionrock.planner.fitting import RankMemory, Workload
from lionrock.planner.memory import RUNTIME_BYTES, USABLE_SHARE, ModelShape, UnsupportedArchitecture
from lionrock.planner.model_config import shape_of_config, weight_dtype_of_config
from lionrock.planner.replica import Backend, Chips, Parallelism, PlanError, ReplicaPlan, held_weights, plan_replica
from lionrock.planner.search import MAX_RANKS

_CONFIG_MAX_BYTES = 4 << 20
_USES = (
    ("weights", "weights"),
    ("KV cache", "kv_cache"),
    ("activations", "activations"),
    ("runtime", "runtime"),
    ("rotary", "rotary"),
)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the command line said."""

    model: str
    chip: str
    chips: int | None
    memory: str | None
    dtype: str
    weights: str
    concurrency: int
    context: int
    tensor: int | None
    pipeline: int | None
    backend: str


@dataclass(frozen=True, slots=True)
class _Model:
    """What is planned."""

    name: str
    shape: ModelShape
    checkpoint: str | None
    """Weight type that its files are written in; None: plain numbers."""


def run(options: PlanOptions, *, as_json: bool) -> int:
    """Plan and print. Returns the exit status; a refusal is a CommandError."""
    backend: Backend = "vllm" if options.backend == "vllm" else "torch"
    dequantised: str | None = None
    try:
        model = _read_model(options.model)
        asked = None if options.weights == "none" else options.weights
        held = held_weights(model.checkpoint, asked, backend)
        dequantised = model.checkpoint if held is None else None
        available = MAX_RANKS if options.chips is None else options.chips
        memory = None if options.memory is None else parse_memory(options.memory)
        workload = Workload(sequences=options.concurrency, tokens_per_sequence=options.context)
        plan = plan_replica(
            model.shape,
            Chips(chip=chip(options.chip), available=available, memory_bytes=memory),
            workload=workload,
            dtype=options.dtype,
            weight_dtype=held,
            parallelism=_parallelism(options),
            backend=backend,
        )
    except (UnknownChip, InvalidChip, UnsupportedArchitecture, PlanError) as error:
        raise CommandError(str(error), fix=_fix(error, dequantised)) from error
    if as_json:
        print(json.dumps(plan.status(), ensure_ascii=False))
    else:
        print("\n".join(_lines(model, plan, workload, options.dtype, held, backend)))
    return 0


def show_chips(*, as_json: bool) -> int:
    """Print the chip table. Returns the exit status."""
    if as_json:
        for row in CHIPS.values():
            print(json.dumps(_chip_facts(row)))
        return 0
    rows = [("NAME", "PRODUCT", "MEMORY", "A NODE", "RESOURCE", "DEVICE", "COLLECTIVE", "RAN HERE")]
    rows += [
        (
            row.name,
            row.product,
            "as stated" if row.memory_bytes is None else f"{row.memory_bytes // GIB} GiB",
            "?" if row.chips_per_node is None else str(row.chips_per_node),
            row.extended_resource or "none",
            row.torch_device,
            row.collective,
            "yes" if row.proven else "never",
        )
        for row in CHIPS.values()
    ]
    print("\n".join(_table(rows)))
    print("\nRows that never ran here are transcribed from the vendors' documentation: Lionrock's tests have not seen such a chip.")
    return 0


def _chip_facts(row: Chip) -> dict[str, Any]:
    return {
        "name": row.name,
        "product": row.product,
        "memoryBytes": row.memory_bytes,
        "chipsPerNode": row.chips_per_node,
        "evenCountsOnly": row.even_counts_only,
        "extendedResource": row.extended_resource,
        "rayResource": row.ray_resource,
        "torchDevice": row.torch_device,
        "collective": row.collective,
        "enginePlugin": row.engine_plugin,
        "proven": row.proven,
    }


# ---- the model -----------------------------------------------------------------------------------------------------------


def _read_model(model: str) -> _Model:
    """Read what is needed of a config.json, a directory that has one, a GGUF file, or a model of the store."""
    path = Path(model)
    stored = StateDir.at(None).models / model
    if not path.exists() and "/" not in model and stored.is_dir():
        path = stored
    if not path.exists():
        raise CommandError(
            f"there is no model {model}",
            fix="name a config.json, a directory that has one, a GGUF file, or one of `lionrock models list`",
        )
    if path.is_file() and path.suffix == ".json":
        return _of_config(path.parent.name or path.name, path)
    if path.is_dir() and (path / "config.json").is_file():
        return _of_config(path.name, path / "config.json")
    return _of_files(path)


def _of_config(name: str, path: Path) -> _Model:
    try:
        with path.open("rb") as file:
            text = file.read(_CONFIG_MAX_BYTES + 1)
        config = json.loads(text) if len(text) <= _CONFIG_MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise CommandError(f"{path} is no config.json of a model", fix="name the config.json that lies beside the model's weights")
    return _Model(name, shape_of_config(config), weight_dtype_of_config(config))


def _of_files(path: Path) -> _Model:
    """Read what only the engine's own readers know."""
    from lionrock.inference.model.errors import ModelError
    from lionrock.inference.served_model import read_config, shape_of
    from lionrock.modelstore.errors import ModelStoreError
    from lionrock.modelstore.source import locate

    try:
        return _Model(
            path.name, shape_of(read_config(locate("model", path))), None
        )  # the engine turns GGUF's blocks into plain numbers
    except (ModelError, ModelStoreError) as error:
        raise CommandError(str(error)) from error


def _parallelism(options: PlanOptions) -> Parallelism | None:
    if options.tensor is not None:
        return Parallelism(options.tensor, options.pipeline or 1)
    if options.pipeline is not None:
        raise CommandError("--pipeline is stated with --tensor", fix="--tensor N --pipeline M, or neither", exit_code=EXIT_USAGE)
    return None


def _fix(error: Exception, dequantised: str | None) -> str | None:
    """dequantised: weight type of the checkpoint, where the engine does not hold it so."""
    match error:
        case UnknownChip():
            return "lionrock plan --chips-known"
        case PlanError() if "not in the chip table; state it" in str(error):
            return "--memory 32Gi, for example"
        case PlanError() if dequantised is not None:
            return f"the engine turns {dequantised} into plain numbers: --weights int8-w8a8 rounds these, --backend vllm keeps it"
    return None


# ---- what is printed -----------------------------------------------------------------------------------------------------


def _lines(model: _Model, plan: ReplicaPlan, workload: Workload, dtype: str, held: str | None, backend: Backend) -> Sequence[str]:
    """Every number, and how it comes to be."""
    shape, shards = model.shape, plan.shards
    weights = shape.weight_bytes(dtype, held)
    cached = shape.kv_bytes_per_token(shape.kv_heads, shape.layers, dtype)
    tokens = workload.sequences * workload.tokens_per_sequence
    pods = "1 pod" if plan.pods == 1 else f"{plan.pods} pods"
    return [
        f"{plan.summary} ({pods} of {plan.chips_per_pod})",
        "",
        f"model      {model.name}: {shape.parameters() / 1e9:.2f} billion parameters, {shape.layers} layers, "
        f"window {shape.context_window} tokens",
        f"weights    {weights / GIB:.2f} GiB: {_weights_words(model.checkpoint, held, dtype, backend)}",
        f"KV cache   {workload.sequences} answers × {workload.tokens_per_sequence} tokens × {cached} bytes a token"
        f" = {tokens * cached / GIB:.2f} GiB, heads that ranks share counted once",
        f"a chip     {plan.chip_bytes / GIB:.2f} GiB × {USABLE_SHARE} = {plan.usable_bytes / GIB:.2f} GiB that a plan may fill; "
        f"runtime and collectives take {RUNTIME_BYTES / GIB:.2f} GiB of it",
        "",
        "GiB that a rank needs",
        *(f"  {line}" for line in _table(_rank_rows(plan), right_from=2)),
        "",
        f"room for {plan.kv_tokens} tokens of KV cache: {plan.kv_tokens / tokens:.1f} × what is asked for"
        if tokens
        else f"room for {plan.kv_tokens} tokens of KV cache",
        f"chip {shards.chip}: " + ("Lionrock's tests ran on it" if CHIPS[shards.chip].proven else "never run by Lionrock's tests"),
    ]


def _weights_words(checkpoint: str | None, held: str | None, dtype: str, backend: Backend) -> str:
    engine = "vLLM" if backend == "vllm" else "the engine"
    if held is None and checkpoint is not None:
        return f"the checkpoint's {checkpoint} becomes {dtype} when {engine} loads it"
    if held is None:
        return f"held as {dtype}"
    if held == checkpoint:
        return f"{engine} keeps the checkpoint's {held}; tables and norms are {dtype}"
    return f"layers are rounded to {held} when {engine} loads them; tables and norms are {dtype}"


def _rank_rows(plan: ReplicaPlan) -> list[tuple[str, ...]]:
    """One line for ranks next to each other that are alike."""
    rows = [("RANKS", "LAYERS", *(name.upper() for name, _ in _USES), "TOTAL", "FREE")]

    def alike(rank: int) -> tuple[int, int, RankMemory]:
        return plan.shards.shards[rank].stage, plan.shards.shards[rank].layers, plan.memory[rank]

    for (_, layers, memory), group in groupby(range(plan.chips), alike):
        ranks = list(group)
        first = plan.shards.shards[ranks[0]].first_layer
        name = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}"
        sizes = [getattr(memory, use) for _, use in _USES] + [memory.total, plan.usable_bytes - memory.total]
        rows.append((name, f"{first}–{first + layers - 1}", *(f"{size / GIB:.2f}" for size in sizes)))
    return rows


def _table(rows: Sequence[Sequence[str]], *, right_from: int | None = None) -> list[str]:
    """Columns of equal width. right_from: the first column that is set to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if right_from is not None and column >= right_from else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
