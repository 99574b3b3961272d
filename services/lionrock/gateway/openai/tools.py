"""Tools: which one may be called, what the model is told of them, and the constraint that makes its answer a call.

A call is an answer of the model under a constraint that the engine enforces token by token, so its arguments match the function's
schema. The model is told of the tools in the system message, for models' templates differ in whether they know of tools.

    none       the model is not told of tools and answers
    a name     the answer is the arguments of that function
    required   the model first chooses a function, then writes its arguments: two requests
    auto       as required, and one of the choices is to answer in words

Each of two requests is one of its own to quotas, guardrails and the audit log. Where there is nothing to choose, there is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lionrock.chassis.errors import InvalidField
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.openai.chat_fields import Function, NamedTool, Tool
from lionrock.gateway.openai.conversation import instruct
from lionrock.gateway.v1 import gateway_pb2 as gw

IN_WORDS = "(answer in words)"
"""The choice not to call. No function can have this name."""
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Functions that may be called, by name, in the order given; `in_words`: whether the model may answer instead."""

    functions: Mapping[str, Function]
    in_words: bool

    @property
    def only(self) -> str | None:
        """The function that is called in any case."""
        return next(iter(self.functions)) if len(self.functions) == 1 and not self.in_words else None

    def choosing(self, request: gw.ChatRequest) -> gw.ChatRequest:
        """Return the request whose answer is the name of a function, or IN_WORDS."""
        names = [*self.functions, *([IN_WORDS] if self.in_words else [])]
        ask = f"Before you go on, name what you do next. Write one of these and nothing else: {', '.join(names)}"
        choosing = self._told(request, ask)
        choosing.constraint.CopyFrom(sampling.OutputConstraint(choice=sampling.OutputConstraint.Choice(values=names)))
        choosing.sampling.ClearField("stop")  # of the answer, not of the choice
        choosing.sampling.ClearField("max_tokens")
        return choosing

    def calling(self, request: gw.ChatRequest, name: str) -> gw.ChatRequest:
        """Return the request whose answer is the arguments of a function."""
        calling = self._told(request, f"Call {name}. Write its arguments as one JSON object and nothing else.")
        schema = self.functions[name].parameters or _NO_ARGUMENTS
        written = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
        calling.constraint.CopyFrom(sampling.OutputConstraint(json_schema=written))
        return calling

    def answering(self, request: gw.ChatRequest) -> gw.ChatRequest:
        """Return the request that is answered in words."""
        return self._told(request, "Do not call a function now. Answer in words.")

    def _told(self, request: gw.ChatRequest, ask: str) -> gw.ChatRequest:
        told = gw.ChatRequest()
        told.CopyFrom(request)
        instruct(told, f"{_description(self.functions.values())}\n\n{ask}")
        return told


def tool_use(tools: Sequence[Tool] | None, choice: str | NamedTool | None) -> ToolUse | None:
    """Return which tools may be called; None: none. Raises InvalidField."""
    functions = {tool.function.name: tool.function for tool in tools or ()}
    if len(functions) != len(tools or ()):
        _wrong("tools", "two functions have one name")
    if not functions:
        if choice not in (None, "none", "auto"):
            _wrong("tool_choice", "there are no tools")
        return None
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in functions:
            _wrong("tool_choice.function.name", "no such function among the tools")
        return ToolUse({name: functions[name]}, in_words=False)
    if choice == "none":
        return None
    return ToolUse(functions, in_words=choice != "required")


def _description(functions: Iterable[Function]) -> str:
    lines = ["You can call these functions:"]
    for function in functions:
        schema = {"name": function.name, "description": function.description, "parameters": function.parameters or _NO_ARGUMENTS}
        written = {key: value for key, value in schema.items() if value is not None}
        lines.append(json.dumps(written, ensure_ascii=False))
    return "\n".join(lines)


def _wrong(field: str, rule: str) -> None:
    raise InvalidField("the tools do not hold together", field_violations=[(field, rule)])
