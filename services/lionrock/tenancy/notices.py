"""What a tenant tells people about its use of their data, and which purposes need their consent.

Knows the form of notices, of rules for purposes and of the AI disclosure. Does not know who consented (lionrock.gateway.consents).
Sources: PDPO Data Protection Principles 1 (what is told at collection) and 3 (prescribed consent to a new purpose); HKMA, 19 August
2024 (disclosure that AI is used, and a way out of it).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from lionrock.tenancy import vocabulary as words
from lionrock.tenancy.grants import Purpose, TenancyModel
from lionrock.tenancy.rules import rules

LANGUAGE: Final = r"^[a-z]{2,3}(-[A-Z][a-z]{3})?(-([A-Z]{2}|[0-9]{3}))?$"
"""BCP 47 tag of language, script and region."""
PARAGRAPHS: Final = r"^[^\x00-\x09\x0b-\x1f\x7f]+$"
"""Text for people, of several lines."""
MAX_LANGUAGES: Final = 16
MAX_NOTICE_VERSION: Final = 1_000_000
_TWICE: Final = "states a language twice"
_ONE_LANGUAGE: Final = rules(("self.all(each, self.exists_one(other, other.language == each.language))", _TWICE))


class NoticeText(TenancyModel):
    """A notice in one language."""

    language: str = Field(max_length=16, pattern=LANGUAGE, description="Language of the text, BCP 47, such as zh-Hant.")
    text: str = Field(min_length=1, max_length=4000, pattern=PARAGRAPHS, description="What people are told.")


class DisclosureText(TenancyModel):
    """The AI disclosure in one language."""

    language: str = Field(max_length=16, pattern=LANGUAGE, description="Language of the text, BCP 47, such as zh-Hant.")
    text: str = Field(min_length=1, max_length=500, pattern=words.TEXT, description="What stands beside an answer.")


def _one_of_each(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len({each.language for each in values}) != len(values):
        raise ValueError(_TWICE)
    return values


NoticeTexts = Annotated[
    tuple[NoticeText, ...],
    Field(min_length=1, max_length=MAX_LANGUAGES),
    AfterValidator(_one_of_each),
    Field(json_schema_extra=_ONE_LANGUAGE),
]
Disclosure = Annotated[
    tuple[DisclosureText, ...],
    Field(max_length=MAX_LANGUAGES),
    AfterValidator(_one_of_each),
    Field(json_schema_extra=_ONE_LANGUAGE),
]
_SINCE: Final = "consentSince is a version of the notice, no later than the one in force"


class NoticeSpec(TenancyModel):
    """What people are told when data about them are collected for a purpose."""

    model_config = ConfigDict(json_schema_extra=rules(("!has(self.consentSince) || self.consentSince <= self.version", _SINCE)))

    version: int = Field(ge=1, le=MAX_NOTICE_VERSION, description="Version in force: raise it when the texts change.")
    consent_since: int | None = Field(
        default=None,
        ge=1,
        le=MAX_NOTICE_VERSION,
        description="Oldest version to which a consent still counts; unset: the one in force, so that a new one asks anew.",
    )
    texts: NoticeTexts = Field(description="The notice, in each language in which it is shown.")

    @model_validator(mode="after")
    def _counts_from_a_version_that_was(self) -> Self:
        if self.consent_since is not None and self.consent_since > self.version:
            raise ValueError(_SINCE)
        return self


_NEEDS_NOTICE: Final = "a purpose that requires consent has a notice to consent to"


class PurposeRuleSpec(TenancyModel):
    """What holds for one purpose."""

    model_config = ConfigDict(
        json_schema_extra=rules(("!has(self.requiresConsent) || !self.requiresConsent || has(self.notice)", _NEEDS_NOTICE))
    )

    purpose: Purpose = Field(description="One of the tenant's purposes.")
    requires_consent: bool = Field(
        default=False,
        description="Whether a request names its data subjects and is refused without the recorded consent of each; unset: no.",
    )
    exempt_from_opt_out: bool = Field(
        default=False,
        description="Whether requests are answered although a data subject opted out of AI, as the law may demand; unset: no.",
    )
    notice: NoticeSpec | None = Field(default=None, description="Collection notice; unset: none.")

    @model_validator(mode="after")
    def _consent_is_to_something(self) -> Self:
        if self.requires_consent and self.notice is None:
            raise ValueError(_NEEDS_NOTICE)
        return self
