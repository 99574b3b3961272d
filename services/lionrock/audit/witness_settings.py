"""Settings of the audit service about witnesses."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lionrock.tlog.keys import SignatureType, VerifierKey

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class WitnessPeer(BaseModel):
    """One witness: somebody else's machine that speaks c2sp.org/tlog-witness."""

    model_config = _FROZEN

    url: str = Field(pattern=r"^https?://[^\s?#]{1,400}$", description="submission prefix, to which /add-checkpoint is added")
    verifier_key: str = Field(description="verifier key of its cosignatures, of type 0x04 (Ed25519) or 0x06 (ML-DSA-44)")
    ca_file: Path | None = Field(
        default=None, description="authorities that are trusted for its certificate, PEM; unset: the system's"
    )

    @field_validator("verifier_key")
    @classmethod
    def _is_a_cosigners(cls, text: str) -> str:
        if VerifierKey.parse(text).type not in (SignatureType.ED25519_COSIGNATURE, SignatureType.ML_DSA_44_COSIGNATURE):
            raise ValueError("is the key of a log, not of a witness")
        return text


class WitnessPolicySettings(BaseModel):
    """How many witnesses it takes, and what happens without them."""

    model_config = _FROZEN

    threshold: int | None = Field(
        default=None, ge=1, description="witnesses whose cosignatures make a checkpoint count; unset: all of them"
    )
    timeout_s: float = Field(default=10, gt=0, le=120, description="time that one witness gets for one checkpoint, in seconds")
    refresh_s: float = Field(
        default=60, gt=0, description="age at which a checkpoint is cosigned again although nothing was added, in seconds"
    )
    require_within_s: float | None = Field(
        default=None,
        gt=0,
        description="age of the last checkpoint that met the policy beyond which nothing is appended, so nothing is answered;"
        " unset: answers never wait for witnesses",
    )
