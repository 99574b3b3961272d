"""From the bytes of a body to a request whose fields are all known and of their types.

Knows JSON and pydantic. Says of what is wrong its place and its rule, and never a value. What readers of JSON understand
differently is refused: members that occur twice, numbers that are none, half surrogates.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from lionrock.chassis.errors import InvalidField, MalformedRequest
from lionrock.chassis.http_door import Scope
from lionrock.gateway import errors
from lionrock.gateway.openai.extensions import MEMBER, stated
from lionrock.gateway.openai.refused import UNSUPPORTED

_MAX_VIOLATIONS = 32
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_UNKNOWN = "extra_forbidden"

Request = TypeVar("Request", bound=BaseModel)


def parsed(kind: type[Request], body: bytes, scope: Scope) -> Request:
    """Return the request of a body and its headers. Raises MalformedRequest, InvalidField, UnsupportedParameter."""
    members = _members(body)
    extensions = members.get(MEMBER)
    if extensions is None or isinstance(extensions, dict):
        members[MEMBER] = stated(scope, extensions) or None
    try:
        return kind.model_validate(members)
    except ValidationError as error:
        _refuse(error)


def _members(body: bytes) -> dict[str, Any]:
    try:
        members = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
        if _HALF.search(body):
            json.dumps(members, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise MalformedRequest(
            "the body is not JSON, is nested too deeply, or has a member twice or a number that is none"
        ) from None
    if not isinstance(members, dict):
        raise MalformedRequest("the body is not a JSON object")
    return members


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members


def _no_number(text: str) -> NoReturn:
    del text
    raise ValueError("not a number")


def _refuse(error: ValidationError) -> NoReturn:
    found = error.errors(include_url=False, include_context=False, include_input=False)[:_MAX_VIOLATIONS]
    refused = [violation for violation in found if violation["type"] in (UNSUPPORTED, _UNKNOWN)]
    if refused:
        reasons = [(_path(each["loc"]), "no such parameter" if each["type"] == _UNKNOWN else each["msg"]) for each in refused]
        raise errors.UnsupportedParameter("the request asks for what is not offered", field_violations=reasons)
    violations = [(_path(each["loc"]), each["msg"]) for each in found]
    raise InvalidField("the request breaks the rules of its fields", field_violations=violations)


def _path(place: tuple[int | str, ...]) -> str:
    """Write a place as `messages[3].content`; a member whose name is the caller's own text becomes `*`."""
    path = ""
    for step in place:
        match step:
            case int():
                path += f"[{step}]"
            case str() if not step.startswith("~"):
                path += ("." if path else "") + (step if _NAME.fullmatch(step) else "*")
    return path
