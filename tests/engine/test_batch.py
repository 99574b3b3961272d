import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.inference.engine.batch import BatchRow, LogitAdjustment, MalformedBatch, SamplingRow, StepBatch, StepResult
from lionrock.inference.engine.sequence import SequenceId, TokenLogprob

_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
_UINT32 = st.integers(0, 2**32 - 1)
_SEQUENCE_ID = st.integers(0, 2**63 - 1).map(SequenceId)
_SAMPLING = st.builds(
    SamplingRow,
    temperature=_FLOAT32,
    top_p=_FLOAT32,
    top_k=st.none() | st.integers(1, 2**31 - 1),
    min_p=_FLOAT32,
    seed=st.integers(0, 2**64 - 1),
    logprobs=st.none() | st.integers(0, 20),
)
_ADJUSTMENT = st.builds(
    LogitAdjustment,
    tokens=st.lists(_UINT32, max_size=20).map(tuple),
    prompt_tokens=_UINT32,
    repetition_penalty=_FLOAT32,
    presence_penalty=_FLOAT32,
    frequency_penalty=_FLOAT32,
    logit_bias=st.lists(st.tuples(_UINT32, _FLOAT32), max_size=5).map(tuple),
    allowed=st.binary(max_size=12),
)
_ROW = st.builds(
    BatchRow,
    sequence_id=st.integers(0, 2**63 - 1).map(SequenceId),
    start=st.integers(0, 2**31 - 1),
    token_ids=st.lists(_UINT32, max_size=20).map(tuple),
    block_table=st.lists(_UINT32, max_size=20).map(tuple),
    sampling=st.none() | _SAMPLING,
    adjustment=st.none() | _ADJUSTMENT,
).flatmap(lambda row: st.integers(0, max(0, len(row.token_ids) - 1)).map(lambda drafts: replace(row, drafts=drafts)))
_BATCH = st.builds(
    StepBatch,
    rows=st.lists(_ROW, max_size=6).map(tuple),
    released=st.lists(_SEQUENCE_ID, max_size=4).map(tuple),
    copies=st.lists(st.tuples(_UINT32, _UINT32), max_size=4).map(tuple),
)
_LOGPROB = st.builds(TokenLogprob, logprob=_FLOAT32, top=st.lists(st.tuples(_UINT32, _FLOAT32), max_size=5).map(tuple))


@given(_BATCH)
def test_a_batch_survives_encoding(batch: StepBatch) -> None:
    assert StepBatch.decode(batch.encode()) == batch


@given(st.lists(_UINT32, max_size=20).map(tuple), st.dictionaries(st.integers(0, 19), _LOGPROB, max_size=4))
def test_a_result_survives_encoding(token_ids: tuple[int, ...], logprobs: dict[int, TokenLogprob]) -> None:
    result = StepResult(token_ids, logprobs)
    assert StepResult.decode(result.encode()) == result


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_batch(data: bytes) -> None:
    for kind in (StepBatch, StepResult):
        with pytest.raises(MalformedBatch):
            kind.decode(data)


@given(_BATCH, st.data())
def test_a_damaged_batch_is_refused_or_still_a_batch(batch: StepBatch, data: st.DataObject) -> None:
    encoded = bytearray(batch.encode())
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(MalformedBatch):
        StepBatch.decode(bytes(encoded))
    with pytest.raises(MalformedBatch):
        StepBatch.decode(bytes(encoded[:-1]))
