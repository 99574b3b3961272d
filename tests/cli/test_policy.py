"""`lionrock policy`, as people and pipelines use it: what it prints, and its exit status."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lionrock.cli.errors import CommandError
from lionrock.cli.policy_commands import app
from lionrock.gateway.access_policies import AccessPolicies, packaged_roles

DIGEST = AccessPolicies(packaged_roles()).digest
ADA = "spiffe://lionrock.local/tenant/bank/user/ada"


@dataclass(frozen=True, slots=True)
class Done:
    status: int
    out: str
    error: CommandError | None

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def policy(*arguments: str | Path) -> Done:
    """Run the command; a CommandError is what `lionrock` prints on the way out."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, CommandError):
        return Done(result.exception.exit_code, result.stdout, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Done(result.exit_code, result.stdout, None)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The packaged roles, less those of security, and with leaves for users."""
    roles = packaged_roles()["roles.cedar"]
    directory = tmp_path / "site"
    directory.mkdir()
    (directory / "roles.cedar").write_text(roles[: roles.index('@id("security")')])
    (directory / "more.cedar").write_text(
        '@id("users-read-leaves") permit (principal in Role::"user", action == Action::"read_leaves", resource);'
    )
    return directory


def test_check_accepts_what_a_gateway_would_follow_and_names_its_digest(site: Path) -> None:
    packaged = policy("check")
    assert (packaged.status, packaged.out.splitlines()[-1]) == (0, DIGEST)
    own = policy("check", site, "--json")
    assert own.status == 0
    assert own.rows[0]["policies"].keys() == {"roles.cedar", "more.cedar", "walls.cedar"}
    assert own.rows[0]["digest"] != DIGEST


def test_check_says_what_is_wrong_and_where(site: Path, tmp_path: Path) -> None:
    (site / "more.cedar").write_text('@id("odd") permit (principal in Role::"emperor", action, resource);')
    refused = policy("check", site)
    assert refused.status == 1
    assert "more.cedar: odd: " in str(refused.error)
    assert "emperor" in str(refused.error)
    assert policy("check", tmp_path / "nowhere").status == 2


def test_explain_names_the_policy_that_permits_and_the_wall_that_forbids() -> None:
    permitted = policy("explain", "--role", "user", "--purpose", "research", "--json")
    assert permitted.status == 0
    assert permitted.rows[0]["decision"] == "permitted"
    assert permitted.rows[0]["by"] == [{"id": "user", "file": "roles.cedar"}]
    refused = policy("explain", "--role", "user", "--data-class", "suspicion")
    assert refused.status == 3
    assert refused.out.startswith("DATA_CLASS_NOT_PERMITTED\n  by tipping-off in walls.cedar:\n")
    default = policy("explain", "--role", "auditor")
    assert default.status == 3
    assert "by default: no policy permits chat to auditor" in default.out


def test_explain_knows_that_an_author_does_not_review() -> None:
    review = ("explain", "--role", "reviewer", "--action", "decide_review", "--author")
    assert policy(*review, ADA).status == 0
    own = policy(*review, "spiffe://any/tenant/any/user/any", "--json")
    assert (own.status, own.rows[0]["decision"]) == (3, "AUTHOR_MAY_NOT_REVIEW")


def test_explain_knows_when_a_grant_ends() -> None:
    arguments = ("explain", "--role", "regulator", "--action", "read_record", "--not-after", "2026-12-31")
    assert policy(*arguments, "--at", "2026-12-30T23:59:59").status == 0
    over = policy(*arguments, "--at", "2026-12-31T00:00:00", "--json")
    assert (over.status, over.rows[0]["by"][0]["id"]) == (3, "grant-has-ended")


def test_explain_decides_for_a_caller_as_the_gateways_settings_say(tmp_path: Path, site: Path) -> None:
    peer = {"target": "127.0.0.1:1", "timeout_s": 1}
    files = dict.fromkeys(("cert_file", "key_file", "ca_file"), str(tmp_path / "none.pem"))
    settings = {
        "server": {"tls": files, "trust_domain": "lionrock.local"},
        **{name: {**peer, "service": name} for name in ("tokenization", "inference", "guardrails", "audit")},
        "policy_dir": str(site),
        "served_in": "HK",
        "tenants": [{"name": "bank", "principals": [{"spiffe_id": ADA, "purposes": ["research"], "models": ["qwen3"]}]}],
    }
    config = tmp_path / "gateway.yaml"
    config.write_text(yaml.safe_dump(settings))
    own = policy("explain", ADA, "--config", config, "--model", "qwen3", "--json")
    assert (own.status, own.rows[0]["purpose"], own.rows[0]["data_class"]) == (0, "research", "personal")
    assert own.rows[0]["digest"] == policy("check", site, "--json").rows[0]["digest"]
    other = policy("explain", ADA, "--config", config, "--model", "other", "--json")
    assert (other.status, other.rows[0]["decision"]) == (3, "MODEL_NOT_PERMITTED")
    assert policy("explain", ADA, "--config", config, "--action", "read_leaves").status == 0
    assert policy("explain", ADA.replace("ada", "eve"), "--config", config).status == 3


def test_explain_says_what_an_emergency_opens_and_for_whom() -> None:
    reading = ("explain", "--role", "security", "--action", "read_record", "--json")
    assert policy(*reading).rows[0]["decision"] == "ROLE_NOT_PERMITTED"
    opened = policy(*reading, "--emergency")
    assert (opened.status, opened.rows[0]["emergency"]) == (0, "records")
    assert opened.rows[0]["by"] == [{"id": "emergency-reading", "file": "roles.cedar"}]
    assert policy("explain", "--role", "user", "--action", "read_record", "--emergency").status == 3
    deciding = ("explain", "--role", "privacy_officer", "--action", "decide_emergency", "--json", "--author")
    own = policy(*deciding, "spiffe://any/tenant/any/user/any")
    assert (own.status, own.rows[0]["decision"]) == (3, "REQUESTER_MAY_NOT_DECIDE")
    assert policy(*deciding, "spiffe://any/tenant/any/user/somebody").status == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "--role", "security", "--action", "erase_records", "--emergency"),
        ("explain",),
        ("explain", ADA, "--role", "user"),
        ("explain", "--role", "emperor"),
        ("explain", "--role", "user", "--action", "fly"),
        ("explain", "--role", "user", "--data-class", "secret"),
    ],
)
def test_explain_asks_for_what_it_needs(arguments: tuple[str, ...]) -> None:
    done = policy(*arguments)
    assert done.status == 2
    assert done.error is not None
    assert done.error.fix


def test_diff_says_which_decisions_change(site: Path) -> None:
    same = policy("diff", "packaged", "packaged")
    assert same.status == 0
    assert same.out.startswith("0 of ")
    found = policy("diff", "packaged", site, "--json")
    assert found.status == 1
    changed = {row["policy"]: row["is"] for row in found.rows if "policy" in row}
    assert changed == {"security": "removed", "users-read-leaves": "added"}
    decisions = [row for row in found.rows if "role" in row]
    assert {row["role"] for row in decisions} == {"user", "security"}
    (gained,) = (row for row in decisions if row["role"] == "user")
    assert gained["action"] == "read_leaves"
    assert gained["after"] == {"decision": "permitted", "by": ["users-read-leaves"]}
    assert gained["before"] == {"decision": "ROLE_NOT_PERMITTED", "by": []}


def test_diff_sees_what_is_forbidden_for_one_purpose_when_it_is_named(site: Path) -> None:
    (site / "roles.cedar").write_text(packaged_roles()["roles.cedar"])
    (site / "more.cedar").write_text(
        '@id("no-marketing") @denial("PURPOSE_NOT_PERMITTED") forbid (principal, action, resource) '
        'when { context has purpose && context.purpose == "marketing" };'
    )
    assert not [row for row in policy("diff", "packaged", site, "--json").rows if "role" in row]
    named = [row for row in policy("diff", "packaged", site, "--purpose", "marketing", "--json").rows if "role" in row]
    assert named
    assert {row["purpose"] for row in named} == {"marketing"}


def test_test_runs_a_sets_own_tests_and_those_of_the_walls(site: Path) -> None:
    assert policy("test").status == 0
    (site / "tests").mkdir()
    expectations = {
        "callers": {"teller": {"roles": ["user"], "purposes": ["research"], "dataClasses": ["personal"]}},
        "tests": [
            {"it": "reads leaves", "caller": "teller", "asks": {"action": "read_leaves"}, "expect": "permitted", "by": ["user"]},
            {"it": "reads leaves by its own policy", "caller": "teller", "asks": {"action": "read_leaves"}, "expect": "permitted"},
            {"it": "erases", "caller": "teller", "asks": {"action": "erase_records"}, "expect": "permitted"},
        ],
    }
    (site / "tests" / "own.yaml").write_text(yaml.safe_dump(expectations))
    done = policy("test", site, "--json")
    assert done.status == 1
    own = {row["it"]: row["why"] for row in done.rows if row["file"] == "own.yaml"}
    assert own == {
        "reads leaves": "expected it decided by user, it was by users-read-leaves",
        "reads leaves by its own policy": "",
        "erases": "expected permitted, decided ROLE_NOT_PERMITTED by default: nothing permits it",
    }
    assert all(row["passed"] for row in done.rows if row["file"] == "walls.yaml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("callers: [", "own.yaml"),
        ("callers: {}\ntests: []", "tests: "),
        ("callers: {}\ntests: [{it: x, caller: who, asks: {action: chat}, expect: permitted}]", "callers has no who"),
        ("callers: {}\ntests: [{it: x, caller: who, asks: {action: fly}, expect: permitted}]", "asks.action"),
        ("callers: {}\ntests: [{it: x, caller: who, asks: {action: chat}, expect: perhaps}]", "expect"),
    ],
)
def test_tests_that_cannot_be_read_are_named(site: Path, text: str, complaint: str) -> None:
    (site / "own.yaml").write_text(text)
    done = policy("test", site)
    assert done.status == 1
    assert complaint in str(done.error)
