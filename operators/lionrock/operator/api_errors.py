"""What a call to the API server can end in, for those who decide what to do about it.

    ApiError                 status (None: no answer at all), reason (the server's own word), retry_after_s
     ├─ NotFound             404        the object or its kind is not there
     ├─ Conflict             409        another version, another uid, another manager, or it exists already
     ├─ Expired              410        the resourceVersion or the continue token is too old
     ├─ Refused              400 403 405 413 415 422 and the like: the same call will be refused again
     ├─ Throttled            429        the server asks for a pause
     └─ Unreachable          401 500 502 503 504, a broken connection, a time-out: it may have been carried out or not

Knows HTTP statuses and `metav1.Status`, no client library. Texts come from the API server and may name objects and fields; they
never hold a Secret's contents, since the server does not quote values of Secrets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

MAX_MESSAGE_CHARS: Final = 1000
MAX_RETRY_AFTER_S: Final = 120.0


class ApiError(Exception):
    """A call failed. retry_after_s: what the server asked for, in seconds."""

    def __init__(self, message: str, *, status: int | None = None, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message[:MAX_MESSAGE_CHARS])
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class NotFound(ApiError):
    """The object, or its kind, is not there."""


class Conflict(ApiError):
    """The object is not what the call was made for, or exists already."""


class Expired(ApiError):
    """The server no longer knows the version that was asked for; list again."""


class Refused(ApiError):
    """The server will not do it, however often it is asked."""


class Throttled(ApiError):
    """The server is busy and asks for a pause."""


class Unreachable(ApiError):
    """No answer, or one that says nothing. What was asked for may have been done."""


_BY_STATUS: Final[Mapping[int, type[ApiError]]] = {
    401: Unreachable,  # a token that expired is read again within a minute
    404: NotFound,
    409: Conflict,
    410: Expired,
    429: Throttled,
}


def _retry_after_s(text: str | None) -> float | None:
    """Read the header in its form of seconds; API servers do not use that of a date, which counts as absent."""
    if text is None or not text.isascii() or not text.isdigit():
        return None
    return min(float(text), MAX_RETRY_AFTER_S)


def api_error(what: str, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """Return the error for an answer whose status is not 2xx. what: verb and object, for people."""
    reason = message = ""
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if isinstance(told, dict):
        reason, message = str(told.get("reason") or ""), str(told.get("message") or "")
    kind = _BY_STATUS.get(status, Unreachable if status >= 500 else Refused)
    if reason == "Expired":  # continue tokens expire with 410 as well as with 400
        kind = Expired
    return kind(
        f"{what}: {status} {reason}: {message}".rstrip(": "),
        status=status,
        reason=reason,
        retry_after_s=_retry_after_s(headers.get("Retry-After")),
    )
