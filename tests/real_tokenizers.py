"""Four real tokenizers for tests, each with the reference that Hugging Face's libraries give for the same files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf as ggml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from lionrock.tokenization.chat_template import Message
from lionrock.tokenization.codec import Codec, open_codec
from models import TOKENIZERS, smollm2_path, tokenizer_directory

NAMES = ("smollm2", *TOKENIZERS)


@dataclass(frozen=True, repr=False)
class Served:
    """A codec and its reference: Hugging Face's tokenizer with all added tokens, and the template as transformers renders it."""

    name: str
    path: Path
    codec: Codec
    reference: Tokenizer
    template: str
    special_tokens: Mapping[str, str]

    def render(self, messages: Sequence[Message]) -> str:
        """transformers' apply_chat_template(tokenize=False, add_generation_prompt=True)."""
        from transformers.utils.chat_template_utils import render_jinja_template

        turns = [{"role": message.role, "content": message.content} for message in messages]
        rendered, _ = render_jinja_template([turns], chat_template=self.template, add_generation_prompt=True, **self.special_tokens)
        return str(rendered[0])

    def encode(self, text: str) -> list[int]:
        """Whole-string encoding with control tokens recognised wherever they stand."""
        return list(self.reference.encode(text, add_special_tokens=False).ids)


@cache
def served(name: str) -> Served:
    """Open one of NAMES; once a test run. Raises Unavailable."""
    if name == "smollm2":
        return _smollm2()
    directory = tokenizer_directory(name)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    tokens = {key: _text(config.get(key)) for key in ("bos_token", "eos_token", "pad_token")}
    return Served(
        name,
        directory,
        open_codec(name, directory),
        Tokenizer.from_file(str(directory / "tokenizer.json")),
        config["chat_template"],
        {key: text for key, text in tokens.items() if text is not None},
    )


def _text(token: Any) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _smollm2() -> Served:
    """Built with the libraries' own classes from what ggml's reader reads: digits one by one, then GPT-2's byte-level rule."""
    fields = ggml.GGUFReader(smollm2_path()).fields
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges"))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    reference = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in merges]))
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    reference.decoder = decoders.ByteLevel()
    reference.add_special_tokens([AddedToken(t, normalized=False) for t, kind in zip(tokens, kinds, strict=True) if kind == 3])
    template = fields["tokenizer.chat_template"].contents()
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    return Served("smollm2", smollm2_path(), open_codec("smollm2", smollm2_path()), reference, template, special)
