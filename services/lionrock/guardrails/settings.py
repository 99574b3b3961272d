"""Settings of the guardrails service. Read in `__main__` only."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import SettingsConfigDict

from lionrock.chassis.settings import ServiceSettings


class PolicySettings(BaseModel):
    """Where policies come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path | None = Field(
        default=None,
        description="directory of profiles (*.yaml); they replace shipped ones of their name",
    )


class WorkSettings(BaseModel):
    """How much is inspected at once, beside the event loop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inline_code_points: int = Field(
        default=4096, ge=0, le=65536, description="texts up to this size are inspected on the event loop"
    )
    threads: int = Field(default=2, ge=1, le=64, description="threads for larger texts")
    waiting: int = Field(default=16, ge=0, le=10_000, description="larger texts that may wait for a thread; more get OVERLOADED")


class GuardrailsSettings(ServiceSettings):
    """All settings of the service."""

    model_config = SettingsConfigDict(env_prefix="LIONROCK_GUARDRAILS_")

    policies: PolicySettings = PolicySettings()
    work: WorkSettings = WorkSettings()
