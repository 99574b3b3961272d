"""Cutting at stop strings: the same answer for every chunking, equal to reading code point by code point."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from lionrock.gateway.stop_strings import StopStringCutter

ALPHABET = "ab香😀"


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read one code point at a time; the longest stop string that ends there ends the answer."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(
    st.text(ALPHABET, max_size=40),
    st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4),
    st.lists(st.integers(0, 40), max_size=8),
)
@example("xabc", ["abc", "b"], [2, 3])
@example("aab", ["ab"], [1, 2])
def test_any_chunking_gives_what_reading_by_code_point_gives(text: str, stops: list[str], cuts: list[int]) -> None:
    cutter = StopStringCutter(stops)
    bounds = [0, *sorted(cuts), len(text)]
    released = ""
    for start, end in pairwise(bounds):
        released += cutter.push(text[start:end])
        assert text.startswith(released)
    stopped = cutter.stopped
    released += cutter.end()
    assert (released, stopped) == naive(text, stops)


@given(st.text(ALPHABET, max_size=40), st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4))
def test_no_more_is_held_back_than_could_become_a_stop_string(text: str, stops: list[str]) -> None:
    cutter = StopStringCutter(stops)
    released = "".join(cutter.push(character) for character in text)
    if not cutter.stopped:
        held = text[len(released) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_without_stop_strings_everything_passes_at_once() -> None:
    cutter = StopStringCutter([])
    assert cutter.push("abc") == "abc"
    assert cutter.end() == ""
