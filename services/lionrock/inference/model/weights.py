"""Where a model's tensors come from: slices of them, by their Hugging Face names, from GGUF or safetensors.

A source knows file formats and naming; not which slices a rank wants, nor what is done with them. Only the slices that are asked
for are read (both formats are mapped), one tensor at a time.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lionrock.inference.model.config import ModelConfig
from lionrock.inference.model.config_gguf import from_gguf
from lionrock.inference.model.config_json import from_config_json
from lionrock.inference.model.errors import MalformedWeights, MissingTensor, TruncatedWeights, UnsupportedModel
from lionrock.inference.model.fp8 import SCALE_SUFFIX, BlockScaling, block_scaling_of
from lionrock.inference.model.gguf_file import GgufFile

_MAX_JSON_BYTES = 64 << 20
_INDEX = "model.safetensors.index.json"


class WeightSource(Protocol):
    """An opened model."""

    @property
    def config(self) -> ModelConfig:
        """What the model is."""
        ...

    def read(self, name: str, shape: tuple[int, ...], rows: range, columns: range | None, dtype: torch.dtype) -> Tensor:
        """Read rows (and columns, of a matrix) of a tensor that has `shape` as a whole.

        name: as in Hugging Face checkpoints, e.g. "model.layers.0.self_attn.q_proj.weight".
        Raises MissingTensor, MalformedWeights (TruncatedWeights), UnsupportedModel.
        """
        ...

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Check that the tensor is there and has that shape as a whole, and read nothing. Raises what `read` raises."""
        ...


def open_weights(path: Path) -> WeightSource:
    """Open a GGUF file, or a directory with `config.json` and safetensors files.

    Raises UnsupportedModel, MalformedWeights (TruncatedWeights, MissingTensor), FileNotFoundError.
    """
    if path.is_file():
        return GgufSource(path)
    if path.is_dir():
        return SafetensorsSource(path)
    raise FileNotFoundError(f"{path} is neither a GGUF file nor a directory")


class GgufSource:
    """A GGUF file under Hugging Face names, with llama.cpp's reordering of query and key rows undone."""

    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)
        tensors = self._file.tensors
        embedding = tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise MissingTensor(f"{path.name} has no token_embd.weight matrix")
        self.config = from_gguf(self._file.metadata, frozenset(tensors), embedding.shape[0])
        if "rope_freqs.weight" in tensors:  # Llama 3.1's rope scaling, as the divisor of each frequency
            divisors = self._file.read("rope_freqs.weight", None, None, torch.float32).tolist()
            self.config = replace(self.config, rope=replace(self.config.rope, divisors=tuple(divisors)))

    def read(self, name: str, shape: tuple[int, ...], rows: range, columns: range | None, dtype: torch.dtype) -> Tensor:
        """Read a slice; see WeightSource."""
        self.check(name, shape)
        gguf_name = _gguf_name(name)
        values = self._file.read(gguf_name, rows, columns, dtype)
        if self.config.architecture == "llama" and _REORDERED.search(gguf_name):
            # The converter writes each head's rows as pairs (i, i + half); they go back to first half, second half.
            half = self.config.head_dim // 2
            heads = values.reshape(-1, half, 2, *values.shape[1:])
            values = heads.transpose(1, 2).reshape(values.shape)
        return values

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Check a tensor; see WeightSource."""
        gguf_name = _gguf_name(name)
        tensor = self._file.tensors.get(gguf_name)
        if tensor is None:
            raise MissingTensor(f"{self._file.path.name} has no tensor {gguf_name}")
        _check_shape(gguf_name, tensor.shape, shape)


class SafetensorsSource:
    """A directory as `save_pretrained` writes it: `config.json` and safetensors files, with or without an index."""

    def __init__(self, directory: Path) -> None:
        generation = directory / "generation_config.json"
        config = _read_json(directory / "config.json")
        self._block_scaling = block_scaling_of(config)
        self.config = from_config_json(config, _read_json(generation) if generation.exists() else None)
        self._directory = directory
        self._handles: dict[str, Any] = {}  # of the files that were needed so far
        index = directory / _INDEX
        self._file_of: dict[str, str] = _indexed(index) if index.exists() else self._listed()
        if not self._file_of:
            raise MissingTensor(f"{directory.name} holds no safetensors file")

    def read(self, name: str, shape: tuple[int, ...], rows: range, columns: range | None, dtype: torch.dtype) -> Tensor:
        """Read a slice; see WeightSource."""
        stored, scaling = self._find(name, shape)
        row_slice = slice(rows.start, rows.stop)
        values = stored[row_slice] if columns is None else stored[row_slice, columns.start : columns.stop]
        assert isinstance(values, Tensor)
        if scaling is None:
            return values.to(dtype)
        scales_shape = scaling.scales_shape(shape)
        assert columns is not None, "a matrix is read by rows and columns"
        down, across = scaling.scales_of(rows, columns)
        scales = self.read(
            name + SCALE_SUFFIX, scales_shape, range(down.start, down.stop), range(across.start, across.stop), torch.float32
        )
        return scaling.dequantise(values, scales, rows, columns, dtype)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Check a tensor, and the scales that belong to it; see WeightSource."""
        _, scaling = self._find(name, shape)
        if scaling is not None:
            self._find(name + SCALE_SUFFIX, scaling.scales_shape(shape))

    def _find(self, name: str, shape: tuple[int, ...]) -> tuple[Any, BlockScaling | None]:
        """Return a tensor as safetensors offers slices of it, and how it is scaled; None: it holds plain numbers."""
        file = self._file_of.get(name)
        if file is None:
            raise MissingTensor(f"no safetensors file has tensor {name}")
        if file not in self._handles:
            self._handles[file] = _open_safetensors(self._directory / file)
        try:
            stored = self._handles[file].get_slice(name)
        except SafetensorError:
            raise MissingTensor(f"{file} lacks {name}, which the index says it holds") from None
        _check_shape(name, tuple(stored.get_shape()), shape)
        kind = stored.get_dtype()
        scaling = self._block_scaling if kind == "F8_E4M3" else None
        if kind not in ("F32", "F16", "BF16") and scaling is None:
            raise UnsupportedModel(f"tensor {name} has type {kind}; F32, F16 and BF16 are read")
        return stored, scaling

    def _listed(self) -> dict[str, str]:
        """Tensor names and their files, out of the files themselves."""
        for path in self._directory.glob("*.safetensors"):
            self._handles[path.name] = _open_safetensors(path)
        return {name: file for file, handle in self._handles.items() for name in handle.keys()}  # noqa: SIM118 - not a mapping


_LAYER = re.compile(r"model\.layers\.(\d+)\.([a-z_.]+)\.(weight|bias)")
_REORDERED = re.compile(r"attn_[qk]\.")
_GGUF_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def _gguf_name(name: str) -> str:
    if name in _GGUF_NAMES:
        return _GGUF_NAMES[name]
    match = _LAYER.fullmatch(name)
    assert match is not None, f"no GGUF name for {name}"
    return f"blk.{match[1]}.{_GGUF_LAYER_NAMES[match[2]]}.{match[3]}"


def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise MalformedWeights(f"tensor {name} has shape {list(found)}; the configuration says {list(wanted)}")


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise MissingTensor(f"{path.name}, which the index names, is missing") from None
    except SafetensorError:
        if _ends_early(path):
            raise TruncatedWeights(f"{path.name} ends before its last tensor does") from None
        raise MalformedWeights(f"{path.name} is no safetensors file") from None


def _ends_early(path: Path) -> bool:
    """Say whether a file that could not be opened is shorter than its header says, or than a header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length or size < 8:
            return length <= _MAX_JSON_BYTES
        try:
            header = json.loads(file.read(min(length, _MAX_JSON_BYTES)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return bool(size < 8 + length + max(ends))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return False


def _read_json(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        raw = file.read(_MAX_JSON_BYTES + 1)
    if len(raw) > _MAX_JSON_BYTES:
        raise MalformedWeights(f"{path.name} is larger than {_MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise MalformedWeights(f"{path.name} is not JSON") from None
    if not isinstance(value, dict):
        raise MalformedWeights(f"{path.name} is no JSON object")
    return value


def _indexed(path: Path) -> dict[str, str]:
    """Tensor names and their files by the index; files lie beside it."""
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedWeights(f"{path.name} has no weight_map")
    if not all(isinstance(file, str) for file in weight_map.values()):
        raise MalformedWeights(f"{path.name} names a file that is no name")
    for file in set(weight_map.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise MalformedWeights(f"{path.name} names a file that is not a safetensors file beside it")
        if not (path.parent / file).exists():
            raise MissingTensor(f"{file}, which the index names, is missing")
    return weight_map
