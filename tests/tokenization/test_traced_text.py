"""TracedText against a naive reference: a list of (character, who wrote it)."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from lionrock.tokenization.traced_text import TracedText, concatenate

PIECES = st.lists(st.tuples(st.text("ab <>|\n", max_size=5), st.booleans()), max_size=6)
SMALL = st.text("ab <>|\n", max_size=2)


def traced(pieces: list[tuple[str, bool]]) -> TracedText:
    return concatenate(TracedText.literal(text) if ours else text for text, ours in pieces)


def origins(text: str) -> list[tuple[str, bool]]:
    """Every character with whether the template wrote it."""
    spans = text.spans if isinstance(text, TracedText) else ()
    return [(character, any(a <= index < b for a, b in spans)) for index, character in enumerate(str.__str__(text))]


def naive(pieces: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    return [(character, ours) for text, ours in pieces for character in text]


@given(PIECES)
def test_concatenation_keeps_every_characters_origin(pieces: list[tuple[str, bool]]) -> None:
    assert origins(traced(pieces)) == naive(pieces)


@given(PIECES, PIECES)
def test_addition_from_either_side_keeps_origins(left: list[tuple[str, bool]], right: list[tuple[str, bool]]) -> None:
    assert origins(traced(left) + traced(right)) == naive(left) + naive(right)
    plain = "".join(text for text, _ in left)
    assert origins(plain + traced(right)) == [(c, False) for c in plain] + naive(right)
    assert origins(traced(right) + plain) == naive(right) + [(c, False) for c in plain]


@given(PIECES, st.slices(12))
def test_slices_keep_origins(pieces: list[tuple[str, bool]], part: slice) -> None:
    expected = naive(pieces)[part]
    found = origins(traced(pieces)[part])
    assert [c for c, _ in found] == [c for c, _ in expected]
    if part.step in (None, 1):
        assert found == expected
    else:
        assert not any(ours for _, ours in found)


@given(PIECES)
def test_spans_are_sorted_disjoint_and_not_adjacent(pieces: list[tuple[str, bool]]) -> None:
    text = traced(pieces)
    assert all(a < b for a, b in text.spans)
    assert all(first[1] < second[0] for first, second in zip(text.spans, text.spans[1:], strict=False))


def _aligned(text: TracedText, parts: list[TracedText] | tuple[TracedText, ...], expected: list[str] | tuple[str, ...]) -> None:
    """Parts equal str's own, and every part is labelled as the place of the text from which it comes."""
    assert [str.__str__(part) for part in parts] == list(expected)
    whole, at = origins(text), 0
    for part in parts:
        found = origins(part)
        while whole[at : at + len(found)] != found:
            at += 1
            assert at <= len(whole), "a part whose labels stand nowhere in the text"
        at += len(found)


@given(PIECES, st.one_of(st.none(), st.text("ab <\n", min_size=1, max_size=2)), st.integers(-1, 3))
def test_splits_are_those_of_str_with_origins_kept(pieces: list[tuple[str, bool]], sep: str | None, count: int) -> None:
    text = traced(pieces)
    plain = "".join(text)
    _aligned(text, text.split(sep, count), plain.split(sep, count))
    _aligned(text, text.rsplit(sep, count), plain.rsplit(sep, count))
    _aligned(text, text.splitlines(), plain.splitlines())
    _aligned(text, text.splitlines(True), plain.splitlines(True))
    if sep is not None:
        _aligned(text, text.partition(sep), plain.partition(sep))
        _aligned(text, text.rpartition(sep), plain.rpartition(sep))


@given(PIECES, st.one_of(st.none(), SMALL))
def test_stripping_is_that_of_str_with_origins_kept(pieces: list[tuple[str, bool]], chars: str | None) -> None:
    text, plain = traced(pieces), "".join(text for text, _ in pieces)
    for name in ("strip", "lstrip", "rstrip"):
        _aligned(text, [getattr(text, name)(chars)], [getattr(plain, name)(chars)])
    _aligned(text, [text.removeprefix(chars or "")], [plain.removeprefix(chars or "")])
    _aligned(text, [text.removesuffix(chars or "")], [plain.removesuffix(chars or "")])


@given(PIECES, SMALL, PIECES, st.integers(-1, 3))
def test_replacing_and_joining_give_strs_text_and_never_a_label_too_many(
    pieces: list[tuple[str, bool]], old: str, new: list[tuple[str, bool]], count: int
) -> None:
    text, plain, other = traced(pieces), "".join(text for text, _ in pieces), traced(new)
    replaced = text.replace(old, other, count)
    assert str.__str__(replaced) == plain.replace(old, "".join(other), count)
    joined = other.join([text, plain])
    assert origins(joined) == naive(pieces) + naive(new) + [(c, False) for c in plain]
    ours = sum(ours for _, ours in naive(pieces)) + sum(ours for _, ours in naive(new)) * (plain.count(old) if old else 0)
    assert sum(ours for _, ours in origins(replaced)) <= ours


OTHER_METHODS: list[Callable[[str], object]] = [
    str.upper, str.lower, str.title, str.capitalize, str.swapcase, str.casefold, lambda s: s * 3, lambda s: s.center(40, "x"),
    lambda s: s.ljust(40), lambda s: s.zfill(40), lambda s: s.expandtabs(), lambda s: s.translate({97: "b"}), lambda s: f"{s}",
    lambda s: f"{s:>40}", lambda s: "".join(iter(s)), lambda s: "".join([s]), lambda s: s.encode().decode(),
]  # fmt: skip


@given(PIECES)
def test_operations_that_are_not_followed_lose_the_labels(pieces: list[tuple[str, bool]]) -> None:
    for operation in OTHER_METHODS:
        result = operation(traced(pieces))
        assert not isinstance(result, TracedText) or result.spans == () or origins(result) == naive(pieces)
