"""Log-probabilities: told of what was shown, and of nothing that was masked, blocked or kept for a reviewer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.answer_logprobs import AnswerLogprobs, Decided
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.guardrails.v1 import guardrails_pb2 as guard
from lionrock.inference.v1 import inference_pb2 as inf
from scripted_mesh import BLOCKED_WORD, MASK, MASKED_WORD, ScriptedMesh

WANTED = sampling.SamplingParams(logprobs=0)


def told(heard: Any) -> list[gw.TokenLogprob]:
    """All that was told of an answer's tokens."""
    return [token for delta in heard.deltas for token in delta.logprobs]


async def test_every_token_of_a_shown_answer_is_told_with_its_probability(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any
) -> None:
    mesh.engine.text = "Guten Tag, 早晨 👋"

    heard = await hear(stub.Chat(ask(sampling=WANTED)))

    assert b"".join(token.token for token in told(heard)).decode() == heard.text == mesh.engine.text
    expected = [pytest.approx(-ord(character) / 1000, rel=1e-5) for character in mesh.engine.text]
    assert [token.logprob for token in told(heard)] == expected
    assert heard.finished.logprobs_withheld == 0


async def test_nothing_is_told_where_nobody_asked(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    heard = await hear(stub.Chat(ask()))

    assert heard.text == mesh.engine.text
    assert told(heard) == []


async def test_a_masked_word_and_what_touches_it_have_no_probabilities(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    mesh.engine.text, mesh.engine.others, mesh.engine.chunk = f"It is {MASKED_WORD}, yes", "abc", 100

    heard = await hear(stub.Chat(ask(sampling=sampling.SamplingParams(logprobs=3))))

    assert heard.text == f"It is {MASK}, yes"
    assert b"".join(token.token for token in told(heard)) == b"It is yes"  # the space before it touches it, and the comma
    assert heard.finished.logprobs_withheld == len(MASKED_WORD) + 2


async def test_nothing_is_told_of_what_a_block_ends(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    mesh.engine.text, mesh.engine.chunk = f"It is {BLOCKED_WORD}.", 100

    heard = await hear(stub.Chat(ask(sampling=WANTED)))

    assert heard.finished.reason == sampling.FINISH_REASON_BLOCKED
    assert told(heard) == []


async def test_an_alternative_that_the_guardrails_would_not_release_is_not_told(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any
) -> None:
    mesh.engine.text, mesh.engine.others = MASKED_WORD[:-1] + "y", MASKED_WORD[-1] + "z"

    heard = await hear(stub.Chat(ask(sampling=sampling.SamplingParams(logprobs=2))))

    assert heard.text == mesh.engine.text
    alternatives = [[other.token.decode() for other in token.top] for token in told(heard)]
    assert alternatives == [[MASKED_WORD[-1], "z"]] * (len(MASKED_WORD) - 1) + [["z"]]


async def test_text_behind_a_stop_string_has_no_probabilities(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    mesh.engine.text, mesh.engine.chunk = "one two three", 4

    heard = await hear(stub.Chat(ask(sampling=sampling.SamplingParams(logprobs=0, stop=["two"]))))

    assert heard.text == "one "
    assert b"".join(token.token for token in told(heard)) == b"one "


async def test_an_engine_that_forgets_them_does_not_answer(mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any) -> None:
    started = inf.GenerateResponse(started=inf.GenerateResponse.Started(model=mesh.engine.identity(0)))
    mesh.engine.responses = [started, inf.GenerateResponse(tokens=inf.GenerateResponse.Tokens(token_ids=[65]))]

    refused = await failure(stub.Chat(ask(sampling=WANTED)))

    assert (refused.status.name, refused.reason) == ("UNAVAILABLE", "INFERENCE_UNAVAILABLE")


async def _nothing_found(texts: Sequence[str]) -> guard.InspectResponse:
    assert texts
    return guard.InspectResponse(action=guard.ACTION_ALLOW)


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[bytes], list[tuple[int, int]]]:
    """A text, the same in tokens that cut it anywhere, and spans of it that are masked."""
    text = draw(st.text("aé早👋 ", min_size=1, max_size=30))
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=len(data))))
    bounds = [0, *(cut for cut in cuts if cut < len(data)), len(data)]
    tokens = [data[start:end] for start, end in pairwise(bounds)]
    marks = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    spans = [(start, end) for start, end in list(pairwise(marks))[::2] if start < end]
    return text, tokens, spans


@given(answers(), st.data())
async def test_however_text_is_cut_no_byte_of_a_masked_character_is_told(
    answer: tuple[str, list[bytes], list[tuple[int, int]]], data: st.DataObject
) -> None:
    text, tokens, spans = answer

    async def spell(token_ids: Sequence[int]) -> list[bytes]:
        return [tokens[token_id] for token_id in token_ids]

    logprobs, decided, shown = AnswerLogprobs(spell, _nothing_found), Decided(), []
    unheard, at, upto = list(spans), 0, 0
    while at < len(tokens):
        step = data.draw(st.integers(1, len(tokens) - at))
        ids = range(at, at + step)
        await logprobs.push(ids, [inf.TokenLogprobs(logprob=-1, top=[inf.TokenLogprobs.Alternative(token_id=i)]) for i in ids])
        at += step
        known = len(b"".join(tokens[:at]).decode(errors="ignore"))
        upto = max(upto, data.draw(st.integers(0, known)))
        # A span is decided on as a whole.
        upto = next((start for start, end in spans if start < upto < end), upto)
        decided.upto = max(decided.upto, upto)
        decided.findings += [span for span in unheard if span[1] <= decided.upto]
        unheard = [span for span in unheard if span[1] > decided.upto]
        shown += await logprobs.told(decided)
    logprobs.end()
    decided.upto = len(text)
    decided.findings += unheard
    shown += await logprobs.told(decided)

    masked_bytes = {position for start, end in spans for position in range(len(text[:start].encode()), len(text[:end].encode()))}
    starts = [len(b"".join(tokens[:number])) for number in range(len(tokens))]
    clean = [
        token
        for token, start in zip(tokens, starts, strict=True)
        if not any(start <= position < start + len(token) for position in masked_bytes)
    ]
    given_out = [token.token for token in shown]
    assert _is_subsequence(given_out, clean)
    assert len(given_out) + logprobs.withheld == len(tokens)
    if not spans:
        assert b"".join(given_out) == text.encode()
    for token in shown:
        for other in token.top:
            assert other.token.decode()


def _is_subsequence(some: list[bytes], all_of_them: list[bytes]) -> bool:
    rest = iter(all_of_them)
    return all(one in rest for one in some)


def test_findings_that_were_left_out_keep_everything_back() -> None:
    async def spell(token_ids: Sequence[int]) -> list[bytes]:
        return [b"a"] * len(token_ids)

    async def run() -> tuple[list[gw.TokenLogprob], int]:
        logprobs = AnswerLogprobs(spell, _nothing_found)
        await logprobs.push([1, 2], [inf.TokenLogprobs(logprob=-1)] * 2)
        return await logprobs.told(Decided(upto=2, complete=False)), logprobs.withheld

    assert asyncio.run(run()) == ([], 2)
