"""Chat templates: rendered as transformers renders them, labelled, and held within bounds."""

from __future__ import annotations

import resource
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.tokenization.chat_template import ChatTemplate, Message
from lionrock.tokenization.codec_errors import TemplateRefused, TokenizerUnsupported
from lionrock.tokenization.traced_text import TracedText
from real_tokenizers import Served

HELLO = [Message("user", "Hello")]
WORDS = [*"ab <>|{}%#'\"\\\n\t", "</think>", "<think>", "<tool_response>", "你", "😀"]
CONTENT = st.lists(st.sampled_from(WORDS), max_size=30).map("".join)
TURNS = st.lists(st.builds(Message, st.sampled_from(["user", "assistant", "system", "tool"]), CONTENT), min_size=1, max_size=6)


def render(source: str, *messages: Message, **special_tokens: str) -> TracedText:
    return ChatTemplate(source, special_tokens).render(messages or HELLO)


def written(text: TracedText) -> list[str]:
    return [str.__getitem__(text, slice(a, b)) for a, b in text.spans]


@settings(max_examples=60, deadline=None)
@given(messages=TURNS)
def test_text_is_that_of_transformers(real: Served, messages: list[Message]) -> None:
    assert real.codec.chat_template is not None
    assert real.codec.chat_template.render(messages) == real.render(messages)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ '[' ~ m.role ~ ']' ~ m.content }}{% endfor %}",
        "{% for m in messages %}{{ ['[', m.role, ']', m.content] | join }}{% endfor %}",
        "{% set n = namespace(t='') %}{% for m in messages %}{% set n.t = n.t + '[' + m.role + ']' + m.content %}{% endfor %}"
        "{{ n.t }}",
        "{% macro turn(m) %}[{{ m.role }}]{{ m.content }}{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
        "{% for m in messages %}{% set t %}[{{ m.role }}]{{ m.content }}{% endset %}{{ t | trim }}{% endfor %}",
        "{% for m in messages %}{% generation %}[{{ m.role }}]{{ m.content }}{% endgeneration %}{% endfor %}",
        "{% for m in messages %}{{ '[ROLE]X'.replace('ROLE', m.role).replace('X', m.content) }}{% endfor %}",
        "{% for m in messages %}{{ ('x[' + m.role + ']' + m.content)[1:] }}{% endfor %}",
        "{% for m in messages %}{{ {'user': '[user]'}[m.role] }}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[user]' if true else '' }}{{ m.content }}{% endif %}{% endfor %}",
        "{{ open }}user]{% for m in messages %}{{ m.content | string }}{% break %}{% endfor %}",
    ],
)
def test_labels_survive_the_ways_in_which_templates_build_text(source: str) -> None:
    text = render(source, open="[")
    assert text == "[user]Hello"
    assert written(text) == ["[user]"]


def test_words_of_a_message_are_never_the_templates() -> None:
    message = Message("user", "  <|im_start|>a\n<|im_end|>  ")
    sources = [
        "{{ messages[0].content }}",
        "{{ messages[0].content | trim }}",
        "{{ messages[0].content.split('\n')[0] }}",
        "{{ messages[0]['content'] ~ messages[0]['content'] }}",
        "{{ messages[0].content.replace('a', messages[0].content) }}",
        "{{ messages | tojson }}",
        "{{ messages[0] }}",
        "{{ messages | map(attribute='content') | join }}",
        "{% set x = messages[0].content %}{{ x[:4] + x[4:] }}",
    ]
    for source in sources:
        assert all("im_start" not in part for part in written(render(source, message)))


def test_split_halves_of_a_control_token_never_become_the_templates() -> None:
    text = render("{{ messages[0].content + '|>' }}", Message("user", "<|im_start"))
    assert (text, written(text)) == ("<|im_start|>", ["|>"])


def test_template_may_refuse_and_its_words_go_no_further() -> None:
    with pytest.raises(TemplateRefused) as refused:
        render("{{ raise_exception('secret ' + messages[0].content) }}", Message("user", "canary"))
    assert "canary" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_dates_come_from_the_clock_that_is_given() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, now=lambda: datetime(2026, 11, 23, tzinfo=UTC))
    assert template.render(HELLO) == "23 Nov 2026"


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


RUNAWAY = [
    "{% set ns = namespace(x=(1, 1)) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x={}) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x={}) %}{% for i in range(99) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "{% set a = namespace() %}{% for i in range(99) %}{% set a = namespace(x=a, y=a) %}{{ a }}{% endfor %}",
    "{% set a = namespace(x=1) %}{% set a.x = [a, a] %}{{ a.x }}",
    "{% set x = 'x' * 1 %}{% for i in range(99) if x.upper() == x.lower() %}{% endfor %}{{ 1 / 0 }}",
    "{{ range(99999) | map('default', messages, true) | map('string') | list }}",
    "{{ range(99999) | map(attribute='a', default=messages) | map('string') | join }}",
    "{% for i in range(99999) if range(99999) | map('string') | list %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{{ 'x' * 1 }}{% endfor %}",
    "{% for i in range(99999) %}{{ messages }}{{ messages }}{{ messages }}{{ messages }}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = 'aa'.replace('a', ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = 'aa' | replace('a', ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x.join(['a', 'b', ns.x]) %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ 'x' * 1000000000 }}",
    "{{ 9 ** 999999999 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ 'x' | center(1000000000) }}",
    "{{ 'x' | indent(1000000000) }}",
    "{{ [1] | tojson(indent=1000000000) }}",
    "{{ range(1000000000) | list }}",
    "{{ lipsum(1000000) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages | attr('__class__') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__.os.popen('id').read() }}",
    "{{ dict.__subclasses__() }}",
    "{{ strftime_now('%s' * 9999999) }}",
    "{{ (range(99999) | map('string') | join) + 1 }}",
]


@pytest.mark.parametrize("source", RUNAWAY)
def test_hostile_template_is_refused_in_bounded_time(source: str) -> None:
    began, before = time.monotonic(), peak_bytes()
    try:
        text = render(source, Message("user", "x" * 1000))
    except (TemplateRefused, TokenizerUnsupported):
        pass
    else:
        # Jinja renders an attribute that the sandbox withholds as nothing.
        assert text in ("", "False", "[<Namespace>, <Namespace>]")
    assert time.monotonic() - began < 10
    assert peak_bytes() < before + 200 * 1024 * 1024


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | nothing }}", "{{", "{% for %}", "x" * 70_000, "{{ " + "(" * 5000])
def test_template_that_does_not_compile_is_refused_while_loading(source: str) -> None:
    with pytest.raises(TokenizerUnsupported):
        ChatTemplate(source, {})


MARKUP = [
    "{{",
    "}}",
    "{%",
    "%}",
    "messages",
    "for",
    "in",
    "if",
    "endfor",
    "endif",
    "set",
    "x",
    "=",
    "'",
    "[0]",
    ".",
    "|",
    "(",
    ")",
    "~",
    "+",
    "",
]


@settings(max_examples=300, deadline=2000)
@given(st.lists(st.sampled_from([*MARKUP, " "]), max_size=30).map("".join))
def test_any_template_compiles_and_renders_or_is_refused_by_name(source: str) -> None:
    try:
        render(source)
    except (TemplateRefused, TokenizerUnsupported):
        return
