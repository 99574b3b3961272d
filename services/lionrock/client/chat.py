"""One chat as both clients see it: the request that is sent, and the order in which messages may come back. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, get_args

from lionrock.audit.v1.audit_pb2 import Receipt
from lionrock.client.errors import StreamBroken
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.common.v1.context_pb2 import DataClass
from lionrock.common.v1.sampling_pb2 import OutputConstraint, SamplingParams
from lionrock.gateway.v1 import gateway_pb2 as gw

Role = Literal["system", "user", "assistant", "tool"]
Started = gw.ChatResponse.Started
Finished = gw.ChatResponse.Finished


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: Role
    content: str
    tool_call_id: str = ""


Messages = str | Sequence[Message | Mapping[str, str]]
"""One user turn as text, or turns, oldest first; a mapping has the keys role and content, and tool_call_id for tools."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Text to show. `tokens`: tokens generated since the last delta."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    started: Started
    finished: Finished


def wire_messages(messages: Messages) -> list[chat.ChatMessage]:
    """Return the turns as protobuf messages.

    Raises ValueError for an unknown role, an unknown key, or text that UTF-8 cannot hold.
    """
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    wire = []
    for number, message in enumerate(messages):
        turn = message if isinstance(message, Message) else _turn(message, number)
        if turn.role not in get_args(Role):
            raise ValueError(f"messages[{number}]: role must be one of {', '.join(get_args(Role))}")
        try:
            turn.content.encode()
        except UnicodeEncodeError:
            raise ValueError(f"messages[{number}]: the text has unpaired surrogates, which UTF-8 cannot hold") from None
        role = chat.ChatRole.Value(f"CHAT_ROLE_{turn.role.upper()}")
        wire.append(chat.ChatMessage(role=role, content=turn.content, tool_call_id=turn.tool_call_id))
    return wire


def _turn(message: Mapping[str, str], number: int) -> Message:
    if not {"role", "content"} <= message.keys() <= {"role", "content", "tool_call_id"}:
        raise ValueError(f"messages[{number}]: expected the keys role and content, and tool_call_id for tools")
    return Message(message["role"], message["content"], message.get("tool_call_id", ""))  # type: ignore[arg-type]  # checked above


class ChatOptions(TypedDict, total=False):
    """What can be said about a chat besides its messages. Unset is the gateway's default, as gateway.proto documents it."""

    model: str
    temperature: float
    top_p: float
    seed: int
    max_tokens: int
    stop: Sequence[str]
    sampling: SamplingParams
    """Every other sampling option; the ones above are laid over it."""
    constraint: OutputConstraint
    purpose: str
    case_id: str
    conversation_id: str
    data_class: DataClass.ValueType
    subject_ids: Sequence[str]
    """Data subjects whom the question concerns, by the tenant's pseudonyms."""


def chat_request(messages: Messages, options: ChatOptions) -> gw.ChatRequest:
    """Build the request. Raises ValueError or TypeError, before anything is sent, for what no message can hold."""
    params = SamplingParams()
    if "sampling" in options:
        params.CopyFrom(options["sampling"])
    for name in ("temperature", "top_p", "seed", "max_tokens"):
        if name in options:
            setattr(params, name, options[name])
    params.stop.extend(options.get("stop", ()))
    return gw.ChatRequest(
        model=options.get("model", ""),
        messages=wire_messages(messages),
        sampling=params,
        constraint=options.get("constraint"),
        purpose=options.get("purpose", ""),
        case_id=options.get("case_id", ""),
        conversation_id=options.get("conversation_id", ""),
        data_class=options.get("data_class", DataClass.DATA_CLASS_UNSPECIFIED),
        subject_ids=options.get("subject_ids", ()),
    )


@dataclass(slots=True)
class ChatProgress:
    """What has come back. Feed every message to `accept`, then `ended`."""

    started: Started | None = None
    finished: Finished | None = None
    texts: list[str] = field(default_factory=list)

    def accept(self, response: gw.ChatResponse) -> Delta | None:
        """Take one message; return it if it is text. Raises StreamBroken for a message out of order."""
        kind = response.WhichOneof("message")
        if self.finished is not None or (kind == "started") == (self.started is not None):
            raise StreamBroken("the gateway sent a message out of order")
        match kind:
            case "started":
                self.started = response.started
            case "finished":
                self.finished = response.finished
            case "delta":
                self.texts.append(response.delta.text)
                return Delta(response.delta.text, response.delta.tokens)
            case _:
                raise StreamBroken("the gateway sent a message that this client does not know")
        return None

    def ended(self) -> None:
        """Check that the stream was complete. Raises StreamBroken."""
        if self.finished is None:
            raise StreamBroken("the stream ended before its last message")

    def answer(self) -> Answer:
        """Return the whole answer, after `ended`."""
        assert self.started is not None
        assert self.finished is not None
        return Answer("".join(self.texts), self.started, self.finished)


def receipt_of(finished: Finished | None) -> Receipt | None:
    """Return the receipt of a finished answer; None before."""
    return finished.receipt if finished is not None and finished.HasField("receipt") else None
