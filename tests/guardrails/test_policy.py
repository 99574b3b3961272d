"""Policy files: strict, errors named by line, a digest of the meaning."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_policies import MESSAGES, OVERLAPPING

from lionrock.guardrails.policy import DEFAULT_PROFILE, SHIPPED, Direction, PolicyInvalid, Source, load_policies, parse_policy

HEAD = 'profile: small\nversion: "1"\n' + MESSAGES
RULE = "rules:\n  - {id: a, type: A, phrases: [x], actions: {prompt: mask}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.yaml:1: the file is empty"),
        ("a: [", "p.yaml:"),
        ("profile: x\nprofile: y\n", "p.yaml:2: key 'profile' is there twice"),
        ("a: &x 1\nb: *x\n", "p.yaml:1: anchors"),
        (HEAD + "rules: []\nmore: 1\n", "p.yaml:5: more"),
        (HEAD + "rules:\n  - {id: a, type: A, actions: {}}\n", "p.yaml:5: rules.0: Value error, needs a detector"),
        (HEAD + "rules:\n  - id: a\n    type: A\n    detector: none\n    actions: {}\n", "p.yaml:5: rules.0: .*not one of card"),
        (
            HEAD + "rules:\n  - id: a\n    type: A\n    phrases: [x]\n    actions:\n      prompt: drop\n",
            "p.yaml:9: rules.0.actions.prompt",
        ),
        (
            HEAD + "rules:\n  - {id: a, type: A, patterns: ['x*'], actions: {}}\n",
            r"yaml:5: .*patterns\[0\]: '\*' at 1 is unb",
        ),
        (
            HEAD + "rules:\n  - {id: a, type: A, patterns: ['[b-a]'], actions: {prompt: mask}}\n",
            r"p.yaml:5: .*patterns\[0\]: RE2 refuses",
        ),
        (HEAD + "rules:\n  - {id: a, type: A, phrases: ['\u200b'], actions: {}}\n", "no visible character"),
        (HEAD + RULE + "  - {id: a, type: A, phrases: [y], actions: {}}\n", "rule 'a' is there twice"),
        (HEAD + RULE.replace("phrases", "min_confidence: 2, phrases"), "p.yaml:5: rules.0.min_confidence"),
        (HEAD.replace("en: 'no'", "fr: non") + "rules: []\n", "p.yaml:3: safe_messages.fr"),
        (HEAD.replace(", en: 'no'", "") + "rules: []\n", "safe_messages lacks en"),
        (HEAD.replace("small", "Not A Label") + "rules: []\n", "p.yaml:1: profile"),
    ],
)
def test_a_bad_file_is_refused_by_line(text: str, message: str) -> None:
    with pytest.raises(PolicyInvalid, match=message):
        parse_policy(text, "p.yaml")


@given(st.text("abc:-{}[]&*!|>'\"#\n 0\x00", max_size=60) | st.text(max_size=60))
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    with pytest.raises(PolicyInvalid):
        parse_policy(text, "p.yaml")


def test_the_digest_covers_the_meaning_and_not_the_layout() -> None:
    first = parse_policy(HEAD + RULE, "p.yaml")
    assert first.digest.startswith("sha256:")
    assert len(first.digest) == 71
    assert parse_policy("# note\n" + RULE + HEAD, "q.yaml").digest == first.digest
    assert parse_policy(HEAD + RULE.replace("mask", "block"), "p.yaml").digest != first.digest
    assert parse_policy(HEAD.replace('"1"', '"2"') + RULE, "p.yaml").digest != first.digest


def test_actions_differ_by_direction_and_source() -> None:
    text = HEAD + "rules:\n  - {id: a, type: A, phrases: [x], actions: {prompt: {user: mask, document: block}}}\n"
    policy = parse_policy(text, "p.yaml")
    active = {(d, s): [r.action.name for r in policy.program(d, s).rules] for d in Direction for s in Source}
    assert {key: value for key, value in active.items() if value} == {
        (Direction.PROMPT, Source.USER): ["MASK"],
        (Direction.PROMPT, Source.DOCUMENT): ["BLOCK"],
    }


def test_a_directory_adds_profiles_and_replaces_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "strict.yaml").write_text(OVERLAPPING, encoding="utf-8")
    (tmp_path / "default.yaml").write_text(HEAD.replace("small", "default") + RULE, encoding="utf-8")
    policies = load_policies(tmp_path)
    assert sorted(policies) == ["default", "overlapping"]
    assert policies[DEFAULT_PROFILE].version == "1"
    (tmp_path / "again.yaml").write_text(OVERLAPPING, encoding="utf-8")
    with pytest.raises(PolicyInvalid, match=r"strict\.yaml: profile 'overlapping' is also in again\.yaml"):
        load_policies(tmp_path)


def test_a_directory_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyInvalid, match="not a directory"):
        load_policies(tmp_path / "none")


def test_the_shipped_profile_is_the_default() -> None:
    assert list(load_policies(None)) == [DEFAULT_PROFILE]
    assert (SHIPPED / "default.yaml").is_file()
