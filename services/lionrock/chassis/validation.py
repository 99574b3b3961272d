"""From bytes on the wire to a message that keeps the rules of its proto.

Knows protobuf, protovalidate and how a request stream is read. Violations name the field and the rule; neither values nor map keys,
which are the caller's text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import protovalidate
from google.protobuf.message import DecodeError, Message

from lionrock.chassis.errors import FieldViolation, InvalidField, MalformedRequest, MeshError, StreamIdle

MAX_VIOLATIONS = 32


def _field_path(path: Any) -> str:
    """Write a `buf.validate.FieldPath` as `messages[3].content`; a map's key becomes `[*]`."""
    if path is None:
        return ""
    written = ""
    for element in path.elements:
        written += ("." if written else "") + element.field_name
        match element.subscript:
            case None:
                pass
            case subscript if subscript.field == "index":
                written += f"[{subscript.value}]"
            case _:
                written += "[*]"
    return written


def _violation(violation: protovalidate.Violation) -> FieldViolation:
    found = violation.proto
    return _field_path(found.field), found.message or f"breaks the rule {found.rule_id}"


def check(message: Message, validator: protovalidate.Validator) -> None:
    """Check a message by the rules of its proto. Raises InvalidField."""
    violations = validator.collect_violations(message)
    if violations:
        found = [_violation(violation) for violation in violations[:MAX_VIOLATIONS]]
        raise InvalidField("the request breaks the rules of its fields", field_violations=found)


class Decoder:
    """Decodes and checks messages of one type."""

    def __init__(self, parse: Callable[[bytes], Message], validator: protovalidate.Validator) -> None:
        """Compile the rules of the type now. Raises protovalidate.CompilationError: a defect of the proto, found at start."""
        self._parse = parse
        self._validator = validator
        validator.collect_violations(parse(b""))

    def decode(self, encoded: bytes) -> Message:
        """Return the message. Raises MalformedRequest or InvalidField."""
        try:
            message = self._parse(encoded)
        except DecodeError:
            raise MalformedRequest("the request is not a valid message of its type") from None
        check(message, self._validator)
        return message


class Requests:
    """The request stream of one RPC: decoded, checked, and given up when nothing arrives for too long."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], decoder: Decoder, idle_timeout_s: float) -> None:
        self._context = context
        self._decoder = decoder
        self._idle_timeout_s = idle_timeout_s
        self.refused: MeshError | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            async with asyncio.timeout(self._idle_timeout_s) as silence:
                encoded = await self._context.read()
        except TimeoutError:
            if not silence.expired():
                raise
            self.refused = StreamIdle("nothing arrived on the request stream for too long")
            raise self.refused from None
        if encoded is grpc.aio.EOF:
            raise StopAsyncIteration
        try:
            return self._decoder.decode(encoded)
        except MeshError as refused:
            self.refused = refused
            raise
