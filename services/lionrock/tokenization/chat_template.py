"""From a conversation to the text that a model was trained to see, with the template's own words told apart from the messages'.

Renders what transformers' `apply_chat_template(…, tokenize=False, add_generation_prompt=True)` renders. The difference is in the
labels: the result says which characters the template wrote, so that the codec looks for control tokens in those alone
(traced_text.py says how labels travel, template_sandbox.py how a hostile template is held).

Why labels and not private markers around the contents: templates trim contents, split them at `</think>`, ask how they begin and
end, and join them (DeepSeek, Qwen, Llama all do some of it), so a marker would change what they render; and escaping control
tokens inside contents would hide `</think>` from the template that looks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError

from lionrock.tokenization.codec_errors import TemplateRefused, TokenizerUnsupported
from lionrock.tokenization.template_sandbox import MAX_RENDERED_CHARS, STEP, Meter, TemplateSandbox
from lionrock.tokenization.template_values import TemplateBoundReached, weighed
from lionrock.tokenization.traced_text import TracedText, concatenate

MAX_TEMPLATE_CHARS = 65_536
MAX_DATE_FORMAT_CHARS = 64

_TEMPLATE_FAILURES = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. role: "system", "user", "assistant" or "tool"; tool_call_id only for the last."""

    role: str
    content: str
    tool_call_id: str | None = None


def _raise_exception(_: str) -> NoReturn:
    # What the template says may quote the conversation, so it goes no further.
    raise TemplateRefused("the chat template does not accept this sequence of turns")


class ChatTemplate:
    """A compiled template. Safe to use from several threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], now: Callable[[], datetime] = datetime.now) -> None:
        """Compile. special_tokens: bos_token, eos_token and others that the template may name. Raises TokenizerUnsupported."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TokenizerUnsupported(f"the chat template has more than {MAX_TEMPLATE_CHARS} characters")
        try:
            self._render = TemplateSandbox().load(source)
        except (TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise TokenizerUnsupported(f"the chat template does not compile: {type(error).__name__}") from None
        self._special_tokens = {name: TracedText.literal(text) for name, text in special_tokens.items()}
        self._now = now

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> TracedText:
        """Render a conversation. Raises TemplateRefused, also when the template runs out of its bounds of time and size."""
        values: dict[str, Any] = {
            **self._special_tokens,
            "messages": weighed([weighed(_as_dict(message)) for message in messages]),
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "raise_exception": _raise_exception,
            "strftime_now": self._strftime_now,
            STEP: Meter().step,
        }
        pieces, size = [], 0
        try:
            for piece in self._render(values):
                size += len(piece)
                if size > MAX_RENDERED_CHARS:
                    raise TemplateBoundReached("too much output")
                pieces.append(piece)
        except _TEMPLATE_FAILURES as error:
            raise TemplateRefused(f"the chat template failed on this conversation: {type(error).__name__}") from None
        return concatenate(pieces)

    def _strftime_now(self, layout: str) -> str:
        return self._now().strftime(layout[:MAX_DATE_FORMAT_CHARS])


def _as_dict(message: Message) -> dict[str, str]:
    # Roles are this mesh's own words; some templates build control tokens from them ("<|" + role + "|>").
    turn = {"role": TracedText.literal(message.role), "content": message.content}
    return turn if message.tool_call_id is None else {**turn, "tool_call_id": message.tool_call_id}
