"""Tests of access policies: what people expect of a set, as YAML files that lie beside it.

    callers:
      teller: {roles: [user], purposes: [customer_service], dataClasses: [personal], models: [qwen3]}
    tests:
      - it: lets a teller ask for a purpose that was granted
        caller: teller
        asks: {action: chat, purpose: customer_service, dataClass: personal, model: qwen3}
        expect: permitted
        by: [user]                                     # optional: exactly these policies decide
      - it: refuses another purpose
        caller: teller
        asks: {action: chat, purpose: marketing, dataClass: personal}
        expect: PURPOSE_NOT_PERMITTED

A caller belongs to a tenant of territory HK unless it says otherwise, and has every model unless it names some. `asks` may say
`now` (RFC 3339), `servedIn`, the territory of the gateway, for a review or an emergency `author`: an actor, "self" for the caller,
and `emergency`: "records" or "suspicion" while emergency access of the caller is in force.

Knows files and expectations; the decision is that of access_policies.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from lionrock.gateway.access_policies import AccessPolicies, utc_now
from lionrock.gateway.authorization import EMERGENCY_ACTIONS, AccessRequest, Action, BreakGlass, Denial
from lionrock.gateway.tenants import ANY_MODEL, Grant, Principal, Tenant, TenantName
from lionrock.tenancy.vocabulary import TERRITORY, DataClass, Role

MAX_TEST_FILE_BYTES = 1 << 20
SELF = "spiffe://tested/tenant/tested/user/caller"
Expectation = Literal["permitted"] | Denial


class PolicyTestsInvalid(ValueError):
    """A file of tests cannot be read. The message names the file and the reason."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True)


class TestCaller(_Strict):
    """Somebody with a grant."""

    __test__ = False

    roles: tuple[Role, ...]
    purposes: tuple[str, ...] = ()
    data_classes: frozenset[DataClass] = frozenset()
    models: frozenset[str] = frozenset({ANY_MODEL})
    not_after: AwareDatetime | None = None
    territory: str = Field(default="HK", pattern=TERRITORY)

    def principal(self) -> Principal:
        """Return the caller as the gateway would know them."""
        grant = Grant(self.roles, self.purposes, self.models, frozenset(self.data_classes), "default", not_after=self.not_after)
        name = TenantName("tested")
        return Principal(SELF, Tenant(name, self.territory, 1, {}), grant)


class Question(_Strict):
    """What is asked, when and where."""

    action: Action
    purpose: str | None = None
    data_class: DataClass | None = None
    model: str | None = None
    author: str | None = None
    emergency: Literal["records", "suspicion"] | None = None
    now: AwareDatetime | None = None
    served_in: str | None = Field(default=None, pattern=TERRITORY)

    def request(self) -> AccessRequest:
        """Return the question as the gateway would put it."""
        author = SELF if self.author == "self" else self.author
        emergency = None if self.emergency is None else BreakGlass("tested", self.emergency == "suspicion")
        return AccessRequest(self.action, self.purpose, self.data_class, self.model, author, emergency)

    @model_validator(mode="after")
    def _an_emergency_can_open_it(self) -> Self:
        if self.emergency is not None and self.action not in EMERGENCY_ACTIONS:
            raise ValueError(f"no emergency opens {self.action}")
        return self


class PolicyTest(_Strict):
    """One expectation."""

    it: str = Field(min_length=1, max_length=200)
    caller: str
    asks: Question
    expect: Expectation
    by: tuple[str, ...] | None = None


class PolicyTests(_Strict):
    """One file."""

    callers: dict[str, TestCaller]
    tests: tuple[PolicyTest, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class TestResult:
    """How one test went. `why` is empty when it passed."""

    __test__ = False

    it: str
    why: str

    @property
    def passed(self) -> bool:
        """Whether the decision was the one that was expected."""
        return not self.why


def read_tests(path: Path) -> PolicyTests:
    """Read a file. Raises PolicyTestsInvalid, OSError."""
    with path.open("rb") as file:
        data = file.read(MAX_TEST_FILE_BYTES + 1)
    if len(data) > MAX_TEST_FILE_BYTES:
        raise PolicyTestsInvalid(f"{path}: it has more than {MAX_TEST_FILE_BYTES} bytes")
    try:
        tests = PolicyTests.model_validate(yaml.safe_load(data))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PolicyTestsInvalid(f"{path}: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PolicyTestsInvalid(f"{path}: {where}: {first['msg']}") from None
    if unknown := sorted({test.caller for test in tests.tests} - tests.callers.keys()):
        raise PolicyTestsInvalid(f"{path}: callers has no {', '.join(unknown)}")
    return tests


def run_tests(tests: PolicyTests, policies: AccessPolicies) -> Sequence[TestResult]:
    """Decide every question by a set, and compare. Raises DecisionFailedError."""
    return [TestResult(test.it, _difference(test, tests.callers[test.caller], policies)) for test in tests.tests]


def _difference(test: PolicyTest, caller: TestCaller, policies: AccessPolicies) -> str:
    now: datetime = test.asks.now or utc_now()
    decision = policies.placed(served_in=test.asks.served_in, now=lambda: now).decide(caller.principal(), test.asks.request())
    decided = "permitted" if decision.denial is None else decision.denial.value
    by = f" by {', '.join(decision.policies)}" if decision.policies else " by default: nothing permits it"
    if decided != test.expect:
        return f"expected {test.expect}, decided {decided}{by}"
    if test.by is not None and set(test.by) != set(decision.policies):
        return f"expected it decided by {', '.join(test.by) or 'default'}, it was{by}"
    return ""
