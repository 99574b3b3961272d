"""Shows an answer of `lionrock chat` while it comes: for people, or as JSON.

JSON is one event a line:

{"event": "started", "request_id", "trace_id", "model", "weights_digest", "seed", "ai_disclosure"}
{"event": "delta", "text", "tokens"}
{"event": "finished", "answer", "reason", "prompt_tokens", "completion_tokens", "time_to_first_token_ms", "receipt", "verified"}
{"event": "error", "status", "reason", "message"}
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from datetime import UTC
from pathlib import Path
from typing import Any, TextIO

from lionrock.client import Chat, FinishReason

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class TextPrinter:
    """Answer on standard output, the rest as notes."""

    def __init__(self, notes: TextIO) -> None:
        self._notes = notes
        self._terminal = sys.stdout.isatty()
        self._line_open = False

    def delta(self, chat: Chat, text: str, tokens: int) -> None:
        """Show more of the answer."""
        del chat, tokens
        # A model's text must not steer the terminal that shows it.
        print(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text) if self._terminal else text, end="", flush=True)
        self._line_open = not text.endswith("\n")

    def finished(self, chat: Chat, text: str, receipt: Path | None, problem: str | None) -> None:
        """Say how it ended and what proves it. `problem`: what is wrong with the receipt."""
        assert chat.started is not None
        assert chat.finished is not None
        started, finished = chat.started, chat.finished
        if finished.reason == FinishReason.FINISH_REASON_BLOCKED:
            self.note(f"cut by guardrail {finished.blocked.rule}: {finished.blocked.safe_message}")
        if finished.reason == FinishReason.FINISH_REASON_HELD:
            until = finished.held.expires_at.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds")
            self.note(f"the answer waits for a reviewer until {until}: lionrock review answer {started.request_id}")
        for what, findings in (("prompt", started.prompt_findings), ("answer", finished.answer_findings)):
            counts = Counter(finding.rule for finding in findings)
            if counts:
                self.note(f"masked in the {what}: " + ", ".join(f"{rule} × {count}" for rule, count in sorted(counts.items())))
        usage = finished.usage
        self.note(
            f"{started.model.model} {started.model.weights_digest[:15]}…  "
            f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, "
            f"{_reason(finished.reason)}"
            + (f", first text after {finished.time_to_first_token.ToMilliseconds()} ms" if text else "")
        )
        self.note(f"request {started.request_id}  trace {started.trace_id}")
        if started.ai_disclosure:
            self.note(started.ai_disclosure.get("en") or next(iter(sorted(started.ai_disclosure.items())))[1])
        if receipt is not None:
            self.note(f"receipt {receipt}" + ("" if problem else "  verified"))
        if problem:
            self.note(f"NOT VERIFIED: {problem}")

    def failed(self, status: str, reason: str | None, message: str) -> None:
        """Say why there is no whole answer."""
        self._end_line()
        print(f"lionrock: {reason or status}: {message}", file=self._notes, flush=True)

    def note(self, text: str) -> None:
        """Say something beside the answer."""
        self._end_line()
        print(f"  {text}", file=self._notes, flush=True)

    def _end_line(self) -> None:
        """End the answer's last line before anything else is said."""
        if self._line_open:
            print(flush=True)
            self._line_open = False


class JsonPrinter:
    """One event a line on standard output."""

    def __init__(self) -> None:
        self._started = False

    def delta(self, chat: Chat, text: str, tokens: int) -> None:
        """Show more of the answer."""
        self._start(chat)
        self._print({"event": "delta", "text": text, "tokens": tokens})

    def finished(self, chat: Chat, text: str, receipt: Path | None, problem: str | None) -> None:
        """Say how it ended and what proves it. `problem`: what is wrong with the receipt."""
        assert chat.finished is not None
        self._start(chat)
        finished = chat.finished
        event: dict[str, Any] = {
            "event": "finished",
            "answer": text,
            "reason": _reason(finished.reason),
            "prompt_tokens": finished.usage.prompt_tokens,
            "completion_tokens": finished.usage.completion_tokens,
            "time_to_first_token_ms": finished.time_to_first_token.ToMilliseconds(),
            "receipt": str(receipt) if receipt is not None else None,
            "verified": problem is None,
        }
        if problem:
            event["problem"] = problem
        if finished.HasField("blocked"):
            event |= {"rule": finished.blocked.rule, "safe_message": finished.blocked.safe_message}
        self._print(event)

    def failed(self, status: str, reason: str | None, message: str) -> None:
        """Say why there is no whole answer."""
        self._print({"event": "error", "status": status, "reason": reason, "message": message})

    def note(self, text: str) -> None:
        """Say something beside the answer."""
        print(f"lionrock: {text}", file=sys.stderr)

    def _start(self, chat: Chat) -> None:
        if self._started or chat.started is None:
            return
        self._started = True
        started = chat.started
        self._print(
            {
                "event": "started",
                "request_id": started.request_id,
                "trace_id": started.trace_id,
                "model": started.model.model,
                "weights_digest": started.model.weights_digest,
                "seed": started.seed,
                "ai_disclosure": dict(started.ai_disclosure),
            }
        )

    def _print(self, event: dict[str, Any]) -> None:
        print(json.dumps(event, ensure_ascii=False), flush=True)


def _reason(reason: int) -> str:
    return FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()  # type: ignore[arg-type]
