"""The leaf: one event of one request, as canonical JSON that never holds what was said.

Knows: every field of a leaf, its size limit, and the commitments that stand in for payloads. Does not know: where a leaf is
stored, who asked for it.

A leaf is an object; fields without a value are absent, fractions and 64-bit numbers are decimal strings, digests are
"sha256:" and 64 hexadecimal digits.

    schema_version       1. A reader refuses a version that it does not know.
    type                 "intent", "outcome", "governance", "access", "erasure", "expiry", "hold", "hold_release",
                         "correction", "refusal", "export" or "key_change"
    event_id             UUIDv7, made by the caller: one event is recorded once
    ts                   RFC 3339 in UTC with microseconds, by the clock of the audit service
    region               where the service runs, as its settings say
    …                    the fields of `Context`: who, why, for whom
    trace_id             W3C trace id
    …                    the fields of the event's own class below
    commitments          by kind of payload ("prompt", "stop", "answer", "statement", "correction", "refusal"):
                         HMAC-SHA256(salt, payload), hexadecimal

The salt is 32 random bytes, one a leaf, and goes to the caller and, sealed with the payload, into the vault: without it a
commitment confirms no guess, so destroying it (and the payload) erases the content while the leaf's proof stays valid. A bare
hash would not do: all Hong Kong identity card numbers hash within the minute.
"""

import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Any, Final

from lionrock.audit.canonical_json import canonical_text, quoted
from lionrock.audit.failures import LeafTooLarge

SCHEMA_VERSION = 1
LEAF_MAX_BYTES = 2048
CLOSING_RESERVE_BYTES = 256
"""What an intent leaves free, so that an outcome with the same context fits even when recovery has to write it."""
SALT_BYTES = 32
_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Context:
    """Who asked, why, and under which rules; from the verified credential.

    Same names and meanings as lionrock.common.v1.RequestContext.
    """

    request_id: str
    tenant: str
    actor: str
    auth_method: str
    """mtls, oidc or api_key."""
    roles: Sequence[str]
    purpose: str
    case_id: str
    conversation_id: str
    data_class: str
    """public, internal, personal, identity or suspicion."""
    territory: str
    profile: str
    access_policy_digest: str = ""
    """Digest of the access policies by which the gateway let the request in, "sha256:…"; absent before there were any."""
    break_glass_id: str = ""
    """Emergency access that two people opened and under which this happened; absent without one."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Effective sampling parameters. Fractions are the shortest decimals that give back the same float32; None: not set."""

    temperature: str | None = None
    top_p: str | None = None
    top_k: int | None = None
    min_p: str | None = None
    repetition_penalty: str | None = None
    presence_penalty: str | None = None
    frequency_penalty: str | None = None
    logit_bias_digest: str = ""
    """SHA-256 over the canonical JSON of {token id: decimal}."""
    seed: str | None = None
    max_tokens: int | None = None
    stop_count: int | None = None
    """Number of stop strings; the strings are committed to as kind "stop"."""
    stop_token_ids: Sequence[int] = ()
    logprobs: int | None = None
    ignore_eos: bool | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guardrails found, counted a rule; never what they found it in."""

    action: str
    findings: Mapping[str, int]
    profile: str
    policy_version: str
    policy_digest: str
    list_snapshot_digests: Mapping[str, str] | None = None
    """By list that names were screened against: SHA-256 of the snapshot in use."""


@dataclass(frozen=True, slots=True)
class Model:
    """Which weights answered. An intent knows the name and the tokenizer only."""

    name: str
    tokenizer_digest: str = ""
    weights_digest: str = ""
    adapter_digest: str = ""
    engine: str = ""
    image_digest: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the model was spread over chips; the split itself by its digest, since a rank a line would not fit."""

    chip: str
    tensor_parallel: int
    pipeline_parallel: int
    dtype: str
    shards_digest: str
    """SHA-256 over the canonical JSON of the shards in rank order (servicer.py)."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Intent:
    """A request was admitted and is about to be answered."""

    action: str
    model: Model
    sampling: Sampling | None
    prompt_verdict: Verdict | None
    prompt_tokens: int
    notice_version: int | None = None
    """Collection notice of the purpose that was in force; None: it has none."""
    notice_digest: str = ""
    """SHA-256 over the canonical JSON of that notice, as docs/access.md says."""
    retention_class: str = ""
    """Class of retention of the record, when its payloads are kept."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended."""

    intent_index: int | None
    """Index of the intent in the same log; None when the request was refused before one."""
    status: str
    """answered, blocked, aborted, failed, or held until a reviewer decides."""
    finish_reason: str = ""
    """stop, length or blocked."""
    reason: str = ""
    """Machine-readable reason of the other states, as in ErrorInfo."""
    model: Model | None = None
    plan: Plan | None = None
    prompt_verdict: Verdict | None = None
    """Of a prompt that was refused before an intent."""
    answer_verdict: Verdict | None = None
    usage: Usage | None = None
    time_to_first_token_ms: int | None = None
    total_time_ms: int | None = None
    resumptions: int | None = None
    recorded_by: str = ""
    """"recovery" when nobody reported an end (recovery.py)."""


@dataclass(frozen=True, slots=True)
class Governance:
    """Something was decided about access, or changed: a review, a consent, an API key, an emergency access.

    What a person wrote about it, and whatever names a person, is committed to as kind "statement".
    """

    operation: str
    """<thing>.<what happened>, e.g. "review.released"."""
    object_id: str
    """What it was done to."""
    details: Mapping[str, str] | None = None
    """Facts by name: codes, digests and times."""
    retention_class: str = ""
    """Class of retention of the record, when something of it is kept beside the leaf."""


@dataclass(frozen=True, slots=True)
class Access:
    """Records were read. Which ones: `records_digest` is SHA-256 over the canonical JSON of their request ids, sorted."""

    operation: str
    """read_record, read_released, search_subject, list_holds or list_refusals."""
    record_count: int
    records_digest: str
    scope: str = ""
    """What they were searched by: subject, case or request."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """Keys and salts of records are destroyed on request."""

    basis: str
    """Legal basis, as the one who asked named it."""
    scope: str
    """subject, case or request; tenant for the records of a tenant that leaves."""
    scope_commitment: str
    """HMAC-SHA256(salt, scope ":" value), hexadecimal; the salt goes to the one who asked and is kept nowhere. Absent for a tenant,
    whose name every leaf has."""
    record_count: int
    records_digest: str
    """As in `Access`."""
    kept: Mapping[str, int] | None = None
    """Records that stay, by reason."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """Keys and salts of records are destroyed because their time is up."""

    retention_class: str
    record_count: int
    records_digest: str
    """As in `Access`."""
    recorded_by: str = "retention"


@dataclass(frozen=True, slots=True)
class Hold:
    """Records are kept from erasure and expiry."""

    hold_id: str
    scope: str
    scope_commitment: str
    """As in `Erasure`; the salt is sealed with the hold and destroyed with it."""
    hold_reason: str


@dataclass(frozen=True, slots=True)
class HoldRelease:
    """A hold ends."""

    hold_id: str
    hold_index: int
    """Leaf that placed it."""


@dataclass(frozen=True, slots=True)
class Correction:
    """A data subject's statement is added to a record; committed to as kind "correction"."""

    record_id: str
    """Request id of the record."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused data request enters the log book; who asked and the particulars are committed to as kind "refusal"."""

    request: str
    """access, correction or erasure."""
    ground: str


@dataclass(frozen=True, slots=True)
class Export:
    """Leaves, and payloads if so, are about to leave in one archive: those of [first_index, stop_index), or of one case of them."""

    first_index: int
    stop_index: int
    leaf_count: int
    with_payloads: bool
    range_start: str
    """RFC 3339; what was asked for."""
    range_end: str
    selected_case: str = ""


@dataclass(frozen=True, slots=True)
class KeyChange:
    """From here on another key signs the log (rotation.py). Keys by SHA-256 over their verifier keys ("<name>+<id>+<key>")."""

    origin: str
    previous_key: str
    next_key: str


Body = Intent | Outcome | Governance | Access | Erasure | Expiry | Hold | HoldRelease | Correction | Refusal | Export | KeyChange
_TYPES: Mapping[type[Body], str] = {
    Intent: "intent",
    Outcome: "outcome",
    Governance: "governance",
    Access: "access",
    Erasure: "erasure",
    Expiry: "expiry",
    Hold: "hold",
    HoldRelease: "hold_release",
    Correction: "correction",
    Refusal: "refusal",
    Export: "export",
    KeyChange: "key_change",
}


@dataclass(frozen=True, slots=True)
class Event:
    """What is to be recorded. `payloads` (kind → bytes) are committed to; the vault, where it is on, keeps them sealed.

    `subject_ids`: data subjects whom an intent or a decision concerns; they are in no leaf.
    """

    event_id: str
    trace_id: str
    context: Context
    body: Body
    payloads: Mapping[str, bytes]
    subject_ids: Sequence[str] = ()

    @property
    def type(self) -> str:
        """Type of the leaf."""
        return _TYPES[type(self.body)]

    @property
    def record_id(self) -> str | None:
        """Id of the record that the leaf belongs to, None for what is about records and not of one.

        It is the request id; an entry of the log book has its own event id.
        """
        match self.body:
            case Intent() | Outcome() | Governance():
                return self.context.request_id
            case Refusal():
                return self.event_id
            case Correction():
                return self.body.record_id
            case _:
                return None

    @property
    def begins_record(self) -> bool:
        """Whether a record begins with the leaf even when it has no payload: it is asked for, or found by its data subjects."""
        return isinstance(self.body, Intent) or (isinstance(self.body, Governance) and bool(self.subject_ids))


def new_salt(event: Event) -> bytes:
    """Salt for one leaf; empty when the event has nothing to commit to."""
    return secrets.token_bytes(SALT_BYTES) if event.payloads else b""


def build_leaf(event: Event, *, recorded_at_us: int, salt: bytes, region: str = "") -> bytes:
    """Bytes of the leaf: a pure function of its arguments, which is how a repeated call is recognised.

    `recorded_at_us`: microseconds since 1970, UTC. Raises LeafTooLarge.
    """
    shape = _SHAPES[type(event.body)]
    commitments = {kind: commitment(salt, payload).hex() for kind, payload in event.payloads.items()} or None
    data = _object(shape, (SCHEMA_VERSION, event.type, rfc3339(recorded_at_us), region, commitments, *shape.fields(event))).encode()
    limit = LEAF_MAX_BYTES - CLOSING_RESERVE_BYTES if isinstance(event.body, Intent) else LEAF_MAX_BYTES
    if len(data) >= limit:
        raise LeafTooLarge(len(data), limit)
    return data


def commitment(salt: bytes, payload: bytes) -> bytes:
    """HMAC-SHA256(salt, payload).

    Binds to the payload and hides it from everyone without the salt. Raises ValueError for a salt of another length.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes")
    return hmac.digest(salt, payload, "sha256")


def rfc3339(at_us: int) -> str:
    """Write microseconds since 1970 as RFC 3339 in UTC with all six decimals."""
    at_s, microseconds = divmod(at_us, 1_000_000)
    return f"{_second(at_s)}.{microseconds:06}Z"


@lru_cache(maxsize=16)  # the leaves of a second share it
def _second(at_s: int) -> str:
    return (_EPOCH + timedelta(seconds=at_s)).isoformat()


@dataclass(frozen=True, slots=True)
class _Shape:
    """How objects of one class are written: what is read of one, in which order, and each name as it stands before its value."""

    fields: Callable[[Any], tuple[Any, ...]]
    in_order: Callable[[tuple[Any, ...]], Iterable[Any]]
    """Puts values in the canonical order of their names."""
    names: Sequence[str]


def _shape(first: Sequence[str], rest: Mapping[str, str]) -> _Shape:
    """Of objects with the members `first`, whose values the caller has, and `rest`: attributes, by name."""
    names = [*first, *rest]
    if len(set(names)) < len(names) or not all(map(str.isascii, names)):
        raise ValueError("two members of a leaf have one name, or one is not ASCII")
    order = sorted(range(len(names)), key=names.__getitem__)
    return _Shape(attrgetter(*rest.values()), itemgetter(*order), [f',"{names[place]}":' for place in order])


def _object(shape: _Shape, values: tuple[Any, ...]) -> str:
    """Write the members that have a value; zero and an empty set of findings are values, None and the empty string are not."""
    parts = []
    for name, value in zip(shape.names, shape.in_order(values), strict=True):
        kind = type(value)
        if kind is str:
            if value:
                parts.append(name + quoted(value))
        elif value is not None and (value or value not in _ABSENT):
            nested = _NESTED.get(kind)
            parts.append(name + (canonical_text(value) if nested is None else _object(nested, nested.fields(value))))
    return "{" + "".join(parts)[1:] + "}"


def _names(kind: type, prefix: str) -> dict[str, str]:
    return {field.name: prefix + field.name for field in fields(kind)}


_ABSENT: Final = ("", ())
_OWN: Final = ("schema_version", "type", "ts", "region", "commitments")
"""Members that are neither of the event nor of what it consists of."""
_NESTED: Final[Mapping[type, _Shape]] = {kind: _shape((), _names(kind, "")) for kind in (Sampling, Verdict, Model, Plan, Usage)}
_SHAPES: Final[Mapping[type, _Shape]] = {
    kind: _shape(_OWN, {"event_id": "event_id", "trace_id": "trace_id"} | _names(Context, "context.") | _names(kind, "body."))
    for kind in _TYPES
}
