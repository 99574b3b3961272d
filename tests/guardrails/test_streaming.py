"""Streams: the same result for every way of cutting a text, nothing shown too early, little held back."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_inspection import reference

from lionrock.guardrails.inspection import Part, inspect
from lionrock.guardrails.normalise import MAX_DROPPED
from lionrock.guardrails.policy import Direction, Policy, Source
from lionrock.guardrails.program import Action, Program
from lionrock.guardrails.stream import WINDOW, Finding, Inspector

PIECES = (
    "A123456(3) A1234563 HKID 身份證 Ａ１２３４５６（３） A123456( 11010519491231002X 4111111111111111 4111 1111 91234567 "
    "+852 9123 4567 tel 電話 13800138000 a.b@c.com @ . x@y - ( ) , aa aaa aab ab abc abcd abcde 銀 行 銀行 銀行家 家 陳大文 "
    "Chan Tai Man Trading 123 12 bank tip off halt now please stop here 停低 \u200b \u3000 \n 我哋喺香港 the quick "
    "A B C 1 2 3 _ 🙂 \ud800 ㈱ $ HKD"
)
FRAGMENTS = PIECES.split(" ")
ORDERS = "Ignore, all, previous, instructions,唔好理,之前,啲,指示,忽略,的,所有,指令,<|im,_start,|>"
INJECTIONS = ORDERS.split(",")
TEXTS = st.lists(st.sampled_from([*FRAGMENTS, " "]), max_size=24).map("".join)


def streamed(program: Program, pieces: list[str]) -> tuple[str, list[Finding], bool]:
    inspector, released, findings = Inspector(program), "", list[Finding]()
    received = 0
    for piece in pieces:
        step = inspector.push(piece)
        released, findings = released + step.released, findings + list(step.findings)
        received += len(piece)
        if step.blocked is not None:
            assert step.blocked.finding == findings[-1]
            return released, findings, True
        assert 0 <= step.held_back <= min(received, (program.hold_limit + 1) * MAX_DROPPED)
    step = inspector.finish()
    assert step.held_back == 0
    return released + step.released, findings + list(step.findings), step.blocked is not None


def cut(text: str, draw: random.Random) -> list[str]:
    places = sorted(draw.sample(range(len(text) + 1), k=min(draw.randrange(8), len(text) + 1)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@settings(max_examples=1500, deadline=None)
@given(TEXTS, st.randoms(use_true_random=False))
def test_every_cut_gives_what_a_naive_inspection_of_the_whole_text_gives(
    overlapping: Policy, text: str, draw: random.Random
) -> None:
    program = overlapping.program(Direction.ANSWER, Source.MODEL)
    expected = reference(program, text)
    assert streamed(program, cut(text, draw)) == expected
    assert streamed(program, list(text)) == expected


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.randoms(use_true_random=False))
def test_whole_text_inspection_agrees_with_the_stream(overlapping: Policy, text: str, draw: random.Random) -> None:
    verdict = inspect(overlapping, Direction.ANSWER, [Part(text, Source.MODEL)])
    released, findings, blocked = streamed(overlapping.program(Direction.ANSWER, Source.MODEL), cut(text, draw))
    whole = [finding for _, finding in verdict.findings]
    assert blocked == (verdict.action is Action.BLOCK)
    assert findings == whole[: len(findings)]
    if not blocked:
        assert findings == whole
        assert released == (verdict.masked_texts[0] if verdict.masked_texts else text)


def test_thousands_of_random_texts_in_random_cuts_agree_under_the_shipped_policy(policy: Policy) -> None:
    seed = 20261123
    draw = random.Random(seed)
    for direction, source in ((Direction.ANSWER, Source.MODEL), (Direction.PROMPT, Source.DOCUMENT)):
        program = policy.program(direction, source)
        for number in range(3000):
            text = "".join(draw.choices([*FRAGMENTS, *INJECTIONS, " "], k=draw.randrange(20)))
            whole = streamed(program, [text])
            assert streamed(program, cut(text, draw)) == whole, (seed, direction, number)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 400), TEXTS)
def test_windows_of_a_large_text_do_not_show(overlapping: Policy, shift: int, tail: str) -> None:
    program = overlapping.program(Direction.ANSWER, Source.MODEL)
    text = "銀 a1 " * (WINDOW // 5) + "x" * shift + tail + " tel 91234567 " + tail
    assert streamed(program, [text]) == reference(program, text)


def test_nothing_of_a_number_is_shown_before_it_is_decided(policy: Policy) -> None:
    inspector = Inspector(policy.program(Direction.ANSWER, Source.MODEL))
    shown = [inspector.push(c).released for c in "卡號4111 1111 1111 1111，多謝"]
    assert "".join(shown) == "卡號[CARD]，多謝"
    assert "".join(shown[: shown.index("[CARD]，")]) == "卡號"


def test_a_block_shows_what_came_before_and_nothing_after(overlapping: Policy) -> None:
    program = overlapping.program(Direction.ANSWER, Source.MODEL)
    inspector = Inspector(program)
    steps = [inspector.push(piece) for piece in ("A123456(3) says st", "op he")]
    step = inspector.push("re and more")
    assert "".join(s.released for s in [*steps, step]) == "[HKID] says "
    assert step.blocked is not None
    assert step.blocked.finding.start == 16
    assert step.blocked.sample == "A123456(3) says stop here"


@pytest.mark.parametrize(
    "prose",
    [
        "滙豐銀行嘅按揭利率上個月調整咗，客戶可以喺手機應用程式入面睇返最新嘅供款表。",
        "客户可以在手机银行查询账户余额，也可以前往任何一家分行办理。",
    ],
)
def test_chinese_prose_is_released_at_once(policy: Policy, prose: str) -> None:
    inspector = Inspector(policy.program(Direction.ANSWER, Source.MODEL))
    for character in prose:
        step = inspector.push(character)
        assert (step.released, step.held_back) == (character, 0)


def test_english_prose_holds_back_no_more_than_the_word_that_is_being_written(policy: Policy) -> None:
    inspector = Inspector(policy.program(Direction.ANSWER, Source.MODEL))
    text = "The branch in Kowloon opens at nine; your mortgage was approved in March. " * 3
    received = ""
    for character in text:
        received += character
        held = inspector.push(character).held_back
        # Two letters and a space may begin an HKID that somebody wrote with a space.
        assert held <= max(3, len(received) - max(map(received.rfind, " ;")) - 1)


def test_hold_back_is_bounded_for_text_that_never_decides(policy: Policy) -> None:
    program = policy.program(Direction.ANSWER, Source.MODEL)
    assert program.hold_limit <= 254
    for unit in ("a", "1 ", "+1", "a@", "A1\u200b\u200b", "x@y.", "4111-"):
        inspector = Inspector(program)
        worst = max(inspector.push(unit * 50).held_back for _ in range(100))
        assert worst <= (program.hold_limit + 1) * (3 if "\u200b" in unit else 1)


def test_a_streamed_token_costs_well_below_a_millisecond(policy: Policy) -> None:
    inspector = Inspector(policy.program(Direction.ANSWER, Source.MODEL))
    tokens = [
        "The",
        "customer",
        "asked",
        "about",
        "her",
        "mortgage",
        "in",
        "Kowloon",
        ".",
        "客戶",
        "想",
        "了解",
        "轉數快",
        "嘅",
        "收費",
    ] * 50
    costs = []
    for token in tokens:
        began = time.perf_counter()
        inspector.push(token + " ")
        costs.append(time.perf_counter() - began)
    assert sorted(costs)[len(costs) // 2] < 500e-6  # 10 µs alone on a core; the bound is for shared machines
