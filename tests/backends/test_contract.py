"""What every engine backend promises, asked of both. The last tests end the engine."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import pytest
from engines import MAX_RUNNING, MAX_WAITING, PROMPT, Answer, Started, a_request, answer, read, vllm_processes
from small_checkpoint import CONTEXT_WINDOW, EOS, VOCAB_SIZE
from tokenizers import Tokenizer

from lionrock.inference.engine.errors import (
    EngineDraining,
    EngineFull,
    InvalidRequest,
    PromptTooLong,
    RequestExpired,
    RequestRefused,
    ShardGroupLost,
    UnknownTokenId,
)
from lionrock.inference.engine.sequence import Constraint, FinishReason
from lionrock.inference.engine.stream import Stream

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = CONTEXT_WINDOW - 256
OTHER_PROMPT = tuple(3 + (11 * n) % 230 for n in range(70))
WHITESPACE = frozenset(" \n\r\t")


async def occupy(started: Started, count: int, **fields: Any) -> list[Stream]:
    """Streams that hold places in the batch for thousands of steps, each past its first token."""
    streams = [started.engine.submit(a_request(max_tokens=LONG, **fields)) for _ in range(count)]
    for stream in streams:
        first = await anext(stream)
        assert (first.finish, len(first.token_ids) >= 1) == (None, True)
    return streams


def close_all(streams: list[Stream]) -> None:
    for stream in streams:
        stream.close()


# ---- answers -----------------------------------------------------------------------------------------------------------------


async def test_answer_comes_in_order_and_its_last_output_alone_says_why_it_ended(started: Started) -> None:
    request = a_request(max_tokens=24)
    answered = await answer(started.engine, request)
    assert [output.finish for output in answered.outputs[:-1]] == [None] * (len(answered.outputs) - 1)
    assert answered.last.finish is FinishReason.LENGTH
    assert len(answered.tokens) == 24
    assert {output.request_id for output in answered.outputs} == {request.request_id}
    assert len({output.sequence_id for output in answered.outputs}) == 1
    timings = answered.last.timings
    assert timings is not None
    assert (timings.prompt_tokens, timings.completion_tokens, timings.preemptions) == (len(PROMPT), 24, 0)
    assert timings.first_token_s is not None
    assert 0 <= timings.queue_s <= timings.first_token_s <= timings.total_s


async def test_greedy_answer_is_the_same_again_and_beside_others(started: Started) -> None:
    alone = await answer(started.engine, a_request(max_tokens=40))
    again, _ = await asyncio.gather(
        answer(started.engine, a_request(max_tokens=40)),
        answer(started.engine, a_request(token_ids=tuple(range(20, 90)), max_tokens=40)),
    )
    assert again.tokens == alone.tokens


async def test_two_streams_progress_together(started: Started) -> None:
    first, second = await occupy(started, 2)
    assert (await anext(first)).token_ids
    assert (await anext(second)).token_ids
    assert (started.engine.running, started.engine.waiting) == (2, 0)
    close_all([first, second])


async def test_answer_ends_where_the_context_window_does(started: Started) -> None:
    prompt = tuple(3 + n % 250 for n in range(CONTEXT_WINDOW - 3))
    answered = await answer(started.engine, a_request(token_ids=prompt, max_tokens=None))
    assert (len(answered.tokens), answered.last.finish) == (3, FinishReason.LENGTH)


async def test_resumed_greedy_answer_goes_on_as_the_undisturbed_one(started: Started) -> None:
    whole = (await answer(started.engine, a_request(max_tokens=30))).tokens
    resumed = await answer(started.engine, a_request(token_ids=PROMPT + whole[:11], resumed_tokens=11, max_tokens=30))
    assert whole[:11] + resumed.tokens == whole
    assert resumed.last.timings is not None
    assert (resumed.last.timings.prompt_tokens, resumed.last.timings.completion_tokens) == (len(PROMPT), 30)


async def test_answer_resumed_after_its_last_token_ends_at_once(started: Started) -> None:
    resumed = await answer(started.engine, a_request(token_ids=(*PROMPT, 5, 6, 7), resumed_tokens=3, max_tokens=3))
    assert (resumed.tokens, resumed.last.finish) == ((), FinishReason.LENGTH)


# ---- endings -----------------------------------------------------------------------------------------------------------------


async def test_stop_token_ends_the_answer_and_is_not_part_of_it(started: Started) -> None:
    free = (await answer(started.engine, a_request(max_tokens=24))).tokens
    stop = next(token_id for token_id in free[5:] if token_id not in free[:5])
    answered = await answer(started.engine, a_request(max_tokens=24, sampling={"stop_token_ids": (stop,), "logprobs": 0}))
    assert (answered.tokens, answered.last.finish) == (free[: free.index(stop)], FinishReason.STOP)
    assert sum(len(output.logprobs) for output in answered.outputs) == len(answered.tokens)


@pytest.mark.parametrize("ignore_eos", [False, True])
async def test_end_of_sequence_token_ends_the_answer_unless_it_is_ignored(started: Started, ignore_eos: bool) -> None:
    forced = {"logit_bias": {EOS: 100.0}, "ignore_eos": ignore_eos}
    answered = await answer(started.engine, a_request(max_tokens=4, sampling=forced))
    expected = ((EOS,) * 4, FinishReason.LENGTH) if ignore_eos else ((), FinishReason.STOP)
    assert (answered.tokens, answered.last.finish) == expected


async def test_stop_string_ends_the_answer_with_the_token_that_completes_it(started: Started, tokenizer: Tokenizer) -> None:
    free = (await answer(started.engine, a_request(max_tokens=40))).tokens
    ascii_runs = re.finditer(r"[!-~]{2,}", tokenizer.decode(free[4:], skip_special_tokens=False))
    stop = next(ascii_runs).group()[:2]
    answered = await answer(started.engine, a_request(max_tokens=40, sampling={"stop": (stop,)}))
    assert answered.last.finish is FinishReason.STOP
    assert answered.last.stop == stop
    assert answered.tokens == free[: len(answered.tokens)]
    assert stop in tokenizer.decode(answered.tokens, skip_special_tokens=False)
    assert stop not in tokenizer.decode(answered.tokens[:-1], skip_special_tokens=False)


async def test_stop_string_that_a_resume_cuts_in_two_still_ends_the_answer(started: Started, tokenizer: Tokenizer) -> None:
    free = (await answer(started.engine, a_request(max_tokens=60))).tokens
    texts = [tokenizer.decode([token_id]) for token_id in free]
    seams = ((index, texts[index - 1][-1:] + texts[index][:1]) for index in range(3, len(free)))
    cut, stop = next(
        (index, seam) for index, seam in seams if len(seam) == 2 and seam.isascii() and seam not in tokenizer.decode(free[:index])
    )
    sampling = {"stop": (stop,)}
    whole = await answer(started.engine, a_request(max_tokens=60, sampling=sampling))
    assert (whole.tokens, whole.last.finish) == (free[: cut + 1], FinishReason.STOP)
    resumed = await answer(
        started.engine, a_request(token_ids=PROMPT + free[:cut], resumed_tokens=cut, max_tokens=60, sampling=sampling)
    )
    assert (resumed.tokens, resumed.last.finish) == (free[cut : cut + 1], FinishReason.STOP)
    at_its_end = await answer(
        started.engine, a_request(token_ids=PROMPT + whole.tokens, resumed_tokens=cut + 1, max_tokens=60, sampling=sampling)
    )
    assert (at_its_end.tokens, at_its_end.last.finish, at_its_end.last.stop) == ((), FinishReason.STOP, stop)


async def test_closing_a_stream_frees_its_place_within_steps(started: Started) -> None:
    streams = await occupy(started, MAX_RUNNING)
    waiting = started.engine.submit(a_request(max_tokens=1))
    assert started.engine.waiting == 1
    streams[0].close()
    answering = asyncio.create_task(read(waiting))
    tokens_of_the_other = 0
    while not answering.done():
        tokens_of_the_other += len((await anext(streams[1])).token_ids)
    assert answering.result().last.finish is FinishReason.LENGTH
    assert tokens_of_the_other < LONG / 8, "undisturbed, both would have held their places for LONG steps"
    assert (started.engine.running, started.engine.waiting) == (1, 0)
    close_all(streams)
    assert started.engine.running == 0


async def test_cancelling_the_consumer_takes_the_sequence_out(started: Started) -> None:
    (stream,) = await occupy(started, 1)
    consumer = asyncio.create_task(read(stream))
    await asyncio.wait({consumer}, timeout=0.05)  # it is in the middle of reading
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert (started.engine.running, started.engine.waiting) == (0, 0)


async def test_deadline_ends_a_stream_after_the_tokens_that_came_before(started: Started) -> None:
    stream = started.engine.submit(a_request(max_tokens=LONG, deadline_s=time.monotonic() + 1.0))
    assert len((await anext(stream)).token_ids) >= 1
    with pytest.raises(RequestExpired):
        await read(stream)
    assert started.engine.running == 0


async def test_request_whose_deadline_has_passed_gets_nothing(started: Started) -> None:
    with pytest.raises(RequestExpired):
        await answer(started.engine, a_request(deadline_s=time.monotonic() - 1))


# ---- sampling ----------------------------------------------------------------------------------------------------------------


async def test_same_seed_gives_the_same_tokens_in_any_batch(started: Started) -> None:
    sampling = {"temperature": 1.0, "seed": 7}
    alone = await answer(started.engine, a_request(max_tokens=24, sampling=sampling))
    beside, other = await asyncio.gather(
        answer(started.engine, a_request(max_tokens=24, sampling=sampling)),
        answer(started.engine, a_request(max_tokens=24, sampling={"temperature": 1.0, "seed": 8})),
    )
    assert beside.tokens == alone.tokens
    assert other.tokens != alone.tokens


async def test_top_k_of_one_is_greedy_at_any_temperature(started: Started) -> None:
    greedy = await answer(started.engine, a_request())
    drawn = await answer(started.engine, a_request(sampling={"temperature": 1.5, "seed": 3, "top_k": 1}))
    assert drawn.tokens == greedy.tokens


@pytest.mark.parametrize("count", [0, 1, 5, 20])
async def test_log_probabilities_are_of_each_token_and_the_best(started: Started, count: int) -> None:
    answered = await answer(started.engine, a_request(max_tokens=6, sampling={"logprobs": count}))
    entries = [entry for output in answered.outputs for entry in output.logprobs]
    assert len(entries) == len(answered.tokens)
    for token_id, entry in zip(answered.tokens, entries, strict=True):
        assert len(entry.top) == count
        assert [value for _, value in entry.top] == sorted((value for _, value in entry.top), reverse=True)
        assert all(value <= 0 for _, value in entry.top)
        if count:
            assert entry.top[0] == (token_id, pytest.approx(entry.logprob))


async def test_log_probabilities_are_those_before_temperature(started: Started) -> None:
    drawn = {"temperature": 2.0, "seed": 5, "logprobs": 20}
    (first, *_) = (await answer(started.engine, a_request(max_tokens=1, sampling=drawn))).last.logprobs
    (greedy, *_) = (await answer(started.engine, a_request(max_tokens=1, sampling={"logprobs": 20}))).last.logprobs
    assert dict(first.top) == pytest.approx(dict(greedy.top))


SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.7},
    {"repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 0.5},
    {"logit_bias": {17: 4.0, 99: -5.0, 200: 2.5}},
    {"logit_bias": {17: 4.0, 99: -5.0}, "repetition_penalty": 1.4, "frequency_penalty": 0.3},
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
async def test_greedy_answer_does_not_depend_on_the_backend(started: Started, torch: Started, sampling: dict[str, Any]) -> None:
    for token_ids in (OTHER_PROMPT, OTHER_PROMPT[:9]):
        request = a_request(token_ids=token_ids, max_tokens=48, sampling=sampling)
        assert (await answer(started.engine, request)).tokens == (await answer(torch.engine, request)).tokens


async def test_log_probabilities_do_not_depend_on_the_backend(started: Started, torch: Started) -> None:
    entries = []
    for engine in (started.engine, torch.engine):
        answered = await answer(engine, a_request(token_ids=OTHER_PROMPT, max_tokens=12, sampling={"logprobs": 5}))
        entries.append([entry for output in answered.outputs for entry in output.logprobs])
    for one, other in zip(*entries, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert dict(one.top) == pytest.approx(dict(other.top), abs=1e-4)


# ---- constraints -------------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"found": {"type": "boolean"}, "colour": {"enum": ["red", "green"]}},
    "required": ["found", "colour"],
    "additionalProperties": False,
}
CONSTRAINTS: list[tuple[Constraint, str]] = [
    (
        Constraint("json_schema", json.dumps(SCHEMA)),
        r'\s*\{\s*"found"\s*:\s*(true|false)\s*,\s*"colour"\s*:\s*"(red|green)"\s*\}\s*',
    ),
    (Constraint("regex", r"[0-9]{3}-[a-f]{2}"), r"[0-9]{3}-[a-f]{2}"),
    (Constraint("choice", json.dumps(["yes", "no", "perhaps"])), r"yes|no|perhaps"),
    (Constraint("ebnf", 'root ::= "ab" tail\ntail ::= "c" | "d" tail'), r"abd*c"),
]


@pytest.mark.parametrize(("constraint", "language"), CONSTRAINTS, ids=[constraint.kind for constraint, _ in CONSTRAINTS])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 11}], ids=["greedy", "drawn"])
async def test_constrained_answer_is_of_the_language(
    started: Started, tokenizer: Tokenizer, constraint: Constraint, language: str, sampling: dict[str, Any]
) -> None:
    # A random model would write spaces between JSON's tokens for ever.
    blank = {i: -100.0 for i in range(3, tokenizer.get_vocab_size()) if set(tokenizer.decode([i])) <= WHITESPACE}
    options = {**sampling, "logit_bias": blank, "ignore_eos": False}
    answered = await answer(started.engine, a_request(max_tokens=60, sampling=options, constraint=constraint))
    text = tokenizer.decode(answered.tokens, skip_special_tokens=False)
    assert answered.last.finish is FinishReason.STOP
    assert re.fullmatch(language, text)


@pytest.mark.parametrize(
    "constraint", [Constraint("regex", "(unbalanced"), Constraint("json_schema", '{"type": 5}'), Constraint("ebnf", "nonsense")]
)
async def test_constraint_that_cannot_be_compiled_is_refused(started: Started, constraint: Constraint) -> None:
    with pytest.raises(RequestRefused):
        await answer(started.engine, a_request(constraint=constraint))
    assert started.engine.running == 0


# ---- prefix cache ------------------------------------------------------------------------------------------------------------


async def test_prefix_is_shared_within_one_salt_and_not_beyond(started: Started) -> None:
    prompt = tuple(5 + (7 * n) % 240 for n in range(256))

    async def cached(salt: bytes) -> tuple[Answer, int]:
        answered = await answer(started.engine, a_request(token_ids=prompt, max_tokens=8, cache_salt=salt))
        assert answered.last.timings is not None
        return answered, answered.last.timings.cached_prompt_tokens

    first, cold = await cached(b"acme's salt")
    again, warm = await cached(b"acme's salt")
    other, elsewhere = await cached(b"another salt")
    assert (cold, elsewhere) == (0, 0)
    assert 128 <= warm < len(prompt)
    assert first.tokens == again.tokens == other.tokens


# ---- limits ------------------------------------------------------------------------------------------------------------------


async def test_full_queue_refuses_and_says_when_to_come_back(started: Started) -> None:
    running = await occupy(started, MAX_RUNNING)
    waiting = [started.engine.submit(a_request(max_tokens=1)) for _ in range(MAX_WAITING)]
    assert (started.engine.running, started.engine.waiting) == (MAX_RUNNING, MAX_WAITING)
    with pytest.raises(EngineFull) as refusal:
        started.engine.submit(a_request())
    assert 0 < refusal.value.retry_after_s <= 30
    waiting[0].close()
    started.engine.submit(a_request()).close()
    close_all(running + waiting)
    assert (started.engine.running, started.engine.waiting) == (0, 0)


async def test_higher_priority_is_served_first(started: Started) -> None:
    running = await occupy(started, MAX_RUNNING)
    low = started.engine.submit(a_request(max_tokens=LONG, priority=-1))
    high = started.engine.submit(a_request(max_tokens=LONG, priority=5))
    running[0].close()
    await anext(high)
    close_all([*running[1:], high, low])


async def test_newcomer_is_served_before_the_queue_of_another_tenant(started: Started) -> None:
    running = await occupy(started, MAX_RUNNING, tenant="flood")
    queued = started.engine.submit(a_request(max_tokens=LONG, tenant="flood"))
    late = started.engine.submit(a_request(max_tokens=4, tenant="late"))
    running[0].close()
    assert (await read(late)).last.finish is FinishReason.LENGTH
    close_all([*running[1:], queued])


async def test_full_queue_takes_a_tenant_that_has_less_than_its_share(started: Started) -> None:
    running = await occupy(started, MAX_RUNNING, tenant="flood")
    waiting = [started.engine.submit(a_request(max_tokens=LONG, tenant="flood")) for _ in range(MAX_WAITING)]
    with pytest.raises(EngineFull):
        started.engine.submit(a_request(tenant="flood"))
    late = started.engine.submit(a_request(max_tokens=LONG, tenant="late"))
    with pytest.raises(EngineFull):
        started.engine.submit(a_request(tenant="late"))
    close_all([*running, *waiting, late])


@pytest.mark.parametrize(
    ("request_fields", "error"),
    [
        ({"token_ids": tuple([3] * CONTEXT_WINDOW)}, PromptTooLong),
        ({"token_ids": (3, VOCAB_SIZE)}, UnknownTokenId),
        ({"token_ids": ()}, InvalidRequest),
        ({"token_ids": (3, 4), "resumed_tokens": 2}, InvalidRequest),
        ({"sampling": {"temperature": 1.0}}, InvalidRequest),
        ({"sampling": {"top_p": 0.0}}, InvalidRequest),
        ({"sampling": {"logprobs": 21}}, InvalidRequest),
        ({"sampling": {"temperature": float("nan"), "seed": 1}}, InvalidRequest),
        ({"sampling": {"logit_bias": {VOCAB_SIZE: 1.0}}}, InvalidRequest),
    ],
    ids=str,
)
async def test_request_that_cannot_run_is_refused_at_once(
    started: Started, request_fields: dict[str, Any], error: type[RequestRefused]
) -> None:
    with pytest.raises(error):
        started.engine.submit(a_request(**request_fields))
    assert (started.engine.running, started.engine.waiting) == (0, 0)


async def test_request_id_in_use_is_refused(started: Started) -> None:
    request = a_request(max_tokens=LONG)
    stream = started.engine.submit(request)
    with pytest.raises(InvalidRequest, match="request_id"):
        started.engine.submit(request)
    stream.close()
    started.engine.submit(request).close()


async def test_spec_says_what_the_model_and_its_cache_are(started: Started) -> None:
    spec = started.engine.spec
    assert spec is not None
    assert (spec.vocab_size, spec.context_window, spec.eos_token_ids) == (VOCAB_SIZE, CONTEXT_WINDOW, frozenset({EOS}))
    assert spec.kv_blocks * spec.kv_block_size >= CONTEXT_WINDOW
    assert spec.sampling_options >= {
        "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "stop",
        "constraint",
    }  # fmt: skip


# ---- the end -----------------------------------------------------------------------------------------------------------------


async def test_engine_that_lost_what_runs_its_model_starts_again(started: Started) -> None:
    before = await answer(started.engine, a_request())
    (stream,) = await occupy(started, 1)
    started.lose()
    async with asyncio.timeout(60):
        assert await started.losses.get()
    await started.start()
    try:
        await anext(stream)
    except ShardGroupLost:
        assert started.engine.running == 0, "either the stream goes on, or it ended"
    stream.close()
    assert (await answer(started.engine, a_request())).tokens == before.tokens
    assert started.losses.empty(), "a loss is told once"


async def test_drain_refuses_newcomers_and_waits_for_the_last_stream(started: Started) -> None:
    stream = started.engine.submit(a_request(max_tokens=64))
    left = started.engine.submit(a_request(max_tokens=LONG))
    draining = asyncio.create_task(started.engine.drain())
    await anext(stream)
    with pytest.raises(EngineDraining):
        started.engine.submit(a_request())
    assert (await read(stream)).last.finish is FinishReason.LENGTH
    assert not draining.done(), "a stream has not ended"
    await started.engine.close()
    with pytest.raises(EngineDraining):
        await read(left)
    await draining


async def test_closed_engine_refuses_and_has_left_no_process(started: Started) -> None:
    await started.engine.close()
    with pytest.raises(EngineDraining):
        started.engine.submit(a_request())
    assert started.losses.empty()
    assert vllm_processes() == []
