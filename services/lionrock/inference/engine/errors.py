"""What the engine refuses or loses.

Plain exceptions that survive pickling, because they cross process borders inside a replica; the servicer gives each its status.

EngineError
├── RequestRefused                 the request can never run as it is
│   ├── PromptTooLong
│   ├── UnknownTokenId
│   ├── InvalidRequest
│   │   └── InvalidConstraint
│   ├── UnsupportedSamplingOption
│   └── UnsupportedOutputConstraint
├── EngineFull                     try again later
├── EngineDraining                 this engine takes no more requests
├── RequestExpired                 the deadline passed before the answer was complete
└── ShardGroupLost                 a rank of the model runner is gone
"""


class EngineError(Exception):
    """Anything that the engine raises on purpose. No message carries payload."""


class RequestRefused(EngineError):
    """The request cannot run, now or later."""


class PromptTooLong(RequestRefused):
    """The prompt leaves no room for one token in the context window."""

    def __init__(self, prompt_tokens: int, context_window: int) -> None:
        super().__init__(prompt_tokens, context_window)
        self.prompt_tokens = prompt_tokens
        self.context_window = context_window

    def __str__(self) -> str:
        window = self.context_window
        return f"the prompt has {self.prompt_tokens} tokens; the context window of {window} must also hold the answer"


class UnknownTokenId(RequestRefused):
    """A token id lies outside the vocabulary."""

    def __init__(self, index: int, vocab_size: int) -> None:
        super().__init__(index, vocab_size)
        self.index = index
        self.vocab_size = vocab_size

    def __str__(self) -> str:
        return f"token_ids[{self.index}] is not in the vocabulary of {self.vocab_size} tokens"


class InvalidRequest(RequestRefused):
    """A field has a value that no engine could serve."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(field, description)
        self.field = field
        self.description = description

    def __str__(self) -> str:
        return f"{self.field}: {self.description}"


class UnsupportedSamplingOption(RequestRefused):
    """A sampling option that this engine does not offer was set."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field

    def __str__(self) -> str:
        return f"sampling option {self.field} is not offered by this engine"


class UnsupportedOutputConstraint(RequestRefused):
    """This engine enforces no output constraints: it does not know what its tokens spell."""

    def __str__(self) -> str:
        return "this engine enforces no output constraints"


class InvalidConstraint(InvalidRequest):
    """The output constraint is malformed, matches nothing, or asks for more than can be enforced within limits."""

    def __init__(self, kind: str, description: str) -> None:
        super().__init__(f"constraint.{kind}", description)
        self.args = (kind, description)  # what pickling gives back to this constructor


class EngineFull(EngineError):
    """The waiting queue is full."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"the waiting queue is full; try again in {self.retry_after_s:.1f} s"


class EngineDraining(EngineError):
    """The engine finishes what it has and takes nothing new."""

    def __str__(self) -> str:
        return "the engine is draining"


class RequestExpired(EngineError):
    """The request's deadline passed before its answer was complete."""

    def __str__(self) -> str:
        return "the deadline passed before the answer was complete"


class ShardGroupLost(EngineError):
    """A rank of the model runner died or stopped answering; KV caches are gone, tokens already delivered are valid."""
