"""A checkpoint that every backend reads: a random Llama in safetensors with a real tokenizer of bytes and a few merges."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT_WINDOW = 8192
BOS, EOS = 1, 2
VOCAB_SIZE = 320  # more rows than tokens, as real models have
_TEXT = "The lion of the rock watches the harbour; the harbour watches the hill."


def write_checkpoint(directory: Path, *, seed: int = 0) -> Tokenizer:
    """Write config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json; return the tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT_WINDOW,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.15,  # wide, so that logits differ clearly
    )
    LlamaForCausalLM(config).float().eval().save_pretrained(directory)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 20,
        special_tokens=[AddedToken(text, special=True) for text in ("<pad>", "<s>", "</s>")],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT] * 4, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "model_max_length": CONTEXT_WINDOW,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(told))
    return tokenizer
