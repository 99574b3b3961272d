"""Between the wire's messages and the engine's records, both ways. Pure."""

from __future__ import annotations

import json
from typing import Final

from lionrock.common.v1 import model_pb2, sampling_pb2
from lionrock.inference.engine.sequence import Constraint, FinishReason, Request, RequestId, Sampling, StepOutput
from lionrock.inference.served_model import ServedModel
from lionrock.inference.v1 import inference_pb2 as pb
from lionrock.planner.plan import ShardPlan

_REASONS: Final = {
    FinishReason.STOP: sampling_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: sampling_pb2.FINISH_REASON_LENGTH,
}


def engine_request(request: pb.GenerateRequest, deadline_s: float) -> Request:
    """Return the engine's request. deadline_s: monotonic."""
    return Request(
        request_id=RequestId(request.context.request_id),
        token_ids=tuple(request.token_ids),
        sampling=_sampling(request.sampling),
        resumed_tokens=request.resumed_tokens,
        priority=request.priority,
        deadline_s=deadline_s,
        cache_salt=request.cache_salt,
        tenant=request.context.tenant,
        weight=request.weight or 1,
        constraint=_constraint(request.constraint) if request.HasField("constraint") else None,
    )


def _constraint(asked: sampling_pb2.OutputConstraint) -> Constraint:
    kind = asked.WhichOneof("constraint")
    match kind:
        case "choice":
            return Constraint(kind, json.dumps(list(asked.choice.values)))
        case "json_schema" | "regex" | "ebnf":
            return Constraint(kind, getattr(asked, kind))
    raise AssertionError("validation demands a kind")


def _sampling(params: sampling_pb2.SamplingParams) -> Sampling:
    optional = {
        name: getattr(params, name)
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "seed",
            "max_tokens",
            "logprobs",
        )
        if params.HasField(name)
    }
    return Sampling(
        **optional,
        logit_bias=dict(params.logit_bias),
        stop=tuple(params.stop),
        stop_token_ids=tuple(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
    )


def tokens_message(output: StepOutput) -> pb.GenerateResponse:
    """Return the message that carries an output's tokens."""
    tokens = pb.GenerateResponse.Tokens(token_ids=output.token_ids)
    for entry in output.logprobs:
        top = [pb.TokenLogprobs.Alternative(token_id=token_id, logprob=logprob) for token_id, logprob in entry.top]
        tokens.logprobs.append(pb.TokenLogprobs(logprob=entry.logprob, top=top))
    return pb.GenerateResponse(tokens=tokens)


def finished_message(output: StepOutput) -> pb.GenerateResponse:
    """Return the last message of an answer that ended by itself."""
    timings = output.timings
    assert timings is not None, "the last output has timings"
    assert output.finish is not None, "the last output has a reason"
    finished = pb.GenerateResponse.Finished(
        reason=_REASONS[output.finish],
        usage=sampling_pb2.TokenUsage(
            prompt_tokens=timings.prompt_tokens,
            completion_tokens=timings.completion_tokens,
            cached_prompt_tokens=timings.cached_prompt_tokens,
        ),
    )
    finished.total_time.FromNanoseconds(int(timings.total_s * 1e9))
    finished.queue_time.FromNanoseconds(int(timings.queue_s * 1e9))
    if timings.first_token_s is not None:
        finished.time_to_first_token.FromNanoseconds(int(timings.first_token_s * 1e9))
    return pb.GenerateResponse(finished=finished)


def plan_message(plan: ShardPlan) -> model_pb2.ShardPlan:
    """Return the wire's form of a shard plan."""
    return model_pb2.ShardPlan(
        chip=plan.chip,
        tensor_parallel=plan.tensor_parallel,
        pipeline_parallel=plan.pipeline_parallel,
        dtype=plan.dtype,
        shards=[
            model_pb2.ShardPlan.Shard(
                rank=shard.rank,
                query_heads=shard.query_heads,
                kv_heads=shard.kv_heads,
                first_layer=shard.first_layer,
                layers=shard.layers,
                weight_bytes=shard.weight_bytes,
            )
            for shard in plan.shards
        ],
    )


def served_message(model: ServedModel, engine: str, image_digest: str | None) -> pb.ServedModel:
    """Return what is served, but for its state. engine: name and version.

    The identity is what decides an answer besides prompt and sampling.
    """
    return pb.ServedModel(
        identity=model_pb2.ModelIdentity(
            model=model.name,
            weights_digest=model.source.weights_digest,
            tokenizer_digest=model.settings.tokenizer_digest or "",
            engine=engine,
            image_digest=image_digest or "",
        ),
        plan=plan_message(model.plan),
        context_window=model.config.context_window,
        kv_bytes_per_token=model.plan.kv_bytes_per_token,
    )
