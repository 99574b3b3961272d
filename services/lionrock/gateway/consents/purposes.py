"""What a tenant says of one purpose: whether it needs consent, who may object, and the notice that people are given.

Pure. Does not know how a Tenant is written (lionrock.tenancy.notices) or who consented (rows.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

USUAL_DISCLOSURE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "en": "This answer was written by an AI system.",
        "zh-Hant": "此回答由人工智能系統撰寫。",
        "zh-Hans": "此回答由人工智能系统撰写。",
    }
)
"""By language (BCP 47), where a tenant says nothing else."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A collection notice in force. `texts` by language; a consent to a version before `consent_since` counts no more."""

    version: int
    consent_since: int
    texts: Mapping[str, str]
    digest: str
    """"sha256:…", see `notice_digest`."""


@dataclass(frozen=True, slots=True)
class PurposeRule:
    """What holds for a purpose. With `requires_consent` there is a notice."""

    requires_consent: bool = False
    exempt_from_opt_out: bool = False
    notice: Notice | None = None


NO_RULE: Final = PurposeRule()


def notice_digest(purpose: str, version: int, texts: Mapping[str, str]) -> str:
    """SHA-256 over the canonical JSON (RFC 8785) of {"purpose", "texts": {language: text}, "version"}, "sha256:…"."""
    stated = {"purpose": purpose, "texts": dict(texts), "version": version}
    # Keys are ASCII, and texts have no control character but the line end: this is canonical already.
    canonical = json.dumps(stated, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
