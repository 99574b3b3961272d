"""Bounded patterns: what they accept, and that the prefix pattern is exact."""

import re

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.guardrails.patterns import MAX_LENGTH, PatternInvalid, lengths, parse, prefixes, render, starts_with_word

ATOMS = st.sampled_from(["a", "b", "[ab]", "[^a]", r"\d", "銀"])


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = inner.map(lambda p: f"(?:{p})")
    bounds = st.sampled_from(["?", "{0,2}", "{2}", "{1,3}"])
    return st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda ps: f"(?:{'|'.join(ps)})"),
        st.tuples(group, bounds).map("".join),
    )


PATTERNS = st.recursive(ATOMS, _grow, max_leaves=6)


def _parsed(source: str) -> object:
    try:
        return parse(source)
    except PatternInvalid:
        return None


@settings(max_examples=400, deadline=None)
@given(PATTERNS, st.lists(st.text("ab1銀", max_size=7), min_size=1, max_size=8))
def test_a_text_can_grow_into_a_match_exactly_while_it_matches_the_prefix_pattern(source: str, texts: list[str]) -> None:
    node = _parsed(source)
    if node is None:
        return
    growing = re2.compile(prefixes(node))  # type: ignore[arg-type]
    whole = re.compile(render(node))  # type: ignore[arg-type]
    longest = lengths(node)[1]  # type: ignore[arg-type]
    for text in texts:
        if whole.fullmatch(text):
            assert len(text) <= longest
            assert all(growing.fullmatch(text[:i]) for i in range(len(text) + 1))


@pytest.mark.parametrize("source", ["ab(?:c|de){1,2}f?", "a{2,3}b?", "(?:a|b){0,2}c", "a(?:b(?:c|d)?e){2}", "(?:ab|a)(?:c|bd)"])
def test_the_prefix_pattern_matches_nothing_else(source: str) -> None:
    node = parse(source)
    words = {""}
    for _ in range(lengths(node)[1]):
        words |= {word + c for word in words for c in "abcdef"} if len(words) < 60_000 else set()
    whole, growing = re.compile(render(node)), re2.compile(prefixes(node))
    matches = {word for word in words if whole.fullmatch(word)}
    expected = {match[:i] for match in matches for i in range(len(match) + 1)}
    checked = {word for word in words if len(word) <= 4}
    assert {word for word in checked if growing.fullmatch(word)} == {word for word in checked if word in expected}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("a*", "unbounded"),
        ("a+", "unbounded"),
        ("a{2,}", "repetition"),
        ("(?i)a", "plain groups"),
        ("(?P<x>a)", "plain groups"),
        ("(a", "not closed"),
        ("a)", "unexpected"),
        ("[a", "not closed"),
        ("a{3,2}", "empty"),
        ("a?", "empty text"),
        ("", "empty text"),
        ("(?:a{0,200}){2}b", "more than"),
        (r"\1", "escape"),
        (r"\b", "escape"),
        ("^a", "not supported"),
        ("a$", "not supported"),
        ("(" * 40 + "a" + ")" * 40, "deeper"),
    ],
)
def test_what_is_not_bounded_is_refused_with_the_reason(source: str, reason: str) -> None:
    with pytest.raises(PatternInvalid, match=reason):
        parse(source)


@given(st.text("ab()[]{}|?*+.\\^$,:-x0123銀 \n", max_size=40))
def test_parsing_is_total_and_what_parses_compiles(source: str) -> None:
    node = _parsed(source)
    if node is not None:
        try:
            re2.compile(render(node), _quiet())  # type: ignore[arg-type]
        except re2.error:
            return  # an inverted range, say; policies report it
        re2.compile(prefixes(node), _quiet())  # type: ignore[arg-type]
        assert 0 < lengths(node)[1] <= MAX_LENGTH  # type: ignore[arg-type]


def _quiet() -> re2.Options:
    options = re2.Options()
    options.log_errors = False
    return options


def test_a_pattern_knows_whether_it_begins_with_a_letter_or_digit() -> None:
    assert all(starts_with_word(parse(p)) for p in ("abc", "[0-9A-Z]x", "(?:a|1)b", r"\dx", "a?b"))
    assert not any(starts_with_word(parse(p)) for p in (r"\+1", "[^a]b", "銀行", "(?:a|-)b", "a?-", "[a-z_]x"))
