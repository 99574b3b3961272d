"""What the gateway is told about consents."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from lionrock.chassis.private_files import PrivateFileUnusable, read_private
from lionrock.gateway.consents.subjects import MIN_SECRET_BYTES

_MAX_SECRET_BYTES: Final = 4096


class ConsentSettings(BaseModel):
    """Consents and opt-outs of data subjects."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret_file: Path = Field(
        description="secret under which data subjects are hashed, the same in all gateways for as long as the state lives, readable"
        f" by its owner alone: {MIN_SECRET_BYTES} characters or more"
    )

    def secret(self) -> bytes:
        """Read the secret. Raises ValueError, which names the file and quotes nothing of it."""
        try:
            return read_private(self.secret_file, _MAX_SECRET_BYTES).encode()
        except FileNotFoundError:
            raise ValueError(f"{self.secret_file}, which should hold the secret of the consents, is not there") from None
        except PrivateFileUnusable as error:
            raise ValueError(str(error)) from None
