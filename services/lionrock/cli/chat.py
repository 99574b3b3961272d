"""`lionrock chat`: one question, or a conversation, over `lionrock.client`; the receipt is checked and kept.

The answer goes to standard output, everything about it to standard error. What is printed how is in printers.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lionrock.audit.verify import VerificationFailed, check_opening, verify_receipt
from lionrock.cli.call_errors import exit_status, explained
from lionrock.cli.errors import (
    EXIT_CANCELLED,
    EXIT_FAILED,
    EXIT_PENDING,
    EXIT_REFUSED,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    CommandError,
)
from lionrock.cli.printers import JsonPrinter, TextPrinter
from lionrock.cli.receipts import Opening, keep_keys, save_receipt, saved_keys
from lionrock.cli.state import StateDir
from lionrock.cli.token import token_of
from lionrock.client import (
    CallError,
    Chat,
    Client,
    FinishReason,
    LionrockError,
    Message,
    ServerTls,
    Tls,
)
from lionrock.client.connection import BlockingConnection
from lionrock.client.tokens import TokenSource


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the command line said about a question."""

    model: str = ""
    system: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    purpose: str = ""
    timeout_s: float = 120.0
    subjects: Sequence[str] = ()

    def for_client(self) -> dict[str, Any]:
        """As the client names them."""
        options: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens, "temperature": self.temperature}
        options |= {"purpose": self.purpose, "subject_ids": self.subjects}
        return options if self.seed is None else {**options, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Answered:
    """A question that was answered in full or cut by a guardrail."""

    text: str
    request_id: str
    trace_id: str
    receipt: Path | None
    status: int


@dataclass(frozen=True, slots=True)
class Door:
    """Which gateway, whose certificate, and whose token.

    `gateway`: host:port, None for the mesh of this machine. `certificates`: a directory with tls.crt, tls.key and ca.crt, None for
    the user's own in the state directory; with a token, ca.crt alone will do. `token_file`: None for what the environment says.
    """

    gateway: str | None = None
    certificates: Path | None = None
    token_file: Path | None = None


def run(state_dir: Path | None, prompt: str | None, options: ChatOptions, *, as_json: bool, door: Door = Door()) -> int:
    """Ask once, or converse when there is no prompt and standard input is a terminal. Returns the exit status."""
    state = StateDir.at(state_dir)
    with connect(state, door) as client:
        if prompt is None and sys.stdin.isatty():
            return _converse(state, client, options, as_json=as_json)
        question = prompt if prompt is not None else _standard_input()
        return ask(state, client, _conversation(options, [Message("user", question)]), options, as_json=as_json).status


def connect(state: StateDir, door: Door = Door()) -> Client:
    """Open a client of the mesh with the user's certificate. Raises as `find_gateway` does."""
    target, tls, token = find_gateway(state, door)
    return Client(target, tls=tls, token=token)


def connection(state: StateDir, door: Door) -> BlockingConnection:
    """Open a connection for the gateway's other services. Raises as `find_gateway` does."""
    target, tls, token = find_gateway(state, door)
    return BlockingConnection(target, tls, "gateway", token)


def find_gateway(state: StateDir, door: Door) -> tuple[str, Tls | ServerTls, TokenSource | None]:
    """Return host:port and the user's credentials. Raises MeshNotRunning, CommandError for files that are not there."""
    target = door.gateway or state.read_mesh().endpoints["gateway"].target
    token = token_of(door.token_file, os.environ)
    certs = door.certificates or state.client_certs
    files = [certs / name for name in ("tls.crt", "tls.key", "ca.crt")]
    missing = [file.name for file in files if not file.is_file()]
    if token is not None and missing == ["tls.crt", "tls.key"]:
        return target, ServerTls(certs / "ca.crt"), token
    if missing:
        raise CommandError(
            f"{certs} has no {', '.join(missing)}",
            fix="name the directory of your certificate: --certificates DIRECTORY",
            exit_code=EXIT_USAGE,
        )
    return target, Tls(*files), token


def ask(
    state: StateDir,
    client: Client,
    messages: Sequence[Message],
    options: ChatOptions,
    *,
    as_json: bool = False,
    notes: TextIO | None = None,
) -> Answered:
    """Ask one question and print what comes; what is said about it goes to `notes`, by default standard error.

    Never raises for a refusal: the exit status says it, and so do the notes.
    """
    printer = JsonPrinter() if as_json else TextPrinter(notes or sys.stderr)
    try:
        chat = client.chat(messages, deadline_s=options.timeout_s, **options.for_client())
    except (ValueError, TypeError) as error:
        raise CommandError(f"this question cannot be sent: {error}", fix="write it in UTF-8", exit_code=EXIT_USAGE) from error
    try:
        with chat:
            for delta in chat:
                printer.delta(chat, delta.text, delta.tokens)
    except KeyboardInterrupt:
        printer.failed("CANCELLED", None, "cancelled; the engine has been told to stop")
        return _unanswered(chat, EXIT_CANCELLED)
    except CallError as error:
        printer.failed(error.status.name, error.reason, explained(error))
        return _unanswered(chat, exit_status(error))
    except LionrockError as error:
        printer.failed("UNAVAILABLE", None, str(error))
        return _unanswered(chat, EXIT_UNAVAILABLE)
    return _finish(state, client, chat, printer)


def _finish(state: StateDir, client: Client, chat: Chat, printer: TextPrinter | JsonPrinter) -> Answered:
    """Keep and check the receipt, then say how it went."""
    assert chat.started is not None
    assert chat.finished is not None
    text = "".join(chat.progress.texts)
    blocked = chat.finished.reason == FinishReason.FINISH_REASON_BLOCKED
    held = chat.finished.reason == FinishReason.FINISH_REASON_HELD
    path, problem = None, None
    if chat.receipt is not None:
        opening = None
        if not held:
            opening = Opening(chat.started.request_id, text, chat.finished.answer_salt, chat.finished.prompt_salt)
        path = save_receipt(state, chat.started.request_id, chat.receipt.tlog_proof, opening)
        problem = _check(state, client, chat, opening, printer)
    else:
        problem = "the mesh sent no receipt"
    printer.finished(chat, text, path, problem)
    status = EXIT_REFUSED if blocked else EXIT_FAILED if problem else EXIT_PENDING if held else 0
    return Answered(text, chat.started.request_id, chat.started.trace_id, path, status)


def _check(state: StateDir, client: Client, chat: Chat, opening: Opening | None, printer: TextPrinter | JsonPrinter) -> str | None:
    """Verify the receipt with the keys of first contact; return what is wrong with it."""
    assert chat.receipt is not None
    origin = chat.receipt.position.origin
    if not saved_keys(state, origin):
        try:
            told = client.list_audit_keys()
        except CallError as error:
            return f"the log's keys could not be fetched: {error.message}"
        file = keep_keys(state, told.origin, list(told.verifier_keys))
        printer.note(f"first contact with the log {told.origin}: its key is kept in {file} and trusted from now on")
    try:
        leaf = verify_receipt(chat.receipt.tlog_proof, saved_keys(state, origin))
        assert chat.started is not None
        if leaf.fields.get("request_id") != chat.started.request_id:
            return "it belongs to another request"
        if opening is not None:
            check_opening(leaf, "answer", opening.answer_salt, opening.answer.encode())
    except VerificationFailed as failure:
        return str(failure)
    return None


def _converse(state: StateDir, client: Client, options: ChatOptions, *, as_json: bool) -> int:
    """Ask turn after turn; each question carries the conversation. Ctrl-C ends an answer, Ctrl-D the conversation."""
    import readline  # noqa: F401 - gives input() line editing

    print("Ctrl-C ends an answer, Ctrl-D the conversation.", file=sys.stderr)
    turns: list[Message] = []
    while True:
        try:
            question = input("> ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return 0
        if not question.strip():
            continue
        answered = ask(state, client, _conversation(options, [*turns, Message("user", question)]), options, as_json=as_json)
        if answered.text and answered.status != EXIT_CANCELLED:
            turns += [Message("user", question), Message("assistant", answered.text)]


def _conversation(options: ChatOptions, turns: list[Message]) -> list[Message]:
    return turns if options.system is None else [Message("system", options.system), *turns]


def _standard_input() -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError:
        raise CommandError(
            "standard input is not UTF-8", fix="convert it, e.g. with iconv -t utf-8", exit_code=EXIT_USAGE
        ) from None
    if not text:
        raise CommandError("there is no question", fix="lionrock chat 'Name three rivers.'", exit_code=EXIT_USAGE)
    return text


def _unanswered(chat: Chat, status: int) -> Answered:
    started = chat.started
    return Answered("", started.request_id if started else "", started.trace_id if started else "", None, status)
