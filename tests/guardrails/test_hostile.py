"""Input that nobody would send in good faith: no exception, linear time, masks that cover everything."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.guardrails.detectors import DETECTORS
from lionrock.guardrails.inspection import MAX_FINDINGS, MAX_TEXT, Abandoned, Part, TextTooLong, inspect
from lionrock.guardrails.languages import count_languages, main_language, ranked
from lionrock.guardrails.policy import Direction, Policy, Source
from lionrock.guardrails.program import Action, ActiveRule, DetectionFailed, Program, Window
from lionrock.guardrails.stream import Inspector

ANY_TEXT = st.text(st.characters(codec=None) | st.sampled_from("0123456789Aa@.()+- \n\u200b身"), max_size=300)


@settings(max_examples=600, deadline=None)
@given(ANY_TEXT, st.sampled_from(Direction), st.sampled_from(Source))
def test_any_text_gets_a_verdict_with_spans_inside_it(policy: Policy, text: str, direction: Direction, source: Source) -> None:
    verdict = inspect(policy, direction, [Part(text, source)])
    for part, finding in verdict.findings:
        assert part == 0
        assert 0 <= finding.start < finding.end <= len(text)
        assert 0 <= finding.confidence <= 1
    starts = [finding.start for _, finding in verdict.findings]
    assert starts == sorted(starts)
    assert 0 <= verdict.injection_score <= 1


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789Aa+-()[]., @\n", min_size=1, max_size=60), ANY_TEXT)
def test_checks_are_total_over_what_their_shapes_match(text: str, context: str) -> None:
    program = Program([ActiveRule(name, "X", Action.MASK, "[X]", 1, 0, d, (), ()) for name, d in DETECTORS.items()])
    inspector = Inspector(program)
    for piece in (context, text):
        inspector.push(piece)
    inspector.finish()


UNITS = "a@|a@b.c |1|12 |91234567 |ignore all |忽略之前|唔好理之前啲|A123456(4) |\u200b|4111 |(((((|\ud800| "


@pytest.mark.parametrize("unit", UNITS.split("|"))
def test_time_grows_with_the_length_and_not_faster(policy: Policy, unit: str) -> None:
    def cost(size: int) -> float:
        text = (unit * size)[:size]
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            inspect(policy, Direction.PROMPT, [Part(text, Source.USER)])
            best = min(best, time.process_time() - began)
        return best

    assert cost(40_000) < 4 * 4 * cost(10_000) + 0.05  # four times the length, with as much again for a noisy machine


def test_a_million_characters_are_judged(policy: Policy) -> None:
    text = ("請問按揭利率係幾多? Our rate is 2.35%. " * 30_000)[: MAX_TEXT - 20] + " HKID A123456(3)"
    began = time.process_time()
    verdict = inspect(policy, Direction.PROMPT, [Part(text, Source.USER)])
    assert time.process_time() - began < 5
    assert [text[f.start : f.end] for _, f in verdict.findings] == ["A123456(3)"]


def test_more_than_a_million_characters_are_refused(policy: Policy) -> None:
    with pytest.raises(TextTooLong):
        inspect(policy, Direction.PROMPT, [Part("a" * MAX_TEXT, Source.USER), Part("b", Source.USER)])


def test_findings_are_cut_off_and_masks_are_not(policy: Policy) -> None:
    text = "A123456(3) " * (MAX_FINDINGS + 500)
    verdict = inspect(policy, Direction.PROMPT, [Part(text, Source.USER)])
    assert len(verdict.findings) == MAX_FINDINGS
    assert verdict.truncated
    assert verdict.masked_texts == ("[HKID] " * (MAX_FINDINGS + 500),)


def test_an_abandoned_inspection_ends_at_its_next_window(policy: Policy) -> None:
    asked = 0

    def abandoned() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    with pytest.raises(Abandoned):
        inspect(policy, Direction.PROMPT, [Part("a " * 100_000, Source.USER)], abandoned=abandoned)
    assert asked == 3


def test_a_prefilter_that_gives_up_fails_closed(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    program = policy.program(Direction.PROMPT, Source.USER)

    class OutOfMemory:
        """What RE2's set answers when its memory is spent: no match."""

        def Match(self, text: bytes) -> None:
            return None

    starved = Program(program.rules)
    monkeypatch.setattr(starved, "_prefilter", OutOfMemory())
    with pytest.raises(DetectionFailed):
        starved.find(Window("\nA123456(3) "), 1, 12, [1] * starved.extractors)


@given(ANY_TEXT)
def test_languages_are_total(text: str) -> None:
    main_language(text)


def test_languages_of_nothing_are_none() -> None:
    assert ranked(count_languages("12 !?")) == []
