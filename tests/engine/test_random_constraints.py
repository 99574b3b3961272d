"""Answers of random constraints are of their languages, as judges say that share no code with the engine."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spelling_model import EOS, VOCAB_SIZE, VOCABULARY, SpellingModel, ids_of
from test_answer_rules import TRUSTED, AtOnce, request, text

from lionrock.inference.engine.constraints import Constraints
from lionrock.inference.engine.engine import Engine
from lionrock.inference.engine.errors import InvalidConstraint
from lionrock.inference.engine.schema_subset import KEYWORDS, UnsupportedSchema, canonical_schema
from lionrock.inference.engine.sequence import Constraint, FinishReason, Request, StepOutput

NAMES = st.sampled_from(["a", "b", "name", 'é"', "x y"])
SCALARS = st.sampled_from([None, True, False, 0, 1, -7, 2.5, "", "a", 'é"\\\n', "x"])


def _bounded(kind: str, low: str, high: str, largest: int) -> st.SearchStrategy[dict[str, Any]]:
    pair = st.tuples(st.integers(0, largest), st.integers(0, largest)).map(sorted)
    return st.one_of(
        st.just({"type": kind}),
        pair.map(lambda p: {"type": kind, low: p[0], high: p[1]}),
        pair.map(lambda p: {"type": kind, high: p[1]}),
    )


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, inner, max_size=3))
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if properties:
        schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
    extra = draw(st.none() | st.just(False) | inner)
    if extra is not None:
        schema["additionalProperties"] = extra
    elif properties and draw(st.booleans()):
        schema["minProperties"] = draw(st.integers(0, len(properties)))
        schema["maxProperties"] = draw(st.integers(max(schema["minProperties"], len(schema.get("required", ()))), 4))
    return schema


PATTERNS = [r"^[a-f]{1,3}\d?$", ".{2}", "[^a-z]{2}"]  # whose meaning Python's re shares
PLAIN: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"type": "null"},
    {"type": ["integer", "null"]},
    {"type": "string", "format": "date"},
    *({"type": "string", "pattern": pattern} for pattern in PATTERNS),
]
LEAVES = st.one_of(
    st.sampled_from(PLAIN),
    _bounded("integer", "minimum", "maximum", 400),
    _bounded("number", "exclusiveMinimum", "maximum", 9).filter(lambda s: s.get("exclusiveMinimum", -1) < s.get("maximum", 0)),
    _bounded("string", "minLength", "maxLength", 6),
    st.lists(SCALARS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    SCALARS.map(lambda value: {"const": value}),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        st.tuples(inner, st.integers(0, 2), st.integers(2, 4)).map(
            lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[2]}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: {"type": "array", "prefixItems": items, "minItems": len(items)}),
        st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches}),
    ),
    max_leaves=5,
)

REGEXES = st.recursive(
    st.sampled_from(["a", "é", r"\d", r"\w", ".", "[a-c]", "[^a]", r"\.", r"[\d_-]"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,3}"])).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ),
    max_leaves=5,
)
CHOICES = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def compiled() -> Constraints:
    return Constraints(VOCABULARY, VOCAB_SIZE, [EOS], TRUSTED, compiling=AtOnce(), beginning=AtOnce())


def answers(compiled: Constraints, constraint: Constraint, seed: int) -> list[list[StepOutput]]:
    """Two answers of a constraint, greedy and drawn, beside one that is free. The end comes once it may."""
    engine = Engine(SpellingModel(kv_blocks=200, kv_block_size=8, context_window=500), vocabulary=VOCABULARY, constraints=compiled)
    bias = {EOS: 8.0, **dict.fromkeys(ids_of(b'"}],'), 3.0)}
    items: list[Request] = [
        request(constraint=constraint, max_tokens=300, logit_bias=bias),
        request(constraint=constraint, max_tokens=300, logit_bias=bias, temperature=1.2, seed=seed),
        request(max_tokens=5, ignore_eos=True),
    ]
    outputs: dict[str, list[StepOutput]] = {item.request_id: [] for item in items}
    for item in items:
        engine.add(item)
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id].append(output)
    return list(outputs.values())[:2]


@settings(deadline=None, max_examples=80)
@given(schema=SCHEMAS, seed=st.integers(0, 1 << 32))
def test_answers_of_random_schemas_are_valid(compiled: Constraints, schema: dict[str, Any], seed: int) -> None:
    for outputs in answers(compiled, Constraint("json_schema", json.dumps(schema)), seed):
        if outputs[-1].finish is FinishReason.STOP:
            jsonschema.Draft202012Validator(schema).validate(json.loads(text(outputs)))
        else:
            assert outputs[-1].finish is FinishReason.LENGTH


@settings(deadline=None, max_examples=80)
@given(source=REGEXES, seed=st.integers(0, 1 << 32))
def test_answers_of_random_regexes_match(compiled: Constraints, source: str, seed: int) -> None:
    for outputs in answers(compiled, Constraint("regex", source), seed):
        if outputs[-1].finish is FinishReason.STOP:
            assert re.compile(source, re.ASCII).fullmatch(text(outputs).decode())


@settings(deadline=None, max_examples=40)
@given(choices=CHOICES, seed=st.integers(0, 1 << 32))
def test_answers_of_random_choices_are_among_them(compiled: Constraints, choices: list[str], seed: int) -> None:
    for outputs in answers(compiled, Constraint("choice", json.dumps(choices)), seed):
        assert outputs[-1].finish is FinishReason.STOP
        assert text(outputs).decode() in choices


JSON_TYPES = st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null", "any", 5, None])
KEYS = st.sampled_from(["secret", *sorted(KEYWORDS)]) | NAMES
ANYTHING = st.recursive(
    SCALARS | JSON_TYPES | st.just("#") | st.just("#/$defs/a"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["secret", *sorted(KEYWORDS)]) | NAMES, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=400)
@given(schema=ANYTHING)
def test_any_json_as_a_schema_is_refused_without_quoting_it_or_taken(schema: Any) -> None:
    refused: UnsupportedSchema | None = None
    try:
        json.loads(canonical_schema(json.dumps(schema)))
    except UnsupportedSchema as error:
        refused = error
    assert refused is None or not any(word in str(refused) for word in ("secret", "x y", "é"))


@settings(deadline=None, max_examples=60)
@given(schema=ANYTHING, seed=st.integers(0, 1 << 32))
def test_whatever_schema_is_taken_its_answers_are_valid(compiled: Constraints, schema: Any, seed: int) -> None:
    try:
        both = answers(compiled, Constraint("json_schema", json.dumps(schema)), seed)
    except InvalidConstraint:
        return
    for outputs in both:
        if outputs[-1].finish is FinishReason.STOP:
            jsonschema.Draft202012Validator(schema).validate(json.loads(text(outputs)))


@pytest.mark.parametrize(
    ("schema", "at"),
    [
        ({"type": "object", "properties": {"secret": {"oneOf": [{}]}}}, "/properties/[0]"),
        ({"$defs": {"secret": {"not": {}}}}, "/$defs/[0]"),
        ({"anyOf": [{}, {"type": "array", "items": {"uniqueItems": True}}]}, "/anyOf/[1]/items"),
        ({"enum": [1 << 60]}, "/enum/[0]"),
        ({"type": "string", "pattern": "(?=x)"}, "/pattern"),
        ({"type": "integer", "minimum": 1.5e300}, "/minimum"),
        ({"$ref": "#/$defs/none"}, "/$ref"),
        ({"$ref": "https://example.org/schema"}, "/$ref"),
        ({"type": "string", "minLength": 1, "pattern": "a"}, ""),
        ({"minLength": 1}, ""),
    ],
)
def test_a_refused_schema_says_where(schema: dict[str, Any], at: str) -> None:
    with pytest.raises(UnsupportedSchema) as refused:
        canonical_schema(json.dumps(schema))
    assert refused.value.path == at


NO_SCHEMAS = ["[" * 100_000, '{"items":' * 200 + "{}" + "}" * 200, '{"a":1,"a":1}', "NaN", "{", '{"const": NaN}']


@pytest.mark.parametrize("source", NO_SCHEMAS, ids=range(len(NO_SCHEMAS)))
def test_text_that_is_no_schema_is_refused(source: str) -> None:
    with pytest.raises(UnsupportedSchema):
        canonical_schema(source)
