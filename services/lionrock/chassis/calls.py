"""What is known about the RPC that the current task serves: caller, deadline, request id.

Held in context variables, so that tasks started by a handler, outgoing calls and log lines see it without being handed it. Not
known here: how it is established (interceptors.py) and what is done with it (channel.py, logs.py).
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

    from lionrock.chassis.identity import SpiffeId

_current: ContextVar[Call | None] = ContextVar("lionrock_call", default=None)
_request_id: ContextVar[str | None] = ContextVar("lionrock_request_id", default=None)


@dataclass(frozen=True, slots=True)
class Call:
    """One admitted call. `deadline` is a time of the event loop's clock in seconds.

    `context` is None for a call that came over HTTP, `caller` for one whose connection shows no certificate.
    """

    context: grpc.aio.ServicerContext[Any, Any] | None
    caller: SpiffeId | None
    deadline: float


def current_call() -> Call | None:
    """Return the RPC that this task serves, None outside of one."""
    return _current.get()


def enter_call(call: Call) -> None:
    """Make a call the current one for this task and the tasks that it will start."""
    _current.set(call)


def request_id() -> str | None:
    """Return the request id that log lines of this task carry."""
    return _request_id.get()


def bind_request_id(value: str) -> None:
    """Set the request id of this task and the tasks that it will start."""
    _request_id.set(value)
