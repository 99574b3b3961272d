"""What the codec and the chat template refuse. None of these carries text of a message.

CodecError
├── TokenizerUnsupported    the model's tokenizer or template is of a kind that would not be encoded exactly or safely
├── TextNotUnicode          a string holds a surrogate, which UTF-8 cannot carry
├── TooManyTokens           the input has more tokens than one answer may carry
├── TemplateRefused         the template does not accept this conversation, or ran out of its bounds
└── TokenIdUnknown          an id that the tokenizer does not have
"""

from __future__ import annotations


class CodecError(Exception):
    """Anything that the codec refuses."""


class TokenizerUnsupported(CodecError):
    """The model's tokenizer or chat template cannot be served exactly and safely. Raised while loading."""


class TextNotUnicode(CodecError):
    """A string holds an unpaired surrogate."""


class TooManyTokens(CodecError):
    """The input has more tokens than allowed."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} tokens")
        self.limit = limit


class TemplateRefused(CodecError):
    """The chat template does not accept the conversation."""


class TokenIdUnknown(CodecError):
    """The tokenizer has no such id."""

    def __init__(self, token_id: int) -> None:
        super().__init__(f"the tokenizer has no id {token_id}")
        self.token_id = token_id
