"""Generate and ListModels over the wire, on a real model over two ranks."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from inference_service import MAX_WAITING, PROMPT, InferenceService, attributes_of, generate_request
from opentelemetry import context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lionrock.chassis.errors import remote_error
from lionrock.common.v1 import sampling_pb2
from lionrock.inference.v1 import inference_pb2 as pb
from lionrock.modelstore.source import locate
from lionrock.modelstore.vocabulary import read_vocabulary

pytestmark = pytest.mark.timeout(180)

NO_REGEX = sampling_pb2.OutputConstraint(regex="(?=a)b")
NO_GRAMMAR = sampling_pb2.OutputConstraint(ebnf="root ::= root")
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "sure": {"type": "boolean"}},
    "required": ["city"],
}


def tokens_of_one_rank(model: Path, prompt: tuple[int, ...], count: int) -> list[int]:
    """Greedy tokens of the same model on one rank in this process."""
    import torch

    from lionrock.inference.engine.engine import Engine
    from lionrock.inference.engine.sequence import Request, RequestId, Sampling
    from lionrock.inference.model.worker import LocalRunner, ShardWorker
    from lionrock.inference.served_model import describe_model
    from lionrock.inference.settings import ModelSettings

    torch.set_num_threads(1)
    served = describe_model("smollm2", ModelSettings(path=model, dtype="float32"))
    worker = ShardWorker(served.source.files[0], served.plan, 0)
    worker.load()
    worker.allocate_kv_cache(16)
    engine = Engine(LocalRunner(worker))
    engine.add(Request(RequestId("r"), prompt, Sampling(max_tokens=count, ignore_eos=True)))
    tokens: list[int] = []
    while engine.has_work:
        for output in engine.step():
            tokens += output.token_ids
    return tokens


def spelt(model: Path, token_ids: list[int]) -> str:
    return read_vocabulary(locate("smollm2", model)).join(token_ids).decode()


async def test_an_answer_says_who_answers_then_streams_tokens_then_says_what_it_took(service: InferenceService) -> None:
    async with service.stub() as stub:
        answer = await service.answer(stub, generate_request(max_tokens=8))
    assert answer.error is None
    assert answer.started is not None
    assert answer.started.model.model == "smollm2"
    assert answer.started.model.weights_digest.startswith("sha256:")
    assert answer.started.model.engine.startswith("lionrock-torch/")
    assert [(shard.query_heads, shard.kv_heads) for shard in answer.started.plan.shards] == [(6, 2), (3, 1)]
    assert answer.started.replica
    assert len(answer.tokens) == 8
    assert answer.finished is not None
    assert answer.finished.reason == sampling_pb2.FINISH_REASON_LENGTH
    assert answer.finished.usage.prompt_tokens == len(PROMPT)
    assert answer.finished.usage.completion_tokens == 8
    assert answer.finished.total_time.ToNanoseconds() >= answer.finished.time_to_first_token.ToNanoseconds() > 0


async def test_two_uneven_ranks_give_the_tokens_of_one_rank(service: InferenceService, model_path: Path) -> None:
    async with service.stub() as stub:
        answer = await service.answer(stub, generate_request(max_tokens=24))
    assert answer.tokens == await asyncio.to_thread(tokens_of_one_rank, model_path, PROMPT, 24)


async def test_a_resumed_answer_continues_with_identical_tokens(service: InferenceService) -> None:
    sampled = sampling_pb2.SamplingParams(max_tokens=16, temperature=0.8, seed=7, ignore_eos=True)
    async with service.stub() as stub:
        whole = await service.answer(stub, generate_request(sampling=sampled))
        head = tuple(whole.tokens[:6])
        rest = await service.answer(stub, generate_request(sampling=sampled, token_ids=PROMPT + head, resumed_tokens=6))
    assert rest.tokens == whole.tokens[6:]


async def test_list_models_says_how_the_model_is_sharded_and_what_its_cache_holds(service: InferenceService) -> None:
    async with service.stub() as stub:
        served = await service.served(stub)
    assert served.ready
    assert served.replicas == 1
    assert served.plan.tensor_parallel == 2
    assert served.kv_bytes_per_token == 46080
    assert served.kv_cache_tokens >= 1024
    assert {"top_p", "logit_bias", "stop", "constraint"} <= set(served.sampling_options)


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"model": "unheard-of"}, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        ({"token_ids": (1,) * 9000}, grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG"),
        ({"token_ids": (1, 49152)}, grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_TOKEN_ID"),
        ({"resumed_tokens": 14}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ({"sampling": sampling_pb2.SamplingParams(logit_bias={49152: 1.0})}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ({"sampling": sampling_pb2.SamplingParams(temperature=1)}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ({"constraint": NO_REGEX}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONSTRAINT"),
        (
            {"constraint": sampling_pb2.OutputConstraint(ebnf="root ::= root")},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_CONSTRAINT",
        ),
    ],
)
async def test_what_cannot_be_served_is_refused_with_its_reason(
    service: InferenceService, fields: dict[str, object], status: grpc.StatusCode, reason: str
) -> None:
    async with service.stub() as stub:
        answer = await service.answer(stub, generate_request(**fields))  # type: ignore[arg-type]
    assert answer.error is not None
    assert (answer.error.status, answer.error.reason) == (status, reason)
    assert answer.tokens == []


async def test_a_constrained_answer_is_of_its_language_beside_free_ones(service: InferenceService, model_path: Path) -> None:
    constraint = sampling_pb2.OutputConstraint(json_schema=json.dumps(CITY))
    params = sampling_pb2.SamplingParams(max_tokens=60)
    async with service.stub() as stub:
        constrained, free, alone = await asyncio.gather(
            service.answer(stub, generate_request(sampling=params, constraint=constraint)),
            service.answer(stub, generate_request(max_tokens=24)),
            service.answer(stub, generate_request(max_tokens=24)),
        )
    assert constrained.finished is not None
    assert constrained.finished.reason == sampling_pb2.FINISH_REASON_STOP
    assert json.loads(spelt(model_path, constrained.tokens))["city"] in ("Paris", "Rome")
    assert free.tokens == alone.tokens


async def test_a_stop_string_ends_the_answer_in_the_engine(service: InferenceService, model_path: Path) -> None:
    async with service.stub() as stub:
        free = await service.answer(stub, generate_request(max_tokens=24))
        text = spelt(model_path, free.tokens)
        stop = text[len(text) // 2 :][:3]
        params = sampling_pb2.SamplingParams(max_tokens=24, ignore_eos=True, stop=[stop])
        answer = await service.answer(stub, generate_request(sampling=params))
    assert answer.finished is not None
    assert answer.finished.reason == sampling_pb2.FINISH_REASON_STOP
    assert answer.tokens == free.tokens[: len(answer.tokens)]
    assert stop in spelt(model_path, answer.tokens)
    assert stop not in spelt(model_path, answer.tokens[:-1])


async def test_a_full_engine_refuses_with_a_delay_and_serves_the_rest(service: InferenceService) -> None:
    async with service.stub() as stub:
        answers = await asyncio.gather(*(service.answer(stub, generate_request(max_tokens=24)) for _ in range(12)))
    refused = [answer.error for answer in answers if answer.error is not None]
    assert len(answers) - len(refused) >= MAX_WAITING, "a burst fills the queue at least"
    assert refused, "twelve at once are more than the engine holds"
    for error in refused:
        assert (error.status, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ENGINE_FULL")
        assert error.retry_after_s is not None
        assert error.retry_after_s > 0
    assert len({tuple(answer.tokens) for answer in answers if answer.error is None}) == 1


async def test_a_cancelled_call_leaves_the_engine_within_100_ms(service: InferenceService) -> None:
    delays_s = []
    async with service.stub() as stub:
        for _ in range(3):  # the machine may be busy with other things: the best of three counts
            trace_id = secrets.token_hex(16)
            with within_trace(trace_id, "01"):
                call = stub.Generate(generate_request(max_tokens=1000), timeout=60)
            async for message in call:
                if message.HasField("tokens"):
                    break
            cancelled_s = time.time()
            call.cancel()
            spans = await service.wait_spans(trace_id, {"engine.sequence"})
            (sequence,) = (span for span in spans if span["name"] == "engine.sequence")
            assert attributes_of(sequence)["error.type"] == "cancelled"
            delays_s.append(int(sequence["endTimeUnixNano"]) / 1e9 - cancelled_s)
    assert min(delays_s) <= 0.1, delays_s


async def test_a_deadline_that_passes_ends_the_answer(service: InferenceService) -> None:
    async with service.stub() as stub:
        begin_s = time.monotonic()
        answer = await service.answer(stub, generate_request(max_tokens=1000), timeout_s=1.0)
        assert time.monotonic() - begin_s < 2.0
        assert answer.error is not None
        assert answer.error.status == grpc.StatusCode.DEADLINE_EXCEEDED
        after = await service.answer(stub, generate_request(max_tokens=4))
    assert after.error is None


async def test_only_the_gateway_may_call(service: InferenceService) -> None:
    for tls in (service.ca.issue("audit"), service.ca.issue_tenant("acme")):
        async with service.stub(tls) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ListModels(pb.ListModelsRequest(), timeout=5)
        assert remote_error(refused.value).reason == "CALLER_NOT_PERMITTED"


@contextmanager
def within_trace(trace_id: str, flags: str) -> Iterator[None]:
    """Make calls part of a trace that began elsewhere, whether or not this process records spans of its own."""
    parent = TraceContextTextMapPropagator().extract({"traceparent": f"00-{trace_id}-00f067aa0ba902b7-{flags}"})
    token = context.attach(parent)
    try:
        yield
    finally:
        context.detach(token)


async def traced_answer(service: InferenceService, trace_id: str, flags: str) -> None:
    async with service.stub() as stub:
        with within_trace(trace_id, flags):
            call = stub.Generate(generate_request(max_tokens=4), timeout=60)
        async for _ in call:
            pass


async def test_one_trace_reaches_every_shard(service: InferenceService) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    await traced_answer(service, trace_id, "01")
    names = {"inference.generate", "engine.sequence", "engine.queue", "engine.prefill", "engine.decode", "shard.execute"}
    spans = await service.wait_spans(trace_id, names, shards=2)
    (sequence,) = (span for span in spans if span["name"] == "engine.sequence")
    shards = [span for span in spans if span["name"] == "shard.execute"]
    assert {attributes_of(span)["lionrock.shard.rank"] for span in shards} == {"0", "1"}
    assert len({span["instance"] for span in shards}) == 2
    for span in shards:
        assert span["parentSpanId"] == sequence["spanId"]
        assert 2 <= int(attributes_of(span)["lionrock.shard.steps"]) <= 4  # a draft that holds saves a step
        assert attributes_of(span)["lionrock.shard.prefill_ms"] > 0
        assert attributes_of(span)["lionrock.shard.collective_ms"] > 0
        assert int(sequence["startTimeUnixNano"]) <= int(span["startTimeUnixNano"]) + 5_000_000
        assert int(span["endTimeUnixNano"]) <= int(sequence["endTimeUnixNano"]) + 50_000_000


async def test_a_trace_that_is_not_sampled_leaves_no_spans(service: InferenceService) -> None:
    unsampled, sampled = "0af7651916cd43dd8448eb211c80319c", "0af7651916cd43dd8448eb211c80319d"
    await traced_answer(service, unsampled, "00")
    await traced_answer(service, sampled, "01")
    await service.wait_spans(sampled, {"shard.execute", "inference.generate"})  # written later: what came before is there too
    assert not [span for span in service.spans() if span["traceId"] == unsampled]
