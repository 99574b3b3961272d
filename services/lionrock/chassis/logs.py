"""Log lines: one JSON object a line on standard error, with the ids of trace, span and request.

Exception texts are never written, because they may quote what a user sent: a line has the exception's type and where it was raised.
Loggers of libraries write from WARNING up; `lionrock.*` from the configured level.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from types import TracebackType
from typing import Any, TextIO

from opentelemetry import trace

from lionrock.chassis import calls

MAX_FRAMES = 12
MAX_MESSAGE_CHARS = 4000
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def raised_at(traceback: TracebackType | None) -> list[str]:
    """Return `module:function:line` of the innermost frames, outermost first."""
    frames: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(f"{traceback.tb_frame.f_globals.get('__name__', '?')}:{code.co_name}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    return frames[-MAX_FRAMES:]


def exception_fields(error: BaseException) -> dict[str, Any]:
    """Describe an exception without its text."""
    fields: dict[str, Any] = {
        "exception": f"{type(error).__module__}.{type(error).__qualname__}",
        "raised_at": raised_at(error.__traceback__),
    }
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        fields["cause"] = f"{type(cause).__module__}.{type(cause).__qualname__}"
        fields["cause_raised_at"] = raised_at(cause.__traceback__)
    return fields


def _loop_error(record: logging.LogRecord) -> str:
    """First line of what asyncio logs; the lines below it hold reprs of tasks and of their exceptions."""
    return record.getMessage().partition("\n")[0]


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        message = _loop_error(record) if record.name == "asyncio" else record.getMessage()
        line: dict[str, Any] = {
            "ts": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": message[:MAX_MESSAGE_CHARS],
            "service": self._service,
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = format(span.trace_id, "032x")
            line["span_id"] = format(span.span_id, "016x")
        request_id = calls.request_id()
        if request_id is not None:
            line["request_id"] = request_id
        line.update((key, value) for key, value in vars(record).items() if key not in _STANDARD and key not in line)
        if record.exc_info and record.exc_info[1] is not None:
            line.update(exception_fields(record.exc_info[1]))
        return json.dumps(line, default=lambda value: type(value).__name__)


def start_logs(service: str, level: str, stream: TextIO | None = None) -> logging.Handler:
    """Send all logs to standard error as JSON. Returns the handler, for `stop_logs`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("lionrock").setLevel(level)
    return handler


def stop_logs(handler: logging.Handler) -> None:
    """Detach a handler of `start_logs`."""
    logging.getLogger().removeHandler(handler)
    handler.flush()
