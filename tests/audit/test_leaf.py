from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import pytest
from audit_harness import context_of, intent, outcome
from hypothesis import given
from hypothesis import strategies as st

from lionrock.audit.canonical_json import INTEGER_MAX, canonical_json
from lionrock.audit.failures import LeafTooLarge
from lionrock.audit.leaf import (
    LEAF_MAX_BYTES,
    Body,
    Context,
    Event,
    Intent,
    Model,
    Outcome,
    Plan,
    Sampling,
    Usage,
    Verdict,
    build_leaf,
    commitment,
    new_salt,
)
from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.wire import event_of, float32_decimal
from lionrock.common.v1 import context_pb2, model_pb2, sampling_pb2

NOW_US = 1_767_225_600_123_456
VALUES = st.recursive(
    st.booleans() | st.integers(-INTEGER_MAX, INTEGER_MAX) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def test_keys_sort_by_utf16_code_units() -> None:
    # RFC 8785, section 3.2.3, without its control characters' names.
    value = {
        "\u20ac": "Euro",
        "\r": "CR",
        "\ufb33": "Hebrew",
        "1": "One",
        "\U0001f600": "Smiley",
        "\u0080": "Control",
        "\u00f6": "o",
    }
    assert list(json.loads(canonical_json(value))) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


def test_strings_escape_as_the_rfc_says() -> None:
    # RFC 8785, section 3.2.2.2.
    assert canonical_json("\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/\b\f\r\t\x7f") == (
        b'"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/\\b\\f\\r\\t\x7f"'
    )


@given(VALUES)
def test_canonical_json_is_read_back_and_has_one_spelling(value: Any) -> None:
    encoded = canonical_json(value)
    assert json.loads(encoded) == value
    assert canonical_json(json.loads(encoded)) == encoded


@given(VALUES)
def test_the_fast_way_writes_what_the_literal_one_writes(value: Any) -> None:
    """RFC 8785, section 3.2.3, as it stands there: every object in the order of its keys' UTF-16 code units."""

    def literal(value: Any) -> str:
        if isinstance(value, dict):
            members = sorted(value.items(), key=lambda member: member[0].encode("utf-16-be"))
            return "{" + ",".join(f"{literal(key)}:{literal(item)}" for key, item in members) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(literal, value)) + "]"
        return json.dumps(value, ensure_ascii=False)

    assert canonical_json(value).decode() == literal(value)


@pytest.mark.parametrize("value", [2**53, -(2**53), {"a": 2**64}])
def test_integers_that_a_double_cannot_hold_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="decimal string"):
        canonical_json(value)


@pytest.mark.parametrize("value", [None, 0.5, b"bytes", {"a": None}, {1, 2}, ["a", 1.0], {"a": [{"b": 0.5}]}])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        canonical_json("\ud800")


def test_a_leaf_says_who_what_and_why_and_never_what_was_said() -> None:
    event = intent(prompt="我的身分證號碼是 A123456(3)".encode(), case_id="CASE-7", roles=("analyst", "user"))
    salt = new_salt(event)
    data = build_leaf(event, recorded_at_us=NOW_US, salt=salt, region="HK")
    leaf = json.loads(data)
    assert leaf["schema_version"] == 1
    assert leaf["type"] == "intent"
    assert leaf["ts"] == "2026-01-01T00:00:00.123456Z"
    assert leaf["tenant"] == "bank"
    assert leaf["roles"] == ["analyst", "user"]
    assert leaf["purpose"] == "customer_support"
    assert leaf["case_id"] == "CASE-7"
    assert leaf["region"] == "HK"
    assert leaf["commitments"] == {"prompt": hmac.new(salt, event.payloads["prompt"], hashlib.sha256).hexdigest()}
    assert "conversation_id" not in leaf
    assert b"A123456" not in data
    assert hashlib.sha256(event.payloads["prompt"]).hexdigest().encode() not in data


def test_equal_payloads_have_unlinkable_commitments() -> None:
    event = intent(prompt=b"yes")
    first, second = (commitment(new_salt(event), b"yes") for _ in range(2))
    assert first != second


def test_a_short_salt_commits_to_nothing() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        commitment(b"short", b"payload")


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_FIELDS = st.none() | _TEXTS | st.integers(-9, 9) | st.booleans() | st.lists(_TEXTS, max_size=2).map(tuple)
_FIELDS |= st.dictionaries(_TEXTS, st.integers(0, 9), max_size=3)


def _records(kind: type, fields_: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({field.name: fields_ for field in fields(kind)}).map(lambda values: kind(**values))


_NESTED = st.one_of(*(_records(kind, _FIELDS) for kind in (Model, Plan, Sampling, Usage, Verdict)))
_BODIES = st.one_of(*(_records(kind, _FIELDS | _NESTED) for kind in get_args(Body)))


@given(_BODIES, _records(Context, _FIELDS), st.dictionaries(_TEXTS, st.binary(max_size=9), max_size=2), _TEXTS, _TEXTS)
def test_a_leaf_is_written_as_canonical_json_writes_what_has_a_value(
    body: Any, context: Context, payloads: dict[str, bytes], trace_id: str, region: str
) -> None:
    def present(record: Any) -> dict[str, Any]:
        values = {field.name: getattr(record, field.name) for field in fields(record)}
        kept = {name: value for name, value in values.items() if value is not None and value not in ("", ())}
        return {name: present(value) if is_dataclass(value) else value for name, value in kept.items()}

    event, salt = Event("an event", trace_id, context, body, payloads), b"s" * 32
    leaf: dict[str, Any] = present(context) | present(body)
    leaf |= {"schema_version": 1, "type": event.type, "event_id": "an event", "ts": "2026-01-01T00:00:00.123456Z"}
    leaf |= {name: value for name, value in (("trace_id", trace_id), ("region", region)) if value}
    if payloads:
        leaf["commitments"] = {kind: hmac.new(salt, payload, hashlib.sha256).hexdigest() for kind, payload in payloads.items()}
    try:
        assert build_leaf(event, recorded_at_us=NOW_US, salt=salt, region=region) == canonical_json(leaf)
    except LeafTooLarge as refusal:
        assert refusal.size_bytes == len(canonical_json(leaf))  # noqa: PT017


def test_events_without_payload_have_no_salt_and_no_commitment() -> None:
    event = intent()
    assert new_salt(event) == b""
    assert "commitments" not in json.loads(build_leaf(event, recorded_at_us=NOW_US, salt=b""))


def test_a_leaf_of_two_kilobytes_is_refused_with_its_size() -> None:
    findings = {f"rule.{number:04}": 1 for number in range(150)}
    event = outcome(intent(), 0)
    body = Outcome(0, "blocked", answer_verdict=Verdict("block", findings, "default", "1", ""))
    with pytest.raises(LeafTooLarge) as caught:
        build_leaf(Event(event.event_id, "", event.context, body, {}), recorded_at_us=NOW_US, salt=b"")
    assert caught.value.size_bytes >= caught.value.limit_bytes == LEAF_MAX_BYTES


@given(st.integers(0, 1300))
def test_whenever_an_intent_fits_the_outcome_that_recovery_would_write_fits_too(length: int) -> None:
    body = Intent("chat", Model("m"), None, None, 0)
    event = Event(intent().event_id, "a" * 32, context_of(actor="a" * (length + 1)), body, {})
    try:
        build_leaf(event, recorded_at_us=NOW_US, salt=b"", region="HK")
    except LeafTooLarge:
        return
    closing = Outcome(2**53 - 1, "failed", reason="OUTCOME_MISSING", recorded_by="recovery")
    build_leaf(Event(event.event_id, event.trace_id, event.context, closing, {}), recorded_at_us=NOW_US, salt=b"", region="HK")


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_decimals_give_back_the_same_float32(value: float) -> None:
    message = sampling_pb2.SamplingParams(temperature=value)
    assert sampling_pb2.SamplingParams(temperature=float(float32_decimal(message.temperature))).temperature == message.temperature


def test_decimals_are_as_people_write_them() -> None:
    params = sampling_pb2.SamplingParams(temperature=0.7, top_p=0.95, min_p=0.0)
    assert [float32_decimal(value) for value in (params.temperature, params.top_p, params.min_p)] == ["0.7", "0.95", "0"]


POLICIES = "sha256:" + "ab" * 32


def _request(**event: Any) -> pb.AppendRequest:
    context = context_pb2.RequestContext(
        request_id="0197f000-0000-7000-8000-000000000000",
        tenant="bank",
        actor="spiffe://lionrock.local/tenant/bank/user/ada",
        auth_method=context_pb2.AUTH_METHOD_OIDC,
        roles=["analyst"],
        purpose="research",
        territory="HK",
        profile="default",
        access_policy_digest=POLICIES,
    )
    return pb.AppendRequest(context=context, event_id="0197f000-0000-7000-8000-000000000001", trace_id="ab" * 16, **event)


def test_an_intent_message_becomes_a_documented_leaf() -> None:
    params = sampling_pb2.SamplingParams(temperature=0.7, seed=2**64 - 1, stop=["停", "STOP"], top_k=40, logit_bias={7: -1.5})
    verdict = pb.GuardrailSummary(
        action="mask", findings={"hk.hkid": 2}, profile="default", policy_version="3", policy_digest="sha256:00"
    )
    message = pb.Intent(action="chat", model="smollm2", sampling=params, prompt_verdict=verdict, prompt_tokens=5, prompt=b"prompt")
    event = event_of(_request(intent=message))
    salt = new_salt(event)
    leaf = json.loads(build_leaf(event, recorded_at_us=NOW_US, salt=salt))
    assert leaf["auth_method"] == "oidc"
    assert leaf["access_policy_digest"] == POLICIES
    assert leaf["data_class"] == "personal"
    assert leaf["trace_id"] == "ab" * 16
    assert leaf["model"] == {"name": "smollm2"}
    assert leaf["sampling"].pop("logit_bias_digest") == "sha256:" + hashlib.sha256(b'{"7":"-1.5"}').hexdigest()
    assert leaf["sampling"] == {"temperature": "0.7", "seed": "18446744073709551615", "top_k": 40, "stop_count": 2}
    assert leaf["prompt_verdict"]["findings"] == {"hk.hkid": 2}
    assert leaf["prompt_tokens"] == 5
    assert set(leaf["commitments"]) == {"prompt", "stop"}
    assert leaf["commitments"]["stop"] == commitment(salt, '["停","STOP"]'.encode()).hex()


def test_an_outcome_message_becomes_a_documented_leaf() -> None:
    shards = [model_pb2.ShardPlan.Shard(rank=rank, query_heads=6 - 3 * rank, kv_heads=2 - rank, layers=30) for rank in range(2)]
    message = pb.Outcome(
        intent_index=0,
        status=pb.OUTCOME_STATUS_ANSWERED,
        finish_reason=sampling_pb2.FINISH_REASON_STOP,
        model=model_pb2.ModelIdentity(model="smollm2", weights_digest="sha256:" + "1" * 64, engine="lionrock-torch/0.1.0"),
        plan=model_pb2.ShardPlan(chip="cpu", tensor_parallel=2, pipeline_parallel=1, dtype="float32", shards=shards),
        usage=sampling_pb2.TokenUsage(prompt_tokens=5, completion_tokens=0),
        answer=b"answer",
    )
    message.time_to_first_token.FromNanoseconds(12_345_678)
    message.total_time.FromSeconds(2)
    event = event_of(_request(outcome=message))
    leaf = json.loads(build_leaf(event, recorded_at_us=NOW_US, salt=new_salt(event)))
    assert leaf["type"] == "outcome"
    assert leaf["intent_index"] == 0
    assert (leaf["status"], leaf["finish_reason"]) == ("answered", "stop")
    assert leaf["model"]["weights_digest"] == "sha256:" + "1" * 64
    assert leaf["plan"]["tensor_parallel"] == 2
    assert len(leaf["plan"]["shards_digest"]) == 71
    assert leaf["usage"] == {"prompt_tokens": 5, "completion_tokens": 0, "cached_prompt_tokens": 0}
    assert (leaf["time_to_first_token_ms"], leaf["total_time_ms"]) == (12, 2000)
    assert set(leaf["commitments"]) == {"answer"}
    refused = json.loads(
        build_leaf(
            event_of(_request(outcome=pb.Outcome(status=pb.OUTCOME_STATUS_BLOCKED, reason="PROMPT_BLOCKED"))),
            recorded_at_us=0,
            salt=b"",
        )
    )
    assert "intent_index" not in refused
    assert (refused["status"], refused["reason"]) == ("blocked", "PROMPT_BLOCKED")


def test_unset_sampling_fields_are_absent_and_zeros_are_not() -> None:
    event = Event("e", "", context_of(), Intent("chat", Model("m"), Sampling(temperature="0", max_tokens=None), None, 0), {})
    assert json.loads(build_leaf(event, recorded_at_us=0, salt=b""))["sampling"] == {"temperature": "0"}
