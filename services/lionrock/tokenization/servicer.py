"""TokenizationService: between the wire and the codec, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial

import grpc

from lionrock.chassis.errors import InvalidField, MeshError, Overloaded
from lionrock.common.v1 import chat_pb2
from lionrock.tokenization import errors
from lionrock.tokenization.chat_template import Message
from lionrock.tokenization.codec import Codec, Encoded
from lionrock.tokenization.codec_errors import TemplateRefused, TextNotUnicode, TokenIdUnknown, TooManyTokens
from lionrock.tokenization.free_memory import give_back_free_memory
from lionrock.tokenization.heavy_work import HeavyWork, QueueFull
from lionrock.tokenization.stream_decoder import StreamDecoder
from lionrock.tokenization.v1 import tokenization_pb2 as pb
from lionrock.tokenization.v1 import tokenization_pb2_grpc

SERVICE_NAME = "lionrock.tokenization.v1.TokenizationService"
CALLERS = frozenset({"gateway"})
MAX_CONVERSATION_CHARS = 1_000_000
RETRY_AFTER_S = 1.0

_ROLES: Mapping[int, str] = {
    chat_pb2.CHAT_ROLE_SYSTEM: "system",
    chat_pb2.CHAT_ROLE_USER: "user",
    chat_pb2.CHAT_ROLE_ASSISTANT: "assistant",
    chat_pb2.CHAT_ROLE_TOOL: "tool",
}


class TokenizationServicer(tokenization_pb2_grpc.TokenizationServiceServicer):
    """Serves the codecs of a fixed set of models."""

    def __init__(self, codecs: Mapping[str, Codec], heavy_work: HeavyWork, *, heavy_chars: int) -> None:
        """codecs: by model name. heavy_chars: inputs with more code points are encoded beside the event loop."""
        self._codecs = codecs
        self._heavy_work = heavy_work
        self._heavy_chars = heavy_chars

    async def Encode(  # noqa: N802 - the method's name in the contract
        self, request: pb.EncodeRequest, context: grpc.aio.ServicerContext[pb.EncodeRequest, pb.EncodeResponse]
    ) -> pb.EncodeResponse:
        """Encode a conversation or a text."""
        del context
        codec = self._codec(request.model)
        encoded = await self._encode(codec, request, "")
        return pb.EncodeResponse(token_ids=encoded.token_ids, tokenizer_digest=codec.digest, content_tokens=encoded.content_tokens)

    async def CountTokens(  # noqa: N802 - the method's name in the contract
        self, request: pb.CountTokensRequest, context: grpc.aio.ServicerContext[pb.CountTokensRequest, pb.CountTokensResponse]
    ) -> pb.CountTokensResponse:
        """Count what Encode would return."""
        del context
        codec = self._codec(request.request.model)
        encoded = await self._encode(codec, request.request, "request.")
        return pb.CountTokensResponse(tokens=len(encoded.token_ids), tokenizer_digest=codec.digest)

    async def Decode(  # noqa: N802 - the method's name in the contract
        self,
        request_iterator: AsyncIterator[pb.DecodeRequest],
        context: grpc.aio.ServicerContext[pb.DecodeRequest, pb.DecodeResponse],
    ) -> AsyncIterator[pb.DecodeResponse]:
        """Answer each message of a stream with the text that it makes certain."""
        del context
        decoder: StreamDecoder | None = None
        ended = False
        async for request in request_iterator:
            kind = request.WhichOneof("message")
            if ended or (kind == "open") != (decoder is None):
                raise _invalid("message", "open comes first and once, then chunks, then end, then nothing")
            if decoder is None:
                decoder = self._codec_of(request.open.model, request.open.tokenizer_digest).stream_decoder()
                yield pb.DecodeResponse()
            elif kind == "chunk":
                try:
                    yield pb.DecodeResponse(text=decoder.push(request.chunk.token_ids))
                except TokenIdUnknown as error:
                    raise _unknown(error) from None
            else:
                ended = True
                yield pb.DecodeResponse(text=decoder.end())

    async def GetTokenizer(  # noqa: N802 - the method's name in the contract
        self, request: pb.GetTokenizerRequest, context: grpc.aio.ServicerContext[pb.GetTokenizerRequest, pb.GetTokenizerResponse]
    ) -> pb.GetTokenizerResponse:
        """Describe a model's tokenizer."""
        del context
        codec = self._codec(request.model)
        return pb.GetTokenizerResponse(
            tokenizer_digest=codec.digest,
            vocabulary_size=codec.vocabulary_size,
            eos_token_ids=codec.eos_token_ids,
            control_tokens=codec.control_tokens,
        )

    async def SpellTokens(  # noqa: N802 - the method's name in the contract
        self, request: pb.SpellTokensRequest, context: grpc.aio.ServicerContext[pb.SpellTokensRequest, pb.SpellTokensResponse]
    ) -> pb.SpellTokensResponse:
        """Say which bytes ids stand for."""
        del context
        codec = self._codec_of(request.model, request.tokenizer_digest)
        spelled = codec.spell(request.token_ids)
        unknown = [token_id for token_id, token in zip(request.token_ids, spelled, strict=True) if token is None]
        return pb.SpellTokensResponse(token_bytes=[token or b"" for token in spelled], unknown_ids=unknown)

    def _codec(self, model: str) -> Codec:
        codec = self._codecs.get(model)
        if codec is None:
            raise errors.ModelNotFound("no model of this name is served")
        return codec

    def _codec_of(self, model: str, digest: str) -> Codec:
        codec = self._codec(model)
        if digest not in ("", codec.digest):
            raise errors.TokenizerChanged(
                "the prompt was encoded with another tokenizer", metadata={"tokenizer_digest": codec.digest}
            )
        return codec

    async def _encode(self, codec: Codec, request: pb.EncodeRequest, prefix: str) -> Encoded:
        """Encode now or beside the loop, by size. prefix: of field paths in errors."""
        work: Callable[[], Encoded]
        if request.WhichOneof("input") == "text":
            field, size = f"{prefix}text", len(request.text)
            work = partial(codec.encode_text, request.text)
        else:
            field, messages = f"{prefix}conversation.messages", [_message(message) for message in request.conversation.messages]
            size = sum(len(message.content) for message in messages)
            work = partial(codec.encode_conversation, messages)
        if size > MAX_CONVERSATION_CHARS:
            raise _invalid(field, f"more than {MAX_CONVERSATION_CHARS} code points together")
        try:
            if size <= self._heavy_chars:
                return work()
            return await self._heavy_work.run(partial(_then_tidy, work))
        except QueueFull:
            raise Overloaded("too many long inputs wait to be encoded", retry_after_s=RETRY_AFTER_S) from None
        except TooManyTokens as error:
            raise _invalid(field, f"more than {error.limit} tokens") from None
        except TextNotUnicode:
            raise _invalid(field, "not Unicode text") from None
        except TemplateRefused as error:
            violation = (field, "the model's chat template does not accept this sequence of turns")
            raise errors.ChatTemplateRefused(str(error), field_violations=[violation]) from None


def _then_tidy(work: Callable[[], Encoded]) -> Encoded:
    try:
        return work()
    finally:
        give_back_free_memory()


def _unknown(error: TokenIdUnknown) -> MeshError:
    return errors.UnknownTokenId("the model has no such token", metadata={"token_id": str(error.token_id)})


def _message(message: chat_pb2.ChatMessage) -> Message:
    return Message(_ROLES[message.role], message.content, message.tool_call_id or None)


def _invalid(field: str, description: str) -> MeshError:
    return InvalidField(f"{field}: {description}", field_violations=[(field, description)])
