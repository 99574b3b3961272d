"""`transformers` eager: one static batch a call, without a server around it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.protocol import Answer, serve


class TransformersEngine:
    """See Engine. Prompts of one call have one length."""

    def __init__(self, model: Any) -> None:
        self._model = model

    async def answer(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        """See Engine."""
        return await asyncio.to_thread(self._answer, prompts, max_tokens)

    async def close(self) -> None:
        """See Engine."""

    def _answer(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        import torch
        import transformers

        first_s: list[float] = []
        begun_s = time.perf_counter()

        def note_first(_: Any, scores: Any) -> Any:
            if not first_s:
                first_s.append(time.perf_counter() - begun_s)
            return scores

        ids = torch.tensor(prompts)
        # No end of sequence: every answer has its full length.
        config: Any = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=max_tokens, eos_token_id=None, pad_token_id=0
        )
        with torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=transformers.LogitsProcessorList([note_first]),
            )
        last_s = time.perf_counter() - begun_s
        return [Answer(row, first_s[0], last_s) for row in output[:, ids.shape[1] :].tolist()]


async def start(options: dict[str, Any]) -> TransformersEngine:
    """Load. options: model, threads."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options["threads"])
    model: Any = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.bfloat16)
    model.eval()
    model.generation_config.eos_token_id = None
    return TransformersEngine(model)


if __name__ == "__main__":
    serve(start(json.loads(sys.argv[1])))
