"""Receipts as a client of the HTTP API has them in its files, brought to the form that `lionrock.audit.verify` takes.

    a completion, whole                    receipts of all its requests, and the texts and salts that open their leaves
    a completion, streamed                 the same, from the events
    a `lionrock-receipt` header            Base64; alone, or among the headers that `curl -D` writes
    GET /v1/lionrock/receipts/{id}         one receipt
    a tlog-proof file                      as it is

Knows these forms; proves nothing. The API that writes them is `lionrock.gateway.openai`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lionrock.cli.errors import CommandError

HEADER = "lionrock-receipt"
MAX_BYTES = 64 * 2**20
"""Of a file: a completion has up to eight answers, each with what proves it."""
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, slots=True)
class ShownReceipt:
    """A receipt, and what the same file says of the request that it is for; None where the file does not say."""

    tlog_proof: str | bytes
    request_id: str | None = None
    answer: str | None = None
    answer_salt: bytes | None = None


def shown_receipts(data: bytes) -> list[ShownReceipt]:
    """Find the receipts in a file. What has none of the forms counts as a tlog-proof. Raises CommandError for broken JSON."""
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        return [ShownReceipt(data)]
    if text.startswith("{"):
        return list(_of_json(_object(text)))
    if text.startswith("data:"):
        return list(_of_stream(text))
    values = [text] if _BASE64.fullmatch(text) else _headers(text)
    return [ShownReceipt(_base64(value)) for value in values] or [ShownReceipt(data)]


def _headers(text: str) -> list[str]:
    lines = (line.partition(":") for line in text.splitlines())
    return [value.strip() for name, _, value in lines if name.strip().lower() == HEADER]


def _of_json(body: Mapping[str, Any]) -> Iterator[ShownReceipt]:
    try:
        if "receipt" in body:
            yield ShownReceipt(_string(body["receipt"]["tlog_proof"]), _string(body["request_id"]))
            return
        texts = {choice["index"]: _text(choice) for choice in body["choices"]}
        yield from _of_proofs(body["lionrock"]["answers"], texts)
    except (KeyError, TypeError, ValueError) as error:
        raise _no_receipt() from error


def _of_stream(text: str) -> Iterator[ShownReceipt]:
    events = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    proofs: list[Mapping[str, Any]] = []
    texts: dict[int, str] = {}
    for event in map(_object, (event for event in events if event != "[DONE]")):
        try:
            for choice in event["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + (_text(choice) or "")
            if "lionrock" in event:
                proofs += event["lionrock"].get("answers", [])
        except (KeyError, TypeError) as error:
            raise _no_receipt() from error
    if not proofs:
        raise _no_receipt()
    try:
        yield from _of_proofs(proofs, texts)
    except (KeyError, TypeError, ValueError) as error:
        raise _no_receipt() from error


def _of_proofs(proofs: list[Mapping[str, Any]], texts: Mapping[int, str | None]) -> Iterator[ShownReceipt]:
    if not proofs:
        raise _no_receipt()
    for proof in proofs:
        # The choice of a tool is a request whose answer the API does not show: there is nothing to open its leaf with.
        answer = texts.get(proof["index"]) if proof["step"] == "answer" else None
        if "review" in proof:  # an answer that waits for a reviewer: nobody was shown it, or what opens its leaf
            yield ShownReceipt(_string(proof["receipt"]["tlog_proof"]), _string(proof["request_id"]))
            continue
        salt = base64.b64decode(proof["answer_salt"], validate=True)
        yield ShownReceipt(_string(proof["receipt"]["tlog_proof"]), _string(proof["request_id"]), answer, salt)


def _text(choice: Mapping[str, Any]) -> str | None:
    """Return what the model said in a choice or a part of one: words, or the arguments of a call."""
    if "text" in choice:
        return _string(choice["text"])
    message = choice["message"] if "message" in choice else choice["delta"]
    calls = message.get("tool_calls")
    if calls:
        return _string(calls[0]["function"]["arguments"])
    content = message.get("content")
    return None if content is None else _string(content)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_receipt() from error
    if not isinstance(value, dict):
        raise _no_receipt()
    return value


def _base64(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise _no_receipt() from error


def _no_receipt() -> CommandError:
    return CommandError(
        "there is no receipt in this file",
        fix="give a tlog-proof, a lionrock-receipt header, or the JSON of a completion or of /v1/lionrock/receipts/ID",
    )
