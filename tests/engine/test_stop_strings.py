import sys
import threading
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.inference.engine.stop_strings import StopStrings

LETTERS = st.text("ab中é", min_size=1, max_size=6)


def reference(text: str, stops: list[str]) -> tuple[int, str] | None:
    """(code points before the end of the first stop string to be complete, the string), by trying every end."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return end, max(complete, key=lambda stop: len(stop.encode()))
    return None


@st.composite
def cut_bytes(draw) -> tuple[str, list[bytes]]:
    """A text and its bytes, cut anywhere: also inside a character."""
    text = draw(st.text("ab中é", max_size=40))
    raw = text.encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(raw)), max_size=12)) | {0, len(raw)})
    return text, [raw[a:b] for a, b in pairwise(cuts)]


@settings(deadline=None, max_examples=400)
@given(cut_bytes(), st.lists(LETTERS, min_size=1, max_size=5))
def test_the_first_complete_stop_string_is_found_however_the_text_is_cut(cut: tuple[str, list[bytes]], stops: list[str]) -> None:
    text, tokens = cut
    search, expected = StopStrings(stops), reference(text, stops)
    read = 0
    for token in tokens:
        read += len(token)
        if search.push(token) is not None:
            break
    if expected is None:
        assert search.found is None
        return
    end, stop = expected
    assert search.found == stop
    # The token that completes it ends the search, and no later one.
    assert read - len(token) < len(text[:end].encode()) <= read


def test_nothing_changes_what_was_found() -> None:
    search = StopStrings(["ab"])
    assert [search.push(token) for token in (b"xa", b"b", b"abab")] == [None, "ab", "ab"]


def test_empty_tokens_do_not_break_a_stop_string() -> None:
    search = StopStrings(["中文"])
    pieces = ["中文".encode()[:2], b"", "中文".encode()[2:5], b"", "中文".encode()[5:]]
    assert [search.push(piece) for piece in pieces] == [None, None, None, None, "中文"]


def test_the_work_is_linear_in_a_text_that_almost_matches_everywhere() -> None:
    """Counted in executed lines, not in seconds."""

    def lines(characters: int) -> int:
        search, count = StopStrings(["a" * 255 + "b", "a" * 254 + "c"]), 0

        def trace(frame, event, argument):
            nonlocal count
            count += event == "line"
            return trace

        def work() -> None:
            for _ in range(characters // 50):
                search.push(b"a" * 50)

        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(previous)
        return count

    assert threading.current_thread() is threading.main_thread()
    assert lines(2000) < 2.5 * lines(1000)
