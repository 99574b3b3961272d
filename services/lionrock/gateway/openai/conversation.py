"""Messages of OpenAI's API as turns of ours: content and earlier tool calls become the text that the model reads.

Knows what a message may hold; how a model's template writes turns is the tokenizer's. Tool calls are written as the model writes
them when it calls (tools.py), one a line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from lionrock.chassis.errors import InvalidField
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.gateway.openai.chat_fields import Message, Part, ToolCall
from lionrock.gateway.v1 import gateway_pb2 as gw

_ROLES = {
    "system": chat.CHAT_ROLE_SYSTEM,
    "developer": chat.CHAT_ROLE_SYSTEM,
    "user": chat.CHAT_ROLE_USER,
    "assistant": chat.CHAT_ROLE_ASSISTANT,
    "tool": chat.CHAT_ROLE_TOOL,
}


def turns(messages: Sequence[Message]) -> list[chat.ChatMessage]:
    """Return the conversation. Raises InvalidField."""
    return [_turn(message, f"messages[{number}]") for number, message in enumerate(messages)]


def instruct(request: gw.ChatRequest, text: str) -> None:
    """Tell the model something in the system message: templates take one, and take it first."""
    if request.messages and request.messages[0].role == chat.CHAT_ROLE_SYSTEM:
        request.messages[0].content += f"\n\n{text}"
        return
    conversation = list(request.messages)
    del request.messages[:]
    request.messages.append(chat.ChatMessage(role=chat.CHAT_ROLE_SYSTEM, content=text))
    request.messages.extend(conversation)


def _turn(message: Message, place: str) -> chat.ChatMessage:
    if (message.tool_call_id is not None) != (message.role == "tool"):
        _wrong(f"{place}.tool_call_id", "of a tool's message, and of no other")
    if message.role != "assistant" and (message.tool_calls is not None or message.refusal is not None):
        _wrong(place, "only an assistant calls tools or refuses")
    if message.content is None and not message.tool_calls and message.refusal is None:
        _wrong(f"{place}.content", "required")
    texts = [] if message.content is None else _texts(message.content, f"{place}.content")
    if message.refusal is not None:
        texts.append(message.refusal)
    texts += [_written(call) for call in message.tool_calls or ()]
    return chat.ChatMessage(role=_ROLES[message.role], content="\n".join(texts), tool_call_id=message.tool_call_id or "")


def _texts(content: str | Sequence[Part], place: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    texts = []
    for number, part in enumerate(content):
        text, other = (part.text, part.refusal) if part.type == "text" else (part.refusal, part.text)
        if text is None or other is not None:
            _wrong(f"{place}[{number}]", f"a {part.type} part holds {part.type}, and nothing else")
        texts.append(text or "")
    return texts


def _written(call: ToolCall) -> str:
    return f'{{"name": {json.dumps(call.function.name)}, "arguments": {call.function.arguments or "{}"}}}'


def _wrong(place: str, rule: str) -> None:
    raise InvalidField("a message does not hold together", field_violations=[(place, rule)])
