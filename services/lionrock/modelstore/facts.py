"""Facts of a model's architecture, read from GGUF metadata or from config.json, without loading a tensor.

`python -m lionrock.modelstore.facts PATH` prints those that planning needs as one line of JSON, and leaves them, or what is wrong,
as the last words of its pod.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lionrock.modelstore.errors import ModelFileCorrupt, ModelFileMissing, ModelStoreError
from lionrock.modelstore.gguf_metadata import ArrayLength, read_gguf_header
from lionrock.modelstore.safetensors_header import read_safetensors_header
from lionrock.modelstore.source import ModelFiles

CONFIG_MAX_BYTES = 4 * 1024 * 1024
TERMINATION_LOG = Path("/dev/termination-log")
"""Where Kubernetes looks for a container's last words."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What `lionrock models show` prints. weight_type: the element type that holds most of the weights."""

    name: str
    format: str
    architecture: str
    layers: int
    heads: int
    kv_heads: int
    hidden_size: int
    vocabulary_size: int
    context_length: int
    weight_type: str
    parameters: int
    weight_bytes: int
    has_chat_template: bool


def read_facts(model: ModelFiles) -> ModelFacts:
    """Read a model's facts. Raises ModelFileMissing, ModelFileCorrupt, ModelFormatUnsupported."""
    return _gguf_facts(model) if model.format == "gguf" else _safetensors_facts(model)


def _gguf_facts(model: ModelFiles) -> ModelFacts:
    (path,) = model.files
    header = read_gguf_header(path)
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelFileCorrupt(f"{path} does not say its general.architecture")

    def count(key: str, default: int | None = None) -> int:
        return _positive(metadata.get(f"{architecture}.{key}", default), f"{architecture}.{key}", path)

    heads = count("attention.head_count")
    tokens = metadata.get("tokenizer.ggml.tokens")
    weights: Counter[str] = Counter()
    for tensor in header.tensors:
        weights[tensor.type] += tensor.elements
    if not weights:
        raise ModelFileCorrupt(f"{path} holds no tensors")
    return ModelFacts(
        name=model.name,
        format=model.format,
        architecture=architecture,
        layers=count("block_count"),
        heads=heads,
        kv_heads=count("attention.head_count_kv", heads),
        hidden_size=count("embedding_length"),
        vocabulary_size=tokens.items if isinstance(tokens, ArrayLength) else count("vocab_size"),
        context_length=count("context_length"),
        weight_type=weights.most_common(1)[0][0],
        parameters=weights.total(),
        weight_bytes=sum(tensor.bytes for tensor in header.tensors),
        has_chat_template=isinstance(metadata.get("tokenizer.chat_template"), str),
    )


def _safetensors_facts(model: ModelFiles) -> ModelFacts:
    path = model.directory / "config.json"
    config = read_json(path, CONFIG_MAX_BYTES)
    text = config.get("text_config")
    if isinstance(text, dict):  # a multimodal wrapper: the language model's own facts
        config = {**config, **text}

    def count(key: str, default: Any = None) -> int:
        return _positive(config.get(key, default), key, path)

    architecture = config.get("model_type")
    if not isinstance(architecture, str):
        raise ModelFileCorrupt(f"{path} does not say its model_type")
    weights: Counter[str] = Counter()
    weight_bytes = 0
    for file in model.files:
        for tensor in read_safetensors_header(file):
            weights[tensor.dtype] += tensor.elements
            weight_bytes += tensor.end - tensor.begin
    if not weights:
        raise ModelFileCorrupt(f"{model.directory} holds no tensors")
    heads = count("num_attention_heads")
    return ModelFacts(
        name=model.name,
        format=model.format,
        architecture=architecture,
        layers=count("num_hidden_layers"),
        heads=heads,
        kv_heads=count("num_key_value_heads", heads),
        hidden_size=count("hidden_size"),
        vocabulary_size=count("vocab_size"),
        context_length=count("max_position_embeddings"),
        weight_type=weights.most_common(1)[0][0],
        parameters=weights.total(),
        weight_bytes=weight_bytes,
        has_chat_template=_has_chat_template(model.directory),
    )


def _has_chat_template(directory: Path) -> bool:
    if (directory / "chat_template.jinja").is_file():
        return True
    config = directory / "tokenizer_config.json"
    return config.is_file() and bool(read_json(config, CONFIG_MAX_BYTES).get("chat_template"))


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object of at most max_bytes bytes. Raises ModelFileMissing, ModelFileCorrupt."""
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelFileMissing(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > max_bytes:
        raise ModelFileCorrupt(f"{path} is larger than {max_bytes} bytes")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise ModelFileCorrupt(f"{path} is not JSON") from None
    if not isinstance(document, dict):
        raise ModelFileCorrupt(f"{path} is not a JSON object")
    return document


def _positive(value: object, key: str, path: Path) -> int:
    if type(value) is not int or not 0 < value < 1 << 40:
        raise ModelFileCorrupt(f"{path} does not give a positive number for {key}")
    return value


def main(argv: Sequence[str]) -> int:
    """Print what planning needs to know of the model at a path. Returns the exit status."""
    from lionrock.modelstore.planning_config import planning_text

    parser = argparse.ArgumentParser(prog="python -m lionrock.modelstore.facts", description=main.__doc__)
    parser.add_argument("path", type=Path, help="GGUF file, store entry, or directory with config.json")
    parser.add_argument(
        "--message-file",
        type=Path,
        default=TERMINATION_LOG,
        help="file for the last words, written where it exists (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    try:
        text, status = planning_text(arguments.path), 0
    except ModelStoreError as error:
        text, status = str(error), 1
    print(text, file=sys.stderr if status else sys.stdout)
    if arguments.message_file.exists():
        arguments.message_file.write_text(text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
