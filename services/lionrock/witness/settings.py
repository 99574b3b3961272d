"""Settings of the witness; `lionrock witness --help` prints them."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from lionrock.chassis.http_settings import HttpServerSettings, HttpServiceSettings
from lionrock.chassis.settings import MIB
from lionrock.tlog.keys import VerifierKey

ORIGIN_MAX_BYTES = 255
"""What fits an ML-DSA-44 cosignature."""


class WitnessHttpSettings(HttpServerSettings):
    """The witness's HTTP port and its limits."""

    max_body_bytes: int = Field(
        default=256 * 1024,
        ge=16 * 1024,
        le=MIB,
        description="one checkpoint with its proof; 64 signatures have 213 kB",
    )


class WitnessSettings(HttpServiceSettings):
    """Witness: cosigns what logs only ever append to (c2sp.org/tlog-witness).

    Before the options: new-key makes the keys and prints their verifier keys, keys prints them again.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="LIONROCK_WITNESS_", env_nested_delimiter="__")

    http: WitnessHttpSettings
    name: str = Field(
        pattern=r"^[^\s+]{1,255}$", description="name that the cosignatures carry: a URL without scheme, as witness.example/w1"
    )
    key_file: Path = Field(description="file with the signing keys; `new-key` makes it, and it is never replaced")
    state_file: Path = Field(
        description="SQLite file with the last cosigned checkpoint of every log; it must never be restored from a backup"
    )
    signatures: tuple[Literal["ed25519", "ml-dsa-44"], ...] = Field(
        ("ml-dsa-44", "ed25519"), min_length=1, max_length=2, description="algorithms that `new-key` makes a key for"
    )
    logs: dict[str, tuple[str, ...]] = Field(
        min_length=1, max_length=10_000, description="logs to cosign: origin, and the verifier keys that are trusted for it"
    )

    @field_validator("logs")
    @classmethod
    def _keys_can_be_read(cls, logs: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for origin, keys in logs.items():
            if not 1 <= len(origin.encode()) <= ORIGIN_MAX_BYTES or any(character < " " for character in origin):
                raise ValueError(f"an origin is one line of at most {ORIGIN_MAX_BYTES} bytes")
            if not keys:
                raise ValueError("a log needs a verifier key")
            for key in keys:
                VerifierKey.parse(key)
        return logs

    @model_validator(mode="after")
    def _signatures_differ(self) -> Self:
        if len(set(self.signatures)) != len(self.signatures):
            raise ValueError("signatures names an algorithm twice")
        return self
