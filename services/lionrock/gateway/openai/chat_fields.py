"""Every field of a chat completion request, and what becomes of it: the one place where that is said.

A field is either taken at its word or marked `Refused`, and then a request with it fails with UNSUPPORTED_PARAMETER; a field that
is not here fails likewise. None is ignored. docs/openai.md and the OpenAPI document are made from this (documents.py).
Source: OpenAI's API reference, "Create chat completion". Bounds of numbers are gateway.proto's and are not repeated.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from lionrock.gateway.openai.extensions import Extensions
from lionrock.gateway.openai.refused import Refused

MAX_CHOICES = 8
_UINT32 = 2**32 - 1
_UINT64 = 2**64 - 1
_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
_ONLY_TEXT = "conversations are text"
_CREDENTIAL = "who asks is read from the credential; name data subjects in lionrock.subject_ids"
_LEGACY = "replaced by tools and tool_choice"
_PREFIX_CACHE = "the prefix cache is the tenant's, and no request chooses its place in it"


class Strict(BaseModel):
    """Nothing is converted, nothing unknown is let through."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Part(Strict):
    """A part of a message's content."""

    type: Literal["text", "refusal"] = Field(description="kind of the part")
    text: str | None = Field(default=None, description="the text")
    refusal: str | None = Field(default=None, description="the text of a refusal by the assistant")
    image_url: Annotated[Any, Refused(_ONLY_TEXT)] = None
    input_audio: Annotated[Any, Refused(_ONLY_TEXT)] = None
    file: Annotated[Any, Refused(_ONLY_TEXT)] = None


def _shape(value: Any) -> str:
    return "~parts" if isinstance(value, list) else "~text"


Content = Annotated[
    Annotated[str, Tag("~text")] | Annotated[list[Part], Tag("~parts")],
    Discriminator(_shape),
]


class Called(Strict):
    """Function and arguments of a tool call."""

    name: str = Field(pattern=_NAME, description="name of the function")
    arguments: str = Field(description="arguments as JSON text")


class ToolCall(Strict):
    """A tool call of an earlier turn."""

    id: str = Field(min_length=1, max_length=128, description="id that the tool's message names")
    type: Literal["function"] = Field(description="function")
    function: Called = Field(description="what was called")


class Message(Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="who speaks; developer is the same as system"
    )
    content: Content | None = Field(default=None, description="text, or parts of text, which are joined by line breaks")
    tool_call_id: str | None = Field(default=None, description="tool messages: the call that is answered")
    tool_calls: list[ToolCall] | None = Field(default=None, description="assistant messages: calls that were made")
    refusal: str | None = Field(default=None, description="assistant messages: a refusal, which follows the content")
    name: Annotated[Any, Refused("messages carry no names of speakers")] = None
    function_call: Annotated[Any, Refused(_LEGACY)] = None
    audio: Annotated[Any, Refused(_ONLY_TEXT)] = None


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool | None = Field(default=None, description="send a last chunk with the counts")
    include_obfuscation: Annotated[Any, Refused("the sizes of chunks are not padded", (False,))] = None


class SchemaFormat(Strict):
    """A named JSON Schema."""

    name: str = Field(pattern=_NAME, description="a label for the caller; it changes nothing")
    description: str | None = Field(default=None, max_length=4096, description="told to the model as a system message")
    schema_: dict[str, Any] = Field(alias="schema", description="JSON Schema, draft 2020-12, enforced token by token")
    strict: bool | None = Field(default=None, description="true or false: the schema is always enforced exactly")


class ResponseFormat(Strict):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="kind")
    json_schema: SchemaFormat | None = Field(default=None, description="the schema")


class Function(Strict):
    """A function that the model may call."""

    name: str = Field(pattern=_NAME, description="name of the function")
    description: str | None = Field(default=None, max_length=4096, description="told to the model")
    parameters: dict[str, Any] | None = Field(default=None, description="JSON Schema of the arguments; none: no arguments")
    strict: bool | None = Field(default=None, description="true or false: arguments always match the schema")


class Tool(Strict):
    """A tool."""

    type: Literal["function"] = Field(description="function")
    function: Function = Field(description="the function")


class NamedFunction(Strict):
    """A function by name."""

    name: str = Field(pattern=_NAME, description="name of the function")


class NamedTool(Strict):
    """The one tool to call."""

    type: Literal["function"] = Field(description="function")
    function: NamedFunction = Field(description="the function")


def _choice_shape(value: Any) -> str:
    return "~named" if isinstance(value, dict) else "~mode"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~mode")] | Annotated[NamedTool, Tag("~named")],
    Discriminator(_choice_shape),
]


def _stop_shape(value: Any) -> str:
    return "~list" if isinstance(value, list) else "~one"


Stop = Annotated[Annotated[str, Tag("~one")] | Annotated[list[str], Tag("~list")], Discriminator(_stop_shape)]


class Sampling(Strict):
    """Fields that chat completions and completions share."""

    model: str = Field(max_length=128, description="name of a served model; empty: the only one that the caller may use")
    stream: bool | None = Field(default=None, description="server-sent events instead of one answer")
    stream_options: StreamOptions | None = Field(default=None, description="only with stream")
    temperature: float | None = Field(default=None, description="divides the logits, 0 is greedy; default: 1, as OpenAI's")
    top_p: float | None = Field(default=None, description="nucleus sampling; default: 1")
    n: int | None = Field(
        default=None,
        ge=1,
        le=MAX_CHOICES,
        description=f"answers, {MAX_CHOICES} at most; each is a request of its own to quotas, guardrails and the audit log",
    )
    stop: Stop | None = Field(default=None, description="string or strings before which the answer ends")
    max_tokens: int | None = Field(default=None, ge=0, le=_UINT32, description="tokens to generate at most")
    presence_penalty: float | None = Field(default=None, description="penalty of tokens present in the answer")
    frequency_penalty: float | None = Field(default=None, description="penalty of tokens by their count in the answer")
    logit_bias: dict[str, float] | None = Field(default=None, description="token id to what is added to its logit")
    seed: int | None = Field(
        default=None,
        ge=0,
        le=_UINT64,
        description="same seed, same answer; answer i takes seed + i; default: drawn, reported",
    )
    lionrock: Extensions | None = Field(default=None, description="Lionrock's own fields")

    user: Annotated[Any, Refused(_CREDENTIAL)] = None


class ChatCompletionRequest(Sampling):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = Field(description="the conversation, oldest turn first")
    max_completion_tokens: int | None = Field(
        default=None, ge=0, le=_UINT32, description="as max_tokens; both may be given if they agree"
    )
    response_format: ResponseFormat | None = Field(default=None, description="text, json_object, or json_schema, enforced")
    tools: list[Tool] | None = Field(default=None, max_length=128, description="functions that the model may call")
    tool_choice: ToolChoice | None = Field(default=None, description="which tool is called; see Tools")
    parallel_tool_calls: bool | None = Field(
        default=None, description="true or false: an answer makes one call at most, which both permit"
    )
    logprobs: bool | None = Field(
        default=None, description="log-probabilities of the tokens whose text was released as it was written; not with tools"
    )
    top_logprobs: int | None = Field(
        default=None, ge=0, le=20, description="so many alternatives of each, without those that the guardrails would not release"
    )
    functions: Annotated[Any, Refused(_LEGACY)] = None
    function_call: Annotated[Any, Refused(_LEGACY)] = None
    audio: Annotated[Any, Refused(_ONLY_TEXT)] = None
    modalities: Annotated[Any, Refused(_ONLY_TEXT, (["text"],))] = None
    prediction: Annotated[Any, Refused("engines decode without predicted outputs")] = None
    reasoning_effort: Annotated[Any, Refused("models have no such control", ("none",))] = None
    verbosity: Annotated[Any, Refused("models have no such control", ("medium",))] = None
    service_tier: Annotated[Any, Refused("priority is the tenant's", ("auto", "default"))] = None
    store: Annotated[Any, Refused("what is kept, and how long, is the tenant's retention", (False,))] = None
    metadata: Annotated[Any, Refused("answers are not stored with labels; use lionrock.case_id", ({},))] = None
    safety_identifier: Annotated[Any, Refused(_CREDENTIAL)] = None
    prompt_cache_key: Annotated[Any, Refused(_PREFIX_CACHE)] = None
    prompt_cache_options: Annotated[Any, Refused(_PREFIX_CACHE)] = None
    prompt_cache_retention: Annotated[Any, Refused(_PREFIX_CACHE)] = None
    moderation: Annotated[Any, Refused("the tenant's guardrail profile judges every prompt and answer")] = None
    web_search_options: Annotated[Any, Refused("nothing is fetched from outside")] = None


class CompletionRequest(Sampling):
    """The body of POST /v1/completions: the prompt is asked as one turn of a user, through the model's chat template."""

    prompt: str = Field(description="one text; it becomes one turn of a user")
    max_tokens: int | None = Field(default=None, ge=0, le=_UINT32, description="tokens to generate at most; default: 16")
    suffix: Annotated[Any, Refused("models are asked by their chat templates")] = None
    echo: Annotated[Any, Refused("models are asked by their chat templates", (False,))] = None
    best_of: Annotated[Any, Refused("every answer that is made is given; use n", (1,))] = None
    logprobs: int | None = Field(
        default=None, ge=0, le=5, description="log-probabilities, with so many alternatives of each token; as in chat completions"
    )
