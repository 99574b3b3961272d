"""`python -m lionrock.tokenization --config FILE`."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Mapping

# One request is one thread's work here; the library's own pool would fight the other services of the machine for its cores.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from lionrock.chassis.settings import load_settings
from lionrock.modelstore.errors import ModelStoreError
from lionrock.tokenization.codec import Codec, open_codec
from lionrock.tokenization.codec_errors import CodecError
from lionrock.tokenization.free_memory import give_back_free_memory
from lionrock.tokenization.settings import TokenizationSettings


async def serve_codecs(settings: TokenizationSettings, codecs: Mapping[str, Codec]) -> None:
    """Serve until told to stop."""
    # Imported here, after the tokenizers are built: these modules then live where the garbage of building was (8 MiB less).
    from lionrock.chassis.server import Registration, serve
    from lionrock.tokenization.heavy_work import HeavyWork
    from lionrock.tokenization.servicer import CALLERS, SERVICE_NAME, TokenizationServicer
    from lionrock.tokenization.v1.tokenization_pb2_grpc import add_TokenizationServiceServicer_to_server

    heavy_work = HeavyWork(settings.heavy_threads, settings.heavy_queue)
    servicer = TokenizationServicer(codecs, heavy_work, heavy_chars=settings.heavy_chars)
    registration = Registration(add_TokenizationServiceServicer_to_server, servicer, SERVICE_NAME, CALLERS)
    try:
        await serve(settings, "tokenization", [registration], on_ready=tidy)
    finally:
        heavy_work.close()


async def tidy(port: int) -> None:
    """Give back what starting has left over."""
    del port
    gc.collect()
    give_back_free_memory()


def main() -> None:
    """Open every model's tokenizer, then serve. What is wrong with a model ends the program before anything listens."""
    settings = load_settings(TokenizationSettings, sys.argv[1:])
    try:
        codecs = {name: open_codec(name, path, max_tokens=settings.max_tokens) for name, path in settings.models.items()}
    except (ModelStoreError, CodecError) as error:
        sys.exit(f"lionrock tokenization: {error}")
    give_back_free_memory()
    asyncio.run(serve_codecs(settings, codecs))


if __name__ == "__main__":
    main()
