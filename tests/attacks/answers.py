"""What a caller can tell two answers apart by: status, reason, message, details, and what was said before the end.

Left out is what differs from one call to the next of the same request: ids that were drawn, times, positions and proofs. What
the caller asked for is replaced, wherever it is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.text_format import MessageToString

from attacks.rpcs import path_of
from lionrock.chassis.errors import remote_error

ASKED: Final = "<asked>"
_DRAWN: Final = frozenset(
    [
        "request_id",
        "trace_id",
        "seed",
        "answer_salt",
        "prompt_salt",
        "scope_salt",
        "hold_id",
        "consent_id",
        "opt_out_id",
        "checkpoint",
        "receipt",
        "position",
        "time_to_first_token",
        "key",
        "secret",
        "effective_at",
        "leaf_index",
        "leaf_indices",
        "platform_proof",
        "hashes",
        "data",
    ]
)
TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, so that equal ones tell nothing apart. `raw`: all bytes of it, which are not compared."""

    status: str
    reason: str | None
    message: str
    details: str
    said: tuple[str, ...]
    raw: bytes

    @property
    def told(self) -> tuple[object, ...]:
        """What counts in a comparison."""
        return self.status, self.reason, self.message, self.details, self.said


async def answer(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    request: Message | bytes,
    asked: object = None,
    metadata: Sequence[tuple[str, str]] = (),
) -> Answer:
    """Call, and read all that comes."""
    read = message_factory.GetMessageClass(method.output_type).FromString
    encoded = request if isinstance(request, bytes) else request.SerializeToString()
    said: list[Any] = []
    try:
        if method.server_streaming:
            call = channel.unary_stream(path_of(method), response_deserializer=read)
            async for message in call(encoded, timeout=TIMEOUT_S, metadata=metadata):
                said.append(message)  # noqa: PERF401  what came before an error counts
        else:
            said.append(
                await channel.unary_unary(path_of(method), response_deserializer=read)(
                    encoded, timeout=TIMEOUT_S, metadata=metadata
                )
            )
    except grpc.aio.AioRpcError as failure:
        error = remote_error(failure)
        kept = {key: value for key, value in error.metadata.items() if key != "request_id"}
        details = repr((sorted(kept.items()), error.retry_after_s, error.field_violations, error.quota_violations))
        raw = repr((failure.details(), failure.trailing_metadata())).encode()
        names = (error.status.name, error.reason)
        raw += _raw(said)
        return Answer(*names, _without(error.message, asked), _without(details, asked), _stable(said, asked), raw)
    raw = _raw(said)
    return Answer("OK", None, "", "", _stable(said, asked), raw)


def _raw(said: Sequence[Message]) -> bytes:
    return b"".join(message.SerializeToString() for message in said)


def _stable(said: Sequence[Message], asked: object) -> tuple[str, ...]:
    for message in said:
        _clear(message)
    return tuple(_without(MessageToString(message), asked) for message in said)


def _clear(message: Message) -> None:
    for field, value in message.ListFields():
        if field.name in _DRAWN or (field.message_type is not None and field.message_type.name == "Timestamp"):
            message.ClearField(field.name)
        elif field.message_type is not None and not field.is_repeated:
            _clear(value)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for one in value:
                _clear(one)


def _without(text: str, asked: object) -> str:
    return text if asked is None else text.replace(str(asked), ASKED)
