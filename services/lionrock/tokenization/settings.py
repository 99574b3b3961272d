"""Settings of the tokenization service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from lionrock.chassis.settings import ServiceSettings
from lionrock.tokenization.codec import DEFAULT_MAX_TOKENS


class TokenizationSettings(ServiceSettings):
    """Text to token ids and back, with the chat templates of the models that are served."""

    model_config = SettingsConfigDict(env_prefix="LIONROCK_TOKENIZATION_")

    models: dict[str, Path] = Field(
        min_length=1, description="served models by name: a model store entry, a GGUF file, or a directory with tokenizer.json"
    )
    max_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=1, le=2_000_000, description="most tokens of one input; longer ones are refused")
    heavy_chars: int = Field(32_768, ge=1, description="inputs with more code points are encoded beside the event loop")
    heavy_threads: int = Field(1, ge=1, le=16, description="such inputs encoded at once")
    heavy_queue: int = Field(8, ge=0, le=1024, description="such inputs that may wait; more are refused with OVERLOADED")
