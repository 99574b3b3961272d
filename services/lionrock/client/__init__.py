"""What other teams import to ask the mesh: a sync and an async client of the gateway, with typed errors.

    from lionrock.client import AsyncClient, Tls

    async with AsyncClient("gateway.example:7450", tls=Tls("tls.crt", "tls.key", "ca.crt")) as client:
        chat = client.chat("你好！", max_tokens=64)
        async for delta in chat:
            print(delta.text, end="", flush=True)
        print(chat.finished.receipt.position.leaf_index)

A caller with a token and no certificate calls the gateway's port for tokens:

    AsyncClient("gateway.example:7455", tls=ServerTls("ca.crt"), token=TokenFile("token"))

Deadlines are never absent, cancellation reaches the engine, and a call is repeated only where the status says that it is safe.
"""

from lionrock.client.aio import AsyncChat, AsyncClient
from lionrock.client.blocking import Chat, Client
from lionrock.client.chat import Answer, Delta, Finished, Message, Messages, Started
from lionrock.client.connection import ServerTls, Tls
from lionrock.client.errors import (
    AuditUnavailable,
    CallCancelled,
    CallError,
    DeadlineExceeded,
    GuardrailsUnavailable,
    InferenceUnavailable,
    InvalidRequest,
    LionrockError,
    MeshNotRunning,
    ModelNotFound,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    NotSupported,
    Overloaded,
    PromptBlocked,
    PromptTooLong,
    ReceiptNotFound,
    ResourceExhausted,
    ServerFault,
    StreamBroken,
    TenantQuota,
    TokenizationUnavailable,
    Unavailable,
    Unreachable,
)
from lionrock.client.local import connect_local, connect_local_async
from lionrock.client.retry import RetryPolicy
from lionrock.client.tokens import Token, TokenFile, TokenUnusable
from lionrock.common.v1.context_pb2 import DataClass
from lionrock.common.v1.sampling_pb2 import FinishReason, OutputConstraint, SamplingParams

__all__ = [
    "Answer",
    "AsyncChat",
    "AsyncClient",
    "AuditUnavailable",
    "CallCancelled",
    "CallError",
    "Chat",
    "Client",
    "DataClass",
    "DeadlineExceeded",
    "Delta",
    "FinishReason",
    "Finished",
    "GuardrailsUnavailable",
    "InferenceUnavailable",
    "InvalidRequest",
    "LionrockError",
    "MeshNotRunning",
    "Message",
    "Messages",
    "ModelNotFound",
    "NotAuthenticated",
    "NotFound",
    "NotPermitted",
    "NotSupported",
    "OutputConstraint",
    "Overloaded",
    "PromptBlocked",
    "PromptTooLong",
    "ReceiptNotFound",
    "ResourceExhausted",
    "RetryPolicy",
    "SamplingParams",
    "ServerFault",
    "ServerTls",
    "Started",
    "StreamBroken",
    "TenantQuota",
    "Tls",
    "Token",
    "TokenFile",
    "TokenUnusable",
    "TokenizationUnavailable",
    "Unavailable",
    "Unreachable",
    "connect_local",
    "connect_local_async",
]
