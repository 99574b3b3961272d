"""What a request says that OpenAI's API has no word for: the member `lionrock` of the body, or headers.

Knows names and forms. What a value may be is a rule of gateway.proto; whether it is permitted is decided where it is for gRPC.
A value that is given twice has to be the same twice.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from lionrock.chassis.errors import InvalidField
from lionrock.chassis.http_door import Scope, header
from lionrock.common.v1 import context_pb2 as ctx

MEMBER = "lionrock"
_UINT32 = 2**32 - 1

_CLASSES = {name.removeprefix("DATA_CLASS_").lower(): value for name, value in ctx.DataClass.items() if value}


def _known(name: str) -> str:
    if name not in _CLASSES:
        raise PydanticCustomError("data_class", "one of {names}", {"names": ", ".join(_CLASSES)})
    return name


class Extensions(BaseModel):
    """The member `lionrock`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    purpose: str | None = Field(
        default=None, description="purpose of the request, one that the credential permits; default: the grant's first"
    )
    case_id: str | None = Field(default=None, description="case or ticket")
    conversation_id: str | None = Field(default=None, description="conversation that this belongs to")
    data_class: Annotated[str, AfterValidator(_known)] | None = Field(
        default=None, description=f"most sensitive class of data in the messages: {', '.join(_CLASSES)}; default: personal"
    )
    subject_ids: list[str] | None = Field(
        default=None, description="data subjects whom the request concerns, by the tenant's pseudonyms"
    )
    top_k: int | None = Field(default=None, ge=0, le=_UINT32, description="only the k most likely tokens")
    min_p: float | None = Field(default=None, description="only tokens at least so probable, relative to the most likely one")
    repetition_penalty: float | None = Field(default=None, description="penalty of tokens seen in prompt or answer")
    regex: str | None = Field(default=None, description="regular expression that the whole answer matches")
    ebnf: str | None = Field(default=None, description="EBNF grammar of the answer")
    choice: list[str] | None = Field(default=None, description="closed list of answers")


HEADERS = {
    "lionrock-purpose": "purpose",
    "lionrock-case": "case_id",
    "lionrock-conversation": "conversation_id",
    "lionrock-data-class": "data_class",
    "lionrock-subjects": "subject_ids",
}
"""Header, and the member that it stands for. `lionrock-subjects` holds a list with commas."""


def stated(scope: Scope, given: dict[str, Any] | None) -> dict[str, Any]:
    """Return the member with what the headers say. Raises InvalidField where the two disagree or a header is repeated."""
    member = {name: value for name, value in (given or {}).items() if value is not None}
    for name, key in HEADERS.items():
        text = header(scope, name)
        if text is None:
            continue
        value: Any = [part.strip() for part in text.split(",")] if key == "subject_ids" else text
        if member.setdefault(key, value) != value:
            rule = f"says something else than {MEMBER}.{key} in the body"
            raise InvalidField("a header and the body disagree", field_violations=[(name, rule)])
    return member


def data_class(name: str | None) -> ctx.DataClass.ValueType:
    """Return the value of a name; undeclared where there is none."""
    return ctx.DATA_CLASS_UNSPECIFIED if name is None else _CLASSES[name]
