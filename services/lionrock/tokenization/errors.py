"""What tokenization answers when it refuses; the tree's root and the general reasons are in chassis/errors.py.

MeshError
├── ModelNotFound           NOT_FOUND            MODEL_NOT_FOUND
├── ChatTemplateRefused     INVALID_ARGUMENT     CHAT_TEMPLATE_REFUSED
├── UnknownTokenId          INVALID_ARGUMENT     UNKNOWN_TOKEN_ID
└── TokenizerChanged        FAILED_PRECONDITION  TOKENIZER_CHANGED
"""

from __future__ import annotations

from grpc import StatusCode

from lionrock.chassis.errors import MeshError


class ModelNotFound(MeshError):
    """No model of this name is served."""

    status, reason = StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"


class ChatTemplateRefused(MeshError):
    """The model's chat template does not accept this sequence of turns."""

    status, reason = StatusCode.INVALID_ARGUMENT, "CHAT_TEMPLATE_REFUSED"


class UnknownTokenId(MeshError):
    """A token id is not in the model's vocabulary."""

    status, reason = StatusCode.INVALID_ARGUMENT, "UNKNOWN_TOKEN_ID"


class TokenizerChanged(MeshError):
    """The model's tokenizer is not the one that encoded the prompt: encode it again."""

    status, reason = StatusCode.FAILED_PRECONDITION, "TOKENIZER_CHANGED"
