"""Checkpoints that are damaged, or written to do harm: a model, or an error of ours by name, at no more cost than they are worth.

Truncated and mislabelled files are in test_weights; here is what anybody could put into a header, an index or a configuration.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import plan_for

from lionrock.inference.model.errors import ModelError
from lionrock.inference.model.weights import open_weights
from lionrock.inference.model.worker import ShardWorker

KIB, HUGE = 1 << 10, 1 << 60


def load(path: Path) -> None:
    """Open, plan and read everything."""
    ShardWorker(path, plan_for(open_weights(path).config), 0, native_kernels="off").load()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sound ones: dense in one file, and a mixture with latent attention in several with an index."""
    directory = tmp_path_factory.mktemp("sound")
    save_model("llama", directory / "llama", num_hidden_layers=1)
    save_model("deepseek_v3", directory / "deepseek_v3", num_hidden_layers=2, shard_size="60KB")
    for path in directory.iterdir():
        load(path)
    return {path.name: path for path in directory.iterdir()}


def damaged(path: Path, directory: Path, name: str, data: bytes) -> Path:
    """A copy of a checkpoint with one file replaced; the others are the same files."""
    copy = directory / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in path.iterdir():
        if file.name != name:
            os.link(file, copy / file.name)
    (copy / name).write_bytes(data)
    return copy


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    architecture=st.sampled_from(["llama", "deepseek_v3"]),
    which=st.integers(0, 50),
    damage=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_damaged_byte_anywhere_gives_a_named_error_or_a_model(
    checkpoints: dict[str, Path], tmp_path: Path, architecture: str, which: int, damage: list[tuple[int, int]]
) -> None:
    """In the first 4 KB of any file: headers, index and configuration lie there."""
    path = checkpoints[architecture]
    files = sorted(file.name for file in path.iterdir())
    name = files[which % len(files)]
    data = bytearray((path / name).read_bytes())
    for at, value in damage:
        data[at % len(data)] = value
    with contextlib.suppress(ModelError):
        load(damaged(path, tmp_path, name, bytes(data)))


_NUMBERS = st.integers(-2, 400) | st.sampled_from([HUGE, -HUGE, 2**63 - 1, 2**64, 2**200]) | st.floats() | st.booleans() | st.none()
_OFFSETS = st.lists(_NUMBERS, max_size=3) | _NUMBERS
_ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F8_E4M3", "I64", "BOOL", "F4", "", 7]),
        "shape": st.lists(_NUMBERS, max_size=4) | _NUMBERS,
        "data_offsets": _OFFSETS,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.integers(0, 20), _ENTRIES | _NUMBERS | st.text(max_size=3), min_size=1, max_size=3),
    merged=st.booleans(),
)
def test_a_lying_safetensors_header_gives_a_named_error_or_a_model(
    checkpoints: dict[str, Path], tmp_path: Path, changes: dict[int, Any], merged: bool
) -> None:
    path = checkpoints["llama"]
    data = (path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    names = sorted(header)
    for index, change in changes.items():
        name, entry_before = names[index % len(names)], header[names[index % len(names)]]
        both = merged and isinstance(change, dict) and isinstance(entry_before, dict)
        header[name] = {**entry_before, **change} if both else change
    encoded = json.dumps(header).encode()
    lying = struct.pack("<Q", len(encoded)) + encoded + data[8 + length :]
    with contextlib.suppress(ModelError):
        load(damaged(path, tmp_path, "model.safetensors", lying))


_JSON = st.recursive(
    _NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
_MAPS = st.none() | st.dictionaries(st.sampled_from(["model.norm.weight", "x"]), _JSON)
_FILES = ["config.json", "generation_config.json", "model.safetensors.index.json"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(_FILES),
    document=_JSON,
    map_of=_MAPS,
)
def test_any_json_in_place_of_a_document_gives_a_named_error_or_a_model(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, document: object, map_of: dict[str, object] | None
) -> None:
    if map_of is not None:
        document = {"weight_map": map_of}
    with contextlib.suppress(ModelError):
        load(damaged(checkpoints["deepseek_v3"], tmp_path, name, json.dumps(document).encode()))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.integers(0, 60), _NUMBERS | _JSON, min_size=1, max_size=3))
def test_any_values_in_the_configuration_of_a_mixture_give_a_named_error_or_a_model(
    checkpoints: dict[str, Path], tmp_path: Path, changes: dict[int, object]
) -> None:
    path = checkpoints["deepseek_v3"]
    config = json.loads((path / "config.json").read_text())
    keys = sorted(config)
    config |= {keys[index % len(keys)]: value for index, value in changes.items()}
    with contextlib.suppress(ModelError):
        load(damaged(path, tmp_path, "config.json", json.dumps(config).encode()))


# ---- claims that cost nothing to make -----------------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def entry(shape: list[int], offsets: tuple[int, int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


CLAIMS: dict[str, bytes] = {
    "header-of-2^60-bytes": safetensors({}, length=HUGE),
    "header-of-all-bytes": safetensors({}, length=2**64 - 1),
    "header-of-90-MB": safetensors({}, length=90 << 20),
    "2^60-elements": safetensors({"model.embed_tokens.weight": entry([1 << 30, 1 << 30], (0, 1 << 62))}),
    "elements-that-overflow": safetensors({"model.embed_tokens.weight": entry([1 << 40, 1 << 40], (0, 0))}),
    "offsets-that-overflow": safetensors({"model.embed_tokens.weight": entry([331, 48], (2**64 - 8, 2**64 - 1))}),
    "offsets-backwards": safetensors({"model.embed_tokens.weight": entry([331, 48], (63552, 0))}, bytes(63552)),
    "overlap": safetensors({"a": entry([8], (0, 32)), "b": entry([8], (0, 32))}, bytes(32)),
    "hole": safetensors({"a": entry([8], (0, 32)), "b": entry([8], (64, 96))}, bytes(96)),
    "deep": safetensors(b"[" * 100_000),
    "deep-object": safetensors(b'{"a":' * 100_000),
    "many-names": safetensors({f"model.layers.{n}.weight": entry([0], (0, 0)) for n in range(50_000)}),
    "not-utf8": safetensors(b'{"\xff\xfe": 1}'),
    "empty": b"",
    "zeros": bytes(64 * KIB),
}
CONFIGS: dict[str, dict[str, object]] = {
    "every-size-largest": dict.fromkeys(["vocab_size", "hidden_size", "intermediate_size"], 1 << 24),
    "largest-context": {"max_position_embeddings": 1 << 24, "head_dim": 128},
    "most-layers": {"num_hidden_layers": 1024},
    "largest-table": {"vocab_size": 1 << 24},
    "most-experts": {
        "model_type": "deepseek_v3", "num_hidden_layers": 1024, "n_routed_experts": 16384, "num_experts_per_tok": 1, "n_group": 1,
        "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
        "moe_intermediate_size": 8, "rope_interleave": True,
    },
    "most-digits": {"hidden_size": 10**400},
}  # fmt: skip


def write_hostile(path: Path, directory: Path) -> None:
    """One checkpoint a claim, all else sound."""
    config = json.loads((path / "config.json").read_text())
    index = {f"model.layers.{n}.weight": "model.safetensors" for n in range(100_000)}
    files = {name: ("model.safetensors", data) for name, data in CLAIMS.items()}
    files |= {name: ("config.json", json.dumps(config | changes).encode()) for name, changes in CONFIGS.items()}
    files |= {
        "config-of-deep-lists": ("config.json", b"[" * 200_000),
        "config-of-digits": ("config.json", b'{"hidden_size": ' + b"9" * 10**6 + b"}"),
        "index-of-nothing": ("model.safetensors.index.json", json.dumps({"weight_map": index}).encode()),
    }
    for name, (file, data) in files.items():
        shutil.copytree(path, directory / name)
        (directory / name / file).write_bytes(data)
    for name, data in gguf_claims().items():
        (directory / f"{name}.gguf").write_bytes(data)


def gguf_claims() -> dict[str, bytes]:
    """GGUF headers: magic, version 3, counts, entries and tensors as they claim."""

    def header(tensors: int, entries: int, rest: bytes = b"") -> bytes:
        return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + rest

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def tensor(shape: list[int], kind: int, offset: int) -> bytes:
        return text(b"token_embd.weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)

    array_of_strings = text(b"k") + struct.pack("<IIQ", 9, 8, HUGE)
    return {
        "2^60-tensors": header(HUGE, 0),
        "2^60-entries": header(0, HUGE),
        "many-tensors": header(1 << 18, 0, bytes(64 * KIB)),
        "string-of-2^60": header(0, 1, struct.pack("<Q", HUGE)),
        "array-of-2^60-numbers": header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 10, HUGE)),
        "array-of-2^60-strings": header(0, 1, array_of_strings + bytes(512 * KIB)),
        "array-of-arrays": header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 9, 4) + bytes(64)),
        "2^60-rows": header(1, 0, tensor([64, HUGE], 0, 0) + bytes(4096)),
        "rows-that-overflow": header(1, 0, tensor([1 << 32, 1 << 32, 1 << 32], 0, 0) + bytes(4096)),
        "offset-of-2^63": header(1, 0, tensor([64, 2], 0, 1 << 63) + bytes(4096)),
        "unknown-type": header(1, 0, tensor([64, 2], 9999, 0) + bytes(4096)),
        "no-dimensions": header(1, 0, tensor([], 0, 0) + bytes(4096)),
    }


def test_claims_cost_nothing_to_refuse(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Headers of exabytes, tensors of 2^60 elements, nests and floods, in a process that may take 192 MiB for all of them."""
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    write_hostile(checkpoints["llama"], hostile)
    script = Path(__file__).parent / "load_hostile.py"
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, str(script), str(hostile)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = dict(json.loads(line) for line in done.stdout.splitlines())
    assert outcomes.keys() == {path.name for path in hostile.iterdir()}
    named = {"MalformedWeights", "MissingTensor", "TruncatedWeights", "UnsupportedModel"}
    assert {name: found for name, found in outcomes.items() if found not in named} == {}


def test_noise_is_never_a_model(tmp_path: Path) -> None:
    noise = random.Random(7)
    for length in (0, 3, 24, 1000, 50_000):
        path = tmp_path / "noise.gguf"
        for start in (b"", b"GGUF", b"GGUF\x03\x00\x00\x00"):
            path.write_bytes(start + noise.randbytes(length))
            with pytest.raises(ModelError):
                load(path)
