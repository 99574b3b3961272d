"""What the engine refuses or loses. Plain exceptions; the servicer gives each its status and reason.

EngineError
├── RequestRefused                 the request can never run as it is
│   ├── PromptTooLong
│   ├── UnknownTokenId
│   ├── InvalidRequest
│   └── UnsupportedSamplingOption
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
        super().__init__(f"the prompt has {prompt_tokens} tokens; the context window of {context_window} must also hold the answer")
        self.prompt_tokens = prompt_tokens
        self.context_window = context_window


class UnknownTokenId(RequestRefused):
    """A token id lies outside the vocabulary."""

    def __init__(self, index: int, vocab_size: int) -> None:
        super().__init__(f"token_ids[{index}] is not in the vocabulary of {vocab_size} tokens")
        self.index = index
        self.vocab_size = vocab_size


class InvalidRequest(RequestRefused):
    """A field has a value that no engine could serve."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class UnsupportedSamplingOption(RequestRefused):
    """A sampling option that this engine does not offer was set."""

    def __init__(self, field: str) -> None:
        super().__init__(f"sampling option {field} is not offered by this engine")
        self.field = field


class EngineFull(EngineError):
    """The waiting queue is full."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the waiting queue is full; try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class EngineDraining(EngineError):
    """The engine finishes what it has and takes nothing new."""

    def __init__(self) -> None:
        super().__init__("the engine is draining")


class RequestExpired(EngineError):
    """The request's deadline passed before its answer was complete."""

    def __init__(self) -> None:
        super().__init__("the deadline passed before the answer was complete")


class ShardGroupLost(EngineError):
    """A rank of the model runner died or stopped answering; KV caches are gone, tokens already delivered are valid."""
