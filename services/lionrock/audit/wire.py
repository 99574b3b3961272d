"""From the wire to a domain event: protobuf messages in, leaf records out, nothing decided.

Knows: how each field of audit.proto is written in a leaf (names of enums in lower case without their prefix, float32 as
decimals, times in ms).
"""

import struct
from hashlib import sha256

from google.protobuf.duration_pb2 import Duration

from lionrock.audit.canonical_json import JsonValue, canonical_json
from lionrock.audit.leaf import Context, Event, Governance, Intent, Model, Outcome, Plan, Sampling, Usage, Verdict
from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.common.v1 import context_pb2, model_pb2, sampling_pb2


def event_of(request: pb.AppendRequest) -> Event:
    """Read an append. The request has passed its protovalidate rules; raises ValueError for what these cannot say."""
    payloads: dict[str, bytes] = {}
    subject_ids: tuple[str, ...] = ()
    body: Intent | Outcome | Governance
    match request.WhichOneof("event"):
        case "intent":
            body, subject_ids = _intent(request.intent), tuple(request.intent.subject_ids)
            if request.intent.prompt:
                payloads["prompt"] = request.intent.prompt
            if request.intent.sampling.stop:
                payloads["stop"] = canonical_json(list(request.intent.sampling.stop))
        case "governance":
            decided = request.governance
            body, subject_ids = _governance(decided), tuple(decided.subject_ids)
            if decided.statement:
                decided.statement.decode()  # raises ValueError
                payloads["statement"] = decided.statement
        case _:
            body = _outcome(request.outcome)
            if request.outcome.answer:
                payloads["answer"] = request.outcome.answer
    return Event(request.event_id, request.trace_id, asker_of(request.context), body, payloads, subject_ids)


def float32_decimal(value: float) -> str:
    """Shortest decimal that reads back as the same float32: 0.7, not 0.699999988079071."""
    wanted = struct.pack("<f", value)
    for digits in range(1, 9):
        text = f"{value:.{digits}g}"
        try:
            if struct.pack("<f", float(text)) == wanted:
                return text
        except OverflowError:  # rounded up beyond the largest float32
            continue
    return f"{value:.9g}"


def asker_of(context: context_pb2.RequestContext) -> Context:
    """Read who asks."""
    return Context(
        request_id=context.request_id,
        tenant=context.tenant,
        actor=context.actor,
        auth_method=_enum(context_pb2.AuthMethod.Name(context.auth_method), "AUTH_METHOD_"),
        roles=tuple(context.roles),
        purpose=context.purpose,
        case_id=context.case_id,
        conversation_id=context.conversation_id,
        # Unspecified is treated as personal, says context.proto; the leaf says what was applied.
        data_class=_enum(context_pb2.DataClass.Name(context.data_class), "DATA_CLASS_") or "personal",
        territory=context.territory,
        profile=context.profile,
        access_policy_digest=context.access_policy_digest,
        break_glass_id=context.break_glass_id,
    )


def _intent(intent: pb.Intent) -> Intent:
    return Intent(
        action=intent.action,
        model=Model(name=intent.model, tokenizer_digest=intent.tokenizer_digest),
        sampling=_sampling(intent.sampling) if intent.HasField("sampling") else None,
        prompt_verdict=_verdict(intent.prompt_verdict) if intent.HasField("prompt_verdict") else None,
        prompt_tokens=intent.prompt_tokens,
        notice_version=intent.notice_version or None,
        notice_digest=intent.notice_digest,
    )


def _governance(decided: pb.Governance) -> Governance:
    return Governance(operation=decided.operation, object_id=decided.object_id, details=dict(decided.details) or None)


def _outcome(outcome: pb.Outcome) -> Outcome:
    return Outcome(
        intent_index=outcome.intent_index if outcome.HasField("intent_index") else None,
        status=_enum(pb.OutcomeStatus.Name(outcome.status), "OUTCOME_STATUS_"),
        finish_reason=_enum(sampling_pb2.FinishReason.Name(outcome.finish_reason), "FINISH_REASON_"),
        reason=outcome.reason,
        model=_model(outcome.model) if outcome.HasField("model") else None,
        plan=_plan(outcome.plan) if outcome.HasField("plan") else None,
        prompt_verdict=_verdict(outcome.prompt_verdict) if outcome.HasField("prompt_verdict") else None,
        answer_verdict=_verdict(outcome.answer_verdict) if outcome.HasField("answer_verdict") else None,
        usage=_usage(outcome.usage) if outcome.HasField("usage") else None,
        time_to_first_token_ms=_milliseconds(outcome.time_to_first_token) if outcome.HasField("time_to_first_token") else None,
        total_time_ms=_milliseconds(outcome.total_time) if outcome.HasField("total_time") else None,
        resumptions=outcome.resumptions or None,
    )


def _sampling(params: sampling_pb2.SamplingParams) -> Sampling:
    present = {field.name for field, _ in params.ListFields()}

    def decimal(name: str, value: float) -> str | None:
        return float32_decimal(value) if name in present else None

    biases: dict[str, JsonValue] = {str(token): float32_decimal(bias) for token, bias in params.logit_bias.items()}
    return Sampling(
        temperature=decimal("temperature", params.temperature),
        top_p=decimal("top_p", params.top_p),
        top_k=params.top_k if "top_k" in present else None,
        min_p=decimal("min_p", params.min_p),
        repetition_penalty=decimal("repetition_penalty", params.repetition_penalty),
        presence_penalty=decimal("presence_penalty", params.presence_penalty),
        frequency_penalty=decimal("frequency_penalty", params.frequency_penalty),
        logit_bias_digest=_digest(biases) if biases else "",
        seed=str(params.seed) if "seed" in present else None,
        max_tokens=params.max_tokens if "max_tokens" in present else None,
        stop_count=len(params.stop) or None,
        stop_token_ids=tuple(params.stop_token_ids),
        logprobs=params.logprobs if "logprobs" in present else None,
        ignore_eos=params.ignore_eos or None,
    )


def _verdict(verdict: pb.GuardrailSummary) -> Verdict:
    return Verdict(
        verdict.action,
        dict(verdict.findings),
        verdict.profile,
        verdict.policy_version,
        verdict.policy_digest,
        dict(verdict.list_snapshot_digests) or None,
    )


def _model(model: model_pb2.ModelIdentity) -> Model:
    return Model(
        name=model.model,
        tokenizer_digest=model.tokenizer_digest,
        weights_digest=model.weights_digest,
        adapter_digest=model.adapter_digest,
        engine=model.engine,
        image_digest=model.image_digest,
    )


def _plan(plan: model_pb2.ShardPlan) -> Plan:
    shards: list[JsonValue] = [
        {
            "rank": shard.rank,
            "query_heads": shard.query_heads,
            "kv_heads": shard.kv_heads,
            "first_layer": shard.first_layer,
            "layers": shard.layers,
            "weight_bytes": str(shard.weight_bytes),
        }
        for shard in plan.shards
    ]
    return Plan(plan.chip, plan.tensor_parallel, plan.pipeline_parallel, plan.dtype, _digest(shards))


def _usage(usage: sampling_pb2.TokenUsage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens)


def _digest(value: JsonValue) -> str:
    return f"sha256:{sha256(canonical_json(value)).hexdigest()}"


def _enum(name: str, prefix: str) -> str:
    """Lower-case name without its prefix; empty for the unspecified value."""
    short = name.removeprefix(prefix).lower()
    return "" if short == "unspecified" else short


def _milliseconds(duration: Duration) -> int:
    return round(duration.ToNanoseconds() / 1e6)
