"""The view: disguises fold away, offsets lead back, cutting changes nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.guardrails.detectors.phrases import phrase_view
from lionrock.guardrails.normalise import INVISIBLE_RUN, MAX_DROPPED, Normaliser, fold

ANY_TEXT = st.text(st.characters(codec=None) | st.sampled_from(" \n\t\u200b\u3000\ufdfa㈱½ＡΣİ\ud800\uffff\U000e0041"))


def view_of(*pieces: str) -> tuple[str, list[int]]:
    normaliser = Normaliser()
    view, raw_at = "", []
    for piece in pieces:
        more, offsets = normaliser.push(piece)
        view, raw_at = view + more, raw_at + offsets
    return view, raw_at


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ａ１２３（４）", "A123(4)"),
        ("a\u200bb\u2060c\u00ad", "abc"),
        ("a \t\u3000 b", "a b"),
        ("a\r\nb", "a\nb"),
        ("٣४", "34"),
        ("9123–4567", "9123-4567"),
        ("㈱½", "(株)1⁄2"),
        ("don’t", "don't"),
        ("\ud800\uffff", "\ufffd\ufffd"),
    ],
)
def test_disguises_fold_to_what_a_reader_sees(text: str, expected: str) -> None:
    assert view_of(text)[0] == expected


def test_offsets_point_into_the_original() -> None:
    view, raw_at = view_of("x\u200b㈱ \u3000y")
    assert view == "x(株) y"
    assert raw_at == [0, 2, 2, 2, 3, 5]


def test_a_long_run_of_invisible_characters_is_a_break() -> None:
    assert view_of("a" + "\u200b" * (MAX_DROPPED - 1) + "b")[0] == "ab"
    assert view_of("a" + "\u200b" * MAX_DROPPED + "b")[0] == f"a{INVISIBLE_RUN}b"
    assert view_of("a" + " " * (MAX_DROPPED + 1) + "b")[0] == "a \nb"


@given(st.lists(ANY_TEXT, max_size=6))
def test_cutting_a_text_changes_neither_view_nor_offsets(pieces: list[str]) -> None:
    whole = view_of("".join(pieces))
    assert view_of(*pieces) == whole
    view, raw_at = whole
    assert len(view) == len(raw_at)
    assert raw_at == sorted(raw_at)
    view.encode()  # RE2 gets valid UTF-8, whatever came in


@given(ANY_TEXT)
def test_the_phrase_view_keeps_the_length(text: str) -> None:
    view = view_of(text)[0]
    assert len(phrase_view(view)) == len(view)


def test_every_code_point_has_a_fold_of_which_the_lower_case_is_as_long() -> None:
    for code in range(0x110000):
        folded = fold(chr(code))
        assert len(folded.lower()) == len(folded)
        assert not any("\ud800" <= c <= "\udfff" for c in folded)
