"""What the gateway is told about API keys."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from lionrock.chassis.private_files import PrivateFileUnusable, read_private
from lionrock.gateway.identity.api_keys import MIN_SERVER_SECRET_BYTES

_MAX_SECRET_BYTES: Final = 4096
_YEAR_DAYS: Final = 366


class ApiKeySettings(BaseModel):
    """API keys for workloads that cannot hold a certificate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret_file: Path = Field(
        description="secret that API keys are recognised with, the same in all gateways, readable by its owner alone:"
        f" {MIN_SERVER_SECRET_BYTES} characters or more; another one ends every key"
    )
    max_lifetime_days: int = Field(default=90, ge=1, le=_YEAR_DAYS, description="longest life of a key, in days")

    def secret(self) -> bytes:
        """Read the secret. Raises ValueError, which names the file and quotes nothing of it."""
        try:
            return read_private(self.secret_file, _MAX_SECRET_BYTES).encode()
        except FileNotFoundError:
            raise ValueError(f"{self.secret_file}, which should hold the secret of the API keys, is not there") from None
        except PrivateFileUnusable as error:
            raise ValueError(str(error)) from None
