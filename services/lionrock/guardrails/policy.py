"""Policies: one YAML file a profile, what it may say, and its digest.

Knows: the file's schema, checked strictly (unknown keys, repeated keys, anchors and unbounded patterns are errors named by
line), how rules become programs for each direction and source, and the canonical form that the digest covers: the validated
policy as JSON with sorted keys, no spaces, UTF-8 (comments and layout of the file do not change it). Does not know: transport,
texts.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal, NewType

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lionrock.guardrails import strict_yaml
from lionrock.guardrails.detectors import DETECTORS, Shape
from lionrock.guardrails.detectors.phrases import normalise_phrase
from lionrock.guardrails.languages import Language
from lionrock.guardrails.patterns import MAX_LENGTH, PatternInvalid, parse
from lionrock.guardrails.program import Action, ActiveRule, Program, check_pattern

ProfileName = NewType("ProfileName", str)

DEFAULT_PROFILE: Final = ProfileName("default")
SHIPPED: Final = Path(__file__).parent / "policies"
MAX_FILE_BYTES: Final = 4 << 20


class Direction(StrEnum):
    """Which way a text goes."""

    PROMPT = "prompt"
    ANSWER = "answer"


class Source(StrEnum):
    """Who wrote a text."""

    SYSTEM = "system"
    USER = "user"
    MODEL = "model"
    DOCUMENT = "document"


class PolicyInvalid(ValueError):
    """A policy file cannot be used. The message names the file, the line and the reason."""


_ActionName = Literal["allow", "mask", "review", "block"]
_Identifier = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?$")]
_Score = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Actions(_Strict):
    """What to do, a direction: one action for every source, or one a source. Not looked for where nothing is said."""

    prompt: _ActionName | dict[Literal["system", "user", "model", "document"], _ActionName] | None = None
    answer: _ActionName | dict[Literal["system", "user", "model", "document"], _ActionName] | None = None


class _Rule(_Strict):
    id: _Identifier
    type: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,62}$")]
    detector: str | None = None
    phrases: list[Annotated[str, Field(min_length=1, max_length=MAX_LENGTH)]] = []
    patterns: list[str] = []
    whole_words: bool = False
    case_sensitive: bool = False
    confidence: _Score = 0.9
    min_confidence: _Score = 0.5
    placeholder: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    actions: _Actions

    @model_validator(mode="after")
    def _finds_something(self) -> "_Rule":
        if self.detector is None and not self.phrases and not self.patterns:
            raise ValueError("needs a detector, phrases or patterns")
        if self.detector is not None and self.detector not in DETECTORS:
            raise ValueError(f"detector {self.detector!r} is not one of {', '.join(sorted(DETECTORS))}")
        for number, phrase in enumerate(self.phrases):
            if not normalise_phrase(phrase):
                raise ValueError(f"phrases[{number}] has no visible character")
            if len(normalise_phrase(phrase)) > MAX_LENGTH:
                raise ValueError(f"phrases[{number}] is longer than {MAX_LENGTH} characters")
        for number, pattern in enumerate(self.patterns):
            try:
                check_pattern(parse(pattern))
            except PatternInvalid as error:
                raise ValueError(f"patterns[{number}]: {error}") from error
        return self

    def compile(self) -> ActiveRule:
        """Return the rule as it is matched, with an action that `_active` replaces."""
        return ActiveRule(
            self.id,
            self.type,
            Action.ALLOW,
            self.placeholder or f"[{self.type}]",
            self.confidence,
            self.min_confidence,
            DETECTORS[self.detector] if self.detector else None,
            tuple(dict.fromkeys(map(normalise_phrase, self.phrases))),
            tuple(Shape(parse(p), self.whole_words, self.whole_words, not self.case_sensitive) for p in self.patterns),
        )


class _File(_Strict):
    profile: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
    description: Annotated[str, Field(max_length=1024)] = ""
    safe_messages: dict[Literal["yue-Hant", "zh-Hant", "zh-Hans", "en"], Annotated[str, Field(min_length=1, max_length=1024)]]
    rules: Annotated[list[_Rule], Field(max_length=1000)]

    @model_validator(mode="after")
    def _is_complete(self) -> "_File":
        missing = [language.value for language in Language if language.value not in self.safe_messages]
        if missing:
            raise ValueError(f"safe_messages lacks {', '.join(missing)}")
        seen: set[str] = set()
        for rule in self.rules:
            if rule.id in seen:
                raise ValueError(f"rule {rule.id!r} is there twice")
            seen.add(rule.id)
        return self


class Policy:
    """A profile, compiled. Immutable; threads may share it."""

    def __init__(self, file: _File) -> None:
        self.profile = ProfileName(file.profile)
        self.version = file.version
        self.digest = digest_of(file)
        self.safe_messages: Mapping[Language, str] = MappingProxyType({Language(k): v for k, v in file.safe_messages.items()})
        matched = [(rule.actions, rule.compile()) for rule in file.rules]
        compiled: dict[tuple[tuple[object, ...], ...], Program] = {}
        self._programs: dict[tuple[Direction, Source], Program] = {}
        for direction in Direction:
            for source in Source:
                rules = tuple(_active(matched, direction, source))
                finding = tuple(rule.finding for rule in rules)
                if finding not in compiled:
                    compiled[finding] = Program(rules)
                self._programs[direction, source] = compiled[finding].acting(rules)

    def program(self, direction: Direction, source: Source) -> Program:
        """Return the rules for texts that go this way and come from there."""
        return self._programs[direction, source]


def _active(rules: Sequence[tuple[_Actions, ActiveRule]], direction: Direction, source: Source) -> Iterator[ActiveRule]:
    for actions, rule in rules:
        said = getattr(actions, direction.value)
        name = said.get(source.value) if isinstance(said, dict) else said
        if name is not None:
            yield replace(rule, action=Action[name.upper()])


def digest_of(file: _File) -> str:
    """Return "sha256:" and the hexadecimal SHA-256 of the canonical form."""
    canonical = json.dumps(file.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def parse_policy(text: str, name: str) -> Policy:
    """Compile the text of a policy file; `name` is what errors call it. Raises PolicyInvalid."""
    try:
        document = strict_yaml.load(text)
    except strict_yaml.YamlInvalid as error:
        raise PolicyInvalid(f"{name}:{error.line}: {error.reason}") from error
    try:
        file = _File.model_validate(document.content)
        return Policy(file)
    except ValidationError as error:
        lines = [
            f"{name}:{document.line_of(e['loc'])}: {'.'.join(map(str, e['loc'])) or 'policy'}: {e['msg']}"
            for e in error.errors(include_url=False, include_input=False)
        ]
        raise PolicyInvalid("\n".join(lines)) from error
    except PatternInvalid as error:
        raise PolicyInvalid(f"{name}: {error}") from error


def load_policies(directory: Path | None) -> Mapping[ProfileName, Policy]:
    """Return the shipped profiles and those of `directory/*.yaml`, which win where names agree. Raises PolicyInvalid."""
    policies: dict[ProfileName, Policy] = {}
    for folder in (SHIPPED, directory):
        if folder is None:
            continue
        if not folder.is_dir():
            raise PolicyInvalid(f"{folder}: not a directory")
        here: dict[ProfileName, str] = {}
        for path in sorted(folder.glob("*.yaml")):
            if path.stat().st_size > MAX_FILE_BYTES:
                raise PolicyInvalid(f"{path.name}: larger than {MAX_FILE_BYTES} bytes")
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise PolicyInvalid(f"{path.name}: cannot be read as UTF-8") from error
            policy = parse_policy(text, path.name)
            if policy.profile in here:
                raise PolicyInvalid(f"{path.name}: profile {policy.profile!r} is also in {here[policy.profile]}")
            here[policy.profile] = path.name
            policies[policy.profile] = policy
    return MappingProxyType(policies)
