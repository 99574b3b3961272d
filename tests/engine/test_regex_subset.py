import json
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lionrock.inference.engine.regex_subset import UnsupportedRegex, canonical_regex

CLASSES = ["[a-c]", "[^a]", r"[\d_-]", r"[\]\\]"]
ESCAPES = [r"\d", r"\w", r"\s", r"\D", r"\.", r"\x41", r"\u00e9", r"\\", r"\n"]
ATOMS = st.sampled_from(["a", "b", "-", ".", "é", '"', *CLASSES, *ESCAPES])
REGEXES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,3}", "*?"])).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ),
    max_leaves=6,
)
TEXTS = st.text('ab-c1_A é".\\\n ', max_size=6)


def ecmascript(source: str) -> re.Pattern[str]:
    """Python's reading of the expression where the two agree: ASCII classes; `.` and \\s are put into ECMAScript's terms."""
    return re.compile(source, re.ASCII)


@settings(deadline=None, max_examples=400)
@given(REGEXES, TEXTS)
def test_the_canonical_spelling_matches_what_the_expression_matches(source: str, text: str) -> None:
    assert bool(re.fullmatch(canonical_regex(source), text)) == bool(ecmascript(source).fullmatch(text))


@settings(deadline=None, max_examples=400)
@given(REGEXES, TEXTS)
def test_inside_a_json_string_it_matches_what_needs_no_escape_alone(source: str, text: str) -> None:
    try:
        canonical = canonical_regex(source, in_json_string=True)
    except UnsupportedRegex:
        assume(False)
    plain = json.dumps(text, ensure_ascii=False) == f'"{text}"'
    assert bool(re.fullmatch(canonical, text)) == (plain and bool(ecmascript(source).fullmatch(text)))


LOOK_AND_NAME = ["(?=a)b", "(?!a)b", "(?<=a)b", "(?i)a", "(?P<n>a)", "(?<n>a)", r"(a)\1", r"\bfoo", r"\p{L}", r"\A", r"\Z"]
ANCHORED = ["a^b", "a$b", "^a|b", "a|b$"]
REPEATED = ["*a", "a**", "a++", "a{", "a{,3}", "a{3,1}", "a{1,2,3}", "a{1000000}", "(|*)"]
UNBALANCED = ["(a", "a)", "[a", "]", "}", "\\"]
MALFORMED = ["[z-a]", r"[\d-z]", r"\x4", r"\uZZZZ", r"\01", r"\cA", "[]", "[^\\x00-\\uffff\U00010000-\U0010ffff]"]


@pytest.mark.parametrize("source", [*LOOK_AND_NAME, *ANCHORED, *REPEATED, *UNBALANCED, *MALFORMED])
def test_what_could_be_ignored_or_misread_is_refused(source: str) -> None:
    with pytest.raises(UnsupportedRegex):
        canonical_regex(source)


SPELLINGS = [("^abc$", "abc"), (r"a\$", r"a[\u0024]"), ("^(a|b)$", "(a|b)"), ("(|a)", "(|a)")]


@pytest.mark.parametrize(("source", "canonical"), SPELLINGS)
def test_anchors_at_the_ends_say_what_holds_anyway(source: str, canonical: str) -> None:
    assert canonical_regex(source) == canonical


@settings(deadline=None, max_examples=300)
@given(st.text(r"ab(){}[]|*+?^$\.-,0123x:=!<>P", max_size=20))
def test_any_text_is_taken_or_refused_with_a_position(source: str) -> None:
    refused: UnsupportedRegex | None = None
    try:
        re.compile(canonical_regex(source))
    except UnsupportedRegex as error:
        refused = error
    assert refused is None or 0 <= refused.position <= len(source)
